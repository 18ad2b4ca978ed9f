//! JSON that whole completions and chunks share.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::protocol::translate::{Finish, Likely, TokenLogprob, Tokens};

/// Completion or chunk as servers send it.
#[derive(Debug, Deserialize)]
pub(super) struct ReadCompletion {
    pub(super) id: Option<String>,
    pub(super) model: Option<String>,
    #[serde(default)]
    pub(super) choices: Vec<ReadChoice>,
    pub(super) usage: Option<Usage>,
    pub(super) error: Option<Value>,
}

#[derive(Debug, Deserialize)]
pub(super) struct ReadChoice {
    #[serde(default)]
    pub(super) index: usize,
    #[serde(alias = "message")]
    pub(super) delta: Option<ReadMessage>,
    pub(super) finish_reason: Option<String>,
    /// Stop string that ended the choice, as vLLM reports it; other servers have other values here.
    pub(super) stop_reason: Option<Value>,
    pub(super) logprobs: Option<ReadLogprobs>,
}

/// Message of a choice, or a piece of it.
#[derive(Debug, Default, Deserialize)]
pub(super) struct ReadMessage {
    #[serde(default, deserialize_with = "text")]
    pub(super) content: Option<String>,
    pub(super) refusal: Option<String>,
    #[serde(default, deserialize_with = "text")]
    pub(super) reasoning_content: Option<String>,
    /// Newer name of vLLM and others.
    #[serde(default, deserialize_with = "text")]
    pub(super) reasoning: Option<String>,
    pub(super) thinking_blocks: Option<Vec<ThinkingBlock>>,
    pub(super) tool_calls: Option<Vec<ReadCall>>,
}

/// Reads a text. Some servers send it in parts, or something else under the name of reasoning.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::String(text) => Some(text),
        Value::Array(parts) => Some(parts.iter().filter_map(|part| part.get("text")?.as_str()).collect()),
        _ => None,
    })
}

/// Reasoning in Anthropic's form; in a stream a piece of it.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(super) struct ThinkingBlock {
    #[serde(rename = "type", default)]
    pub(super) kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) thinking: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) signature: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) data: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct ReadCall {
    pub(super) index: Option<usize>,
    pub(super) id: Option<String>,
    pub(super) function: Option<ReadFunction>,
}

#[derive(Debug, Deserialize)]
pub(super) struct ReadFunction {
    pub(super) name: Option<String>,
    pub(super) arguments: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct ReadLogprobs {
    pub(super) content: Option<Vec<Logprob>>,
}

/// Log probability of a token. Those at its place have none of their own.
#[derive(Debug, Deserialize, Serialize)]
pub(in crate::protocol) struct Logprob {
    #[serde(default)]
    token: String,
    #[serde(default)]
    logprob: f64,
    #[serde(default)]
    bytes: Option<Vec<u8>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    top_logprobs: Option<Vec<Logprob>>,
}

impl From<Logprob> for Likely {
    fn from(read: Logprob) -> Self {
        Self { token: read.token, logprob: read.logprob, bytes: read.bytes }
    }
}

impl From<Logprob> for TokenLogprob {
    fn from(mut read: Logprob) -> Self {
        let likeliest = read.top_logprobs.take().unwrap_or_default().into_iter().map(Into::into).collect();
        Self { chosen: read.into(), likeliest }
    }
}

impl From<&Likely> for Logprob {
    fn from(likely: &Likely) -> Self {
        let Likely { token, logprob, bytes } = likely.clone();
        Self { token, logprob, bytes, top_logprobs: None }
    }
}

impl From<&TokenLogprob> for Logprob {
    fn from(token: &TokenLogprob) -> Self {
        let likeliest = token.likeliest.iter().map(Into::into).collect();
        Self { top_logprobs: Some(likeliest), ..Self::from(&token.chosen) }
    }
}

/// Log probabilities of a text as they are written.
#[derive(Debug, Serialize)]
pub(in crate::protocol) struct Logprobs {
    content: Vec<Logprob>,
    refusal: Option<()>,
}

impl Logprobs {
    /// The tokens alone.
    pub(in crate::protocol) fn into_content(self) -> Vec<Logprob> {
        self.content
    }
}

/// Log probabilities of tokens; `None` for none.
pub(in crate::protocol) fn logprobs_of(tokens: &[TokenLogprob]) -> Option<Logprobs> {
    (!tokens.is_empty()).then(|| Logprobs { content: tokens.iter().map(Into::into).collect(), refusal: None })
}

/// Tokens of a request and its answer. Those of caches are among `prompt_tokens`.
#[derive(Debug, Clone, Copy, Default, Deserialize, Serialize)]
pub(super) struct Usage {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    #[serde(default)]
    total_tokens: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prompt_tokens_details: Option<PromptDetails>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    completion_tokens_details: Option<CompletionDetails>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize, Serialize)]
struct PromptDetails {
    #[serde(default)]
    cached_tokens: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cache_write_tokens: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize, Serialize)]
struct CompletionDetails {
    #[serde(default)]
    reasoning_tokens: Option<u64>,
}

impl From<Usage> for Tokens {
    fn from(usage: Usage) -> Self {
        let prompt = usage.prompt_tokens_details.unwrap_or_default();
        Self {
            input: usage.prompt_tokens,
            cache_read: prompt.cached_tokens,
            cache_written: prompt.cache_write_tokens,
            output: usage.completion_tokens,
            reasoning: usage.completion_tokens_details.and_then(|details| details.reasoning_tokens),
        }
    }
}

impl From<Tokens> for Usage {
    fn from(tokens: Tokens) -> Self {
        let (input, output) = (tokens.input.unwrap_or(0), tokens.output.unwrap_or(0));
        let prompt = PromptDetails {
            cached_tokens: Some(tokens.cache_read.unwrap_or(0)),
            cache_write_tokens: tokens.cache_written,
        };
        Self {
            prompt_tokens: Some(input),
            completion_tokens: Some(output),
            total_tokens: Some(input.saturating_add(output)),
            prompt_tokens_details: Some(prompt),
            completion_tokens_details: tokens
                .reasoning
                .map(|reasoning| CompletionDetails { reasoning_tokens: Some(reasoning) }),
        }
    }
}

/// Reason for the end of an answer by the words of the API.
pub(super) fn finish_of(reason: &str, stop_reason: Option<&Value>) -> Finish {
    match reason {
        "length" => Finish::Length,
        "tool_calls" | "function_call" => Finish::ToolCalls,
        "content_filter" => Finish::Refusal,
        _ => match stop_reason.and_then(Value::as_str) {
            Some(stop) => Finish::StopString(Some(stop.to_owned())),
            None => Finish::Stop,
        },
    }
}

/// Word of the API for the reason of an end.
pub(super) fn reason_of(finish: &Finish) -> &'static str {
    match finish {
        Finish::Stop | Finish::StopString(_) | Finish::Pause => "stop",
        Finish::Length => "length",
        Finish::ToolCalls => "tool_calls",
        Finish::Refusal => "content_filter",
    }
}
