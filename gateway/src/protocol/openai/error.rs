//! Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`, whole or as an event.

use bytes::Bytes;
use http::StatusCode;
use serde::Serialize;
use spillway_filter::{ErrorKind, Refusal};

use crate::protocol::chat::ObservedError;
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
pub(super) fn kind(refusal: &Refusal) -> &'static str {
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

/// Codes of failed answers of the Responses API whose cause is the request or what it names (`ResponseError` of the official
/// clients). The others are `rate_limit_exceeded` and those of the server: `server_error`, `vector_store_timeout`.
const CALLERS_CODES: [&str; 18] = [
    "invalid_prompt",
    "data_residency_mismatch",
    "bio_policy",
    "misalignment_policy_violation",
    "invalid_image",
    "invalid_image_format",
    "invalid_base64_image",
    "invalid_image_url",
    "image_too_large",
    "image_too_small",
    "image_parse_error",
    "image_content_policy_violation",
    "invalid_image_mode",
    "image_file_too_large",
    "unsupported_image_media_type",
    "empty_image_file",
    "failed_to_download_image",
    "image_file_not_found",
];

/// Status of an error that came without one: its code where that is a status, else what its type and code say. OpenAI
/// writes `invalid_request_error`, vLLM `BadRequestError`.
pub(super) fn status(error: &ObservedError) -> u16 {
    let code = error.code.as_deref().unwrap_or_default();
    if let Some(status) = code.parse().ok().filter(|status| (400..600).contains(status)) {
        return status;
    }
    let of = |text: &str| match text {
        "invalid_request_error" | "BadRequestError" | "context_length_exceeded" | "exceed_context_size_error" => {
            Some(400)
        }
        "authentication_error" | "invalid_api_key" => Some(401),
        "permission_error" => Some(403),
        "not_found_error" | "NotFoundError" | "model_not_found" => Some(404),
        "insufficient_quota" | "rate_limit_error" | "rate_limit_exceeded" => Some(429),
        "not_supported_error" | "NotImplementedError" => Some(501),
        "overloaded_error" | "unavailable_error" | "service_unavailable" => Some(503),
        text if CALLERS_CODES.contains(&text) => Some(400),
        _ => None,
    };
    of(code).or_else(|| of(&error.kind)).unwrap_or(500)
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
    fn an_error_without_a_status_says_whose_fault_it_is() {
        for (kind, code, expected) in [
            ("InternalServerError", Some("500"), 500),
            ("BadRequestError", Some("400"), 400),
            ("BadRequestError", None, 400),
            ("server_error", Some("server_error"), 500),
            ("", Some("502"), 502),
            ("", Some("7"), 500),
            ("invalid_request_error", Some("context_length_exceeded"), 400),
            ("rate_limit_exceeded", None, 429),
            ("unavailable_error", Some("503"), 503),
            ("not_supported_error", None, 501),
            ("", Some("invalid_prompt"), 400),
            ("", Some("image_content_policy_violation"), 400),
            ("", Some("failed_to_download_image"), 400),
            ("", Some("vector_store_timeout"), 500),
            ("", None, 500),
        ] {
            let error = ObservedError { kind: kind.into(), code: code.map(str::to_owned) };
            assert_eq!(status(&error), expected, "{error:?}");
        }
    }

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
