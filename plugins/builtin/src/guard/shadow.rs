//! Guard in shadow mode: counts what it finds, and leaves requests and answers as they are.

use std::sync::Arc;

use bytes::Bytes;
use http::{StatusCode, header};
use serde_json::Value;
use spillway_filter::{EventSplitter, ExchangeEnd, Flow, Headers, Observer, ResponseEvent, Rewriter};

use super::search::Masked;
use super::strings::{change_strings, is_json};
use super::{AnswerGuard, Guarded, Judge, MAX_CHANNELS, Side, Texts, is_searched};
use crate::deltas;

/// Most bytes of an answer that is no stream which are kept until its end: memory of a request that nobody is refused for.
const MAX_WHOLE: usize = 1 << 20;

impl Guarded {
    /// Counts what the body of a request has, and follows its answer.
    pub(super) fn look(&self, body: &[u8]) -> Flow {
        if self.prompts && !body.is_empty() {
            let text = String::from_utf8_lossy(body);
            let is_json = is_json(&text);
            if let Some(judge) = &self.judge {
                judge.look(Texts::of(&text, is_json), Side::Prompt);
            }
            if is_json {
                let _ = change_strings::<()>(&text, |text| {
                    self.patterns.tell(text, Side::Prompt);
                    Ok(None)
                });
            } else {
                self.patterns.tell(&text, Side::Prompt);
            }
        }
        if !self.answers {
            return Flow::Continue;
        }
        let guard = AnswerGuard::new(self.patterns.clone(), Masked::default());
        Flow::Observe(Box::new(ShadowGuard {
            guard,
            judge: self.judge.clone(),
            form: Form::Unread,
            whole: Vec::new(),
            said: Said::default(),
        }))
    }
}

/// Form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Not searched.
    Unread,
    /// Searched at its end.
    Whole,
    /// Searched event by event.
    Stream,
}

/// Search of one answer, whose findings are counted and dropped.
pub(super) struct ShadowGuard {
    guard: AnswerGuard,
    judge: Option<Arc<Judge>>,
    form: Form,
    whole: Vec<u8>,
    /// Texts of a stream for the classifier.
    said: Said,
}

/// Texts of a stream, each put together of its parts.
#[derive(Default)]
struct Said {
    channels: Vec<(String, String)>,
    length: usize,
}

impl Said {
    /// Adds the texts of an event, up to one byte more than `most`, which tells that they are too long.
    fn read(&mut self, event: &ResponseEvent<'_>, most: usize) {
        let Some(data) = event.data().filter(|_| event.is_whole && self.length <= most) else { return };
        let Ok(value) = serde_json::from_slice::<Value>(&data) else { return };
        for part in deltas::read(&value).0 {
            self.length = self.length.saturating_add(part.text.len());
            match self.channels.iter().position(|(name, _)| *name == part.channel) {
                Some(at) => self.channels.get_mut(at).into_iter().for_each(|(_, text)| text.push_str(&part.text)),
                None if self.channels.len() < MAX_CHANNELS => self.channels.push((part.channel, part.text)),
                None => {}
            }
        }
    }

    fn texts(self) -> Texts {
        let mut texts = Texts::default();
        self.channels.into_iter().for_each(|(_, text)| texts.add(&text, false));
        texts
    }
}

impl Observer for ShadowGuard {
    fn on_response_head(&mut self, status: StatusCode, headers: &mut dyn Headers) {
        let kind = headers.get(&header::CONTENT_TYPE);
        let is_plain = headers.get(&header::CONTENT_ENCODING).is_none_or(|coding| coding == "identity");
        self.form = if !is_searched(status, kind) || !is_plain {
            Form::Unread
        } else if EventSplitter::of(kind).is_some() {
            Form::Stream
        } else {
            Form::Whole
        };
    }

    fn on_response_body(&mut self, part: &[u8]) {
        if self.form != Form::Whole {
            return;
        }
        if self.whole.len() + part.len() > MAX_WHOLE {
            // An answer in JSON that is cut is none: its beginning is searched as text.
            self.form = Form::Unread;
            let whole = std::mem::take(&mut self.whole);
            self.guard.patterns.tell(&String::from_utf8_lossy(&whole), Side::Answer);
            return;
        }
        self.whole.extend_from_slice(part);
    }

    fn reads_events(&self) -> bool {
        true
    }

    fn on_response_event(&mut self, event: &ResponseEvent<'_>) {
        if self.form == Form::Stream {
            if let Some(judge) = &self.judge {
                self.said.read(event, judge.max_text());
            }
            drop(self.guard.event(event));
        }
    }

    fn on_end(&mut self, _: &ExchangeEnd<'_>) {
        if let Some(judge) = &self.judge {
            let texts = match self.form {
                Form::Unread => return,
                Form::Whole => {
                    let text = String::from_utf8_lossy(&self.whole);
                    Texts::of(&text, is_json(&text))
                }
                Form::Stream => std::mem::take(&mut self.said).texts(),
            };
            judge.look(texts, Side::Answer);
        }
        let _: Result<Option<Bytes>, _> = match self.form {
            Form::Unread => return,
            Form::Whole => self.guard.whole(&std::mem::take(&mut self.whole)),
            Form::Stream => self.guard.end().map(Some),
        };
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use spillway_filter::testing::{FilterBuilder, TestRequest, exchange_end, headers, split_events};

    use super::super::factory;
    use super::*;

    const CARD: &str = "4111 1111 1111 1111";

    #[test]
    fn a_shadow_finds_the_same_and_changes_nothing() {
        let builder = FilterBuilder::new();
        let patterns =
            json!([{"kind": "card", "action": "mask"}, {"name": "eleven", "regex": "1111", "action": "refuse"}]);
        let filter = builder.build(&*factory(), &json!({"patterns": patterns, "shadow": true}));
        let body = json!({"prompt": CARD, "logprobs": true, "input": [1, 2]}).to_string();
        let count = |name: &str, at: &str, action: &str| {
            builder.count("spillway_filter_guard_shadow_findings", &[name, at, action])
        };
        let follow = |head: [(&str, &str); 1]| {
            let Flow::Observe(mut observer) = TestRequest::post("/", body.clone()).decide(&*filter) else { panic!() };
            observer.on_response_head(StatusCode::OK, &mut headers(head));
            observer
        };
        let mut whole = follow([("content-type", "application/json")]);
        assert_eq!((count("card", "prompt", "mask"), count("eleven", "prompt", "refuse")), (1, 3));
        let text = json!({"text": CARD}).to_string();
        let (before, behind) = text.as_bytes().split_at(20);
        whole.on_response_body(before);
        whole.on_response_body(behind);
        whole.on_end(&exchange_end());
        assert_eq!((count("card", "answer", "mask"), count("eleven", "answer", "refuse")), (1, 3));

        let mut stream = follow([("content-type", "text/event-stream")]);
        let event = |part: &str| format!("data: {}\n\n", json!({"choices": [{"index": 0, "text": part}]}));
        let events = event("4111 1111") + &event(" 1111 1111") + &event(" it is");
        split_events(events, |event| stream.on_response_event(event));
        stream.on_end(&exchange_end());
        assert_eq!((count("card", "answer", "mask"), count("eleven", "answer", "refuse")), (2, 6));
        assert_eq!(builder.count("spillway_filter_guard_findings", &["card", "prompt", "mask"]), 0);

        let mut packed = follow([("content-encoding", "gzip")]);
        packed.on_response_body(CARD.as_bytes());
        packed.on_end(&exchange_end());
        let mut long = follow([("content-type", "text/plain")]);
        long.on_response_body(CARD.as_bytes());
        long.on_response_body(&vec![b'x'; MAX_WHOLE]);
        assert!(long.reads_events());
        long.on_end(&exchange_end());
        assert_eq!(count("card", "answer", "mask"), 3);
    }
}
