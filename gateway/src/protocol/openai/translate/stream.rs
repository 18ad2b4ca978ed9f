//! Event streams of chunks, read from servers and written for callers.

use bytes::{BufMut, BytesMut};
use serde::Serialize;
use serde_json::{Value, json};

use super::MAX_NAME;
use super::error::{reported, write_error_event};
use super::reply::new_id;
use super::shapes::{
    ReadCall, ReadChoice, ReadCompletion, ReadMessage, ThinkingBlock, Usage, finish_of, logprobs_of, reason_of,
};
use crate::protocol::translate::{
    Asked, Delta, MAX_CALLS, MAX_CHOICES, ReadStream, SseEvent, SseReader, Tokens, Unreadable, WriteStream, read_json,
    write_event,
};

/// Reader of the stream of a server.
#[derive(Debug)]
pub(super) struct StreamReader {
    events: SseReader,
    state: State,
}

impl StreamReader {
    /// Reader of a stream with so many choices.
    pub(super) fn new(choices: usize) -> Self {
        let state = State { choices: choices.clamp(1, MAX_CHOICES), ..State::default() };
        Self { events: SseReader::default(), state }
    }
}

/// Progress of a stream.
#[derive(Debug, Default)]
struct State {
    has_begun: bool,
    has_ended: bool,
    /// Choices that were asked for, at most [`MAX_CHOICES`]. Others are dropped.
    choices: usize,
    /// Choice of the last delta.
    choice: usize,
    /// Choices of which a part came, a bit each, and those of them that have finished.
    begun: u128,
    finished: u128,
    /// Numbers of the tool calls so far, as the server counts them.
    calls: Vec<usize>,
}

impl ReadStream for StreamReader {
    fn feed(&mut self, part: &[u8], emit: &mut dyn FnMut(Delta)) -> Result<(), Unreadable> {
        let state = &mut self.state;
        self.events.feed(part, |event| state.event(event, emit))
    }

    fn finish(&mut self, emit: &mut dyn FnMut(Delta)) -> Result<bool, Unreadable> {
        let state = &mut self.state;
        self.events.finish(|event| state.event(event, emit))?;
        // Some servers end without `[DONE]`.
        if self.state.has_finished() && !std::mem::replace(&mut self.state.has_ended, true) {
            emit(Delta::End);
        }
        Ok(self.state.has_ended)
    }
}

impl State {
    /// True if every choice that has begun has finished.
    fn has_finished(&self) -> bool {
        self.begun != 0 && self.begun == self.finished
    }

    fn event(&mut self, event: SseEvent<'_>, emit: &mut dyn FnMut(Delta)) -> Result<(), Unreadable> {
        let data = match event {
            _ if self.has_ended => return Ok(()),
            SseEvent::Comment => {
                emit(Delta::Ping);
                return Ok(());
            }
            SseEvent::Data(b"[DONE]") => {
                self.has_ended = true;
                emit(Delta::End);
                return Ok(());
            }
            SseEvent::Data(data) => data,
        };
        let chunk = read_json::<ReadCompletion>(data);
        let is_empty = |chunk: &ReadCompletion| chunk.choices.is_empty() && chunk.usage.is_none();
        let may_be_error = chunk.as_ref().map_or(true, |chunk| chunk.error.is_some() || is_empty(chunk));
        if may_be_error && let Some(error) = reported(data) {
            self.has_ended = true;
            emit(Delta::Error(error));
            return Ok(());
        }
        let chunk = chunk?;
        if !std::mem::replace(&mut self.has_begun, true) {
            emit(Delta::Start { id: chunk.id, model: chunk.model, tokens: None });
        }
        let asked = self.choices;
        for choice in chunk.choices.into_iter().filter(|choice| choice.index < asked) {
            if std::mem::replace(&mut self.choice, choice.index) != choice.index {
                emit(Delta::Choice(choice.index));
            }
            self.choice(choice, emit)?;
        }
        if let Some(usage) = chunk.usage {
            emit(Delta::Usage(usage.into()));
        }
        Ok(())
    }

    fn choice(&mut self, choice: ReadChoice, emit: &mut dyn FnMut(Delta)) -> Result<(), Unreadable> {
        let ReadChoice { index, delta, finish_reason, stop_reason, logprobs } = choice;
        // At most `MAX_CHOICES`.
        let bit = 1u128 << index;
        self.begun |= bit;
        let message = delta.unwrap_or_default();
        let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
        let ReadMessage { content, refusal, reasoning_content, reasoning, thinking_blocks, tool_calls } = message;
        let blocks = thinking_blocks.unwrap_or_default();
        if blocks.is_empty() {
            if let Some(text) = filled(reasoning_content).or(filled(reasoning)) {
                emit(Delta::Thinking(text));
            }
        } else {
            blocks.into_iter().for_each(|block| thinking(block, emit));
        }
        let logprobs: Vec<_> = logprobs.and_then(|logprobs| logprobs.content).unwrap_or_default();
        let logprobs: Vec<_> = logprobs.into_iter().map(Into::into).collect();
        let text = content.unwrap_or_default();
        if !text.is_empty() || !logprobs.is_empty() {
            emit(Delta::Text { text, logprobs });
        }
        if let Some(text) = filled(refusal) {
            emit(Delta::Refusal(text));
        }
        for call in tool_calls.unwrap_or_default() {
            self.call(call, emit)?;
        }
        if let Some(reason) = finish_reason {
            self.finished |= bit;
            emit(Delta::Finish(finish_of(&reason, stop_reason.as_ref())));
        }
        Ok(())
    }

    fn call(&mut self, call: ReadCall, emit: &mut dyn FnMut(Delta)) -> Result<(), Unreadable> {
        let ReadCall { index, id, function } = call;
        let (name, arguments) = function.map_or((None, None), |function| (function.name, function.arguments));
        // Servers that do not count their calls send each whole.
        let number = index.unwrap_or(self.calls.len());
        let known = self.calls.iter().position(|known| *known == number);
        let at = match (known, name) {
            (Some(at), _) => at,
            (None, Some(name)) => {
                let at = self.calls.len();
                if at >= MAX_CALLS {
                    return Err(Unreadable("the backend's answer has more than 128 tool calls"));
                }
                self.calls.push(number);
                let id = id.filter(|id| !id.is_empty()).unwrap_or_else(|| new_id("call_"));
                emit(Delta::ToolCall { index: at, id, name });
                at
            }
            (None, None) => return Err(Unreadable("the backend's stream begins a tool call without a name")),
        };
        if let Some(text) = arguments.filter(|text| !text.is_empty()) {
            emit(Delta::Arguments { index: at, text });
        }
        Ok(())
    }
}

fn thinking(block: ThinkingBlock, emit: &mut dyn FnMut(Delta)) {
    if block.kind == "redacted_thinking" {
        emit(Delta::RedactedThinking(block.data.unwrap_or_default()));
        return;
    }
    if let Some(text) = block.thinking.filter(|text| !text.is_empty()) {
        emit(Delta::Thinking(text));
    }
    if let Some(signature) = block.signature.filter(|signature| !signature.is_empty()) {
        emit(Delta::Signature(signature));
    }
}

/// Writer of the stream for a caller.
#[derive(Debug)]
pub(super) struct StreamWriter {
    asked: Asked,
    id: String,
    model: String,
    created: u64,
    has_begun: bool,
    has_ended: bool,
    tokens: Tokens,
}

/// Chunk of a stream, or a whole text completion, which has its form.
#[derive(Serialize)]
pub(super) struct Chunk<'a> {
    pub(super) id: &'a str,
    pub(super) object: &'static str,
    pub(super) created: u64,
    pub(super) model: &'a str,
    pub(super) choices: Vec<Value>,
    /// `null` in all chunks but the last, where the stream ends with its usage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<Option<Usage>>,
}

impl StreamWriter {
    /// Begins the stream of an answer.
    pub(super) fn new(asked: &Asked) -> Self {
        Self {
            id: String::new(),
            model: asked.model.clone(),
            asked: asked.clone(),
            created: crate::clock::unix_now(),
            has_begun: false,
            has_ended: false,
            tokens: Tokens::default(),
        }
    }

    fn begin(&mut self, id: Option<String>, model: Option<String>, out: &mut BytesMut) {
        if std::mem::replace(&mut self.has_begun, true) {
            return;
        }
        let short = |name: &String| name.len() <= MAX_NAME;
        self.id = id.filter(short).unwrap_or_else(|| new_id("chatcmpl-"));
        self.model = model.filter(short).unwrap_or_else(|| self.asked.model.clone());
        self.delta(json!({"role": "assistant", "content": ""}), &Value::Null, None, out);
    }

    fn chunk(&self, choices: Vec<Value>, usage: Option<Option<Usage>>, out: &mut BytesMut) {
        let (id, model) = (self.id.as_str(), self.model.as_str());
        let chunk = Chunk { id, object: "chat.completion.chunk", created: self.created, model, choices, usage };
        write_event(out, None, &chunk);
    }

    fn delta(&mut self, delta: Value, finish: &Value, logprobs: Option<Value>, out: &mut BytesMut) {
        self.begin(None, None, out);
        let choice = json!({"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish});
        self.chunk(vec![choice], self.asked.include_usage.then_some(None), out);
    }

    fn say(&mut self, delta: Value, out: &mut BytesMut) {
        self.delta(delta, &Value::Null, None, out);
    }
}

impl WriteStream for StreamWriter {
    fn write(&mut self, delta: Delta, out: &mut BytesMut) -> Result<(), Unreadable> {
        if self.has_ended {
            return Ok(());
        }
        match delta {
            Delta::Start { id, model, tokens } => {
                self.tokens = tokens.unwrap_or_default().or(self.tokens);
                self.begin(id, model, out);
            }
            Delta::Text { text, logprobs } => {
                let logprobs = logprobs_of(&logprobs).map(|logprobs| json!(logprobs));
                self.delta(json!({"content": text}), &Value::Null, logprobs, out);
            }
            Delta::Refusal(text) => self.say(json!({"refusal": text}), out),
            Delta::Thinking(text) => {
                let block = json!({"type": "thinking", "thinking": text});
                self.say(json!({"reasoning_content": text, "thinking_blocks": [block]}), out);
            }
            Delta::Signature(signature) => {
                let block = json!({"type": "thinking", "thinking": "", "signature": signature});
                self.say(json!({"thinking_blocks": [block]}), out);
            }
            Delta::RedactedThinking(data) => {
                self.say(json!({"thinking_blocks": [{"type": "redacted_thinking", "data": data}]}), out);
            }
            // Callers of several choices are not translated.
            Delta::TextEnd | Delta::ThinkingEnd | Delta::Choice(_) => {}
            Delta::ToolCall { index, id, name } => {
                let function = json!({"name": name, "arguments": ""});
                let call = json!({"index": index, "id": id, "type": "function", "function": function});
                self.say(json!({"tool_calls": [call]}), out);
            }
            Delta::Arguments { index, text } => {
                self.say(json!({"tool_calls": [{"index": index, "function": {"arguments": text}}]}), out);
            }
            Delta::Finish(finish) => self.delta(json!({}), &reason_of(&finish).into(), None, out),
            Delta::Usage(tokens) => self.tokens = tokens.or(self.tokens),
            Delta::Ping => out.put_slice(b": ping\n\n"),
            Delta::Error(error) => {
                self.has_ended = true;
                write_error_event(&error, out);
            }
            Delta::End => {
                self.begin(None, None, out);
                self.has_ended = true;
                if self.asked.include_usage {
                    self.chunk(Vec::new(), Some(Some(self.tokens.into())), out);
                }
                out.put_slice(b"data: [DONE]\n\n");
            }
        }
        Ok(())
    }
}
