//! JSON of whole answers and of the values in their events, in the shape of OpenAI's API.

use std::borrow::Cow;

use serde::Serialize;
use spillway_engine::{TokenProbability, WrittenToken};

use crate::protocol::chat::{Call, Usage};

#[derive(Serialize)]
pub(super) struct Completion<'a> {
    pub(super) id: &'a str,
    pub(super) object: &'static str,
    pub(super) created: u64,
    pub(super) model: &'a str,
    pub(super) choices: Vec<ChoiceBody<'a>>,
    pub(super) usage: UsageBody,
}

#[derive(Serialize)]
pub(super) struct ChoiceBody<'a> {
    pub(super) index: usize,
    pub(super) message: MessageBody<'a>,
    pub(super) logprobs: Option<Logprobs<'a>>,
    pub(super) finish_reason: &'static str,
}

#[derive(Serialize)]
pub(super) struct MessageBody<'a> {
    pub(super) role: &'static str,
    /// `None` for an answer of tool calls alone.
    pub(super) content: Option<&'a str>,
    pub(super) refusal: Option<()>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) tool_calls: Vec<ToolCall<'a>>,
}

#[derive(Serialize)]
pub(super) struct ToolCall<'a> {
    /// Number of the call; only in a stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) index: Option<usize>,
    pub(super) id: &'a str,
    #[serde(rename = "type")]
    pub(super) kind: &'static str,
    pub(super) function: Function<'a>,
}

#[derive(Serialize)]
pub(super) struct Function<'a> {
    pub(super) name: &'a str,
    pub(super) arguments: &'a str,
}

impl<'a> ToolCall<'a> {
    pub(super) fn new(call: &'a Call, index: Option<usize>) -> Self {
        let function = Function { name: &call.name, arguments: &call.arguments };
        Self { index, id: &call.id, kind: "function", function }
    }
}

#[derive(Serialize)]
pub(super) struct TextCompletion<'a> {
    pub(super) id: &'a str,
    pub(super) object: &'static str,
    pub(super) created: u64,
    pub(super) model: &'a str,
    pub(super) choices: Vec<TextChoice<'a>>,
    pub(super) usage: UsageBody,
}

#[derive(Serialize)]
pub(super) struct TextChoice<'a> {
    pub(super) index: usize,
    pub(super) text: &'a str,
    pub(super) logprobs: Option<TextLogprobs<'a>>,
    pub(super) finish_reason: &'static str,
}

/// Log probabilities in the shape of completions: parallel lists, with the offset of each token in the answer in
/// characters.
#[derive(Serialize)]
pub(super) struct TextLogprobs<'a> {
    pub(super) tokens: Vec<Cow<'a, str>>,
    pub(super) token_logprobs: Vec<f32>,
    pub(super) top_logprobs: Vec<serde_json::Map<String, serde_json::Value>>,
    pub(super) text_offset: Vec<usize>,
}

impl<'a> TextLogprobs<'a> {
    /// Log probabilities of tokens that follow `offset` characters.
    pub(super) fn new(written: &'a [WrittenToken], mut offset: usize) -> Self {
        let mut all = Self { tokens: vec![], token_logprobs: vec![], top_logprobs: vec![], text_offset: vec![] };
        for token in written {
            let chosen = Likely::from(&token.chosen);
            let likeliest = token.likeliest.iter().map(Likely::from);
            all.top_logprobs.push(likeliest.map(|l| (l.token.into_owned(), l.logprob.into())).collect());
            all.text_offset.push(offset);
            offset += chosen.token.chars().count();
            all.token_logprobs.push(chosen.logprob);
            all.tokens.push(chosen.token);
        }
        all
    }

    pub(super) fn characters(&self) -> usize {
        self.tokens.iter().map(|token| token.chars().count()).sum()
    }
}

#[derive(Serialize)]
pub(in crate::protocol::openai) struct Logprobs<'a> {
    pub(in crate::protocol::openai) content: Vec<TokenLogprobs<'a>>,
    pub(super) refusal: Option<()>,
}

#[derive(Serialize)]
pub(in crate::protocol::openai) struct TokenLogprobs<'a> {
    #[serde(flatten)]
    pub(super) chosen: Likely<'a>,
    pub(super) top_logprobs: Vec<Likely<'a>>,
}

#[derive(Serialize)]
pub(in crate::protocol::openai) struct Likely<'a> {
    pub(super) token: Cow<'a, str>,
    pub(super) logprob: f32,
    pub(super) bytes: &'a [u8],
}

/// Log probability that OpenAI writes for an impossible token, because JSON has no infinity.
const IMPOSSIBLE: f32 = -9999.0;

impl<'a> From<&'a TokenProbability> for Likely<'a> {
    fn from(of: &'a TokenProbability) -> Self {
        let logprob = if of.log_probability.is_finite() { of.log_probability.max(IMPOSSIBLE) } else { IMPOSSIBLE };
        Self { token: String::from_utf8_lossy(&of.bytes), logprob, bytes: &of.bytes }
    }
}

impl<'a> From<&'a [WrittenToken]> for Logprobs<'a> {
    fn from(written: &'a [WrittenToken]) -> Self {
        let token = |of: &'a WrittenToken| TokenLogprobs {
            chosen: (&of.chosen).into(),
            top_logprobs: of.likeliest.iter().map(Likely::from).collect(),
        };
        Self { content: written.iter().map(token).collect(), refusal: None }
    }
}

#[derive(Serialize)]
pub(super) struct UsageBody {
    pub(super) prompt_tokens: u64,
    pub(super) completion_tokens: u64,
    pub(super) total_tokens: u64,
    pub(super) prompt_tokens_details: PromptDetails,
}

#[derive(Serialize)]
pub(super) struct PromptDetails {
    pub(super) cached_tokens: u64,
}

impl From<Usage> for UsageBody {
    fn from(usage: Usage) -> Self {
        Self {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            total_tokens: usage.prompt_tokens.saturating_add(usage.completion_tokens),
            prompt_tokens_details: PromptDetails { cached_tokens: usage.cached_tokens.unwrap_or(0) },
        }
    }
}
