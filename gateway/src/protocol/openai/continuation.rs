//! Continuation of an answer by another server: the request for it, and the rewriting of its stream, which the caller reads
//! as the rest of the first stream.
//!
//! The request carries the text so far as the beginning of the assistant's own message. vLLM and SGLang continue that where
//! the request asks for it (`continue_final_message`), llama.cpp always does. A server that knows neither refuses the
//! unknown fields.

use bytes::{BufMut, Bytes, BytesMut};
use serde_json::{Map, Value, json};

use crate::protocol::chat::Said;
use crate::protocol::dialect::ContinueStream;

/// Body of the request that continues an answer after `text`, of about `tokens` tokens. `None` where the continuation would
/// not fit the text before it: answers of more than one choice or more than plain text, and answers in a set format, which
/// the second server would begin anew.
pub(super) fn continuation(body: &[u8], text: &str, tokens: u32) -> Option<Bytes> {
    let mut body: Map<String, Value> = serde_json::from_slice(body).ok()?;
    if !is_plain(&body) {
        return None;
    }
    let messages = body.get_mut("messages")?.as_array_mut()?;
    // An assistant's message at the end is continued by some servers and answered by others.
    if messages.last()?.get("role")?.as_str()? == "assistant" {
        return None;
    }
    if text.is_empty() {
        // Nothing was said yet: the same request is sent once more.
        return serde_json::to_vec(&body).ok().map(Bytes::from);
    }
    messages.push(json!({"role": "assistant", "content": text}));
    body.insert("continue_final_message".to_owned(), true.into());
    body.insert("add_generation_prompt".to_owned(), false.into());
    for limit in ["max_tokens", "max_completion_tokens"] {
        if let Some(most) = body.get(limit).and_then(Value::as_u64) {
            body.insert(limit.to_owned(), most.saturating_sub(tokens.into()).max(1).into());
        }
    }
    serde_json::to_vec(&body).ok().map(Bytes::from)
}

fn is_plain(body: &Map<String, Value>) -> bool {
    let is_nothing = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    };
    let unset = |name: &str| body.get(name).is_none_or(is_nothing);
    let one_choice = body.get("n").is_none_or(|n| n.is_null() || *n == 1);
    let text = body.get("response_format").is_none_or(|format| format.is_null() || format["type"] == "text");
    const OTHERS: [&str; 12] = [
        "tools",
        "functions",
        "logprobs",
        "audio",
        "structured_outputs",
        "guided_json",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
        "grammar",
        "json_schema",
        "echo",
    ];
    one_choice && text && OTHERS.into_iter().all(unset)
}

/// Rewriter of the stream of a continuation.
pub(super) struct Continuation<'a> {
    by: &'a str,
    before: &'a Said,
    is_marked: bool,
}

impl<'a> Continuation<'a> {
    /// Begins the stream of the backend `by`, after what was said `before`.
    pub(super) fn new(by: &'a str, before: &'a Said) -> Self {
        Self { by, before, is_marked: false }
    }

    fn chunk(&mut self, mut chunk: Map<String, Value>) -> Map<String, Value> {
        for choice in chunk.get_mut("choices").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(delta) = choice.get_mut("delta").and_then(Value::as_object_mut) {
                delta.shift_remove("role");
            }
        }
        for (name, value) in &self.before.constants {
            // An error has none of them.
            if let Some(own) = chunk.get_mut(name) {
                own.clone_from(value);
            }
        }
        if let Some(usage) = chunk.get_mut("usage").and_then(Value::as_object_mut) {
            let before = u64::from(self.before.tokens);
            let count = |usage: &Map<String, Value>, name: &str| usage.get(name).and_then(Value::as_u64);
            if let Some(read) = count(usage, "prompt_tokens") {
                usage.insert("prompt_tokens".to_owned(), read.saturating_sub(before).into());
            }
            if let Some(written) = count(usage, "completion_tokens") {
                usage.insert("completion_tokens".to_owned(), written.saturating_add(before).into());
            }
        }
        if !std::mem::replace(&mut self.is_marked, true) {
            chunk.insert("spillway".to_owned(), json!({"resumed_by": self.by}));
        }
        chunk
    }
}

impl ContinueStream for Continuation<'_> {
    // The first event names the backend that continues, no event begins a message, and the name of the model and the usage are
    // those of the whole answer. Lines that are no event with a JSON object pass as they are.
    fn rewrite(&mut self, events: &[u8]) -> Bytes {
        let mut out = BytesMut::with_capacity(events.len() + 64);
        for line in events.split_inclusive(|byte| *byte == b'\n') {
            let end = line.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r')).map_or(0, |last| last + 1);
            let (text, ending) = line.split_at(end);
            let chunk = text.strip_prefix(b"data:").and_then(|data| serde_json::from_slice(data.trim_ascii()).ok());
            match chunk {
                Some(chunk) => {
                    out.put_slice(b"data: ");
                    out.put_slice(Value::Object(self.chunk(chunk)).to_string().as_bytes());
                    out.put_slice(ending);
                }
                None => out.put_slice(line),
            }
        }
        out.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(body: &Value) -> Option<Value> {
        let body = continuation(body.to_string().as_bytes(), "The capital", 3)?;
        Some(serde_json::from_slice(&body).unwrap())
    }

    #[test]
    fn the_text_so_far_is_the_beginning_of_the_assistants_message() {
        let question = json!({"role": "user", "content": "?"});
        let body = asked(&json!({"model": "m", "messages": [question], "max_tokens": 16, "stream": true, "seed": 7}));
        let expected = json!({
            "model": "m", "messages": [question, {"role": "assistant", "content": "The capital"}], "max_tokens": 13,
            "stream": true, "seed": 7, "continue_final_message": true, "add_generation_prompt": false
        });
        assert_eq!(body, Some(expected));
        let spent = asked(&json!({"messages": [question], "max_completion_tokens": 2})).unwrap();
        assert_eq!(spent["max_completion_tokens"], 1);
        let untouched = json!({"messages": [question], "max_tokens": 2});
        let again = continuation(untouched.to_string().as_bytes(), "", 0).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&again).unwrap(), untouched, "nothing was said yet");
    }

    #[test]
    fn what_would_begin_anew_is_not_continued() {
        let question = json!({"role": "user", "content": "?"});
        for (name, value) in [
            ("tools", json!([{"type": "function"}])),
            ("response_format", json!({"type": "json_object"})),
            ("n", json!(2)),
            ("logprobs", json!(true)),
            ("messages", json!([question, {"role": "assistant", "content": "Well"}])),
            ("messages", json!([])),
            ("messages", json!("hello")),
        ] {
            let mut body = json!({"messages": [question]});
            body[name] = value.clone();
            assert_eq!(asked(&body), None, "{name}: {value}");
        }
        let harmless = json!({"messages": [question], "tools": [], "n": 1, "response_format": {"type": "text"}, "logprobs": false});
        assert!(asked(&harmless).is_some());
    }

    #[test]
    fn the_stream_is_marked_once_begins_no_message_and_counts_the_whole_answer() {
        let said = Said { tokens: 3, ..Said::default() };
        let mut stream = Continuation::new("b", &said);
        let first = stream.rewrite(b": ping\r\ndata: {\"id\":\"x\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\" of\"}}]}\r\n\r\n");
        assert_eq!(
            first,
            ": ping\r\ndata: {\"id\":\"x\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" of\"}}],\"spillway\":{\"resumed_by\":\"b\"}}\r\n\r\n"
        );
        let last = stream.rewrite(b"data: {\"choices\":[],\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":4,\"total_tokens\":14}}\n\ndata: [DONE]\n\n");
        assert_eq!(
            last,
            "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":7,\"total_tokens\":14}}\n\ndata: [DONE]\n\n"
        );
    }

    proptest::proptest! {
        #[test]
        fn anything_passes(events in "[a-z{}\\[\\]:\",\\n\\r ]{0,80}") {
            let out = Continuation::new("b", &Said::default()).rewrite(events.as_bytes());
            proptest::prop_assert!(!events.contains("data") || !out.is_empty());
        }
    }
}
