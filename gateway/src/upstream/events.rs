//! Event streams on their way to the client: whole events only, and what they have said so far. A server that dies in
//! the middle of an event leaves a part of it behind; passed on, it would spoil the event that follows it, be it the one
//! that tells the error or the one that continues the answer.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use serde::de::IgnoredAny;

/// Longest event that is held back until it is whole; a longer one passes as it comes.
const MAX_EVENT: usize = 256 << 10;

/// Longest answer that can be continued. A model's context is some hundred thousand tokens; answers are far shorter.
const MAX_TEXT: usize = 256 << 10;

/// Holds back what is not a whole event yet.
#[derive(Debug, Default)]
pub(super) struct Gate {
    held: BytesMut,
}

impl Gate {
    /// What may go on of what has come: up to the end of the last whole event.
    pub(super) fn pass(&mut self, part: Bytes) -> Bytes {
        if self.held.is_empty() && part.ends_with(b"\n\n") {
            return part;
        }
        // The end of an event may lie across the border.
        let from = self.held.len().saturating_sub(3);
        self.held.extend_from_slice(&part);
        match end_of_events(self.held.get(from..).unwrap_or_default()) {
            Some(end) => self.held.split_to(from + end).freeze(),
            None if self.held.len() > MAX_EVENT => self.held.split().freeze(),
            None => Bytes::new(),
        }
    }

    /// What is left at a proper end.
    pub(super) fn rest(&mut self) -> Bytes {
        self.held.split().freeze()
    }
}

/// Where the last empty line ends (WHATWG HTML, 9.2.5: lines end with LF, CR LF or CR).
fn end_of_events(bytes: &[u8]) -> Option<usize> {
    [&b"\n\n"[..], b"\n\r\n", b"\r\r"]
        .iter()
        .filter_map(|end| memchr::memmem::rfind(bytes, end).map(|at| at + end.len()))
        .max()
}

/// What an answer has said so far, where it can be continued: plain text of one choice.
#[derive(Debug)]
pub(super) struct Transcript {
    text: String,
    /// Events with text, which is about one token each.
    pieces: u32,
    /// Nothing else was said.
    is_plain: bool,
    is_finished: bool,
}

#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(borrow, default)]
    choices: Vec<Choice<'a>>,
    error: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Choice<'a> {
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
        Self { text: String::new(), pieces: 0, is_plain: true, is_finished: false }
    }
}

impl Transcript {
    /// Whole events pass.
    pub(super) fn feed(&mut self, events: &[u8]) {
        for line in events.split(|byte| matches!(byte, b'\n' | b'\r')) {
            let Some(data) = line.strip_prefix(b"data:").filter(|_| self.is_plain) else { continue };
            let data = data.trim_ascii();
            if data == b"[DONE]" {
                self.is_finished = true;
                continue;
            }
            match serde_json::from_slice::<Chunk<'_>>(data) {
                // Who was told of an error expects nothing more.
                Ok(Chunk { error: Some(_), .. }) => self.is_plain = false,
                Ok(chunk) => chunk.choices.into_iter().for_each(|choice| self.choice(choice)),
                Err(_) => self.is_plain = false,
            }
        }
    }

    fn choice(&mut self, choice: Choice<'_>) {
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

    /// Whether it has said why it ended.
    pub(super) fn is_finished(&self) -> bool {
        self.is_finished
    }

    /// Whether it has said anything.
    pub(super) fn has_text(&self) -> bool {
        !self.text.is_empty()
    }

    /// Text and its tokens, when the answer can be continued.
    pub(super) fn to_continue(&self) -> Option<(String, u32)> {
        (self.is_plain && !self.is_finished).then(|| (self.text.clone(), self.pieces))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_whole_events_pass() {
        let mut gate = Gate::default();
        let mut pass = |part: &'static str| String::from_utf8(gate.pass(part.into()).to_vec()).unwrap();
        assert_eq!(pass("data: 1\n\n"), "data: 1\n\n");
        assert_eq!(pass("data: 2\n"), "");
        assert_eq!(pass("\ndata: 3"), "data: 2\n\n");
        assert_eq!(pass("\r\n"), "");
        assert_eq!(pass("\r\ndata: 4\r\rdata: 5"), "data: 3\r\n\r\ndata: 4\r\r");
        assert_eq!(&gate.rest()[..], b"data: 5");
        let long = Bytes::from(vec![b'x'; MAX_EVENT + 1]);
        assert_eq!(gate.pass(long.clone()), long, "what is too long to be held is passed on");
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_changed(text in "[ab\\n\\r]{0,60}", cuts in proptest::collection::vec(1usize..9, 0..20)) {
            let (mut gate, mut out, mut rest) = (Gate::default(), Vec::new(), text.as_bytes());
            for cut in cuts {
                let (part, more) = rest.split_at(cut.min(rest.len()));
                rest = more;
                let passed = gate.pass(Bytes::copy_from_slice(part));
                let ends = passed.is_empty() || end_of_events(&passed) == Some(passed.len());
                prop_assert!(ends, "{passed:?}");
                out.extend_from_slice(&passed);
            }
            out.extend_from_slice(&gate.pass(Bytes::copy_from_slice(rest)));
            out.extend_from_slice(&gate.rest());
            prop_assert_eq!(out, text.as_bytes());
        }
    }

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
        assert_eq!(transcript.to_continue(), Some(("Hel\"lo ü".to_owned(), 2)));
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
        assert_eq!(told.to_continue(), None, "who was told of an error expects nothing more");
    }
}
