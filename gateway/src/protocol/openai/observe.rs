//! Reads what an upstream's answer tells (usage, model, why it ended, when its content began) while it passes, without
//! changing or holding it. Memory is bounded: one line of an event stream or the answer's first part, both capped; what
//! is longer is not observed and passes all the same.

use std::time::Instant;

use http::HeaderValue;
use serde::Deserialize;

/// Longest line of an event stream, and longest whole answer, that is read.
const MAX_OBSERVED: usize = 256 << 10;

/// Tokens of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Usage {
    /// Tokens read.
    #[serde(default)]
    pub prompt_tokens: u64,
    /// Tokens written.
    #[serde(default)]
    pub completion_tokens: u64,
}

/// An error that an answer reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedError {
    /// `error.type`.
    pub kind: String,
    /// `error.code`.
    pub code: Option<String>,
}

/// What an answer has told so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observation {
    /// Its id.
    pub id: Option<String>,
    /// The model that answers.
    pub model: Option<String>,
    /// Why it ended.
    pub finish_reason: Option<String>,
    /// Its tokens.
    pub usage: Option<Usage>,
    /// When its first content passed.
    pub first_content: Option<Instant>,
    /// The error it reports.
    pub error: Option<ObservedError>,
}

/// Reads one answer.
#[derive(Debug)]
pub struct Observer {
    events: bool,
    /// The line, or the answer, as far as it has passed.
    held: Vec<u8>,
    /// The line or answer is longer than what is read.
    overflowed: bool,
    seen: Observation,
}

impl Observer {
    /// For an answer with this head; `None` when nothing can be read from it.
    pub fn for_response(content_type: Option<&HeaderValue>, content_encoding: Option<&HeaderValue>) -> Option<Self> {
        if content_encoding.is_some_and(|encoding| encoding != "identity") {
            return None;
        }
        let kind = content_type?.to_str().ok()?.split(';').next()?.trim().to_ascii_lowercase();
        let events = kind == "text/event-stream";
        (events || kind == "application/json" || kind.ends_with("+json")).then(|| Self {
            events,
            held: Vec::new(),
            overflowed: false,
            seen: Observation::default(),
        })
    }

    /// What has been read so far.
    pub fn observation(&self) -> &Observation {
        &self.seen
    }

    /// A part passes at `now`.
    pub fn feed(&mut self, part: &[u8], now: Instant) {
        if !self.events {
            if self.seen.first_content.is_none() && !part.is_empty() {
                self.seen.first_content = Some(now);
            }
            self.hold(part);
            return;
        }
        let mut rest = part;
        // A line ends with LF, CRLF or CR; the empty line between CR and LF changes nothing.
        while let Some(end) = memchr::memchr2(b'\n', b'\r', rest) {
            let (line, tail) = rest.split_at_checked(end).unwrap_or((rest, b""));
            self.hold(line);
            self.line(now);
            rest = tail.get(1..).unwrap_or_default();
        }
        self.hold(rest);
    }

    fn hold(&mut self, part: &[u8]) {
        if self.overflowed || self.held.len().saturating_add(part.len()) > MAX_OBSERVED {
            self.overflowed = true;
            self.held.clear();
        } else {
            self.held.extend_from_slice(part);
        }
    }

    /// OpenAI's events have one data line each, so a line is an event.
    fn line(&mut self, now: Instant) {
        let whole = !std::mem::take(&mut self.overflowed);
        let held = std::mem::take(&mut self.held);
        if whole && let Some(data) = held.strip_prefix(b"data:") {
            self.read(data.trim_ascii(), now);
        }
        self.held = held;
        self.held.clear();
    }

    fn read(&mut self, data: &[u8], now: Instant) {
        // Most events of a stream only bring a piece of text; the fields that matter are looked for in all of them.
        let Ok(event) = serde_json::from_slice::<Event>(data) else { return };
        if self.seen.id.is_none() {
            self.seen.id = event.id;
        }
        if self.seen.model.is_none() {
            self.seen.model = event.model;
        }
        if event.usage.is_some() {
            self.seen.usage = event.usage;
        }
        for choice in event.choices {
            if choice.finish_reason.is_some() {
                self.seen.finish_reason = choice.finish_reason;
            }
            let delta = choice.delta.unwrap_or_default();
            let has_content = delta.content.is_some_and(|text| !text.is_empty())
                || delta.reasoning_content.is_some_and(|text| !text.is_empty())
                || delta.tool_calls.is_some()
                || choice.text.is_some_and(|text| !text.is_empty());
            if has_content && self.seen.first_content.is_none() {
                self.seen.first_content = Some(now);
            }
        }
        if let Some(error) = event.error {
            let code = error.code.and_then(|code| code.as_str().map(str::to_owned));
            self.seen.error = Some(ObservedError { kind: error.kind.unwrap_or_default(), code });
        }
    }

    /// The answer has ended.
    pub fn finish(&mut self) -> &Observation {
        if !self.events && !self.overflowed && !self.held.is_empty() {
            let held = std::mem::take(&mut self.held);
            self.read(&held, Instant::now());
        }
        &self.seen
    }
}

#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(default)]
    choices: Vec<Choice>,
    #[serde(default)]
    error: Option<Error>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    finish_reason: Option<String>,
    #[serde(default)]
    delta: Option<Delta>,
    #[serde(default)]
    text: Option<String>,
}

#[derive(Deserialize, Default)]
struct Delta {
    #[serde(default)]
    content: Option<String>,
    #[serde(default)]
    reasoning_content: Option<String>,
    #[serde(default)]
    tool_calls: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Error {
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    code: Option<serde_json::Value>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STREAM: &str = "data: {\"id\":\"c1\",\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n\
        : ping\r\n\r\ndata: {\"id\":\"c1\",\"choices\":[{\"delta\":{\"content\":\"hé\"}}]}\r\rdata: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n\
        data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":2,\"total_tokens\":7}}\n\ndata: [DONE]\n\n";

    fn observer(kind: &'static str) -> Observer {
        Observer::for_response(Some(&HeaderValue::from_static(kind)), None).unwrap()
    }

    proptest! {
        #[test]
        fn every_split_of_a_stream_tells_the_same(mut cuts in proptest::collection::vec(0..STREAM.len(), 0..12)) {
            cuts.sort_unstable();
            let mut observer = observer("text/event-stream; charset=utf-8");
            let now = Instant::now();
            let mut from = 0;
            for cut in cuts.into_iter().chain([STREAM.len()]) {
                observer.feed(&STREAM.as_bytes()[from..cut], now);
                from = cut;
            }
            prop_assert_eq!(observer.finish(), &Observation {
                id: Some("c1".into()),
                model: Some("m".into()),
                finish_reason: Some("stop".into()),
                usage: Some(Usage { prompt_tokens: 5, completion_tokens: 2 }),
                first_content: Some(now),
                error: None,
            });
        }

        #[test]
        fn any_bytes_pass(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            for kind in ["text/event-stream", "application/json"] {
                let mut observer = observer(kind);
                observer.feed(&bytes, Instant::now());
                observer.finish();
            }
        }
    }

    #[test]
    fn an_endless_line_takes_no_more_memory_and_the_next_is_read() {
        let mut observer = observer("text/event-stream");
        for _ in 0..1000 {
            observer.feed(&[b'x'; 1024], Instant::now());
        }
        assert!(observer.held.capacity() <= 2 * MAX_OBSERVED);
        observer.feed(b"\ndata: {\"model\":\"m\"}\n", Instant::now());
        assert_eq!(observer.finish().model.as_deref(), Some("m"));
    }

    #[test]
    fn a_whole_answer_is_read_at_its_end() {
        let mut observer = observer("application/json");
        observer.feed(br#"{"model":"m","choices":[{"finish_reason":"length","message":{}}],"#, Instant::now());
        observer.feed(br#""usage":{"prompt_tokens":1,"completion_tokens":2}}"#, Instant::now());
        let seen = observer.finish();
        assert_eq!((seen.finish_reason.as_deref(), seen.usage.unwrap().completion_tokens), (Some("length"), 2));
        let gzip = HeaderValue::from_static("gzip");
        assert!(Observer::for_response(Some(&HeaderValue::from_static("application/json")), Some(&gzip)).is_none());
    }
}
