//! Judgement of an answer by a classifier: whole, or in windows of a stream, of which nothing passes before it is judged.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use serde_json::Value;
use spillway_filter::{AnswerEdit, AnswerHead, EventSplitter, Pending, Processor, Reads, Refusal, ResponseEvent};

use super::classifier::{Judge, Judged};
use super::strings::is_json;
use super::texts::Texts;
use super::{MAX_CHANNELS, Refused, Side, is_searched, refused, unread};
use crate::deltas::{self, Ended};

/// Bytes of a text in front of a window that are judged with it: some hundred tokens, which tell what it is about.
const CONTEXT: usize = 2 << 10;
/// Bytes of events that are held back at most, whatever text they have; one more event may come to them.
const MAX_HELD: usize = 64 << 10;
/// Channel of what is no part of a known text.
const OTHER: &str = "other";

/// Judge of one answer.
pub(super) struct Judging {
    judge: Arc<Judge>,
    /// Bytes of text at which what is held back is judged.
    window: usize,
    /// Splits a stream, once the head has shown that the answer is one.
    splitter: Option<EventSplitter>,
    channels: Vec<Channel>,
    /// Events that wait for a judgement.
    held: BytesMut,
    /// Bytes of their texts.
    text: usize,
    /// True once nothing is judged any more.
    is_over: bool,
}

/// A text of a stream.
struct Channel {
    name: String,
    /// End of what has passed.
    passed: String,
    /// Text that waits.
    held: String,
}

impl Judging {
    pub(super) fn new(judge: Arc<Judge>, window: usize) -> Self {
        Self { judge, window, splitter: None, channels: Vec::new(), held: BytesMut::new(), text: 0, is_over: false }
    }

    /// Judges an answer that is there whole.
    async fn whole(&mut self, body: Bytes) -> Result<Bytes, Box<Refusal>> {
        let text = String::from_utf8_lossy(&body);
        let texts = Texts::of(&text, is_json(&text));
        match self.judge.whole(texts, Side::Answer).await {
            Judged::Passed | Judged::Unjudged(_) => Ok(body),
            Judged::Refused(refusal, _) => Err(refusal),
        }
    }

    /// Judges a part of a stream, and returns what passes now.
    async fn events(&mut self, part: &[u8], is_last: bool) -> Result<Bytes, Box<Refusal>> {
        let Some(splitter) = &mut self.splitter else { return Ok(Bytes::copy_from_slice(part)) };
        let (mut events, mut out) = (Vec::new(), BytesMut::with_capacity(part.len()));
        let mut keep = |event: &ResponseEvent<'_>| {
            events.push((Bytes::copy_from_slice(event.bytes), event.is_whole, event.is_line));
        };
        splitter.feed(part, &mut keep);
        if is_last {
            // Servers may leave out the end of the last event; clients read it all the same.
            splitter.feed(b"\n\n", keep);
        }
        for (bytes, is_whole, is_line) in events {
            let event = ResponseEvent { bytes: &bytes, is_whole, is_line };
            if self.is_over {
                out.extend_from_slice(&bytes);
                continue;
            }
            if !is_whole {
                let Refused(name) = unread();
                return Err(refused(&name, Side::Answer.place()));
            }
            let Some(data) = event.data() else {
                // A note that keeps the connection open; no client shows it.
                out.extend_from_slice(&bytes);
                continue;
            };
            let ends = self.read(&String::from_utf8_lossy(&data));
            self.held.extend_from_slice(&bytes);
            if ends || self.text >= self.window || self.held.len() >= MAX_HELD {
                self.pass(&mut out).await?;
            } else if self.text == 0 {
                out.extend_from_slice(&self.held.split());
            }
        }
        if is_last && !self.is_over {
            self.pass(&mut out).await?;
        }
        Ok(out.freeze())
    }

    /// Adds the texts of an event; returns true where texts have ended.
    fn read(&mut self, data: &str) -> bool {
        let value = serde_json::from_str::<Value>(data);
        let Ok(value) = value else {
            // The end of a stream, or a text of its own.
            if data != "[DONE]" {
                self.add(OTHER, data);
            }
            return true;
        };
        let (parts, ended) = deltas::read(&value);
        for part in &parts {
            self.add(&part.channel, &part.text);
        }
        let is_part = |text: &str| parts.iter().any(|part| part.text == text);
        let others = Texts::of(data, true).without(is_part);
        self.add(OTHER, &others);
        ended != Ended::Nothing
    }

    fn add(&mut self, name: &str, text: &str) {
        if text.is_empty() {
            return;
        }
        let is_own = |channel: &Channel| channel.name == name;
        let name = if self.channels.len() < MAX_CHANNELS || self.channels.iter().any(is_own) { name } else { OTHER };
        let at = self.channels.iter().position(|channel| channel.name == name).unwrap_or_else(|| {
            self.channels.push(Channel { name: name.to_owned(), passed: String::new(), held: String::new() });
            self.channels.len() - 1
        });
        let Some(channel) = self.channels.get_mut(at) else { return };
        if name == OTHER && !(channel.passed.is_empty() && channel.held.is_empty()) {
            // Events that no known API continues: each is a line.
            channel.held.push('\n');
        }
        channel.held.push_str(text);
        self.text = self.text.saturating_add(text.len());
    }

    /// Judges what is held back and lets it pass.
    async fn pass(&mut self, out: &mut BytesMut) -> Result<(), Box<Refusal>> {
        let waiting = self.channels.iter().filter(|channel| !channel.held.trim().is_empty());
        let texts: Vec<String> = waiting.map(|channel| [channel.passed.as_str(), &channel.held].concat()).collect();
        match self.judge.judge(texts, Side::Answer).await {
            Judged::Passed => {}
            Judged::Unjudged(_) => self.is_over = true,
            Judged::Refused(refusal, _) => {
                self.is_over = true;
                self.held = BytesMut::new();
                return Err(refusal);
            }
        }
        for channel in &mut self.channels {
            channel.passed.push_str(&std::mem::take(&mut channel.held));
            let from = channel.passed.ceil_char_boundary(channel.passed.len().saturating_sub(CONTEXT));
            channel.passed.drain(..from);
        }
        self.text = 0;
        out.extend_from_slice(&self.held.split());
        Ok(())
    }
}

impl Processor for Judging {
    fn reads(&self, head: &AnswerHead<'_>) -> bool {
        is_searched(head.status, head.content_type())
    }

    fn head<'a>(&'a mut self, head: AnswerEdit<'a>, has_body: bool) -> Pending<'a, Result<Reads, Box<Refusal>>> {
        self.splitter = EventSplitter::of(head.headers.get(http::header::CONTENT_TYPE));
        let reads = match (has_body, &self.splitter) {
            (false, _) => Reads::Nothing,
            (true, Some(_)) => Reads::Parts,
            (true, None) => Reads::Whole,
        };
        Box::pin(std::future::ready(Ok(reads)))
    }

    fn part<'a>(
        &'a mut self,
        part: Bytes,
        is_last: bool,
        _: Option<AnswerEdit<'a>>,
    ) -> Pending<'a, Result<Bytes, Box<Refusal>>> {
        Box::pin(async move {
            if self.splitter.is_some() { self.events(&part, is_last).await } else { self.whole(part).await }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::task::{Context, Poll, Waker};

    use http::StatusCode;
    use serde_json::json;
    use spillway_filter::testing::{FilterBuilder, FixedClassifier, TestRequest, headers, wait};
    use spillway_filter::{Classifier, Flow, Judgement, NotClassified, Rewrite};

    use super::super::factory;
    use super::*;

    /// Result of a future that is ready at once.
    fn ready<T>(mut pending: Pending<'_, T>) -> T {
        match pending.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => value,
            Poll::Pending => panic!("it waits"),
        }
    }

    type Seen = Arc<Mutex<Vec<Vec<String>>>>;

    /// Classifier that finds `bad`, and what it was given.
    fn finding() -> (Arc<dyn Classifier>, Seen) {
        let seen = Seen::default();
        let own = seen.clone();
        let judge = move |texts: &[String]| -> Judgement {
            own.lock().unwrap().push(texts.to_vec());
            match texts.iter().any(|text| text.contains("fail")) {
                true => Err(NotClassified::TooLate),
                false => Ok(vec![0.1, if texts.iter().any(|text| text.contains("bad")) { 0.9 } else { 0.2 }]),
            }
        };
        (Arc::new(FixedClassifier(vec!["good".into(), "bad".into()], judge)), seen)
    }

    fn config(more: serde_json::Value) -> serde_json::Value {
        let mut config =
            json!({"classifier": {"model": "m", "labels": {"bad": 0.5}}, "on": ["answer"], "window": "64B"});
        let own = config["classifier"].as_object_mut().unwrap();
        own.extend(more.as_object().unwrap().clone());
        config
    }

    fn judging(more: serde_json::Value) -> (Box<dyn Processor>, Seen) {
        let (classifier, seen) = finding();
        let filter = FilterBuilder::new().classifier(classifier).build(&*factory(), &config(more));
        let Flow::Rewrite(rewrite) = TestRequest::post("/", "{\"prompt\":\"bad\"}").decide(&*filter) else { panic!() };
        let Rewrite { processor, rewriter, body, .. } = *rewrite;
        assert!(rewriter.is_none() && body.is_none());
        (processor.unwrap(), seen)
    }

    fn begin(processor: &mut dyn Processor, kind: &str) -> Reads {
        let (mut status, mut fields) = (StatusCode::OK, headers([("content-type", kind)]));
        let shown = AnswerHead { status, headers: &fields, is_spilled: false };
        assert!(processor.reads(&shown));
        let edit = AnswerEdit { status: &mut status, headers: &mut fields, endpoint: None };
        ready(processor.head(edit, true)).unwrap()
    }

    fn part(processor: &mut dyn Processor, part: &str, is_last: bool) -> Result<String, &'static str> {
        let passed = ready(processor.part(Bytes::copy_from_slice(part.as_bytes()), is_last, None));
        passed.map(|passed| String::from_utf8(passed.to_vec()).unwrap()).map_err(|refusal| refusal.code)
    }

    fn said(n: usize, text: &str) -> String {
        let choice = json!({"index": n, "delta": {"content": text}, "finish_reason": null});
        format!("data: {}\n\n", json!({"id": "c", "object": "chat.completion.chunk", "choices": [choice]}))
    }

    const EVENTS: &str = "text/event-stream";

    #[test]
    fn a_stream_is_judged_in_windows_with_what_came_before() {
        let (mut processor, seen) = judging(json!({}));
        let processor = &mut *processor;
        assert_eq!(begin(processor, EVENTS), Reads::Parts);
        let (first, second, last) = (said(0, &"a".repeat(60)), said(0, "bbbb"), said(0, "cc"));
        assert_eq!(part(processor, &first, false).unwrap(), "", "less than a window");
        // A note passes, whatever waits.
        assert_eq!(part(processor, ": still there\n\n", false).unwrap(), ": still there\n\n");
        assert_eq!(part(processor, &second, false).unwrap(), format!("{first}{second}"));
        assert_eq!(part(processor, &last, false).unwrap(), "");
        assert_eq!(part(processor, "data: [DONE]\n\n", false).unwrap(), format!("{last}data: [DONE]\n\n"));
        assert_eq!(part(processor, "", true).unwrap(), "");
        let text = "a".repeat(60) + "bbbb";
        assert_eq!(*seen.lock().unwrap(), [vec![text.clone()], vec![text + "cc"]]);
    }

    #[test]
    fn what_is_cut_over_events_and_windows_is_found_and_not_shown() {
        for size in 1..12 {
            let (mut processor, _) = judging(json!({}));
            let processor = &mut *processor;
            begin(processor, EVENTS);
            let whole = "good words that go on for more than one window of the stream, and then a bad one";
            let (mut shown, mut refused) = (String::new(), None);
            let parts: Vec<String> =
                whole.as_bytes().chunks(size).map(|c| String::from_utf8(c.to_vec()).unwrap()).collect();
            for (n, text) in parts.iter().enumerate() {
                // Another choice in between is a text of its own.
                let events = said(0, text) + &said(1, "x");
                match part(processor, &events, n + 1 == parts.len()) {
                    Ok(passed) => shown.push_str(&passed),
                    Err(code) => {
                        refused = Some(code);
                        break;
                    }
                }
            }
            assert_eq!(refused, Some("content_filter"), "parts of {size}");
            assert!(!shown.contains("bad") && !shown.is_empty(), "parts of {size}: {shown}");
        }
    }

    #[test]
    fn texts_that_no_api_is_known_to_stream_are_judged_too() {
        let (mut processor, _) = judging(json!({}));
        begin(&mut *processor, EVENTS);
        let event = "data: {\"reply\": {\"chunk\": \"a bad one\"}}\n\n";
        assert_eq!(part(&mut *processor, event, true), Err("content_filter"));
        let (mut processor, _) = judging(json!({}));
        begin(&mut *processor, EVENTS);
        assert_eq!(part(&mut *processor, "data: bad\n\n", false), Err("content_filter"), "no JSON");
        let (mut processor, _) = judging(json!({}));
        begin(&mut *processor, EVENTS);
        let call = json!({"index": 0, "function": {"name": "bad_tool", "arguments": ""}});
        let call = json!({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]});
        assert_eq!(part(&mut *processor, &format!("data: {call}\n\n"), true), Err("content_filter"));
    }

    #[test]
    fn events_that_say_little_are_not_held_without_end() {
        let (mut processor, seen) = judging(json!({}));
        let processor = &mut *processor;
        begin(processor, EVENTS);
        assert_eq!(part(processor, &said(0, "x"), false).unwrap(), "");
        let empty = said(0, "");
        let mut passed = 0;
        for _ in 0..2000 {
            passed += part(processor, &empty, false).unwrap().len();
        }
        assert!(passed > 2000 * empty.len() - 2 * MAX_HELD, "{passed}");
        assert!(seen.lock().unwrap().len() < 10);
        let long = "data: ".to_owned() + &"x".repeat(spillway_filter::MAX_EVENT + 1);
        assert_eq!(part(processor, &long, false), Err("content_filter"), "it cannot be read");
    }

    #[test]
    fn a_stream_that_is_not_judged_in_time_ends_or_passes_on_unjudged() {
        let (mut processor, _) = judging(json!({}));
        begin(&mut *processor, EVENTS);
        let fails = said(0, &"fail ".repeat(20));
        assert_eq!(part(&mut *processor, &fails, false), Err("guard_unavailable"));
        let (mut processor, seen) = judging(json!({"failOpen": true}));
        begin(&mut *processor, EVENTS);
        assert_eq!(part(&mut *processor, &fails, false).unwrap(), fails);
        let bad = said(0, "bad");
        assert_eq!(part(&mut *processor, &bad, true).unwrap(), bad);
        assert_eq!(seen.lock().unwrap().len(), 1, "it is not asked again");
    }

    #[test]
    fn a_whole_answer_is_judged_with_all_its_choices() {
        let whole = |body: &serde_json::Value, more: serde_json::Value| {
            let (mut processor, _) = judging(more);
            assert_eq!(begin(&mut *processor, "application/json"), Reads::Whole);
            part(&mut *processor, &body.to_string(), true)
        };
        let choices = |texts: [&str; 2]| json!({"choices": texts.map(|text| json!({"message": {"content": text}}))});
        let good = choices(["fine", "well"]);
        assert_eq!(whole(&good, json!({})).unwrap(), good.to_string());
        assert_eq!(whole(&choices(["fine", "bad"]), json!({})), Err("content_filter"));
        let long = choices([&"word ".repeat(300), "x"]);
        assert_eq!(whole(&long, json!({"maxText": "1KiB", "failOpen": true})), Err("guard_text_too_long"));
        assert_eq!(whole(&choices(["fail", ""]), json!({})), Err("guard_unavailable"));
        let (processor, _) = judging(json!({}));
        let fields = headers([("content-type", "image/png")]);
        assert!(!processor.reads(&AnswerHead { status: StatusCode::OK, headers: &fields, is_spilled: false }));
    }

    #[test]
    fn a_prompt_is_judged_behind_the_patterns_and_counted() {
        let (classifier, seen) = finding();
        let builder = FilterBuilder::new().classifier(classifier);
        let config = json!({"patterns": [{"name": "word", "regex": "bad word"}],
            "classifier": {"model": "m", "labels": {"bad": 0.5}}, "on": ["prompt"]});
        let filter = builder.build(&*factory(), &config);
        let ask = |prompt: &str| wait(TestRequest::post("/", json!({"prompt": prompt}).to_string()).decide(&*filter));
        let passed = ask("a bad word");
        assert!(passed.refusal.is_none() && passed.rewrite.body.is_some());
        assert_eq!(*seen.lock().unwrap(), [["a [word]"]]);
        let refused = ask("a bad thing").refusal.unwrap();
        assert_eq!(
            (refused.code, &*refused.message),
            ("content_filter", "a guard of this route has found `bad` in the request")
        );
        let failed = ask("fail");
        assert_eq!((failed.refusal.unwrap().code, failed.failure.is_some()), ("guard_unavailable", true));
        let judged =
            |outcome: &str| builder.count("spillway_filter_guard_judgements", &["m", "prompt", "refuse", outcome]);
        assert_eq!(["passed", "found", "unavailable", "too_long"].map(judged), [1, 1, 1, 0]);
        assert_eq!(builder.count("spillway_filter_guard_findings", &["m:bad", "prompt", "refuse"]), 1);
        assert!(matches!(TestRequest::get("/").decide(&*filter), Flow::Continue), "there is no body");
    }

    #[test]
    fn mistakes_of_a_classifier_are_told_with_their_place() {
        for (more, key) in [
            (json!({"labels": {}}), "labels"),
            (json!({"labels": {"bad": 0.0}}), "labels"),
            (json!({"labels": {"": 0.5}}), "labels"),
            (json!({"timeout": "0s"}), "timeout"),
            (json!({"timeout": "2m"}), "timeout"),
            (json!({"maxText": "1B"}), "maxText"),
        ] {
            let errors = factory().check(&config(more.clone()));
            assert_eq!(errors.len(), 1, "{more}: {errors:?}");
            assert_eq!(errors[0].path, ["classifier", key], "{more}");
        }
        let (classifier, _) = finding();
        let builder = FilterBuilder::new().classifier(classifier);
        let unknown = builder.try_build(&*factory(), &config(json!({"labels": {"worse": 0.5}}))).err().unwrap();
        assert_eq!(unknown.path, ["classifier", "labels"]);
        assert!(unknown.message.contains("`worse`") && unknown.message.contains("`good`, `bad`"), "{unknown:?}");
        let none = FilterBuilder::new().try_build(&*factory(), &config(json!({}))).err().unwrap();
        assert_eq!(none.path, ["classifier", "model"]);
    }
}
