//! Text of an OpenAI event stream so far, for another server to continue.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::protocol::chat::Said;
use crate::protocol::dialect::Transcribe;

/// Longest answer that can be continued, in bytes. Contexts have some hundred thousand tokens; answers are far shorter.
const MAX_TEXT: usize = 256 << 10;

/// Longest of these fields that is kept, in bytes: identifiers and names of models are shorter.
const MAX_CONSTANT: usize = 1 << 10;

/// Text of an answer so far. Only plain text of one choice can be continued.
#[derive(Debug)]
pub(super) struct Transcript {
    text: String,
    /// Events with text, which is about one token each.
    pieces: u32,
    /// True while the answer has been plain text of one choice.
    is_plain: bool,
    is_finished: bool,
    /// Fields that are the same in every event, from the first that has them.
    constants: Map<String, Value>,
}

#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    created: Option<&'a RawValue>,
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    #[serde(borrow, default)]
    choices: Vec<ChunkChoice<'a>>,
    error: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct ChunkChoice<'a> {
    #[serde(default)]
    index: u32,
    #[serde(borrow)]
    delta: Option<Delta<'a>>,
    finish_reason: Option<IgnoredAny>,
    logprobs: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(borrow)]
    content: Option<Cow<'a, str>>,
    tool_calls: Option<IgnoredAny>,
    function_call: Option<IgnoredAny>,
    refusal: Option<IgnoredAny>,
    reasoning_content: Option<IgnoredAny>,
    reasoning: Option<IgnoredAny>,
    audio: Option<IgnoredAny>,
}

impl Default for Transcript {
    fn default() -> Self {
        Self { text: String::new(), pieces: 0, is_plain: true, is_finished: false, constants: Map::new() }
    }
}

impl Transcript {
    fn chunk(&mut self, chunk: Chunk<'_>) {
        let all = [("id", chunk.id), ("created", chunk.created), ("model", chunk.model)];
        if self.constants.len() < all.len() {
            // Azure's first event has them empty.
            let is_told = |value: &&RawValue| !matches!(value.get(), "\"\"" | "0") && value.get().len() <= MAX_CONSTANT;
            for (name, value) in all {
                if let Some(value) = value.filter(is_told).filter(|_| !self.constants.contains_key(name))
                    && let Ok(value) = serde_json::from_str(value.get())
                {
                    self.constants.insert(name.to_owned(), value);
                }
            }
        }
        for choice in chunk.choices {
            self.choice(choice);
        }
    }

    fn choice(&mut self, choice: ChunkChoice<'_>) {
        self.is_finished |= choice.finish_reason.is_some();
        self.is_plain &= choice.index == 0 && choice.logprobs.is_none();
        let Some(delta) = choice.delta else { return };
        let other = [
            &delta.tool_calls,
            &delta.function_call,
            &delta.refusal,
            &delta.reasoning_content,
            &delta.reasoning,
            &delta.audio,
        ];
        self.is_plain &= other.iter().all(|field| field.is_none());
        if let Some(text) = delta.content.filter(|text| !text.is_empty()) {
            self.text.push_str(&text);
            self.pieces = self.pieces.saturating_add(1);
        }
        self.is_plain &= self.text.len() <= MAX_TEXT;
    }
}

impl Transcribe for Transcript {
    fn feed(&mut self, events: &[u8]) {
        for line in events.split(|byte| matches!(byte, b'\n' | b'\r')) {
            let Some(data) = line.strip_prefix(b"data:").filter(|_| self.is_plain) else { continue };
            let data = data.trim_ascii();
            if data == b"[DONE]" {
                self.is_finished = true;
                continue;
            }
            match serde_json::from_slice::<Chunk<'_>>(data) {
                // A caller that received an error expects no further events.
                Ok(Chunk { error: Some(_), .. }) => self.is_plain = false,
                Ok(chunk) => self.chunk(chunk),
                Err(_) => self.is_plain = false,
            }
        }
    }

    fn is_finished(&self) -> bool {
        self.is_finished
    }

    fn has_text(&self) -> bool {
        !self.text.is_empty()
    }

    fn to_continue(&self) -> Option<Said> {
        (self.is_plain && !self.is_finished).then(|| Said {
            text: self.text.clone(),
            tokens: self.pieces,
            constants: self.constants.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(choice: &str) -> String {
        format!("data: {{\"id\":\"x\",\"choices\":[{choice}]}}\n\n")
    }

    #[test]
    fn plain_text_can_be_continued_until_it_is_finished() {
        let mut transcript = Transcript::default();
        transcript.feed(event(r#"{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null}"#).as_bytes());
        let two =
            event(r#"{"delta":{"content":"Hel\"lo"}}"#) + &event(r#"{"delta":{"content":" ü"},"finish_reason":null}"#);
        transcript.feed(two.as_bytes());
        let constants = Map::from_iter([("id".to_owned(), "x".into())]);
        assert_eq!(transcript.to_continue(), Some(Said { text: "Hel\"lo ü".to_owned(), tokens: 2, constants }));
        transcript.feed(event(r#"{"delta":{},"finish_reason":"stop"}"#).as_bytes());
        assert_eq!(transcript.to_continue(), None);
    }

    #[test]
    fn anything_but_plain_text_of_one_choice_cannot() {
        for choice in [
            r#"{"index":1,"delta":{"content":"x"}}"#,
            r#"{"delta":{"tool_calls":[]}}"#,
            r#"{"delta":{"reasoning_content":"hm"}}"#,
            r#"{"delta":{"content":"x"},"logprobs":{}}"#,
            r#"{"delta":{"content":1}}"#,
        ] {
            let mut transcript = Transcript::default();
            transcript.feed(event(choice).as_bytes());
            assert_eq!(transcript.to_continue(), None, "{choice}");
        }
        let mut told = Transcript::default();
        told.feed(event(r#"{"delta":{"content":"x"}}"#).as_bytes());
        told.feed(b"data: {\"error\":{\"message\":\"overloaded\"}}\n\n");
        assert_eq!(told.to_continue(), None, "a caller that received an error expects nothing more");
    }
}
