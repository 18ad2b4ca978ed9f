//! Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`, whole or as an event.

use bytes::Bytes;
use http::StatusCode;
use serde::Serialize;
use spillway_filter::{ErrorKind, Refusal};

use crate::protocol::json;

#[derive(Serialize)]
struct ErrorBody<'a> {
    error: ErrorFields<'a>,
}

#[derive(Serialize)]
struct ErrorFields<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<&'a str>,
    code: &'static str,
}

/// Type of an error. The type follows the status, whichever side is at fault: official clients choose their exception by
/// the status.
fn kind(refusal: &Refusal) -> &'static str {
    match (refusal.kind, refusal.status) {
        // Clients recognise by this type that they must not retry.
        (_, StatusCode::TOO_MANY_REQUESTS) if refusal.code == "insufficient_quota" => "insufficient_quota",
        (_, StatusCode::TOO_MANY_REQUESTS) => "rate_limit_exceeded",
        (_, StatusCode::SERVICE_UNAVAILABLE) => "service_unavailable",
        (ErrorKind::InvalidRequest | ErrorKind::NotFound, _) => "invalid_request_error",
        (ErrorKind::Authentication, _) => "authentication_error",
        (ErrorKind::Permission, _) => "permission_error",
        (ErrorKind::RateLimited, _) => "rate_limit_exceeded",
        (ErrorKind::Overloaded, _) => "service_unavailable",
        (ErrorKind::Upstream | ErrorKind::Timeout | ErrorKind::Internal, _) => "server_error",
    }
}

/// Body of a refusal.
pub(super) fn error(refusal: &Refusal) -> Bytes {
    let (message, param) = (&*refusal.message, refusal.param.as_deref());
    json(&ErrorBody { error: ErrorFields { message, kind: kind(refusal), param, code: refusal.code } })
}

/// Refusal as an event of a stream.
pub(super) fn error_event(refusal: &Refusal) -> Bytes {
    [b"data: ", &*error(refusal), b"\n\n"].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_the_type_that_clients_know() {
        for (status, kind, code, expected) in [
            (400, ErrorKind::InvalidRequest, "x", "invalid_request_error"),
            (401, ErrorKind::Authentication, "invalid_api_key", "authentication_error"),
            (403, ErrorKind::Permission, "x", "permission_error"),
            (404, ErrorKind::NotFound, "model_not_found", "invalid_request_error"),
            (429, ErrorKind::RateLimited, "x", "rate_limit_exceeded"),
            (429, ErrorKind::RateLimited, "insufficient_quota", "insufficient_quota"),
            (429, ErrorKind::Overloaded, "overloaded", "rate_limit_exceeded"),
            (500, ErrorKind::Internal, "x", "server_error"),
            (502, ErrorKind::Upstream, "x", "server_error"),
            (503, ErrorKind::Overloaded, "x", "service_unavailable"),
            (503, ErrorKind::Upstream, "x", "service_unavailable"),
            (504, ErrorKind::Timeout, "x", "server_error"),
        ] {
            let refusal = Refusal::new(StatusCode::from_u16(status).unwrap(), kind, code, "m");
            assert_eq!(super::kind(&refusal), expected, "{status} {kind:?} {code}");
        }
    }
}
