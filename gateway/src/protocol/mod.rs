//! The shapes of the APIs that callers speak: errors, wire types, what is read from an answer as it passes.
//! It knows no route and no socket; its inputs are bytes and refusals, its output is bytes.

pub mod openai;

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;
use spillway_filter::{ErrorKind, Refusal};

static RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
static X_SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// What 429 and 503 say where nobody knows better.
const DEFAULT_WAIT: Duration = Duration::from_secs(1);

/// Above this wait, official clients are told not to try again by themselves: they would hold a caller that could have
/// been told at once.
const TOO_LONG_TO_RETRY: Duration = Duration::from_secs(2);

/// The API that a caller speaks, which is the shape of its errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    /// `{"error": {"message", "type", "param", "code"}}`.
    OpenAi,
    /// RFC 9457 `application/problem+json`.
    Problem,
}

impl Api {
    /// The API of a path, before its route is known.
    pub fn of_path(path: &str) -> Self {
        const PLACES: [&str; 6] = ["chat/completions", "completions", "embeddings", "models", "responses", "rerank"];
        let is_openai = path.strip_prefix("/v1/").is_some_and(|rest| {
            PLACES.iter().any(|place| {
                rest.strip_prefix(place).is_some_and(|deeper| deeper.is_empty() || deeper.starts_with('/'))
            })
        });
        if is_openai { Self::OpenAi } else { Self::Problem }
    }
}

/// A refusal as it is sent.
#[derive(Debug)]
pub struct Rendered {
    /// Status.
    pub status: StatusCode,
    /// Content type.
    pub content_type: HeaderValue,
    /// Body.
    pub body: Bytes,
    /// `WWW-Authenticate`, `Retry-After` and its kin.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

#[derive(Serialize)]
struct OpenAiError<'a> {
    error: OpenAiBody<'a>,
}

#[derive(Serialize)]
struct OpenAiBody<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<&'a str>,
    code: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Problem<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'a str,
    status: u16,
    detail: &'a str,
    code: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    request_id: &'a str,
}

fn openai_error(refusal: &Refusal) -> OpenAiError<'_> {
    let kind = match (refusal.kind, refusal.status) {
        // Clients must not try these again, and tell them by the type.
        (_, StatusCode::TOO_MANY_REQUESTS) if refusal.code == "insufficient_quota" => "insufficient_quota",
        // The type goes with the status, whoever is at fault: official clients choose their exception by the status.
        (_, StatusCode::TOO_MANY_REQUESTS) => "rate_limit_exceeded",
        (_, StatusCode::SERVICE_UNAVAILABLE) => "service_unavailable",
        (ErrorKind::InvalidRequest | ErrorKind::NotFound, _) => "invalid_request_error",
        (ErrorKind::Authentication, _) => "authentication_error",
        (ErrorKind::Permission, _) => "permission_error",
        (ErrorKind::RateLimited, _) => "rate_limit_exceeded",
        (ErrorKind::Overloaded, _) => "service_unavailable",
        (ErrorKind::Upstream | ErrorKind::Timeout | ErrorKind::Internal, _) => "server_error",
    };
    OpenAiError {
        error: OpenAiBody { message: &refusal.message, kind, param: refusal.param.as_deref(), code: refusal.code },
    }
}

/// The bytes of a value made of strings, numbers and lists of them, which is all that this room writes: nothing in it
/// can fail to be written to memory.
fn json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).unwrap_or_default().into()
}

/// `Retry-After` counts whole seconds and so rounds up; `retry-after-ms` is exact to the millisecond and rounds up too,
/// because a client that comes back early is refused again.
fn retry_headers(wait: Duration, is_shed: bool, headers: &mut Vec<(HeaderName, HeaderValue)>) {
    let millis = u64::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(u64::MAX).max(1);
    headers.push((header::RETRY_AFTER, HeaderValue::from(millis.div_ceil(1000))));
    headers.push((RETRY_AFTER_MS.clone(), HeaderValue::from(millis)));
    if is_shed && wait > TOO_LONG_TO_RETRY {
        headers.push((X_SHOULD_RETRY.clone(), HeaderValue::from_static("false")));
    }
}

/// A refusal in the shape of `api`.
pub fn render(refusal: &Refusal, api: Api, request_id: &str) -> Rendered {
    let mut headers = Vec::new();
    if refusal.status == StatusCode::UNAUTHORIZED {
        headers.push((header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"spillway\"")));
    }
    let is_shed = matches!(refusal.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
    if let Some(wait) = refusal.retry_after.or(is_shed.then_some(DEFAULT_WAIT)) {
        retry_headers(wait, is_shed, &mut headers);
    }
    let (content_type, body) = match api {
        Api::OpenAi => ("application/json", json(&openai_error(refusal))),
        Api::Problem => (
            "application/problem+json",
            json(&Problem {
                kind: "about:blank",
                title: refusal.status.canonical_reason().unwrap_or("Error"),
                status: refusal.status.as_u16(),
                detail: &refusal.message,
                code: refusal.code,
                request_id,
            }),
        ),
    };
    Rendered { status: refusal.status, content_type: HeaderValue::from_static(content_type), body, headers }
}

/// A refusal as an event, after the head of an event stream is out; `None` where the API has none.
pub fn error_event(refusal: &Refusal, api: Api) -> Option<Bytes> {
    match api {
        Api::OpenAi => {
            let mut event = b"data: ".to_vec();
            event.extend_from_slice(&json(&openai_error(refusal)));
            event.extend_from_slice(b"\n\n");
            Some(event.into())
        }
        Api::Problem => None,
    }
}

/// A time until a limit is full again, as OpenAI writes it: `12ms`, `1s`, `6m0s`.
pub fn reset_text(time: Duration) -> String {
    let millis = time.as_millis();
    if millis < 1000 {
        return format!("{millis}ms");
    }
    let seconds = millis.div_ceil(1000);
    if seconds < 60 { format!("{seconds}s") } else { format!("{}m{}s", seconds / 60, seconds % 60) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value<'r>(rendered: &'r Rendered, name: &str) -> Option<&'r str> {
        rendered.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.to_str().unwrap())
    }

    #[test]
    fn openai_callers_get_openai_errors() {
        let refusal = Refusal::invalid("bad_thing", "no \"good\"\n").param("model");
        let rendered = render(&refusal, Api::OpenAi, "id");
        assert_eq!(rendered.content_type, "application/json");
        assert_eq!(
            rendered.body,
            r#"{"error":{"message":"no \"good\"\n","type":"invalid_request_error","param":"model","code":"bad_thing"}}"#
        );
        assert!(rendered.headers.is_empty());
        assert_eq!(
            error_event(&refusal, Api::OpenAi).unwrap(),
            "data: {\"error\":{\"message\":\"no \\\"good\\\"\\n\",\"type\":\"invalid_request_error\",\"param\":\"model\",\"code\":\"bad_thing\"}}\n\n"
        );
        assert!(error_event(&refusal, Api::Problem).is_none());
    }

    #[test]
    fn other_callers_get_problem_details() {
        let refusal = Refusal::new(StatusCode::NOT_FOUND, ErrorKind::NotFound, "no_route", "nothing here");
        let rendered = render(&refusal, Api::Problem, "id-1");
        assert_eq!(rendered.content_type, "application/problem+json");
        assert_eq!(
            rendered.body,
            r#"{"type":"about:blank","title":"Not Found","status":404,"detail":"nothing here","code":"no_route","requestId":"id-1"}"#
        );
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
            assert_eq!(openai_error(&refusal).error.kind, expected, "{status} {kind:?} {code}");
        }
    }

    #[test]
    fn waits_are_rounded_up_and_long_ones_are_not_slept_through() {
        let status = |code| StatusCode::from_u16(code).unwrap();
        for (code, wait, seconds, millis, should_retry) in [
            (429, None, Some("1"), Some("1000"), None),
            (503, None, Some("1"), Some("1000"), None),
            (500, None, None, None, None),
            (429, Some(Duration::ZERO), Some("1"), Some("1"), None),
            (429, Some(Duration::from_micros(1200)), Some("1"), Some("2"), None),
            (429, Some(Duration::from_millis(1500)), Some("2"), Some("1500"), None),
            (429, Some(Duration::from_secs(2)), Some("2"), Some("2000"), None),
            (503, Some(Duration::from_millis(2001)), Some("3"), Some("2001"), Some("false")),
            (500, Some(Duration::from_secs(9)), Some("9"), Some("9000"), None),
        ] {
            let mut refusal = Refusal::new(status(code), ErrorKind::Overloaded, "x", "m");
            refusal.retry_after = wait;
            for api in [Api::OpenAi, Api::Problem] {
                let rendered = render(&refusal, api, "id");
                assert_eq!(value(&rendered, "retry-after"), seconds, "{code} {wait:?}");
                assert_eq!(value(&rendered, "retry-after-ms"), millis, "{code} {wait:?}");
                assert_eq!(value(&rendered, "x-should-retry"), should_retry, "{code} {wait:?}");
            }
        }
        let unknown = Refusal::new(status(401), ErrorKind::Authentication, "invalid_api_key", "m");
        let rendered = render(&unknown, Api::Problem, "id");
        assert_eq!(value(&rendered, "www-authenticate"), Some("Bearer realm=\"spillway\""));
    }

    #[test]
    fn the_api_is_known_by_the_path() {
        for path in [
            "/v1/chat/completions",
            "/v1/completions",
            "/v1/embeddings",
            "/v1/models",
            "/v1/models/a/b",
            "/v1/responses/r1",
        ] {
            assert_eq!(Api::of_path(path), Api::OpenAi, "{path}");
        }
        for path in ["/", "/v1", "/v1/", "/v1/modelsx", "/v1/chat", "/v2/models", "/x/v1/models", "/V1/models"] {
            assert_eq!(Api::of_path(path), Api::Problem, "{path}");
        }
    }

    #[test]
    fn resets_are_written_as_openai_does() {
        let texts = [0, 12, 1000, 1001, 360_000].map(|ms| reset_text(Duration::from_millis(ms)));
        assert_eq!(texts, ["0ms", "12ms", "1s", "2s", "6m0s"]);
    }
}
