//! The answers of the model inside in OpenAI's shape: events of a stream, a whole completion, the list of models.
//! A token costs the copy of what all events share and the escaping of its text, into a buffer that is used again.

use std::borrow::Cow;

use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;
use spillway_engine::{TokenProbability, WrittenToken};

use crate::protocol::json;

/// Writes the answers to one request, as a stream of events or as a whole.
#[derive(Debug)]
pub struct Answer {
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

#[derive(Serialize)]
struct Completion<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<Choice<'a>>,
    usage: Usage,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: usize,
    message: Message<'a>,
    logprobs: Option<Logprobs<'a>>,
    finish_reason: &'static str,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
    refusal: Option<()>,
}

#[derive(Serialize)]
struct Logprobs<'a> {
    content: Vec<Token<'a>>,
    refusal: Option<()>,
}

#[derive(Serialize)]
struct Token<'a> {
    #[serde(flatten)]
    chosen: Likely<'a>,
    top_logprobs: Vec<Likely<'a>>,
}

#[derive(Serialize)]
struct Likely<'a> {
    token: Cow<'a, str>,
    logprob: f32,
    bytes: &'a [u8],
}

/// What OpenAI writes for a token that is as good as impossible: JSON has no infinity.
const IMPOSSIBLE: f32 = -9999.0;

impl<'a> From<&'a TokenProbability> for Likely<'a> {
    fn from(of: &'a TokenProbability) -> Self {
        let logprob = if of.log_probability.is_finite() { of.log_probability.max(IMPOSSIBLE) } else { IMPOSSIBLE };
        Self { token: String::from_utf8_lossy(&of.bytes), logprob, bytes: &of.bytes }
    }
}

impl<'a> From<&'a [WrittenToken]> for Logprobs<'a> {
    fn from(written: &'a [WrittenToken]) -> Self {
        let token = |of: &'a WrittenToken| Token {
            chosen: (&of.chosen).into(),
            top_logprobs: of.likeliest.iter().map(Likely::from).collect(),
        };
        Self { content: written.iter().map(token).collect(), refusal: None }
    }
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
    prompt_tokens_details: PromptDetails,
}

#[derive(Serialize)]
struct PromptDetails {
    cached_tokens: u64,
}

impl From<Spent> for Usage {
    fn from(spent: Spent) -> Self {
        Self {
            prompt_tokens: spent.prompt,
            completion_tokens: spent.completion,
            total_tokens: spent.prompt.saturating_add(spent.completion),
            prompt_tokens_details: PromptDetails { cached_tokens: spent.cached },
        }
    }
}

/// Writes a value made of strings and numbers as JSON; writing those to memory does not fail.
fn put_json(out: &mut BytesMut, value: &impl Serialize) {
    let _ = serde_json::to_writer(out.writer(), value);
}

impl Answer {
    /// Answers by `model`, begun at `created` (Unix seconds). With `include_usage` their stream ends with an event that
    /// tells the tokens, and all others say that they do not.
    pub fn new(id: String, created: u64, model: String, include_usage: bool) -> Self {
        let mut head = BytesMut::with_capacity(160);
        head.put_slice(b"data: {\"id\":");
        put_json(&mut head, &id);
        head.put_slice(b",\"object\":\"chat.completion.chunk\",\"created\":");
        put_json(&mut head, &created);
        head.put_slice(b",\"model\":");
        put_json(&mut head, &model);
        head.put_slice(b",\"choices\":[");
        let tail: &[u8] = if include_usage { b"],\"usage\":null}\n\n" } else { b"]}\n\n" };
        Self { id, created, model, head: head.to_vec(), tail, include_usage }
    }

    fn begin(&self, out: &mut BytesMut, choice: u32) {
        out.put_slice(&self.head);
        out.put_slice(b"{\"index\":");
        put_json(out, &choice);
    }

    /// The first event of a choice, which carries the role.
    pub fn first(&self, out: &mut BytesMut, choice: u32) {
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

    /// An event with a piece of a choice, and its tokens where their probabilities are wanted.
    pub fn piece(&self, out: &mut BytesMut, choice: u32, text: &str, written: Option<&[WrittenToken]>) {
        self.begin(out, choice);
        out.put_slice(br#","delta":{"content":"#);
        put_json(out, &text);
        out.put_slice(b"}");
        if let Some(written) = written {
            out.put_slice(br#","logprobs":"#);
            put_json(out, &Logprobs::from(written));
        }
        out.put_slice(br#","finish_reason":null}"#);
        out.put_slice(self.tail);
    }

    /// The last event of a choice: why it ended.
    pub fn ended(&self, out: &mut BytesMut, choice: u32, reason: &'static str) {
        self.begin(out, choice);
        out.put_slice(br#","delta":{},"finish_reason":"#);
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
        let choices = choices.iter().enumerate().map(|(index, choice)| Choice {
            index,
            message: Message { role: "assistant", content: &choice.text, refusal: None },
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

/// A model in the list.
#[derive(Debug, Serialize)]
pub struct ModelCard<'a> {
    /// Its name.
    pub id: &'a str,
    /// Unix seconds.
    pub created: u64,
    /// Whose it is.
    pub owned_by: &'a str,
}

#[derive(Serialize)]
struct Card<'a, 'b> {
    object: &'static str,
    #[serde(flatten)]
    card: &'b ModelCard<'a>,
}

#[derive(Serialize)]
struct List<T> {
    object: &'static str,
    data: Vec<T>,
}

/// The answer to `GET /v1/models`.
pub fn models_list<'a>(cards: impl IntoIterator<Item = ModelCard<'a>>) -> Bytes {
    let cards: Vec<_> = cards.into_iter().collect();
    json(&List { object: "list", data: cards.iter().map(|card| Card { object: "model", card }).collect() })
}

/// The answer to `GET /v1/models/ID`.
pub fn model(card: &ModelCard<'_>) -> Bytes {
    json(&Card { object: "model", card })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEAD: &str =
        r#"data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"m\"x","choices":["#;

    fn written(include_usage: bool) -> String {
        let answer = Answer::new("chatcmpl-1".into(), 7, "m\"x".into(), include_usage);
        let mut out = BytesMut::new();
        answer.first(&mut out, 0);
        answer.piece(&mut out, 0, "Hi \"you\"\n\u{1}é", None);
        answer.ended(&mut out, 0, "stop");
        answer.last(&mut out, Spent { prompt: 3, cached: 1, completion: 2 });
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn a_stream_is_what_the_official_clients_read() {
        let expected = [
            format!(r#"{HEAD}{{"index":0,"delta":{{"role":"assistant","content":""}},"finish_reason":null}}]}}"#),
            format!(r#"{HEAD}{{"index":0,"delta":{{"content":"Hi \"you\"\n\u0001é"}},"finish_reason":null}}]}}"#),
            format!(r#"{HEAD}{{"index":0,"delta":{{}},"finish_reason":"stop"}}]}}"#),
            "data: [DONE]\n\n".to_owned(),
        ];
        assert_eq!(written(false), expected.join("\n\n"));
    }

    #[test]
    fn usage_comes_last_where_it_was_asked_for() {
        let events = written(true);
        let events: Vec<&str> = events.split_terminator("\n\n").collect();
        let [text @ .., usage, done] = &events[..] else { panic!("{events:?}") };
        assert_eq!(text.len(), 3);
        assert!(text.iter().all(|event| event.starts_with(HEAD) && event.ends_with(r#"}],"usage":null}"#)), "{text:?}");
        let expected = r#"],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5,"prompt_tokens_details":{"cached_tokens":1}}}"#;
        assert_eq!(usage.strip_prefix(HEAD), Some(expected));
        assert_eq!(*done, "data: [DONE]");
    }

    #[test]
    fn a_whole_answer_is_one_object() {
        let mut out = BytesMut::new();
        let choice = WholeChoice { text: "Hi\n".into(), written: None, finish_reason: "length" };
        let spent = Spent { prompt: 3, cached: 0, completion: 2 };
        Answer::new("chatcmpl-1".into(), 7, "m".into(), false).whole(&mut out, &[choice], spent);
        let expected = concat!(
            r#"{"id":"chatcmpl-1","object":"chat.completion","created":7,"model":"m","choices":[{"index":0,"#,
            r#""message":{"role":"assistant","content":"Hi\n","refusal":null},"logprobs":null,"#,
            r#""finish_reason":"length"}],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5,"#,
            r#""prompt_tokens_details":{"cached_tokens":0}}}"#
        );
        assert_eq!(out, expected);
    }

    #[test]
    fn probabilities_have_the_shape_that_clients_decode() {
        let likely =
            |bytes: &[u8], log_probability| TokenProbability { token: 1, bytes: bytes.into(), log_probability };
        let written = [WrittenToken {
            chosen: likely(b"a", -0.5),
            likeliest: vec![likely(b"a", -0.5), likely(b"\xe2\x82", f32::NEG_INFINITY)],
        }];
        let content = concat!(
            r#"{"content":[{"token":"a","logprob":-0.5,"bytes":[97],"top_logprobs":[{"token":"a","logprob":-0.5,"#,
            "\"bytes\":[97]},{\"token\":\"\u{FFFD}\",\"logprob\":-9999.0,\"bytes\":[226,130]}]}],\"refusal\":null}"
        );
        let answer = Answer::new("chatcmpl-1".into(), 7, "m\"x".into(), false);
        let mut out = BytesMut::new();
        answer.piece(&mut out, 2, "a", Some(&written));
        let event =
            format!(r#"{HEAD}{{"index":2,"delta":{{"content":"a"}},"logprobs":{content},"finish_reason":null}}]}}"#);
        assert_eq!(out, format!("{event}\n\n"));
        out.clear();
        let choice = || WholeChoice { text: "a".into(), written: Some(written.to_vec()), finish_reason: "stop" };
        answer.whole(&mut out, &[choice(), choice()], Spent::default());
        let whole = String::from_utf8(out.to_vec()).unwrap();
        for n in 0..2 {
            let message = r#""message":{"role":"assistant","content":"a","refusal":null}"#;
            let choice = format!(r#"{{"index":{n},{message},"logprobs":{content},"finish_reason":"stop"}}"#);
            assert!(whole.contains(&choice), "{whole}");
        }
    }

    #[test]
    fn models_are_listed() {
        let card = || ModelCard { id: "m", created: 7, owned_by: "spillway" };
        let one = r#"{"object":"model","id":"m","created":7,"owned_by":"spillway"}"#;
        assert_eq!(model(&card()), one);
        assert_eq!(models_list([card(), card()]), format!(r#"{{"object":"list","data":[{one},{one}]}}"#));
        assert_eq!(models_list([]), r#"{"object":"list","data":[]}"#);
    }

    proptest! {
        #[test]
        fn any_text_survives(text in any::<String>(), id in any::<String>(), model in any::<String>()) {
            let mut out = BytesMut::new();
            Answer::new(id.clone(), 1, model.clone(), false).piece(&mut out, 0, &text, None);
            let event = out.strip_prefix(b"data: ").unwrap().strip_suffix(b"\n\n").unwrap();
            // A line break in an event would end it.
            prop_assert!(!event.contains(&b'\n') && !event.contains(&b'\r'));
            let value: serde_json::Value = serde_json::from_slice(event).unwrap();
            prop_assert_eq!(value["choices"][0]["delta"]["content"].as_str(), Some(&*text));
            prop_assert_eq!((value["id"].as_str(), value["model"].as_str()), (Some(&*id), Some(&*model)));
        }
    }
}
