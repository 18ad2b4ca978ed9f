//! Writer of the answer of a built-in model in the form of `/api/chat` and `/api/generate`: a line for each piece, and a last
//! line with the counts and times. A whole answer is the last line with all of the text.

use std::time::{Duration, SystemTime};

use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde_json::value::RawValue;
use spillway_engine::{TokenProbability, WrittenToken};
use spillway_filter::Refusal;
use time::OffsetDateTime;

use super::{LINES, error};
use crate::clock::since_1970;
use crate::protocol::chat::{Call, Choice, FinishReason, Usage};
use crate::protocol::dialect::{AnswerHead, AnswerTimes, BuiltinCard, WriteAnswer};
use crate::protocol::json;
use crate::protocol::openai::response::put_json;

/// Log probability of an impossible token, because JSON has no infinity.
const IMPOSSIBLE: f32 = -9999.0;

/// Shape of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// `/api/chat`: the text is in a message.
    Chat,
    /// `/api/generate`.
    Generate,
}

/// Writer of the answer to one request.
#[derive(Debug)]
pub(super) struct Answer {
    shape: Shape,
    id: String,
    model: String,
    reason: FinishReason,
    times: AnswerTimes,
}

/// Line of a stream, or a whole answer.
#[derive(Serialize)]
struct Line<'a> {
    model: &'a str,
    created_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Message<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Vec<Logprob<'a>>>,
    done: bool,
    #[serde(flatten)]
    end: Option<End>,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    tool_calls: Vec<ToolCall<'a>>,
}

#[derive(Serialize)]
struct ToolCall<'a> {
    id: &'a str,
    function: Function<'a>,
}

#[derive(Serialize)]
struct Function<'a> {
    index: usize,
    name: &'a str,
    arguments: &'a RawValue,
}

#[derive(Serialize)]
struct Likely<'a> {
    token: std::borrow::Cow<'a, str>,
    logprob: f32,
    bytes: &'a [u8],
}

#[derive(Serialize)]
struct Logprob<'a> {
    #[serde(flatten)]
    chosen: Likely<'a>,
    top_logprobs: Vec<Likely<'a>>,
}

/// Counts and times of an answer; the times in nanoseconds.
#[derive(Serialize)]
struct End {
    done_reason: &'static str,
    total_duration: u64,
    load_duration: u64,
    prompt_eval_count: u64,
    prompt_eval_duration: u64,
    eval_count: u64,
    eval_duration: u64,
}

impl<'a> From<&'a TokenProbability> for Likely<'a> {
    fn from(of: &'a TokenProbability) -> Self {
        let logprob = if of.log_probability.is_finite() { of.log_probability.max(IMPOSSIBLE) } else { IMPOSSIBLE };
        Self { token: String::from_utf8_lossy(&of.bytes), logprob, bytes: &of.bytes }
    }
}

impl<'a> ToolCall<'a> {
    /// Call with its arguments, which are an object; `None` where the model wrote none.
    fn new((index, call): (usize, &'a Call)) -> Option<Self> {
        let arguments = serde_json::from_str(&call.arguments).ok()?;
        Some(Self { id: &call.id, function: Function { index, name: &call.name, arguments } })
    }
}

fn logprobs(written: &[WrittenToken]) -> Vec<Logprob<'_>> {
    let tokens = written.iter().map(|token| Logprob {
        chosen: (&token.chosen).into(),
        top_logprobs: token.likeliest.iter().map(Likely::from).collect(),
    });
    tokens.collect()
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Formats a time by RFC 3339, in UTC with nanoseconds.
pub(super) fn rfc3339(time: SystemTime) -> String {
    let since = since_1970(time);
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    let at = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
    let (hour, minute, second, nanos) = (at.hour(), at.minute(), at.second(), since.subsec_nanos());
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

impl Answer {
    /// Begins an answer with this head.
    pub(super) fn begin(shape: Shape, head: AnswerHead<'_>) -> Self {
        Self {
            shape,
            id: head.id.hyphenated().to_string(),
            model: head.model.to_owned(),
            reason: FinishReason::default(),
            times: AnswerTimes::default(),
        }
    }

    fn line<'a>(&'a self, text: &'a str, calls: &'a [Call], first_call: usize) -> Line<'a> {
        let mut line = Line {
            model: &self.model,
            created_at: rfc3339(SystemTime::now()),
            message: None,
            response: None,
            logprobs: None,
            done: false,
            end: None,
        };
        match self.shape {
            Shape::Chat => {
                let tool_calls = (first_call..).zip(calls).filter_map(ToolCall::new).collect();
                line.message = Some(Message { role: "assistant", content: text, tool_calls });
            }
            Shape::Generate => line.response = Some(text),
        }
        line
    }

    fn end(&self, usage: Usage) -> End {
        End {
            done_reason: if self.reason == FinishReason::Length { "length" } else { "stop" },
            total_duration: nanos(self.times.total),
            // The model is loaded for all requests and not for one.
            load_duration: 0,
            prompt_eval_count: usage.prompt_tokens,
            prompt_eval_duration: nanos(self.times.prefill),
            eval_count: usage.completion_tokens,
            eval_duration: nanos(self.times.decode),
        }
    }
}

fn put_line(out: &mut BytesMut, line: &Line<'_>) {
    put_json(out, line);
    out.put_u8(b'\n');
}

impl WriteAnswer for Answer {
    fn id(&self) -> &str {
        &self.id
    }

    fn stream_type(&self) -> &'static str {
        LINES
    }

    fn timed(&mut self, times: AnswerTimes) {
        self.times = times;
    }

    /// A stream begins with its first text.
    fn first(&mut self, _out: &mut BytesMut, _choice: u32) {}

    /// Streams of this API are not continued.
    fn resumed(&mut self, _out: &mut BytesMut) {}

    fn piece(
        &mut self,
        out: &mut BytesMut,
        _choice: u32,
        text: &str,
        written: Option<&[WrittenToken]>,
        _reported: usize,
    ) -> usize {
        put_line(out, &Line { logprobs: written.map(logprobs), ..self.line(text, &[], 0) });
        0
    }

    fn call(&mut self, out: &mut BytesMut, _choice: u32, n: usize, call: &Call) {
        put_line(out, &self.line("", std::slice::from_ref(call), n));
    }

    fn ended(&mut self, _out: &mut BytesMut, _choice: u32, reason: FinishReason) {
        self.reason = reason;
    }

    fn last(&mut self, out: &mut BytesMut, usage: Usage) {
        put_line(out, &Line { done: true, end: Some(self.end(usage)), ..self.line("", &[], 0) });
    }

    fn failed(&mut self, out: &mut BytesMut, refusal: &Refusal) {
        out.put_slice(&error(refusal));
        out.put_u8(b'\n');
    }

    fn whole(&mut self, out: &mut BytesMut, choices: &[Choice], usage: Usage) {
        let Some(choice) = choices.first() else { return };
        self.reason = choice.finish_reason;
        let line = self.line(&choice.text, &choice.calls, 0);
        let logprobs = choice.written.as_deref().map(logprobs);
        put_json(out, &Line { logprobs, done: true, end: Some(self.end(usage)), ..line });
    }
}

/// Answer to a request that only loads the model.
#[derive(Serialize)]
struct Loaded<'a> {
    model: &'a str,
    created_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Message<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response: Option<&'static str>,
    done_reason: &'static str,
    done: bool,
}

/// Answer to a request of `path` that only loads the model.
pub(super) fn loaded(path: &str, model: &BuiltinCard<'_>) -> Bytes {
    let is_chat = path.ends_with("/chat");
    json(&Loaded {
        model: model.id,
        created_at: rfc3339(SystemTime::now()),
        message: is_chat.then_some(Message { role: "assistant", content: "", tool_calls: Vec::new() }),
        response: (!is_chat).then_some(""),
        done_reason: "load",
        done: true,
    })
}
