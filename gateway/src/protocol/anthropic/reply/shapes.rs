//! JSON that whole messages and events share, in the shapes of the official client (`anthropic` 2.14, `types/message.py`,
//! `types/usage.py`, `types/raw_*_event.py`).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::protocol::translate::{Finish, Tokens};

/// Tokens of a message. Those of the caches are not among `input_tokens`.
#[derive(Debug, Clone, Copy, Default, Deserialize, Serialize)]
pub(super) struct Usage {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) input_tokens: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) cache_creation_input_tokens: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) cache_read_input_tokens: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) output_tokens: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) output_tokens_details: Option<OutputDetails>,
}

/// Parts of the written tokens.
#[derive(Debug, Clone, Copy, Default, Deserialize, Serialize)]
pub(super) struct OutputDetails {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) thinking_tokens: Option<u64>,
}

impl Usage {
    /// Counts of both, the later one where both have it. Events leave out what earlier ones have told, and a sum of theirs
    /// alone would be no prompt.
    pub(super) fn or(self, earlier: Self) -> Self {
        Self {
            input_tokens: self.input_tokens.or(earlier.input_tokens),
            cache_creation_input_tokens: self.cache_creation_input_tokens.or(earlier.cache_creation_input_tokens),
            cache_read_input_tokens: self.cache_read_input_tokens.or(earlier.cache_read_input_tokens),
            output_tokens: self.output_tokens.or(earlier.output_tokens),
            output_tokens_details: self.output_tokens_details.or(earlier.output_tokens_details),
        }
    }
}

impl From<Usage> for Tokens {
    fn from(usage: Usage) -> Self {
        let of_caches = || {
            let read = usage.cache_read_input_tokens.unwrap_or(0);
            read.saturating_add(usage.cache_creation_input_tokens.unwrap_or(0))
        };
        Self {
            input: usage.input_tokens.map(|input| input.saturating_add(of_caches())),
            cache_read: usage.cache_read_input_tokens,
            cache_written: usage.cache_creation_input_tokens,
            output: usage.output_tokens,
            reasoning: usage.output_tokens_details.and_then(|details| details.thinking_tokens),
        }
    }
}

impl From<Tokens> for Usage {
    fn from(tokens: Tokens) -> Self {
        Self {
            input_tokens: Some(tokens.uncached_input().unwrap_or(0)),
            cache_creation_input_tokens: tokens.cache_written,
            cache_read_input_tokens: tokens.cache_read,
            output_tokens: Some(tokens.output.unwrap_or(0)),
            output_tokens_details: tokens.reasoning.map(|thinking| OutputDetails { thinking_tokens: Some(thinking) }),
        }
    }
}

/// Block of a message as servers send it. Fields that a type of block does not have are absent.
#[derive(Debug, Default, Deserialize)]
pub(super) struct ReadBlock {
    #[serde(rename = "type", default)]
    pub(super) kind: String,
    pub(super) text: Option<String>,
    pub(super) thinking: Option<String>,
    pub(super) signature: Option<String>,
    pub(super) data: Option<String>,
    pub(super) id: Option<String>,
    pub(super) name: Option<String>,
    input: Option<Value>,
}

impl ReadBlock {
    /// Arguments of a tool call; empty where a server sends something else, such as an empty text before the pieces.
    pub(super) fn take_input(&mut self) -> Map<String, Value> {
        match self.input.take() {
            Some(Value::Object(input)) => input,
            _ => Map::new(),
        }
    }
}

/// Message as servers send it, whole or at the beginning of a stream.
#[derive(Debug, Deserialize)]
pub(super) struct ReadMessage {
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) id: Option<String>,
    pub(super) model: Option<String>,
    #[serde(default)]
    pub(super) content: Vec<ReadBlock>,
    pub(super) stop_reason: Option<String>,
    pub(super) stop_sequence: Option<String>,
    pub(super) usage: Option<Usage>,
}

/// Reason for the end of an answer by the words of the API.
pub(super) fn finish_of(reason: &str, stop_sequence: Option<String>) -> Finish {
    match reason {
        "stop_sequence" => Finish::StopString(stop_sequence),
        "max_tokens" | "model_context_window_exceeded" => Finish::Length,
        "tool_use" => Finish::ToolCalls,
        "refusal" => Finish::Refusal,
        "pause_turn" => Finish::Pause,
        _ => Finish::Stop,
    }
}

/// Words of the API for the reason of an end, with the stop string.
pub(super) fn stop_of(finish: &Finish) -> (&'static str, Option<&str>) {
    match finish {
        Finish::Stop => ("end_turn", None),
        Finish::StopString(Some(stop)) => ("stop_sequence", Some(stop)),
        // A server that does not tell which string it was may as well have ended its turn.
        Finish::StopString(None) => ("end_turn", None),
        Finish::Length => ("max_tokens", None),
        Finish::ToolCalls => ("tool_use", None),
        Finish::Refusal => ("refusal", None),
        Finish::Pause => ("pause_turn", None),
    }
}
