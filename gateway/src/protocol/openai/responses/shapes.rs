//! Objects of the Responses API as they are written.

use bytes::{Bytes, BytesMut};
use serde::Serialize;
use spillway_filter::{ErrorKind, Refusal};

use crate::protocol::chat::{Call, Usage};
use crate::protocol::openai::response::put_json;
use crate::protocol::openai::response::shapes::TokenLogprobs;

/// Answer without the members that repeat the request.
#[derive(Serialize)]
pub(super) struct Body<'a> {
    pub(super) id: &'a str,
    pub(super) object: &'static str,
    pub(super) created_at: u64,
    pub(super) completed_at: Option<u64>,
    pub(super) status: &'static str,
    pub(super) error: Option<ErrorBody<'a>>,
    pub(super) incomplete_details: Option<Incomplete>,
    pub(super) model: &'a str,
    pub(super) output: Vec<Item<'a>>,
    pub(super) usage: Option<UsageBody>,
}

#[derive(Serialize)]
pub(super) struct ErrorBody<'a> {
    pub(super) code: &'static str,
    pub(super) message: &'a str,
}

impl<'a> From<&'a Refusal> for ErrorBody<'a> {
    fn from(refusal: &'a Refusal) -> Self {
        let is_rate = matches!(refusal.kind, ErrorKind::RateLimited | ErrorKind::Overloaded);
        Self { code: if is_rate { "rate_limit_exceeded" } else { "server_error" }, message: &refusal.message }
    }
}

#[derive(Serialize)]
pub(super) struct Incomplete {
    pub(super) reason: &'static str,
}

/// Item of an answer's output.
#[derive(Serialize)]
#[serde(tag = "type")]
pub(super) enum Item<'a> {
    #[serde(rename = "message")]
    Message { id: &'a str, status: &'static str, role: &'static str, content: Vec<Part<'a>> },
    #[serde(rename = "function_call")]
    Call { id: &'a str, status: &'static str, call_id: &'a str, name: &'a str, arguments: &'a str },
}

impl<'a> Item<'a> {
    pub(super) fn message(id: &'a str, status: &'static str, content: Vec<Part<'a>>) -> Self {
        Self::Message { id, status, role: "assistant", content }
    }

    pub(super) fn call(id: &'a str, status: &'static str, call: &'a Call) -> Self {
        let arguments = if status == "in_progress" { "" } else { &call.arguments };
        Self::Call { id, status, call_id: &call.id, name: &call.name, arguments }
    }
}

/// Part of a message.
#[derive(Serialize)]
pub(super) struct Part<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    text: &'a str,
    annotations: [(); 0],
    logprobs: Vec<TokenLogprobs<'a>>,
}

impl<'a> Part<'a> {
    pub(super) fn text(text: &'a str, logprobs: Vec<TokenLogprobs<'a>>) -> Self {
        Self { kind: "output_text", text, annotations: [], logprobs }
    }
}

#[derive(Serialize)]
pub(super) struct UsageBody {
    input_tokens: u64,
    input_tokens_details: InputDetails,
    output_tokens: u64,
    output_tokens_details: OutputDetails,
    total_tokens: u64,
}

#[derive(Serialize)]
struct InputDetails {
    cache_write_tokens: u64,
    cached_tokens: u64,
}

#[derive(Serialize)]
struct OutputDetails {
    reasoning_tokens: u64,
}

impl From<Usage> for UsageBody {
    fn from(usage: Usage) -> Self {
        Self {
            input_tokens: usage.prompt_tokens,
            input_tokens_details: InputDetails {
                cache_write_tokens: usage.cache_written_tokens.unwrap_or(0),
                cached_tokens: usage.cached_tokens.unwrap_or(0),
            },
            output_tokens: usage.completion_tokens,
            output_tokens_details: OutputDetails { reasoning_tokens: usage.reasoning_tokens.unwrap_or(0) },
            total_tokens: usage.prompt_tokens.saturating_add(usage.completion_tokens),
        }
    }
}

/// Event that begins or ends an item.
#[derive(Serialize)]
pub(super) struct ItemEvent<'a> {
    pub(super) output_index: usize,
    pub(super) item: Item<'a>,
}

/// Place of the only part of a message.
#[derive(Serialize)]
pub(super) struct Place<'a> {
    pub(super) item_id: &'a str,
    pub(super) output_index: usize,
    pub(super) content_index: usize,
}

/// Event that begins or ends a part.
#[derive(Serialize)]
pub(super) struct PartEvent<'a> {
    #[serde(flatten)]
    pub(super) place: Place<'a>,
    pub(super) part: Part<'a>,
}

/// Piece of a text.
#[derive(Serialize)]
pub(super) struct TextDelta<'a> {
    #[serde(flatten)]
    pub(super) place: Place<'a>,
    pub(super) delta: &'a str,
    pub(super) logprobs: Vec<TokenLogprobs<'a>>,
}

/// Whole text of a part.
#[derive(Serialize)]
pub(super) struct TextDone<'a> {
    #[serde(flatten)]
    pub(super) place: Place<'a>,
    pub(super) text: &'a str,
    pub(super) logprobs: Vec<TokenLogprobs<'a>>,
}

/// Piece of a call's arguments.
#[derive(Serialize)]
pub(super) struct ArgumentsDelta<'a> {
    pub(super) item_id: &'a str,
    pub(super) output_index: usize,
    pub(super) delta: &'a str,
}

/// Whole arguments of a call.
#[derive(Serialize)]
pub(super) struct ArgumentsDone<'a> {
    pub(super) item_id: &'a str,
    pub(super) output_index: usize,
    pub(super) name: &'a str,
    pub(super) arguments: &'a str,
}

#[derive(Serialize)]
struct ErrorEvent<'a> {
    #[serde(rename = "type")]
    event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sequence_number: Option<u64>,
    code: &'static str,
    message: &'a str,
    param: Option<&'a str>,
    error: ErrorFields<'a>,
}

#[derive(Serialize)]
struct ErrorFields<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    code: &'static str,
    message: &'a str,
    param: Option<&'a str>,
}

/// Event `error` for a refusal of the type `kind`.
pub(super) fn error_event(refusal: &Refusal, kind: &'static str, sequence_number: Option<u64>) -> Bytes {
    let (code, message, param) = (refusal.code, &*refusal.message, refusal.param.as_deref());
    let error = ErrorFields { kind, code, message, param };
    let mut out = BytesMut::from(&b"event: error\ndata: "[..]);
    put_json(&mut out, &ErrorEvent { event: "error", sequence_number, code, message, param, error });
    out.extend_from_slice(b"\n\n");
    out.freeze()
}
