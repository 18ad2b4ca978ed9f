//! Items of an answer, and the whole answer.

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::{REDACTED, SIGNATURE};
use crate::protocol::openai::translate::{Logprobs, logprobs_of, new_id};
use crate::protocol::translate::{Asked, Finish, Part, Reply, TokenLogprob, Tokens};

/// Part of a message.
#[derive(Debug)]
pub(super) enum Content {
    /// Text with the log probabilities of its tokens.
    Text(String, Vec<TokenLogprob>),
    /// Text by which the model declines to answer.
    Refusal(String),
}

impl Content {
    /// Part as it is written.
    pub(super) fn value(&self) -> Value {
        match self {
            Self::Text(text, logprobs) => {
                json!({"type": "output_text", "text": text, "annotations": [], "logprobs": listed(logprobs)})
            }
            Self::Refusal(text) => json!({"type": "refusal", "refusal": text}),
        }
    }
}

/// Log probabilities as the API lists them.
pub(super) fn listed(logprobs: &[TokenLogprob]) -> Value {
    json!(logprobs_of(logprobs).map(Logprobs::into_content).unwrap_or_default())
}

/// Item of an answer.
#[derive(Debug)]
pub(super) enum Item {
    /// Message with its parts.
    Message(Vec<Content>),
    /// Reasoning with its proof.
    Reasoning {
        /// Text.
        text: String,
        /// Value of `encrypted_content`.
        proof: Option<String>,
    },
    /// Tool call.
    Call {
        /// Id under which its result is reported.
        id: String,
        /// Name of the tool.
        name: String,
        /// Arguments as JSON text.
        arguments: String,
    },
}

impl Item {
    /// Item as it is written, as the `n`-th of an answer with an id. `status` is that of its message.
    pub(super) fn value(&self, answer: &str, n: usize, status: &str) -> Value {
        let id = self.id(answer, n);
        match self {
            Self::Message(parts) => {
                let content: Vec<Value> = parts.iter().map(Content::value).collect();
                json!({"type": "message", "id": id, "status": status, "role": "assistant", "content": content})
            }
            Self::Reasoning { text, proof } => {
                let summary: Vec<Value> =
                    if text.is_empty() { Vec::new() } else { vec![json!({"type": "summary_text", "text": text})] };
                json!({"type": "reasoning", "id": id, "summary": summary, "encrypted_content": proof})
            }
            Self::Call { id: call, name, arguments } => json!({
                "type": "function_call", "id": id, "status": status, "call_id": call, "name": name,
                "arguments": arguments
            }),
        }
    }

    /// Id of the `n`-th item of an answer.
    pub(super) fn id(&self, answer: &str, n: usize) -> String {
        let prefix = match self {
            Self::Message(_) => "msg",
            Self::Reasoning { .. } => "rs",
            Self::Call { .. } => "fc",
        };
        format!("{prefix}_{answer}_{n}")
    }
}

/// Value of `encrypted_content` for the signature of reasoning.
pub(super) fn signed(signature: &str) -> String {
    format!("{SIGNATURE}{signature}")
}

/// Item of reasoning that only its server can read.
pub(super) fn redacted(data: &str) -> Item {
    Item::Reasoning { text: String::new(), proof: Some(format!("{REDACTED}{data}")) }
}

/// Object of an answer.
#[derive(Debug, Serialize)]
struct Body<'a> {
    id: &'a str,
    object: &'static str,
    created_at: u64,
    completed_at: Option<u64>,
    status: &'static str,
    error: Option<Value>,
    incomplete_details: Option<Value>,
    model: &'a str,
    output: Vec<Value>,
    usage: Option<Value>,
}

/// State of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum State {
    /// Answer that is being written.
    InProgress,
    /// Answer that has ended.
    Ended(Finish),
    /// Answer that was broken off by an error, with this member.
    Failed(Value),
}

impl State {
    /// Status of an answer, and reason why it is incomplete. Text by which a model declined is complete.
    pub(super) fn status(&self, items: &[Item]) -> (&'static str, Option<&'static str>) {
        let declines = |item: &Item| matches!(item, Item::Message(parts) if parts.iter().any(|part| matches!(part, Content::Refusal(_))));
        match self {
            Self::InProgress => ("in_progress", None),
            Self::Failed(_) => ("failed", None),
            Self::Ended(Finish::Length) => ("incomplete", Some("max_output_tokens")),
            Self::Ended(Finish::Refusal) if !items.iter().any(declines) => ("incomplete", Some("content_filter")),
            Self::Ended(_) => ("completed", None),
        }
    }
}

/// Answer so far.
pub(super) struct Answer<'a> {
    /// Id.
    pub(super) id: &'a str,
    /// Model that answers.
    pub(super) model: &'a str,
    /// Unix seconds.
    pub(super) created: u64,
    /// Items.
    pub(super) items: &'a [Item],
    /// Tokens used, once they are known.
    pub(super) tokens: Option<Tokens>,
}

impl Answer<'_> {
    /// Object of the answer in a state, with the members that repeat the request.
    pub(super) fn json(&self, state: &State, echoed: &str) -> Box<RawValue> {
        let Self { id, model, created, items, tokens } = self;
        let (status, reason) = state.status(items);
        // An answer that is cut was cut in its last item.
        let of_last = if status == "completed" { "completed" } else { "incomplete" };
        let last = items.len().saturating_sub(1);
        let of_item = |n: usize| if n == last { of_last } else { "completed" };
        let body = Body {
            id,
            object: "response",
            created_at: *created,
            completed_at: (status == "completed").then(crate::clock::unix_now),
            status,
            error: if let State::Failed(error) = state { Some(error.clone()) } else { None },
            incomplete_details: reason.map(|reason| json!({"reason": reason})),
            model,
            output: items.iter().enumerate().map(|(n, item)| item.value(id, n, of_item(n))).collect(),
            usage: tokens.filter(|_| *state != State::InProgress).map(usage_of),
        };
        let mut text = serde_json::to_string(&body).unwrap_or_default();
        if !echoed.is_empty() {
            // Behind the last member, in place of the brace.
            text.truncate(text.len().saturating_sub(1));
            text.push(',');
            text.push_str(echoed);
            text.push('}');
        }
        RawValue::from_string(text).unwrap_or_default()
    }
}

fn usage_of(tokens: Tokens) -> Value {
    let (input, output) = (tokens.input.unwrap_or(0), tokens.output.unwrap_or(0));
    json!({
        "input_tokens": input,
        "input_tokens_details": {
            "cached_tokens": tokens.cache_read.unwrap_or(0),
            "cache_write_tokens": tokens.cache_written.unwrap_or(0)
        },
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": tokens.reasoning.unwrap_or(0)},
        "total_tokens": input.saturating_add(output)
    })
}

/// Writes a whole answer.
pub(super) fn write(reply: &Reply, asked: &Asked) -> Bytes {
    let (mut items, mut logprobs) = (Vec::new(), Some(reply.logprobs.clone()));
    for part in &reply.parts {
        let said = match part {
            Part::Text(text) => Content::Text(text.clone(), logprobs.take().unwrap_or_default()),
            Part::Refusal(text) => Content::Refusal(text.clone()),
            Part::Thinking { text, signature } => {
                items.push(Item::Reasoning { text: text.clone(), proof: signature.as_deref().map(signed) });
                continue;
            }
            Part::RedactedThinking(data) => {
                items.push(redacted(data));
                continue;
            }
            Part::ToolCall { id, name, arguments } => {
                items.push(Item::Call { id: id.clone(), name: name.clone(), arguments: arguments.clone() });
                continue;
            }
            Part::Image(_) | Part::ToolResult { .. } | Part::Other { .. } => continue,
        };
        match items.last_mut() {
            Some(Item::Message(parts)) => parts.push(said),
            _ => items.push(Item::Message(vec![said])),
        }
    }
    let id = reply.id.clone().unwrap_or_else(|| new_id("resp_"));
    let model = reply.model.as_deref().unwrap_or(&asked.model);
    let tokens = Some(reply.tokens.unwrap_or_default());
    let answer = Answer { id: &id, model, created: crate::clock::unix_now(), items: &items, tokens };
    crate::protocol::json(&answer.json(&State::Ended(reply.finish.clone()), &asked.echoed))
}
