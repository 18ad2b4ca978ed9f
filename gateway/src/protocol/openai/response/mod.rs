//! Answers of a built-in model in OpenAI's shape: events of a stream, a whole completion, the list of models. Each token
//! costs a copy of the bytes that all events share and the escaping of its text, into a buffer that is reused.

mod models;
pub(super) mod shapes;

use bytes::{BufMut, BytesMut};
use serde::Serialize;
use spillway_engine::WrittenToken;
use spillway_filter::Refusal;

use super::error::error_event;
use crate::protocol::chat::{Call, Choice, FinishReason, Usage};
use crate::protocol::dialect::{AnswerHead, WriteAnswer};
pub(super) use models::{model, model_list, read_list};
use shapes::{ChoiceBody, Completion, Logprobs, MessageBody, TextChoice, TextCompletion, TextLogprobs, ToolCall};

/// Shape of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// Chat completions.
    Chat,
    /// The older completions.
    Text,
}

/// Writer of the answer to one request, as an event stream or as a whole.
#[derive(Debug)]
pub(super) struct Answer {
    shape: Shape,
    id: String,
    created: u64,
    model: String,
    /// Bytes that begin every event, up to its choices.
    head: Vec<u8>,
    /// Bytes that end every event, behind its choices.
    tail: &'static [u8],
    include_usage: bool,
}

/// Appends a value made of strings and numbers as JSON. Serializing those to memory does not fail.
pub(in crate::protocol) fn put_json(out: &mut BytesMut, value: &impl Serialize) {
    let _ = serde_json::to_writer(out.writer(), value);
}

impl Answer {
    /// Begins an answer with this head.
    pub(super) fn begin(shape: Shape, head: AnswerHead<'_>) -> Self {
        let prefix = match shape {
            Shape::Chat => "chatcmpl",
            Shape::Text => "cmpl",
        };
        let id = format!("{prefix}-{}", head.id.simple());
        Self::new(shape, id, head.created, head.model.to_owned(), head.include_usage)
    }

    /// Begins an answer by `model` at `created` (Unix seconds). With `include_usage` its stream ends with an event that
    /// reports the tokens, and all other events have `"usage": null`.
    fn new(shape: Shape, id: String, created: u64, model: String, include_usage: bool) -> Self {
        let mut head = BytesMut::with_capacity(160);
        head.put_slice(b"data: {\"id\":");
        put_json(&mut head, &id);
        head.put_slice(match shape {
            Shape::Chat => b",\"object\":\"chat.completion.chunk\",\"created\":",
            Shape::Text => b",\"object\":\"text_completion\",\"created\":",
        });
        put_json(&mut head, &created);
        head.put_slice(b",\"model\":");
        put_json(&mut head, &model);
        head.put_slice(b",\"choices\":[");
        let tail: &[u8] = if include_usage { b"],\"usage\":null}\n\n" } else { b"]}\n\n" };
        Self { shape, id, created, model, head: head.to_vec(), tail, include_usage }
    }

    fn put_head(&self, out: &mut BytesMut, choice: u32) {
        out.put_slice(&self.head);
        out.put_slice(b"{\"index\":");
        put_json(out, &choice);
    }
}

impl WriteAnswer for Answer {
    fn id(&self) -> &str {
        &self.id
    }

    fn first(&mut self, out: &mut BytesMut, choice: u32) {
        // A text has no role to begin with.
        if self.shape == Shape::Text {
            return;
        }
        self.put_head(out, choice);
        out.put_slice(br#","delta":{"role":"assistant","content":""},"finish_reason":null}"#);
        out.put_slice(self.tail);
    }

    fn resumed(&mut self, out: &mut BytesMut) {
        out.put_slice(&self.head);
        out.put_slice(br#"{"index":0,"delta":{"content":""},"finish_reason":null}],"spillway":{"resumed_by":"#);
        put_json(out, &format_args!("builtin/{}", self.model));
        out.put_slice(br#"}"#);
        out.put_slice(self.tail.strip_prefix(b"]").unwrap_or_default());
    }

    fn piece(
        &mut self,
        out: &mut BytesMut,
        choice: u32,
        text: &str,
        written: Option<&[WrittenToken]>,
        reported: usize,
    ) -> usize {
        self.put_head(out, choice);
        if self.shape == Shape::Text {
            out.put_slice(br#","text":"#);
            put_json(out, &text);
            out.put_slice(br#","logprobs":"#);
            let logprobs = written.map(|written| TextLogprobs::new(written, reported));
            put_json(out, &logprobs);
            out.put_slice(br#","finish_reason":null}"#);
            out.put_slice(self.tail);
            return logprobs.map_or(0, |logprobs| logprobs.characters());
        }
        out.put_slice(br#","delta":{"content":"#);
        put_json(out, &text);
        out.put_slice(b"}");
        if let Some(written) = written {
            out.put_slice(br#","logprobs":"#);
            put_json(out, &Logprobs::from(written));
        }
        out.put_slice(br#","finish_reason":null}"#);
        out.put_slice(self.tail);
        0
    }

    fn call(&mut self, out: &mut BytesMut, choice: u32, n: usize, call: &Call) {
        self.put_head(out, choice);
        out.put_slice(br#","delta":{"tool_calls":["#);
        put_json(out, &ToolCall::new(call, Some(n)));
        out.put_slice(br#"]},"finish_reason":null}"#);
        out.put_slice(self.tail);
    }

    fn ended(&mut self, out: &mut BytesMut, choice: u32, reason: FinishReason) {
        self.put_head(out, choice);
        out.put_slice(match self.shape {
            Shape::Chat => br#","delta":{},"finish_reason":"#,
            Shape::Text => br#","text":"","logprobs":null,"finish_reason":"#,
        });
        put_json(out, &reason.as_str());
        out.put_slice(b"}");
        out.put_slice(self.tail);
    }

    fn last(&mut self, out: &mut BytesMut, usage: Usage) {
        if self.include_usage {
            out.put_slice(&self.head);
            out.put_slice(b"],\"usage\":");
            put_json(out, &shapes::UsageBody::from(usage));
            out.put_slice(b"}\n\n");
        }
        out.put_slice(b"data: [DONE]\n\n");
    }

    fn failed(&mut self, out: &mut BytesMut, refusal: &Refusal) {
        out.put_slice(&error_event(refusal));
    }

    fn whole(&mut self, out: &mut BytesMut, choices: &[Choice], usage: Usage) {
        if self.shape == Shape::Text {
            let choices = choices.iter().enumerate().map(|(index, choice)| TextChoice {
                index,
                text: &choice.text,
                logprobs: choice.written.as_deref().map(|written| TextLogprobs::new(written, 0)),
                finish_reason: choice.finish_reason.as_str(),
            });
            let completion = TextCompletion {
                id: &self.id,
                object: "text_completion",
                created: self.created,
                model: &self.model,
                choices: choices.collect(),
                usage: usage.into(),
            };
            return put_json(out, &completion);
        }
        let choices = choices.iter().enumerate().map(|(index, choice)| ChoiceBody {
            index,
            message: MessageBody {
                role: "assistant",
                content: (choice.calls.is_empty() || !choice.text.is_empty()).then_some(&choice.text),
                refusal: None,
                tool_calls: choice.calls.iter().map(|call| ToolCall::new(call, None)).collect(),
            },
            logprobs: choice.written.as_deref().map(Logprobs::from),
            finish_reason: choice.finish_reason.as_str(),
        });
        let completion = Completion {
            id: &self.id,
            object: "chat.completion",
            created: self.created,
            model: &self.model,
            choices: choices.collect(),
            usage: usage.into(),
        };
        put_json(out, &completion);
    }
}

#[cfg(test)]
mod tests;
