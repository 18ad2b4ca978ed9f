//! Errors in Anthropic's shape: `{"type": "error", "error": {"type", "message", "details"}, "request_id"}`, whole or as an
//! event. The code of an error lies in `details.error_code`, where official clients find it (`anthropic` 2.14,
//! `_exceptions.py`), the field at fault beside it.

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use spillway_filter::{ErrorKind, Refusal};

use crate::protocol::chat::ObservedError;
use crate::protocol::json;
use crate::protocol::translate::{ApiError, kind_of, write_event};

/// Status that Anthropic's servers send when they are full.
const OVERLOADED: u16 = 529;

/// Code of refusals for want of any server, which is no overload.
const UNAVAILABLE: &str = "service_unavailable";

#[derive(Serialize)]
struct ErrorBody<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    error: ErrorFields<'a>,
    #[serde(skip_serializing_if = "str::is_empty")]
    request_id: &'a str,
}

#[derive(Serialize)]
struct ErrorFields<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details<'a>>,
}

#[derive(Serialize)]
struct Details<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    error_code: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    param: Option<&'a str>,
}

/// Type of an error. It follows the status, by which official clients choose their exception.
fn kind(kind: ErrorKind, status: StatusCode) -> &'static str {
    match (status.as_u16(), kind) {
        (402, _) => "billing_error",
        (413, _) => "request_too_large",
        (504 | 408, _) => "timeout_error",
        (OVERLOADED, _) => "overloaded_error",
        (429, _) => "rate_limit_error",
        (404, _) => "not_found_error",
        (_, ErrorKind::InvalidRequest) => "invalid_request_error",
        (_, ErrorKind::NotFound) => "not_found_error",
        (_, ErrorKind::Authentication) => "authentication_error",
        (_, ErrorKind::Permission) => "permission_error",
        (_, ErrorKind::RateLimited) => "rate_limit_error",
        (_, ErrorKind::Timeout) => "timeout_error",
        (_, ErrorKind::Overloaded | ErrorKind::Upstream | ErrorKind::Internal) => "api_error",
    }
}

/// Status of the answer that carries an error of this class: no room is 529 in this API, whatever the route says.
fn sent(kind: ErrorKind, status: StatusCode, code: Option<&str>) -> StatusCode {
    if kind == ErrorKind::Overloaded && code != Some(UNAVAILABLE) {
        return StatusCode::from_u16(OVERLOADED).unwrap_or(status);
    }
    status
}

/// Status of the answer that carries a refusal.
pub(super) fn sent_status(refusal: &Refusal) -> StatusCode {
    sent(refusal.kind, refusal.status, Some(refusal.code))
}

fn body<'a>(
    class: ErrorKind,
    status: StatusCode,
    message: &'a str,
    details: Option<Details<'a>>,
    request_id: &'a str,
) -> ErrorBody<'a> {
    ErrorBody { kind: "error", error: ErrorFields { kind: kind(class, status), message, details }, request_id }
}

fn body_of<'a>(refusal: &'a Refusal, request_id: &'a str) -> ErrorBody<'a> {
    let details = Details { error_code: Some(refusal.code), param: refusal.param.as_deref() };
    body(refusal.kind, sent_status(refusal), &refusal.message, Some(details), request_id)
}

/// Body of a refusal.
pub(super) fn error(refusal: &Refusal, request_id: &str) -> Bytes {
    json(&body_of(refusal, request_id))
}

/// Refusal as an event of a stream.
pub(super) fn error_event(refusal: &Refusal) -> Bytes {
    let mut out = BytesMut::new();
    write_event(&mut out, Some("error"), &body_of(refusal, ""));
    out.freeze()
}

fn body_of_api<'a>(error: &'a ApiError, status: StatusCode, request_id: &'a str) -> ErrorBody<'a> {
    let has_details = error.code.is_some() || error.param.is_some();
    let details = Details { error_code: error.code.as_deref(), param: error.param.as_deref() };
    body(error.kind, status, &error.message, has_details.then_some(details), request_id)
}

/// Status and body of a server's error.
pub(super) fn write(error: &ApiError, request_id: &str) -> (StatusCode, Bytes) {
    let status = sent(error.kind, error.status, None);
    (status, json(&body_of_api(error, status, request_id)))
}

/// Appends a server's error as an event.
pub(super) fn write_error_event(error: &ApiError, out: &mut BytesMut) {
    let status = sent(error.kind, error.status, None);
    write_event(out, Some("error"), &body_of_api(error, status, ""));
}

/// Error of a server as it is read.
#[derive(Deserialize)]
pub(super) struct ReadError {
    error: ReadFields,
}

#[derive(Deserialize)]
#[serde(from = "TextOrFields")]
struct ReadFields {
    kind: Option<String>,
    message: Option<String>,
    details: Option<ReadDetails>,
}

/// Error as servers that are not Anthropic's may write it: as a text alone.
#[derive(Deserialize)]
#[serde(untagged)]
enum TextOrFields {
    Text(String),
    Fields {
        #[serde(rename = "type")]
        kind: Option<String>,
        message: Option<String>,
        details: Option<ReadDetails>,
    },
}

impl From<TextOrFields> for ReadFields {
    fn from(read: TextOrFields) -> Self {
        match read {
            TextOrFields::Text(text) => Self { kind: None, message: Some(text), details: None },
            TextOrFields::Fields { kind, message, details } => Self { kind, message, details },
        }
    }
}

#[derive(Deserialize, Default)]
struct ReadDetails {
    error_code: Option<String>,
}

impl ReadError {
    /// The error, with `status` or, where the stream had begun, that of its type.
    pub(super) fn into_error(self, status: Option<StatusCode>) -> ApiError {
        let ReadFields { kind, message, details } = self.error;
        let of_type = || {
            let observed = ObservedError { kind: kind.clone().unwrap_or_default(), code: None };
            StatusCode::from_u16(status_of(&observed)).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
        };
        let status = status.unwrap_or_else(of_type);
        let code = details.and_then(|details| details.error_code).or(kind);
        let message = message.unwrap_or_else(|| format!("the backend answered {}", status.as_u16()));
        ApiError { status, kind: kind_of(status), message, code, param: None }
    }
}

/// Reads the error of a server.
pub(super) fn read(status: StatusCode, body: &[u8]) -> ApiError {
    match serde_json::from_slice::<ReadError>(body) {
        Ok(read) => read.into_error(Some(status)),
        Err(_) => ApiError::of_text(status, body),
    }
}

/// Error in a body or an event of a server that should be an answer.
pub(super) fn reported(body: &[u8]) -> Option<ApiError> {
    serde_json::from_slice::<ReadError>(body).ok().map(|read| read.into_error(None))
}

/// Status of an error that came without one, by its type.
pub(super) fn status_of(error: &ObservedError) -> u16 {
    match error.kind.as_str() {
        "invalid_request_error" => 400,
        "authentication_error" => 401,
        "billing_error" => 402,
        "permission_error" => 403,
        "not_found_error" => 404,
        "request_too_large" => 413,
        "rate_limit_error" => 429,
        "timeout_error" => 504,
        "overloaded_error" => OVERLOADED,
        _ => 500,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_the_type_and_status_that_clients_know() {
        for (status, kind, code, sent, expected) in [
            (400, ErrorKind::InvalidRequest, "x", 400, "invalid_request_error"),
            (401, ErrorKind::Authentication, "invalid_api_key", 401, "authentication_error"),
            (403, ErrorKind::Permission, "x", 403, "permission_error"),
            (404, ErrorKind::NotFound, "model_not_found", 404, "not_found_error"),
            (413, ErrorKind::InvalidRequest, "body_too_large", 413, "request_too_large"),
            (429, ErrorKind::RateLimited, "rate_limited", 429, "rate_limit_error"),
            (429, ErrorKind::Overloaded, "overloaded", 529, "overloaded_error"),
            (503, ErrorKind::Overloaded, "overloaded", 529, "overloaded_error"),
            (503, ErrorKind::Overloaded, "service_unavailable", 503, "api_error"),
            (500, ErrorKind::Internal, "x", 500, "api_error"),
            (502, ErrorKind::Upstream, "x", 502, "api_error"),
            (504, ErrorKind::Timeout, "x", 504, "timeout_error"),
        ] {
            let refusal = Refusal::new(StatusCode::from_u16(status).unwrap(), kind, code, "m");
            let body: serde_json::Value = serde_json::from_slice(&error(&refusal, "id")).unwrap();
            assert_eq!((sent_status(&refusal).as_u16(), &body["error"]["type"]), (sent, &expected.into()), "{code}");
            assert_eq!((&body["type"], &body["request_id"]), (&"error".into(), &"id".into()));
            assert_eq!(body["error"]["details"]["error_code"], code);
        }
        let refusal = Refusal::invalid("bad", "no").param("model");
        assert_eq!(
            error_event(&refusal),
            "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"invalid_request_error\",\"message\":\"no\",\
             \"details\":{\"error_code\":\"bad\",\"param\":\"model\"}}}\n\n"
        );
    }

    #[test]
    fn errors_of_servers_are_read_in_any_form() {
        let status = StatusCode::from_u16(529).unwrap();
        let read_one = |body: &str| {
            let ApiError { kind, message, code, .. } = read(status, body.as_bytes());
            (kind, message, code)
        };
        let official =
            r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"},"request_id":"r"}"#;
        let code = Some("overloaded_error".to_owned());
        assert_eq!(read_one(official), (ErrorKind::Overloaded, "Overloaded".to_owned(), code));
        assert_eq!(read_one("<html>busy</html>"), (ErrorKind::Overloaded, "<html>busy</html>".to_owned(), None));
        assert_eq!(read_one(""), (ErrorKind::Overloaded, "the backend answered 529".to_owned(), None));
    }
}
