//! Errors of servers, and errors of servers of other APIs for callers.

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use serde::Serialize;
use serde_json::Value;
use spillway_filter::ErrorKind;

use crate::protocol::chat::ObservedError;
use crate::protocol::json;
use crate::protocol::translate::{ApiError, kind_of, write_event};

/// Status for no room, which this API has no 529 for.
const NO_ROOM: StatusCode = StatusCode::SERVICE_UNAVAILABLE;

/// Reads the error of a server: an object or a text under `error`, or the fields beside each other, as older vLLM has them.
pub(super) fn read(status: StatusCode, body: &[u8]) -> ApiError {
    match serde_json::from_slice::<Value>(body) {
        Ok(value) => of_value(&value, Some(status)),
        Err(_) => ApiError::of_text(status, body),
    }
}

/// Error in a body or an event of a server that should be an answer: under `error`, or as the whole value, which says so then.
pub(super) fn reported(body: &[u8]) -> Option<ApiError> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let is_under_error = value.get("error").is_some_and(|error| !error.is_null());
    let says_error = ["object", "type"].iter().any(|name| value.get(name).is_some_and(|says| says == "error"));
    (is_under_error || says_error).then(|| of_value(&value, None))
}

/// Error in a value, with `status` or, where the stream had begun, that of its type and code.
pub(super) fn of_value(value: &Value, status: Option<StatusCode>) -> ApiError {
    let fields = value.get("error").filter(|error| error.is_object()).unwrap_or(value);
    let text = |name: &str| fields.get(name).and_then(Value::as_str).map(str::to_owned);
    let code = match fields.get("code") {
        Some(Value::String(code)) => Some(code.clone()),
        Some(Value::Number(code)) => Some(code.to_string()),
        _ => None,
    };
    let kind = text("type");
    let of_words = || {
        let observed = ObservedError { kind: kind.clone().unwrap_or_default(), code: code.clone() };
        StatusCode::from_u16(super::super::error::status(&observed)).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    };
    let status = status.unwrap_or_else(of_words);
    let bare = || value.as_str().or_else(|| value.get("error")?.as_str()).map(str::to_owned);
    let said = text("message").or_else(bare);
    let message = said.or_else(|| fields.get("detail").map(Value::to_string));
    let message = message.unwrap_or_else(|| format!("the backend answered {}", status.as_u16()));
    ApiError { status, kind: kind_of(status), message, code: code.or(kind), param: text("param") }
}

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
    code: Option<&'a str>,
}

/// Type of an error in the words of the API.
pub(in crate::protocol) fn kind(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::InvalidRequest | ErrorKind::NotFound => "invalid_request_error",
        ErrorKind::Authentication => "authentication_error",
        ErrorKind::Permission => "permission_error",
        ErrorKind::RateLimited => "rate_limit_exceeded",
        ErrorKind::Overloaded => "service_unavailable",
        ErrorKind::Upstream | ErrorKind::Timeout | ErrorKind::Internal => "server_error",
    }
}

fn body(error: &ApiError) -> ErrorBody<'_> {
    let kind = kind(error.kind);
    let fields =
        ErrorFields { message: &error.message, kind, param: error.param.as_deref(), code: error.code.as_deref() };
    ErrorBody { error: fields }
}

/// Status and body of an error.
pub(in crate::protocol) fn write(error: &ApiError) -> (StatusCode, Bytes) {
    let status = if error.status.as_u16() == 529 { NO_ROOM } else { error.status };
    (status, json(&body(error)))
}

/// Appends an error as an event.
pub(super) fn write_error_event(error: &ApiError, out: &mut BytesMut) {
    write_event(out, None, &body(error));
}
