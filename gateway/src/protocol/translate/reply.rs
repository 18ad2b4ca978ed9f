//! Neutral types of an answer: whole, as deltas of an event stream, and as an error.

use http::StatusCode;
use spillway_filter::ErrorKind;

use super::Unreadable;
use super::conversation::Part;

/// Whole answer of a model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reply {
    /// Id of the answer.
    pub id: Option<String>,
    /// Model that answered.
    pub model: Option<String>,
    /// Content in its order.
    pub parts: Vec<Part>,
    /// Log probabilities of the tokens of the text; empty where none are known.
    pub logprobs: Vec<TokenLogprob>,
    /// Reason for the end.
    pub finish: Finish,
    /// Choices behind the first, of callers that asked for several.
    pub further: Vec<FurtherChoice>,
    /// Tokens used.
    pub tokens: Option<Tokens>,
}

/// Choice of an answer behind its first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FurtherChoice {
    /// Number of the choice, from 1.
    pub index: usize,
    /// Content in its order.
    pub parts: Vec<Part>,
    /// Reason for the end.
    pub finish: Finish,
}

/// Reason for the end of an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Finish {
    /// The model ended its turn.
    #[default]
    Stop,
    /// A stop string of the request ended it; `None` where the server does not tell which.
    StopString(Option<String>),
    /// The most tokens of the answer were written, or the context is full.
    Length,
    /// The answer ends with tool calls.
    ToolCalls,
    /// The model or a filter of its server declined to go on.
    Refusal,
    /// The server paused a long turn, to be continued by another request.
    Pause,
}

/// Tokens of a request and its answer, each count as far as the server told it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Tokens of the prompt, those in a cache included.
    pub input: Option<u64>,
    /// Tokens of the prompt that were read from a cache.
    pub cache_read: Option<u64>,
    /// Tokens of the prompt that were written to a cache.
    pub cache_written: Option<u64>,
    /// Tokens written.
    pub output: Option<u64>,
    /// Written tokens that were reasoning.
    pub reasoning: Option<u64>,
}

impl Tokens {
    /// Counts of both, the later one where both have it.
    #[must_use]
    pub fn or(self, earlier: Self) -> Self {
        Self {
            input: self.input.or(earlier.input),
            cache_read: self.cache_read.or(earlier.cache_read),
            cache_written: self.cache_written.or(earlier.cache_written),
            output: self.output.or(earlier.output),
            reasoning: self.reasoning.or(earlier.reasoning),
        }
    }

    /// Tokens of the prompt that no cache had or got.
    pub fn uncached_input(&self) -> Option<u64> {
        let of_caches = self.cache_read.unwrap_or(0).saturating_add(self.cache_written.unwrap_or(0));
        self.input.map(|input| input.saturating_sub(of_caches))
    }
}

/// Token with its log probability.
#[derive(Debug, Clone, PartialEq)]
pub struct Likely {
    /// Text of the token, with U+FFFD for bytes that are no character.
    pub token: String,
    /// Natural logarithm of the probability.
    pub logprob: f64,
    /// Bytes of the token, where the server tells them.
    pub bytes: Option<Vec<u8>>,
}

/// Written token with its log probability, and the likeliest ones at its place.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub chosen: Likely,
    /// Likeliest tokens in descending order.
    pub likeliest: Vec<Likely>,
}

/// Step of an event stream.
#[derive(Debug, Clone, PartialEq)]
pub enum Delta {
    /// Beginning of the answer.
    Start {
        /// Id of the answer.
        id: Option<String>,
        /// Model that answers.
        model: Option<String>,
        /// Tokens so far.
        tokens: Option<Tokens>,
    },
    /// Piece of text.
    Text {
        /// The piece.
        text: String,
        /// Log probabilities of its tokens, where they are wanted.
        logprobs: Vec<TokenLogprob>,
    },
    /// End of a text; a further piece belongs to another one.
    TextEnd,
    /// Piece of the text by which the model declines to answer.
    Refusal(String),
    /// Number of the choice that follows, of an answer with several; 0 before the first such delta.
    Choice(usize),
    /// Piece of reasoning.
    Thinking(String),
    /// Signature of the reasoning before it, which ends with it.
    Signature(String),
    /// End of a reasoning; a further piece belongs to another one.
    ThinkingEnd,
    /// Reasoning that only its server can read.
    RedactedThinking(String),
    /// Beginning of a tool call.
    ToolCall {
        /// Number of the call in the answer, from 0.
        index: usize,
        /// Id of the call.
        id: String,
        /// Name of the tool.
        name: String,
    },
    /// Piece of the arguments of a tool call, as JSON text.
    Arguments {
        /// Number of the call.
        index: usize,
        /// The piece.
        text: String,
    },
    /// Reason for the end.
    Finish(Finish),
    /// Tokens used so far. Later counts replace earlier ones.
    Usage(Tokens),
    /// Sign of life without content.
    Ping,
    /// Error in place of the rest of the stream.
    Error(ApiError),
    /// End of the stream.
    End,
}

/// Error of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// Status that the server sent, or would have sent before the stream had begun.
    pub status: StatusCode,
    /// Class of the error.
    pub kind: ErrorKind,
    /// Message.
    pub message: String,
    /// Code, in the words of the server.
    pub code: Option<String>,
    /// Field of the request at fault, in the words of the server.
    pub param: Option<String>,
}

/// Longest message of an error that is no JSON, in characters.
const MAX_MESSAGE: usize = 1 << 10;

impl ApiError {
    /// Error of a status whose body is in no known form: its text is the message.
    pub fn of_text(status: StatusCode, body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(body);
        let text = text.trim();
        let message = if text.is_empty() {
            format!("the backend answered {}", status.as_u16())
        } else {
            text.chars().take(MAX_MESSAGE).collect()
        };
        Self { status, kind: kind_of(status), message, code: None, param: None }
    }
}

impl From<Unreadable> for ApiError {
    /// Error in place of an answer that cannot be read.
    fn from(why: Unreadable) -> Self {
        Self {
            status: StatusCode::BAD_GATEWAY,
            kind: ErrorKind::Upstream,
            message: why.to_string(),
            code: Some(why.code().to_owned()),
            param: None,
        }
    }
}

/// Class of an error with this status.
pub(in crate::protocol) fn kind_of(status: StatusCode) -> ErrorKind {
    match status.as_u16() {
        401 => ErrorKind::Authentication,
        402 | 403 => ErrorKind::Permission,
        404 => ErrorKind::NotFound,
        408 | 504 => ErrorKind::Timeout,
        429 => ErrorKind::RateLimited,
        503 | 529 => ErrorKind::Overloaded,
        400..=499 => ErrorKind::InvalidRequest,
        _ => ErrorKind::Upstream,
    }
}
