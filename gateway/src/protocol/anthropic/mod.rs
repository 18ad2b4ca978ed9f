//! Anthropic's Messages API. [`Anthropic`] implements its dialect, [`Messages`] its translation; they are the only ways into
//! this folder. Shapes are those of the official client, `anthropic` 2.14.

mod error;
mod models;
mod reply;
mod request;
#[cfg(test)]
pub(super) mod tests;

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use serde::Serialize;
use spillway_filter::{Fields, Refusal, SystemPlace};
use time::OffsetDateTime;

use super::chat::{ChatRequest, ObservedError};
use super::dialect::{AnswerHead, Dialect, ListPage, ModelCard, ModelPath, Observe, WriteAnswer};
use super::openai::{OpenAi, counts};
use super::operation::{Known, Operation};
use super::translate::{
    self, Api, ApiError, Asked, CallerApi, Conversation, CountCaller, CountServer, CredentialForm, Lossy, ReadStream,
    Reply, ServerApi, ServerWords, Unreadable, WriteStream, WrittenRequest,
};
use request::Purpose;

/// Path of messages, below which the others are.
const MESSAGES: &str = "/v1/messages";
const COUNT: &str = "/v1/messages/count_tokens";

/// Header with the version of the API, which every request has.
pub(super) static VERSION: HeaderName = HeaderName::from_static("anthropic-version");

/// Version that servers get where the caller named none: the first one, which all know.
static DEFAULT_VERSION: HeaderValue = HeaderValue::from_static("2023-06-01");

/// Header of an answer with the id of the request.
static REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

/// Limit, remaining and reset of requests and of tokens.
static LIMITS: [[HeaderName; 3]; 2] = [
    [
        HeaderName::from_static("anthropic-ratelimit-requests-limit"),
        HeaderName::from_static("anthropic-ratelimit-requests-remaining"),
        HeaderName::from_static("anthropic-ratelimit-requests-reset"),
    ],
    [
        HeaderName::from_static("anthropic-ratelimit-tokens-limit"),
        HeaderName::from_static("anthropic-ratelimit-tokens-remaining"),
        HeaderName::from_static("anthropic-ratelimit-tokens-reset"),
    ],
];

/// Dialect of Anthropic's API.
pub(super) struct Anthropic;

/// Translator of messages.
pub(super) struct Messages;

/// Time by RFC 3339 to the second, in UTC.
fn rfc3339(unix: u64) -> String {
    let second = i64::try_from(unix).unwrap_or(i64::MAX);
    let at = OffsetDateTime::from_unix_timestamp(second).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let (month, day) = (u8::from(at.month()), at.day());
    let (year, hour, minute, second) = (at.year(), at.hour(), at.minute(), at.second());
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

impl Dialect for Anthropic {
    fn name(&self) -> &'static str {
        "anthropic"
    }

    fn system_place(&self, operation: Operation) -> Option<SystemPlace> {
        match operation {
            Operation::Messages | Operation::CountTokens => Some(SystemPlace::System),
            _ => None,
        }
    }

    fn operation(&self, method: &Method, path: &str) -> Option<Known> {
        let below = path.strip_prefix(MESSAGES)?;
        if !(below.is_empty() || below.starts_with('/')) {
            return None;
        }
        let is_post = method == Method::POST;
        let operation = match path {
            MESSAGES if is_post => Operation::Messages,
            COUNT if is_post => Operation::CountTokens,
            _ => Operation::Other,
        };
        Some(Known { operation, is_own_path: true, must_be_json: is_post })
    }

    fn error(&self, refusal: &Refusal, request_id: &str) -> (HeaderValue, Bytes) {
        (HeaderValue::from_static("application/json"), error::error(refusal, request_id))
    }

    fn sent_status(&self, refusal: &Refusal) -> StatusCode {
        error::sent_status(refusal)
    }

    fn error_event(&self, _operation: Operation, refusal: &Refusal) -> Option<Bytes> {
        Some(error::error_event(refusal))
    }

    fn full_statuses(&self) -> &'static [u16] {
        &[429, 503, 529]
    }

    fn default_headers(&self) -> Vec<(HeaderName, HeaderValue)> {
        vec![(VERSION.clone(), DEFAULT_VERSION.clone())]
    }

    fn request_id_header(&self) -> Option<&'static HeaderName> {
        Some(&REQUEST_ID)
    }

    fn limit_headers(&self, is_tokens: bool) -> &'static [HeaderName; 3] {
        let [requests, tokens] = &LIMITS;
        if is_tokens { tokens } else { requests }
    }

    fn limit_reset(&self, reset: Duration) -> String {
        rfc3339(crate::clock::unix_now().saturating_add(crate::clock::millis(reset).div_ceil(1000)))
    }

    fn observe(&self, headers: &Fields) -> Option<Box<dyn Observe>> {
        // One observer reads the shapes of both APIs: many servers have both.
        OpenAi.observe(headers)
    }

    fn error_status(&self, error: &ObservedError) -> u16 {
        error::status_of(error)
    }

    fn model_path<'p>(&self, path: &'p str) -> ModelPath<'p> {
        OpenAi.model_path(path)
    }

    fn model_list(&self, models: &[ModelCard<'_>]) -> Option<Bytes> {
        Some(models::list(models))
    }

    fn list_query(&self, after: Option<&str>) -> String {
        models::list_query(after)
    }

    fn read_list(&self, body: &[u8]) -> Option<ListPage> {
        models::read_list(body)
    }

    fn model(&self, model: ModelCard<'_>) -> Option<Bytes> {
        Some(models::one(model))
    }

    fn read_chat(&self, operation: Operation, body: &[u8]) -> Option<Result<ChatRequest, Refusal>> {
        let purpose = match operation {
            Operation::Messages => Purpose::Message,
            Operation::CountTokens => Purpose::Count,
            _ => return None,
        };
        Some(request::read(body, purpose).and_then(translate::chat_request))
    }

    fn write_answer(&self, head: AnswerHead<'_>) -> Option<Box<dyn WriteAnswer>> {
        Some(translate::answer(&Messages, format!("msg_{}", head.id.simple()), head))
    }

    fn write_token_count(&self, tokens: u64) -> Option<Bytes> {
        Some(token_count(tokens))
    }

    fn translator(&self, operation: Operation) -> Option<&'static dyn CallerApi> {
        (operation == Operation::Messages).then_some(&Messages)
    }

    fn conversations(&self) -> Option<&'static dyn ServerApi> {
        Some(&Messages)
    }
}

/// Callers who ask for counts of tokens.
pub(super) static COUNT_CALLER: CountCaller =
    CountCaller { api: &Messages, read: |body| request::read(body, Purpose::Count), write: token_count };

/// Servers that count tokens.
pub(super) static COUNTS: CountServer =
    CountServer { api: &Messages, path: COUNT, write: write_count, read: counts::input_tokens };

/// Answer with a number of tokens.
fn token_count(tokens: u64) -> Bytes {
    #[derive(Serialize)]
    struct Count {
        input_tokens: u64,
    }
    super::json(&Count { input_tokens: tokens })
}

/// Writes a question for the number of tokens: what the model reads of a request.
fn write_count(conversation: &Conversation, model: &str, lossy: &mut Lossy<'_>) -> Result<WrittenRequest, Refusal> {
    const COUNTED: [&str; 7] = ["messages", "model", "output_config", "system", "thinking", "tool_choice", "tools"];
    let mut body = request::write(conversation, model, lossy)?;
    if let Some(body) = body.as_object_mut() {
        body.retain(|name, _| COUNTED.contains(&name.as_str()));
    }
    Ok(WrittenRequest { body: super::json(&body), headers: vec![(VERSION.clone(), DEFAULT_VERSION.clone())] })
}

impl Api for Messages {
    fn path(&self) -> &'static str {
        MESSAGES
    }

    fn credential_form(&self) -> CredentialForm {
        CredentialForm::Header("x-api-key")
    }

    fn is_own_header(&self, name: &HeaderName) -> bool {
        name.as_str().starts_with("anthropic-") || *name == REQUEST_ID
    }
}

impl CallerApi for Messages {
    fn read_request(&self, body: &[u8]) -> Result<Conversation, Refusal> {
        request::read(body, Purpose::Message)
    }

    fn write_reply(&self, reply: &Reply, asked: &Asked) -> Result<Bytes, Unreadable> {
        reply::write(reply, asked)
    }

    fn write_stream(&self, asked: &Asked) -> Box<dyn WriteStream> {
        Box::new(reply::StreamWriter::new(asked))
    }

    fn write_error(&self, error: &ApiError, request_id: &str) -> (StatusCode, Bytes) {
        error::write(error, request_id)
    }
}

impl ServerApi for Messages {
    fn write_request(
        &self,
        conversation: &Conversation,
        (model, _): (&str, ServerWords),
        lossy: &mut Lossy<'_>,
    ) -> Result<WrittenRequest, Refusal> {
        let body = super::json(&request::write(conversation, model, lossy)?);
        Ok(WrittenRequest { body, headers: vec![(VERSION.clone(), DEFAULT_VERSION.clone())] })
    }

    fn read_reply(&self, body: &[u8]) -> Result<Reply, Unreadable> {
        reply::read(body)
    }

    fn read_stream(&self, _choices: usize) -> Box<dyn ReadStream> {
        Box::<reply::StreamReader>::default()
    }

    fn reported_error(&self, body: &[u8]) -> Option<ApiError> {
        error::reported(body)
    }

    fn read_error(&self, status: StatusCode, body: &[u8]) -> ApiError {
        error::read(status, body)
    }
}
