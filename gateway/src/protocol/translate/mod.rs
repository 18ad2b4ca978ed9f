//! Translation between model APIs. A caller of one API reaches a server of another through neutral types: its request is
//! read to a [`Conversation`], which the server's API writes, and the answer comes back as a [`Reply`] or as [`Delta`]s of an
//! event stream. An API of callers implements [`CallerApi`] once, an API of servers [`ServerApi`], whatever the number of
//! others.
//!
//! Nothing gets lost in silence: what an API cannot express is refused with the name of the field, or dropped where the
//! backend's `dropFields` says so. Fields that change no answer are dropped always. Both are named in an answer header.

mod answer;
mod builtin;
mod call;
mod conversation;
mod counts;
mod in_order;
mod lossy;
mod object;
mod reply;
mod sse;

use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue, StatusCode};
use spillway_filter::Refusal;

pub use answer::answer;
pub use builtin::chat_request;
pub use call::{CallAnswer, CallTranslator, CallerCall, ReadCallAnswer, ServerAnswer, ServerKind, WrittenCall};
pub use conversation::{
    Conversation, Effort, Format, Image, ImageSource, Part, Role, Setting, Settings, Thinking, ToolPick, ToolSpec, Turn,
};
pub use in_order::InOrder;
pub use lossy::Lossy;
pub use reply::{ApiError, Delta, Finish, FurtherChoice, Likely, Reply, TokenLogprob, Tokens};

pub(super) use call::read_json_answer;
pub(super) use conversation::NamedSetting;
pub(super) use counts::{CountCaller, CountServer, TokenCounts, json_headers};
pub(super) use object::{Fields, Wrong, choice_without_tools, json_object, named, set};
pub(super) use reply::kind_of;
pub(super) use sse::{SseEvent, SseReader, read_json, write_event};

use crate::coding::NotDecoded;

/// Content type of event streams.
const EVENTS: &str = "text/event-stream; charset=utf-8";

/// Most tool calls of one answer. Requests may have as many tools.
pub const MAX_CALLS: usize = 128;

/// Most choices of one answer, as in OpenAI's API.
pub const MAX_CHOICES: usize = 128;

/// Form in which an API takes the credential of a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CredentialForm {
    /// `Authorization: Bearer CREDENTIAL`.
    Bearer,
    /// The credential alone in a header of this name.
    Header(&'static str),
}

/// Words of an API in which its servers differ.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ServerWords {
    /// True if the most tokens of an answer have the newer of their two names in OpenAI's API.
    pub has_newer_max_tokens: bool,
    /// Effort by which a model reasons not at all, or least; `None` where the servers have no word for that.
    pub no_reasoning: Option<&'static str>,
}

/// Request for a server of an API.
#[derive(Debug)]
pub struct WrittenRequest {
    /// Body.
    pub body: Bytes,
    /// Headers that servers of the API need.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// Answer that cannot be read: not JSON, in another shape, or beyond a bound. The text says what was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unreadable(pub &'static str);

impl Unreadable {
    /// Answer of which more bytes would have to be kept than its backend allows.
    pub const TOO_LARGE: Self = Self("the backend's answer is longer than its `limits.maxTranslatedBytes`");

    /// Answer that is cut, or in another coding than its head names.
    pub const NOT_IN_CODING: Self = Self("the backend's answer is not in the coding that it names");

    /// Code of the error in its place.
    pub fn code(self) -> &'static str {
        if self == Self::TOO_LARGE { "upstream_answer_too_large" } else { "upstream_answer_unreadable" }
    }
}

impl From<NotDecoded> for Unreadable {
    fn from(why: NotDecoded) -> Self {
        match why {
            NotDecoded::Malformed => Self::NOT_IN_CODING,
            NotDecoded::TooLong => Self::TOO_LARGE,
        }
    }
}

/// Most bytes of an answer that are kept on their way, whole or until a part of it can be written
/// (`backends[].limits.maxTranslatedBytes`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MostKept(pub usize);

impl MostKept {
    /// Checks a number of bytes.
    ///
    /// # Errors
    /// There are more.
    pub fn check(self, bytes: usize) -> Result<(), Unreadable> {
        if bytes > self.0 { Err(Unreadable::TOO_LARGE) } else { Ok(()) }
    }
}

impl Default for MostKept {
    /// The default of the configuration.
    fn default() -> Self {
        Self(8 << 20)
    }
}

/// Facts of the request that the answer to its caller depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// Model that the caller named, for answers that name none.
    pub model: String,
    /// True if the answer is wanted as an event stream.
    pub stream: bool,
    /// Choices wanted, at most [`MAX_CHOICES`]; 0 stands for one.
    pub choices: usize,
    /// True if an event stream ends with its usage.
    pub include_usage: bool,
    /// Members of the answer that repeat the request, as in [`Conversation::echoed`].
    pub echoed: Box<str>,
    /// Most bytes of the answer that are kept.
    pub most_kept: MostKept,
}

/// API of conversations, whoever speaks it.
pub trait Api: Send + Sync {
    /// Path of its requests, below which every server has it.
    fn path(&self) -> &'static str;

    /// Form of a caller's credential.
    fn credential_form(&self) -> CredentialForm {
        CredentialForm::Bearer
    }

    /// True for a header that belongs to the API, in requests and in answers, and means nothing to another one.
    fn is_own_header(&self, name: &HeaderName) -> bool;
}

/// API of callers: requests to the neutral types, and answers from them.
pub trait CallerApi: Api {
    /// Content type of its streams.
    fn stream_type(&self) -> &'static str {
        EVENTS
    }

    /// True if the pieces of several tool calls may alternate in its streams. Otherwise a call ends before the next begins.
    fn interleaves_calls(&self) -> bool {
        false
    }

    /// Reads the request of a caller.
    ///
    /// # Errors
    /// The request is invalid for every server of the API.
    fn read_request(&self, body: &[u8]) -> Result<Conversation, Refusal>;

    /// Writes a whole answer for a caller.
    ///
    /// # Errors
    /// The API cannot express the answer.
    fn write_reply(&self, reply: &Reply, asked: &Asked) -> Result<Bytes, Unreadable>;

    /// Writer of a stream for a caller.
    fn write_stream(&self, asked: &Asked) -> Box<dyn WriteStream>;

    /// Status and body of an error for a caller.
    fn write_error(&self, error: &ApiError, request_id: &str) -> (StatusCode, Bytes);
}

/// API of servers: requests from the neutral types, and answers to them.
pub trait ServerApi: Api {
    /// Writes a request for a server, `to` which belong the name by which it knows the model and its words.
    ///
    /// # Errors
    /// The conversation has a part that the API cannot express and that may not be dropped.
    fn write_request(
        &self,
        conversation: &Conversation,
        to: (&str, ServerWords),
        lossy: &mut Lossy<'_>,
    ) -> Result<WrittenRequest, Refusal>;

    /// Reads the whole answer of a server.
    ///
    /// # Errors
    /// The body is no answer of the API.
    fn read_reply(&self, body: &[u8]) -> Result<Reply, Unreadable>;

    /// Reader of the event stream of a server that was asked for so many choices.
    fn read_stream(&self, choices: usize) -> Box<dyn ReadStream>;

    /// Error in a body whose status said success and which is no answer; `None` for any other body. Its status is the one that
    /// belongs to it.
    fn reported_error(&self, body: &[u8]) -> Option<ApiError>;

    /// Reads the error of a server, which has this status. A body in another form becomes the message.
    fn read_error(&self, status: StatusCode, body: &[u8]) -> ApiError;
}

/// Reader of one event stream, cut anywhere, in bounded memory. Its result does not depend on the cuts.
pub trait ReadStream: Send + Sync {
    /// Reads a part and reports what it says. After [`Delta::End`] or [`Delta::Error`] nothing follows.
    ///
    /// # Errors
    /// The stream is not one of the API.
    fn feed(&mut self, part: &[u8], emit: &mut dyn FnMut(Delta)) -> Result<(), Unreadable>;

    /// Reads the end of the stream: an event that no empty line closed counts as well. False if the answer was not whole.
    ///
    /// # Errors
    /// The last event is not one of the API.
    fn finish(&mut self, emit: &mut dyn FnMut(Delta)) -> Result<bool, Unreadable>;
}

/// Writer of one event stream.
pub trait WriteStream: Send + Sync {
    /// Writes what a server said.
    ///
    /// # Errors
    /// The API cannot express it.
    fn write(&mut self, delta: Delta, out: &mut BytesMut) -> Result<(), Unreadable>;
}

/// Deltas of a whole answer, for a caller that asked for a stream and a server that did not send one.
pub fn deltas_of(reply: Reply) -> Vec<Delta> {
    let mut deltas = vec![Delta::Start { id: reply.id, model: reply.model, tokens: reply.tokens }];
    add_parts(&mut deltas, reply.parts);
    deltas.extend(reply.tokens.map(Delta::Usage));
    deltas.push(Delta::Finish(reply.finish));
    for FurtherChoice { index, parts, finish } in reply.further {
        deltas.push(Delta::Choice(index));
        add_parts(&mut deltas, parts);
        deltas.push(Delta::Finish(finish));
    }
    deltas.push(Delta::End);
    deltas
}

/// Adds the deltas of the content of a choice.
fn add_parts(deltas: &mut Vec<Delta>, parts: Vec<Part>) {
    let mut calls = 0;
    for part in parts {
        match part {
            Part::Text(text) => deltas.push(Delta::Text { text, logprobs: Vec::new() }),
            Part::Refusal(text) => deltas.push(Delta::Refusal(text)),
            Part::Thinking { text, signature } => {
                deltas.push(Delta::Thinking(text));
                deltas.extend(signature.map(Delta::Signature));
            }
            Part::RedactedThinking(data) => deltas.push(Delta::RedactedThinking(data)),
            Part::ToolCall { id, name, arguments } => {
                deltas.push(Delta::ToolCall { index: calls, id, name });
                deltas.push(Delta::Arguments { index: calls, text: arguments });
                calls = calls.saturating_add(1);
            }
            // No API answers with these.
            Part::Image(_) | Part::ToolResult { .. } | Part::Other { .. } => {}
        }
    }
}
