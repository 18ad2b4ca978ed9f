//! The answers of the model inside in OpenAI's shape: events of a stream, a whole completion, the list of models.
//! A token costs the copy of what all events share and the escaping of its text, into a buffer that is used again.

use std::borrow::Cow;

use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;
use spillway_engine::{TokenProbability, WrittenToken};

use crate::protocol::json;

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
    /// None of an answer that only calls.
    content: Option<&'a str>,
    refusal: Option<()>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall<'a>>,
}

#[derive(Serialize)]
struct ToolCall<'a> {
    /// In a stream: which of the calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    id: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    function: Function<'a>,
}

#[derive(Serialize)]
struct Function<'a> {
    name: &'a str,
    arguments: &'a str,
}

impl<'a> ToolCall<'a> {
    fn new(call: &'a Call, index: Option<usize>) -> Self {
        let function = Function { name: &call.name, arguments: &call.arguments };
        Self { index, id: &call.id, kind: "function", function }
    }
}

#[derive(Serialize)]
struct TextCompletion<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<TextChoice<'a>>,
    usage: Usage,
}

#[derive(Serialize)]
struct TextChoice<'a> {
    index: usize,
    text: &'a str,
    logprobs: Option<TextLogprobs<'a>>,
    finish_reason: &'static str,
}

/// Probabilities as completions tell them: side by side, and where in the answer each token begins, in characters.
#[derive(Serialize)]
struct TextLogprobs<'a> {
    tokens: Vec<Cow<'a, str>>,
    token_logprobs: Vec<f32>,
    top_logprobs: Vec<serde_json::Map<String, serde_json::Value>>,
    text_offset: Vec<usize>,
}

impl<'a> TextLogprobs<'a> {
    /// Of tokens that follow `offset` characters.
    fn new(written: &'a [WrittenToken], mut offset: usize) -> Self {
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

    fn characters(&self) -> usize {
        self.tokens.iter().map(|token| token.chars().count()).sum()
    }
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
        let answer = Answer::new(Shape::Chat, "chatcmpl-1".into(), 7, "m\"x".into(), include_usage);
        let mut out = BytesMut::new();
        answer.first(&mut out, 0);
        answer.piece(&mut out, 0, "Hi \"you\"\n\u{1}é", None, 0);
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
        let choice = WholeChoice { text: "Hi\n".into(), finish_reason: "length", ..WholeChoice::default() };
        let spent = Spent { prompt: 3, cached: 0, completion: 2 };
        Answer::new(Shape::Chat, "chatcmpl-1".into(), 7, "m".into(), false).whole(&mut out, &[choice], spent);
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
        let answer = Answer::new(Shape::Chat, "chatcmpl-1".into(), 7, "m\"x".into(), false);
        let mut out = BytesMut::new();
        answer.piece(&mut out, 2, "a", Some(&written), 0);
        let event =
            format!(r#"{HEAD}{{"index":2,"delta":{{"content":"a"}},"logprobs":{content},"finish_reason":null}}]}}"#);
        assert_eq!(out, format!("{event}\n\n"));
        out.clear();
        let choice = || WholeChoice {
            text: "a".into(),
            written: Some(written.to_vec()),
            finish_reason: "stop",
            ..WholeChoice::default()
        };
        answer.whole(&mut out, &[choice(), choice()], Spent::default());
        let whole = String::from_utf8(out.to_vec()).unwrap();
        for n in 0..2 {
            let message = r#""message":{"role":"assistant","content":"a","refusal":null}"#;
            let choice = format!(r#"{{"index":{n},{message},"logprobs":{content},"finish_reason":"stop"}}"#);
            assert!(whole.contains(&choice), "{whole}");
        }
    }

    #[test]
    fn calls_have_the_shape_that_clients_decode() {
        let call = Call { id: "call_1".into(), name: "time".into(), arguments: r#"{"zone":"UTC"}"#.into() };
        let answer = Answer::new(Shape::Chat, "chatcmpl-1".into(), 7, "m\"x".into(), false);
        let mut out = BytesMut::new();
        answer.call(&mut out, 0, 1, &call);
        let function = r#""type":"function","function":{"name":"time","arguments":"{\"zone\":\"UTC\"}"}"#;
        let event = format!(
            r#"{HEAD}{{"index":0,"delta":{{"tool_calls":[{{"index":1,"id":"call_1",{function}}}]}},"finish_reason":null}}]}}"#
        );
        assert_eq!(out, format!("{event}\n\n"));
        out.clear();
        let choice = WholeChoice { calls: vec![call], finish_reason: "tool_calls", ..WholeChoice::default() };
        answer.whole(&mut out, &[choice], Spent::default());
        let message = format!(
            r#""message":{{"role":"assistant","content":null,"refusal":null,"tool_calls":[{{"id":"call_1",{function}}}]}}"#
        );
        let whole = String::from_utf8(out.to_vec()).unwrap();
        assert!(whole.contains(&message) && whole.contains(r#""finish_reason":"tool_calls""#), "{whole}");
    }

    #[test]
    fn completions_have_their_own_shape() {
        let likely = |bytes: &[u8]| TokenProbability { token: 1, bytes: bytes.into(), log_probability: -0.5 };
        let token = |bytes: &[u8]| WrittenToken { chosen: likely(bytes), likeliest: vec![likely(b"x")] };
        let answer = Answer::new(Shape::Text, "cmpl-1".into(), 7, "m".into(), false);
        let mut out = BytesMut::new();
        answer.first(&mut out, 0);
        assert!(out.is_empty(), "a text has no role");
        let told = answer.piece(&mut out, 0, "aé", Some(&[token("aé".as_bytes())]), 3);
        assert_eq!(told, 2);
        answer.ended(&mut out, 0, "length");
        let head = r#"data: {"id":"cmpl-1","object":"text_completion","created":7,"model":"m","choices":[{"index":0,"#;
        let logprobs = r#"{"tokens":["aé"],"token_logprobs":[-0.5],"top_logprobs":[{"x":-0.5}],"text_offset":[3]}"#;
        let expected = [
            format!(r#"{head}"text":"aé","logprobs":{logprobs},"finish_reason":null}}]}}"#),
            format!(r#"{head}"text":"","logprobs":null,"finish_reason":"length"}}]}}"#),
            String::new(),
        ];
        assert_eq!(out, expected.join("\n\n"));
        out.clear();
        let written = Some(vec![token(b"a"), token(b"b")]);
        let choice = WholeChoice { text: "ab".into(), written, finish_reason: "stop", ..WholeChoice::default() };
        answer.whole(&mut out, &[choice], Spent::default());
        let whole = String::from_utf8(out.to_vec()).unwrap();
        let start = r#"{"id":"cmpl-1","object":"text_completion","created":7,"model":"m","choices":[{"index":0,"text":"ab","logprobs":"#;
        assert!(whole.starts_with(start) && whole.contains(r#""text_offset":[0,1]"#), "{whole}");
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
            Answer::new(Shape::Chat, id.clone(), 1, model.clone(), false).piece(&mut out, 0, &text, None, 0);
            let event = out.strip_prefix(b"data: ").unwrap().strip_suffix(b"\n\n").unwrap();
            // A line break in an event would end it.
            prop_assert!(!event.contains(&b'\n') && !event.contains(&b'\r'));
            let value: serde_json::Value = serde_json::from_slice(event).unwrap();
            prop_assert_eq!(value["choices"][0]["delta"]["content"].as_str(), Some(&*text));
            prop_assert_eq!((value["id"].as_str(), value["model"].as_str()), (Some(&*id), Some(&*model)));
        }
    }
}
