//! APIs that callers and backends speak: operations ([`operation`]), the trait of an API ([`dialect`]), the neutral types of
//! a model call ([`chat`]) and one folder for each API. The room knows no route and no socket; its inputs are bytes and
//! refusals, its output is bytes.

mod anthropic;
mod chat;
mod dialect;
mod grpc;
mod inference;
mod members;
pub mod oip;
mod ollama;
mod openai;
mod operation;
mod pairs;
mod peek;
mod predict;
mod problem;
mod refusals;
mod registry;
mod text_end;
pub mod translate;

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;
use spillway_filter::{ErrorKind, Refusal};

pub use chat::{
    Call, ChatRequest, Choice, Encode, EncodeInput, EncodeRequest, Encoded, FieldNames, FinishReason, Ignored, Message,
    Observation, PromptInput, ResponseFormat, Said, ToolChoice, Usage, Written,
};
pub use dialect::{
    AnswerHead, AnswerTimes, BuiltinCard, ContinueStream, Dialect, FixedAsk, ListPage, ModelCard, ModelPath, Observe,
    ReadSocket, RetryAdvice, SocketEvent, SocketMessage, Speaker, StreamFraming, Transcribe, WriteAnswer,
};
pub use grpc::{
    GRPC_ACCEPT_ENCODING, GRPC_RETRY_PUSHBACK_MS, GRPC_STATUS, GRPC_TIMEOUT, is_grpc, read_timeout, server_error,
    write_timeout,
};
pub use inference::{AnswerName, InferenceCall, NamedModel};
pub use operation::{ModelPlace, ModelScope, Operation};
pub use pairs::call_translator;
pub use peek::{BodyEdit, form_model, is_form, is_utf8, looks_like_json, model_under, peek, prompt_prefix, without};
pub use predict::named_by_path;
pub use refusals::{http2_required, model_not_found, named, shown};
pub use registry::{ANTHROPIC, ForeignOperations, GRPC, OIP, OIP_GRPC, OLLAMA, OPENAI, PROBLEM, ResolvedOperation};

/// Header of an answer that names its backend, or its built-in model as `builtin/NAME`.
pub static SERVED_BY: HeaderName = HeaderName::from_static("x-spillway-served-by");

/// Header that names the fields of a request which the built-in model that answered has ignored, or which the server of
/// another API did not get.
pub static DROPPED: HeaderName = HeaderName::from_static("x-spillway-dropped");

static RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
static X_SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// Limit, remaining and reset of requests and of tokens, named as by OpenAI.
static RATE_LIMIT: [[HeaderName; 3]; 2] = [
    [
        HeaderName::from_static("x-ratelimit-limit-requests"),
        HeaderName::from_static("x-ratelimit-remaining-requests"),
        HeaderName::from_static("x-ratelimit-reset-requests"),
    ],
    [
        HeaderName::from_static("x-ratelimit-limit-tokens"),
        HeaderName::from_static("x-ratelimit-remaining-tokens"),
        HeaderName::from_static("x-ratelimit-reset-tokens"),
    ],
];

/// `Retry-After` of 429 and 503 where no better time is known.
const DEFAULT_WAIT: Duration = Duration::from_secs(1);

/// Wait above which a refusal tells official clients not to retry by themselves (`x-should-retry: false`): they would sleep
/// while their caller could already act on the error.
const TOO_LONG_TO_RETRY: Duration = Duration::from_secs(2);

/// Code of the refusal of a caller whose budget is spent, which no retry within a call of a client refills.
const SPENT: &str = "insufficient_quota";

/// Response that a refusal is rendered to.
#[derive(Debug)]
pub struct Rendered {
    /// Status.
    pub status: StatusCode,
    /// Content type.
    pub content_type: HeaderValue,
    /// Body.
    pub body: Bytes,
    /// `WWW-Authenticate`, `Retry-After` and its kin, and those of the dialect.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// Writes a value as JSON. This room writes strings, numbers and lists of them only, and those always serialize.
fn json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).unwrap_or_default().into()
}

/// Advice on a retry of a refused request. Where the gateway has no room for any caller, or a budget is spent, clients are not
/// to sleep through a long wait. A caller over a rate of its own is to come back after the wait, which official clients then
/// do by themselves.
fn retry_advice(refusal: &Refusal) -> RetryAdvice {
    let is_temporary = matches!(refusal.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
    let Some(wait) = refusal.retry_after.or(is_temporary.then_some(DEFAULT_WAIT)) else { return RetryAdvice::None };
    let is_own_rate = refusal.kind == ErrorKind::RateLimited && refusal.code != SPENT;
    if is_temporary && !is_own_rate && wait > TOO_LONG_TO_RETRY {
        RetryAdvice::NotByItself(wait)
    } else {
        RetryAdvice::After(wait)
    }
}

/// Wait in whole milliseconds, rounded up and never 0.
fn whole_millis(wait: Duration) -> u64 {
    u64::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(u64::MAX).max(1)
}

/// Adds `Retry-After` (whole seconds) and `retry-after-ms`. Both round up, because a client that retries early is refused
/// again.
fn retry_headers(advice: RetryAdvice, headers: &mut Vec<(HeaderName, HeaderValue)>) {
    let (RetryAdvice::After(wait) | RetryAdvice::NotByItself(wait)) = advice else { return };
    let millis = whole_millis(wait);
    headers.push((header::RETRY_AFTER, HeaderValue::from(millis.div_ceil(1000))));
    headers.push((RETRY_AFTER_MS.clone(), HeaderValue::from(millis)));
    if matches!(advice, RetryAdvice::NotByItself(_)) {
        headers.push((X_SHOULD_RETRY.clone(), HeaderValue::from_static("false")));
    }
}

/// Renders a refusal in a dialect. `request_id` is empty where there is none.
pub fn render(refusal: &Refusal, dialect: &dyn Dialect, request_id: &str) -> Rendered {
    let mut headers = Vec::new();
    if refusal.status == StatusCode::UNAUTHORIZED {
        let own = refusal.challenge.as_deref().and_then(|challenge| HeaderValue::from_str(challenge).ok());
        let challenge = own.unwrap_or(HeaderValue::from_static("Bearer realm=\"spillway\""));
        headers.push((header::WWW_AUTHENTICATE, challenge));
    }
    if refusal.status == StatusCode::UPGRADE_REQUIRED {
        // WebSocket is the only protocol that is asked for, and 13 its only version (RFC 6455, 4.4).
        headers.push((header::UPGRADE, HeaderValue::from_static("websocket")));
        headers.push((header::CONNECTION, HeaderValue::from_static("upgrade")));
        headers.push((header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13")));
    }
    let advice = retry_advice(refusal);
    retry_headers(advice, &mut headers);
    if let Some(codings) = refusal.accept_encoding {
        headers.push((dialect.accept_encoding_name(), HeaderValue::from_static(codings)));
    }
    headers.extend(dialect.error_headers(refusal, advice));
    let (content_type, body) = dialect.error(refusal, request_id);
    Rendered { status: dialect.sent_status(refusal), content_type, body, headers }
}

/// Formats the time until a limit is full again as OpenAI does: `12ms`, `1s`, `6m0s`.
pub fn reset_text(time: Duration) -> String {
    let millis = crate::clock::millis(time);
    let (mut first, mut second) = (itoa::Buffer::new(), itoa::Buffer::new());
    if millis < 1000 {
        return [first.format(millis), "ms"].concat();
    }
    match millis.div_ceil(1000) {
        seconds @ ..60 => [first.format(seconds), "s"].concat(),
        seconds => [first.format(seconds / 60), "m", second.format(seconds % 60), "s"].concat(),
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    fn value<'r>(rendered: &'r Rendered, name: &str) -> Option<&'r str> {
        rendered.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.to_str().unwrap())
    }

    #[test]
    fn openai_callers_get_openai_errors() {
        let refusal = Refusal::invalid("bad_thing", "no \"good\"\n").param("model");
        let rendered = render(&refusal, OPENAI, "id");
        assert_eq!(rendered.content_type, "application/json");
        assert_eq!(
            rendered.body,
            r#"{"error":{"message":"no \"good\"\n","type":"invalid_request_error","param":"model","code":"bad_thing"}}"#
        );
        assert!(rendered.headers.is_empty());
        assert_eq!(
            OPENAI.error_event(Operation::Chat, &refusal).unwrap(),
            "data: {\"error\":{\"message\":\"no \\\"good\\\"\\n\",\"type\":\"invalid_request_error\",\"param\":\"model\",\"code\":\"bad_thing\"}}\n\n"
        );
        assert!(PROBLEM.error_event(Operation::Chat, &refusal).is_none());
    }

    #[test]
    fn other_callers_get_problem_details() {
        let refusal = Refusal::new(StatusCode::NOT_FOUND, ErrorKind::NotFound, "no_route", "nothing here");
        let rendered = render(&refusal, PROBLEM, "id-1");
        assert_eq!(rendered.content_type, "application/problem+json");
        assert_eq!(
            rendered.body,
            r#"{"type":"about:blank","title":"Not Found","status":404,"detail":"nothing here","code":"no_route","requestId":"id-1"}"#
        );
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
            for dialect in [OPENAI, PROBLEM] {
                let rendered = render(&refusal, dialect, "id");
                assert_eq!(value(&rendered, "retry-after"), seconds, "{code} {wait:?}");
                assert_eq!(value(&rendered, "retry-after-ms"), millis, "{code} {wait:?}");
                assert_eq!(value(&rendered, "x-should-retry"), should_retry, "{code} {wait:?}");
            }
        }
        for code in [429, 503] {
            let own = Refusal::new(status(code), ErrorKind::RateLimited, "rate_limited", "m");
            let rendered = render(&own.retry_after(Duration::from_secs(9)), OPENAI, "id");
            assert_eq!((value(&rendered, "retry-after"), value(&rendered, "x-should-retry")), (Some("9"), None));
        }
        let unknown = Refusal::new(status(401), ErrorKind::Authentication, "invalid_api_key", "m");
        let rendered = render(&unknown, PROBLEM, "id");
        assert_eq!(value(&rendered, "www-authenticate"), Some("Bearer realm=\"spillway\""));
    }

    #[test]
    fn the_dialect_is_known_by_the_path() {
        let dialect = |path: &str| ResolvedOperation::of(&Method::POST, path).dialect;
        for path in [
            "/v1/chat/completions",
            "/v1/completions",
            "/v1/embeddings",
            "/v1/models",
            "/v1/models/a/b",
            "/v1/responses/r1",
        ] {
            assert_eq!(dialect(path), OPENAI, "{path}");
        }
        for path in
            ["/", "/v1", "/v1/", "/v1/modelsx", "/v1/chat", "/v2/models", "/x/v1/models", "/V1/models", "/rerank"]
        {
            assert_eq!(dialect(path), PROBLEM, "{path}");
        }
    }

    #[test]
    fn a_model_is_named_where_its_api_names_it() {
        for (path, name, place) in [
            ("/v1/chat/completions", "openai", ModelPlace::Body),
            ("/v2/models/m/infer", "oip", ModelPlace::Path),
            ("/inference.GRPCInferenceService/ModelInfer", "oip-grpc", ModelPlace::Message),
            ("/v1/models/m:predict", "tensorflow", ModelPlace::Path),
            ("/predictions/m", "torchserve", ModelPlace::Path),
            ("/", "problem+json", ModelPlace::Body),
        ] {
            let resolved = ResolvedOperation::of(&Method::POST, path);
            assert_eq!((resolved.api.name(), resolved.model_place), (name, place), "{path}");
        }
    }

    #[test]
    fn an_operation_is_known_by_method_and_path() {
        for (method, path, operation, must_be_json, writes_tokens) in [
            (Method::POST, "/v1/chat/completions", Operation::Chat, true, true),
            (Method::GET, "/v1/chat/completions", Operation::Other, false, true),
            (Method::POST, "/v1/completions", Operation::Completions, true, true),
            (Method::POST, "/v1/embeddings", Operation::Embeddings, true, false),
            (Method::POST, "/v1/rerank", Operation::Rerank, true, true),
            (Method::POST, "/rerank", Operation::Rerank, false, true),
            (Method::POST, "/v2/rerank", Operation::Rerank, false, true),
            (Method::GET, "/rerank", Operation::Other, false, true),
            (Method::POST, "/v1/responses", Operation::Responses, true, true),
            (Method::GET, "/v1/responses/r1", Operation::Other, false, true),
            (Method::GET, "/v1/models", Operation::Models, false, true),
            (Method::HEAD, "/v1/models/a/b", Operation::Models, false, true),
            (Method::POST, "/v1/models", Operation::Other, true, true),
            (Method::POST, "/openai/v1/embeddings", Operation::Other, false, false),
            (Method::POST, "/v1/moderations", Operation::Other, true, false),
            (Method::POST, "/v1/audio/speech", Operation::Other, true, false),
            (Method::POST, "/v1/audio/transcriptions", Operation::Other, false, true),
            (Method::POST, "/v1/images/generations", Operation::Other, true, false),
            (Method::POST, "/v1/images/edits", Operation::Other, false, false),
            (Method::POST, "/api/chat", Operation::Chat, false, true),
            (Method::POST, "/api/embed", Operation::Embeddings, false, false),
            (Method::GET, "/", Operation::Other, false, true),
            (Method::POST, "/v2/models/m/infer", Operation::Inference(InferenceCall::Infer), false, false),
            (Method::POST, "/v2/models/m/generate", Operation::Inference(InferenceCall::OtherOfModel), false, true),
            (Method::POST, "/v1/models/m:predict", Operation::Other, false, true),
            (Method::GET, "/v1/models/m:predict", Operation::Models, false, true),
            (Method::POST, "/predictions/m", Operation::Other, false, true),
        ] {
            let resolved = ResolvedOperation::of(&method, path);
            let facts = (resolved.operation, resolved.must_be_json, resolved.writes_tokens);
            assert_eq!(facts, (operation, must_be_json, writes_tokens), "{method} {path}");
        }
    }

    #[test]
    fn a_shared_path_belongs_to_its_api_on_routes_that_call_models() {
        for (path, dialect) in [("/api/chat", OLLAMA), ("/rerank", OPENAI)] {
            let resolved = ResolvedOperation::of(&Method::POST, path);
            assert!(resolved.is_shared() && resolved.dialect == PROBLEM && !resolved.must_be_json, "{path}");
            let there = resolved.on_models();
            assert_eq!((there.dialect, there.must_be_json), (dialect, path == "/api/chat"), "{path}");
            assert_eq!(there.operation, resolved.operation);
        }
        assert!(!ResolvedOperation::of(&Method::POST, "/v1/chat/completions").is_shared());
        assert!(!ResolvedOperation::of(&Method::POST, "/api/other").is_shared());
    }

    #[test]
    fn resets_are_written_as_openai_does() {
        let texts = [0, 12, 1000, 1001, 360_000].map(|ms| reset_text(Duration::from_millis(ms)));
        assert_eq!(texts, ["0ms", "12ms", "1s", "2s", "6m0s"]);
    }
}
