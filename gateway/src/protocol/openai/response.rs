//! The answers of the model inside in OpenAI's shape: events of a stream, a whole completion, the list of models.
//! A token costs the copy of what all events share and the escaping of its text, into a buffer that is used again.

mod models;
mod shapes;

use bytes::{BufMut, BytesMut};
use serde::Serialize;
use spillway_engine::WrittenToken;

pub use models::{ModelCard, model, models_list};
use shapes::{Choice, Completion, Logprobs, Message, TextChoice, TextCompletion, TextLogprobs, ToolCall, Usage};

/// Which API an answer is one of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Shape {
    /// Chat completions.
    #[default]
    Chat,
    /// The older completions.
    Text,
}

/// A call of a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Under which its result is told.
    pub id: String,
    /// The tool.
    pub name: String,
    /// JSON text.
    pub arguments: String,
}

/// Writes the answers to one request, as a stream of events or as a whole.
#[derive(Debug)]
pub struct Answer {
    shape: Shape,
    id: String,
    created: u64,
    model: String,
    /// What every event begins with, up to its choices.
    head: Vec<u8>,
    /// What follows the choices.
    tail: &'static [u8],
    include_usage: bool,
}

/// One answer of several.
#[derive(Debug, Default)]
pub struct WholeChoice {
    /// Its text.
    pub text: String,
    /// Its tokens, where their probabilities are wanted.
    pub written: Option<Vec<WrittenToken>>,
    /// The calls that it makes.
    pub calls: Vec<Call>,
    /// Characters that were told of its tokens in a stream.
    pub told: usize,
    /// Why it ended.
    pub finish_reason: &'static str,
}

/// Tokens of a request and its answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// Tokens of the prompt.
    pub prompt: u64,
    /// Those of them that were in the cache.
    pub cached: u64,
    /// Tokens written.
    pub completion: u64,
}

/// Writes a value made of strings and numbers as JSON; writing those to memory does not fail.
fn put_json(out: &mut BytesMut, value: &impl Serialize) {
    let _ = serde_json::to_writer(out.writer(), value);
}

impl Answer {
    /// Answers by `model`, begun at `created` (Unix seconds). With `include_usage` their stream ends with an event that
    /// tells the tokens, and all others say that they do not.
    pub fn new(shape: Shape, id: String, created: u64, model: String, include_usage: bool) -> Self {
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

    fn begin(&self, out: &mut BytesMut, choice: u32) {
        out.put_slice(&self.head);
        out.put_slice(b"{\"index\":");
        put_json(out, &choice);
    }

    /// The first event of a choice, which carries the role; a text has none.
    pub fn first(&self, out: &mut BytesMut, choice: u32) {
        if self.shape == Shape::Text {
            return;
        }
        self.begin(out, choice);
        out.put_slice(br#","delta":{"role":"assistant","content":""},"finish_reason":null}"#);
        out.put_slice(self.tail);
    }

    /// The first event of a continuation of somebody else's answer, which says so: it says nothing else.
    pub fn resumed(&self, out: &mut BytesMut) {
        out.put_slice(&self.head);
        out.put_slice(br#"{"index":0,"delta":{"content":""},"finish_reason":null}],"spillway":{"resumed_by":"#);
        put_json(out, &format_args!("builtin/{}", self.model));
        out.put_slice(br#"}"#);
        out.put_slice(self.tail.strip_prefix(b"]").unwrap_or_default());
    }

    /// An event with a piece of a choice, and its tokens where their probabilities are wanted, which follow `told`
    /// characters. Gives the characters of its tokens.
    pub fn piece(
        &self,
        out: &mut BytesMut,
        choice: u32,
        text: &str,
        written: Option<&[WrittenToken]>,
        told: usize,
    ) -> usize {
        self.begin(out, choice);
        if self.shape == Shape::Text {
            out.put_slice(br#","text":"#);
            put_json(out, &text);
            out.put_slice(br#","logprobs":"#);
            let logprobs = written.map(|written| TextLogprobs::new(written, told));
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

    /// An event with a call of a choice, the `n`-th.
    pub fn call(&self, out: &mut BytesMut, choice: u32, n: usize, call: &Call) {
        self.begin(out, choice);
        out.put_slice(br#","delta":{"tool_calls":["#);
        put_json(out, &ToolCall::new(call, Some(n)));
        out.put_slice(br#"]},"finish_reason":null}"#);
        out.put_slice(self.tail);
    }

    /// The last event of a choice: why it ended.
    pub fn ended(&self, out: &mut BytesMut, choice: u32, reason: &'static str) {
        self.begin(out, choice);
        out.put_slice(match self.shape {
            Shape::Chat => br#","delta":{},"finish_reason":"#,
            Shape::Text => br#","text":"","logprobs":null,"finish_reason":"#,
        });
        put_json(out, &reason);
        out.put_slice(b"}");
        out.put_slice(self.tail);
    }

    /// The end of the stream: the tokens where they were asked for, `[DONE]`.
    pub fn last(&self, out: &mut BytesMut, spent: Spent) {
        if self.include_usage {
            out.put_slice(&self.head);
            out.put_slice(b"],\"usage\":");
            put_json(out, &Usage::from(spent));
            out.put_slice(b"}\n\n");
        }
        out.put_slice(b"data: [DONE]\n\n");
    }

    /// All answers at once.
    pub fn whole(&self, out: &mut BytesMut, choices: &[WholeChoice], spent: Spent) {
        if self.shape == Shape::Text {
            let choices = choices.iter().enumerate().map(|(index, choice)| TextChoice {
                index,
                text: &choice.text,
                logprobs: choice.written.as_deref().map(|written| TextLogprobs::new(written, 0)),
                finish_reason: choice.finish_reason,
            });
            let completion = TextCompletion {
                id: &self.id,
                object: "text_completion",
                created: self.created,
                model: &self.model,
                choices: choices.collect(),
                usage: spent.into(),
            };
            return put_json(out, &completion);
        }
        let choices = choices.iter().enumerate().map(|(index, choice)| Choice {
            index,
            message: Message {
                role: "assistant",
                content: (choice.calls.is_empty() || !choice.text.is_empty()).then_some(&choice.text),
                refusal: None,
                tool_calls: choice.calls.iter().map(|call| ToolCall::new(call, None)).collect(),
            },
            logprobs: choice.written.as_deref().map(Logprobs::from),
            finish_reason: choice.finish_reason,
        });
        let completion = Completion {
            id: &self.id,
            object: "chat.completion",
            created: self.created,
            model: &self.model,
            choices: choices.collect(),
            usage: spent.into(),
        };
        put_json(out, &completion);
    }
}

#[cfg(test)]
mod tests;
