//! Counters of a cache: how requests were answered, why answers were not kept, and the tokens that hits have saved.

use serde::Deserialize;
use serde_json::value::RawValue;
use spillway_filter::{BuildContext, Counter, CounterSpec, FieldError, TokenUse};

/// Requests by how they were answered.
const REQUESTS: CounterSpec = CounterSpec {
    name: "spillway_filter_cache_requests",
    help: "Requests at a cache by how they were answered",
    labels: &["result"],
};
/// Misses whose answers were not kept.
const UNKEPT: CounterSpec = CounterSpec {
    name: "spillway_filter_cache_unkept_answers",
    help: "Answers to misses that a cache did not keep, by reason",
    labels: &["reason"],
};
/// Texts that were turned into vectors, or not.
const EMBEDDINGS: CounterSpec = CounterSpec {
    name: "spillway_filter_cache_embeddings",
    help: "Texts at a semantic cache by whether they were turned into vectors in time",
    labels: &["outcome"],
};
/// Tokens of answers that were given again.
const SAVED: CounterSpec = CounterSpec {
    name: "spillway_filter_cache_saved_tokens",
    help: "Tokens of answers that a cache gave again, which no server read or wrote",
    labels: &["kind"],
};

/// Money that those tokens would have cost.
const SAVED_MONEY: CounterSpec = CounterSpec {
    name: "spillway_filter_cache_saved_usd",
    help: "Cost of answers that a cache gave again, by the prices of models at that time",
    labels: &[],
};

/// Reason why the answer to a miss is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unkept {
    /// Status other than 200.
    Status,
    /// Another backend or a built-in model stands in.
    Spilled,
    /// Neither JSON nor a stream.
    Form,
    /// Forbidden by the server's `cache-control`.
    Forbidden,
    /// An error in an answer of 200, or an answer that is not there yet.
    Error,
    /// Longer than `maxEntry`.
    TooLong,
    /// An operator had all answers forgotten while it was on its way.
    Purged,
    /// The shared store could not be asked before.
    Store,
    /// Broken off, or none at all.
    Cut,
}

impl Unkept {
    const ALL: [(Self, &'static str); 9] = [
        (Self::Status, "status"),
        (Self::Spilled, "spilled"),
        (Self::Form, "form"),
        (Self::Forbidden, "forbidden"),
        (Self::Error, "error"),
        (Self::TooLong, "too_long"),
        (Self::Purged, "purged"),
        (Self::Store, "store"),
        (Self::Cut, "cut"),
    ];
}

/// Counters of the caches of a route.
#[derive(Debug)]
pub(super) struct Counts {
    /// Requests whose answer was kept.
    pub(super) hit: Counter,
    /// Requests that waited for the answer to another one.
    pub(super) joined: Counter,
    /// Requests whose text is near that of another one, whose answer they got.
    pub(super) semantic: Counter,
    /// Requests whose answers are kept from now on.
    pub(super) miss: Counter,
    /// Requests that cannot be answered again, whose callers want none of it, or beside which another one asks the same.
    pub(super) bypassed: Counter,
    unkept: Vec<(Unkept, Counter)>,
    /// Texts with a vector.
    pub(super) embedded: Counter,
    /// Texts without one: their model had no time, or cannot read them whole.
    pub(super) not_embedded: Counter,
    prompt_tokens: Counter,
    completion_tokens: Counter,
    /// Billionths of a US dollar.
    saved_nanos: Counter,
}

impl Counts {
    pub(super) fn new(cx: &BuildContext<'_>) -> Result<Self, FieldError> {
        let requests = |result| cx.counter(REQUESTS, &[result]);
        let unkept = Unkept::ALL.map(|(reason, label)| Ok((reason, cx.counter(UNKEPT, &[label])?)));
        Ok(Self {
            hit: requests("hit")?,
            joined: requests("joined")?,
            semantic: requests("semantic")?,
            miss: requests("miss")?,
            bypassed: requests("bypassed")?,
            unkept: unkept.into_iter().collect::<Result<_, FieldError>>()?,
            embedded: cx.counter(EMBEDDINGS, &["done"])?,
            not_embedded: cx.counter(EMBEDDINGS, &["left_out"])?,
            prompt_tokens: cx.counter(SAVED, &["prompt"])?,
            completion_tokens: cx.counter(SAVED, &["completion"])?,
            saved_nanos: cx.counter_of_billionths(SAVED_MONEY, &[])?,
        })
    }

    /// Counts an answer that is not kept.
    pub(super) fn unkept(&self, reason: Unkept) {
        if let Some((_, counter)) = self.unkept.iter().find(|(known, _)| *known == reason) {
            counter.inc();
        }
    }

    /// Counts the tokens of an answer that is given again so many times, and their cost.
    pub(super) fn saved(&self, tokens: TokenUse, nanos: u64, times: u64) {
        self.prompt_tokens.add(tokens.input.saturating_mul(times));
        self.completion_tokens.add(tokens.output.saturating_mul(times));
        self.saved_nanos.add(nanos.saturating_mul(times));
    }
}

/// Tokens of an answer, as its server counts them; 0 where it does not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tokens {
    /// Tokens read.
    pub(super) prompt: u64,
    /// Tokens written.
    pub(super) completion: u64,
}

impl Tokens {
    /// The greater numbers of two events of a stream: a later event counts more.
    pub(super) fn max(self, other: Self) -> Self {
        Self { prompt: self.prompt.max(other.prompt), completion: self.completion.max(other.completion) }
    }
}

/// Members of an answer, or of an event of one, that say whether it is one and what it cost.
#[derive(Default, Deserialize)]
pub(super) struct Said<'a> {
    #[serde(default)]
    pub(super) error: serde_json::Value,
    #[serde(default)]
    pub(super) done: Option<bool>,
    #[serde(rename = "type", default)]
    pub(super) kind: Option<String>,
    #[serde(default)]
    pub(super) status: Option<String>,
    #[serde(borrow, default)]
    usage: Option<&'a RawValue>,
    /// Beginning of a stream of Anthropic's Messages API.
    #[serde(borrow, default)]
    message: Option<&'a RawValue>,
    /// End of a stream of OpenAI's Responses API.
    #[serde(borrow, default)]
    response: Option<&'a RawValue>,
    #[serde(borrow, default)]
    prompt_eval_count: Option<&'a RawValue>,
    #[serde(borrow, default)]
    eval_count: Option<&'a RawValue>,
}

/// Tokens in the words of OpenAI's and Anthropic's APIs.
#[derive(Default, Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: Option<u64>,
    #[serde(default)]
    completion_tokens: Option<u64>,
    #[serde(default)]
    input_tokens: Option<u64>,
    #[serde(default)]
    output_tokens: Option<u64>,
    #[serde(default)]
    cache_read_input_tokens: Option<u64>,
    #[serde(default)]
    cache_creation_input_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct Nested<'a> {
    #[serde(borrow, default)]
    usage: Option<&'a RawValue>,
}

/// Value in this form; nothing where it has another one.
fn read<'a, T: Deserialize<'a>>(raw: Option<&'a RawValue>) -> Option<T> {
    serde_json::from_str(raw?.get()).ok()
}

impl Said<'_> {
    /// Tokens that it says.
    pub(super) fn tokens(&self) -> Tokens {
        let nested = |raw| read::<Nested<'_>>(raw).and_then(|nested| nested.usage);
        let usage = self.usage.or_else(|| nested(self.message)).or_else(|| nested(self.response));
        let usage: Usage = read(usage).unwrap_or_default();
        // Anthropic counts what its cache had beside the rest, OpenAI within it.
        let beside = [usage.cache_read_input_tokens, usage.cache_creation_input_tokens];
        let beside = beside.into_iter().flatten().fold(0, u64::saturating_add);
        let input = usage.input_tokens.map(|tokens| tokens.saturating_add(beside));
        Tokens {
            prompt: usage.prompt_tokens.or(input).or_else(|| read(self.prompt_eval_count)).unwrap_or(0),
            completion: usage.completion_tokens.or(usage.output_tokens).or_else(|| read(self.eval_count)).unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_in_every_api() {
        for (text, prompt, completion) in [
            (r#"{"usage":{"prompt_tokens":3,"completion_tokens":5}}"#, 3, 5),
            (r#"{"usage":{"prompt_tokens":3,"total_tokens":3}}"#, 3, 0),
            (r#"{"usage":{"input_tokens":3,"output_tokens":5,"cache_read_input_tokens":4}}"#, 7, 5),
            (r#"{"type":"message_start","message":{"usage":{"input_tokens":3,"output_tokens":1}}}"#, 3, 1),
            (r#"{"type":"response.completed","response":{"usage":{"input_tokens":3,"output_tokens":5}}}"#, 3, 5),
            (r#"{"message":{"content":"x"},"done":true,"prompt_eval_count":3,"eval_count":5}"#, 3, 5),
            (r#"{"message":"x","usage":null}"#, 0, 0),
            (r#"{"usage":"x","eval_count":"many"}"#, 0, 0),
        ] {
            let said: Said<'_> = serde_json::from_str(text).unwrap();
            assert_eq!(said.tokens(), Tokens { prompt, completion }, "{text}");
        }
    }
}
