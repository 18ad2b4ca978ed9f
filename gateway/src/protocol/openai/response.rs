//! The answers of the model inside in OpenAI's shape: events of a stream, a whole completion, the list of models.
//! A token costs the copy of what all events share and the escaping of its text, into a buffer that is used again.

use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;

use crate::protocol::json;

/// Writes one answer, as a stream of events or as a whole.
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

#[derive(Serialize)]
struct Completion<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: [Choice<'a>; 1],
    usage: Usage,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: u32,
    message: Message<'a>,
    logprobs: Option<()>,
    finish_reason: &'static str,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
    refusal: Option<()>,
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
}

impl Usage {
    fn new(prompt: u64, completion: u64) -> Self {
        Self { prompt_tokens: prompt, completion_tokens: completion, total_tokens: prompt.saturating_add(completion) }
    }
}

/// Writes a value made of strings and numbers as JSON; writing those to memory does not fail.
fn put_json(out: &mut BytesMut, value: &impl Serialize) {
    let _ = serde_json::to_writer(out.writer(), value);
}

impl Answer {
    /// An answer by `model`, begun at `created` (Unix seconds). With `include_usage` its stream ends with an event that
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

    /// The first event, which carries the role.
    pub fn first(&self, out: &mut BytesMut) {
        out.put_slice(&self.head);
        out.put_slice(br#"{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}"#);
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

    /// An event with a piece of the answer.
    pub fn piece(&self, out: &mut BytesMut, text: &str) {
        out.put_slice(&self.head);
        out.put_slice(br#"{"index":0,"delta":{"content":"#);
        put_json(out, &text);
        out.put_slice(br#"},"finish_reason":null}"#);
        out.put_slice(self.tail);
    }

    /// The last events: why it ended, the tokens where they were asked for, `[DONE]`.
    pub fn last(&self, out: &mut BytesMut, reason: &'static str, prompt: u64, completion: u64) {
        out.put_slice(&self.head);
        out.put_slice(br#"{"index":0,"delta":{},"finish_reason":"#);
        put_json(out, &reason);
        out.put_slice(b"}");
        out.put_slice(self.tail);
        if self.include_usage {
            out.put_slice(&self.head);
            out.put_slice(b"],\"usage\":");
            put_json(out, &Usage::new(prompt, completion));
            out.put_slice(b"}\n\n");
        }
        out.put_slice(b"data: [DONE]\n\n");
    }

    /// The whole answer at once.
    pub fn whole(&self, out: &mut BytesMut, text: &str, reason: &'static str, prompt: u64, completion: u64) {
        let choice = Choice {
            index: 0,
            message: Message { role: "assistant", content: text, refusal: None },
            logprobs: None,
            finish_reason: reason,
        };
        let completion = Completion {
            id: &self.id,
            object: "chat.completion",
            created: self.created,
            model: &self.model,
            choices: [choice],
            usage: Usage::new(prompt, completion),
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
        answer.first(&mut out);
        answer.piece(&mut out, "Hi \"you\"\n\u{1}é");
        answer.last(&mut out, "stop", 3, 2);
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
        let expected = r#"],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}"#;
        assert_eq!(usage.strip_prefix(HEAD), Some(expected));
        assert_eq!(*done, "data: [DONE]");
    }

    #[test]
    fn a_whole_answer_is_one_object() {
        let mut out = BytesMut::new();
        Answer::new("chatcmpl-1".into(), 7, "m".into(), false).whole(&mut out, "Hi\n", "length", 3, 2);
        let expected = concat!(
            r#"{"id":"chatcmpl-1","object":"chat.completion","created":7,"model":"m","choices":[{"index":0,"#,
            r#""message":{"role":"assistant","content":"Hi\n","refusal":null},"logprobs":null,"#,
            r#""finish_reason":"length"}],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}"#
        );
        assert_eq!(out, expected);
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
            Answer::new(id.clone(), 1, model.clone(), false).piece(&mut out, &text);
            let event = out.strip_prefix(b"data: ").unwrap().strip_suffix(b"\n\n").unwrap();
            // A line break in an event would end it.
            prop_assert!(!event.contains(&b'\n') && !event.contains(&b'\r'));
            let value: serde_json::Value = serde_json::from_slice(event).unwrap();
            prop_assert_eq!(value["choices"][0]["delta"]["content"].as_str(), Some(&*text));
            prop_assert_eq!((value["id"].as_str(), value["model"].as_str()), (Some(&*id), Some(&*model)));
        }
    }
}
