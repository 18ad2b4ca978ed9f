//! RFC 9457 problem details: the errors of requests that call no model.

use bytes::Bytes;
use http::HeaderValue;
use serde::Serialize;
use spillway_filter::Refusal;

use super::dialect::Dialect;
use super::json;

/// Dialect of requests that call no model.
pub(super) struct Problem;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Details<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'a str,
    status: u16,
    detail: &'a str,
    code: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    request_id: &'a str,
}

impl Dialect for Problem {
    fn name(&self) -> &'static str {
        "problem+json"
    }

    fn error(&self, refusal: &Refusal, request_id: &str) -> (HeaderValue, Bytes) {
        let details = Details {
            kind: "about:blank",
            title: refusal.status.canonical_reason().unwrap_or("Error"),
            status: refusal.status.as_u16(),
            detail: &refusal.message,
            code: refusal.code,
            request_id,
        };
        (HeaderValue::from_static("application/problem+json"), json(&details))
    }
}
