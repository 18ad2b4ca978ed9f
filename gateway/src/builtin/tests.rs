//! Answers made from events of an engine, for every order and end of the events. The events are scripted: tests with a real
//! model cover the engine itself.

use std::time::{Duration, Instant};

use http::HeaderValue;
use spillway_engine::{EngineError, Event, FinishReason, Finished};
use tokio::sync::mpsc;

use super::stream::{AnswerOptions, Events, Report, SpillStream};
use crate::protocol::{AnswerHead, OPENAI, Operation};
use crate::telemetry::Metrics;

/// Id of the scripted answers.
const ID: &str = "chatcmpl-00000000000000000000000000000001";

struct Script(mpsc::Receiver<Event>);

impl Events for Script {
    async fn next(&mut self) -> Option<Event> {
        self.0.recv().await
    }
}

fn stream(streamed: bool, within: Duration) -> (mpsc::Sender<Event>, SpillStream<Script>) {
    let (events, script) = mpsc::channel(64);
    let (operation, id) = (Operation::Chat, uuid::Uuid::from_u128(1));
    let head = AnswerHead { operation, id, created: 7, model: "m", include_usage: true, prompt_tokens: 9, echoed: "" };
    let answer = OPENAI.write_answer(head).unwrap();
    let report = Report {
        id: answer.id().to_owned(),
        model: "m".into(),
        prompt_tokens: None,
        cached_tokens: 0,
        choices: 1,
        completion_tokens: 0,
        encode: Duration::ZERO,
        submitted: Instant::now(),
        queued: None,
        prefill: None,
        first_token: None,
        decode: None,
        finish_reason: None,
        error: None,
        excuse: None,
        complete: false,
        took: None,
        metrics: Metrics::new().model("spillway", "m"),
    };
    let options = AnswerOptions {
        streamed,
        logprobs: false,
        calling: None,
        stop: Vec::new(),
        resumed: None,
        dropped: None,
        served_by: HeaderValue::from_static("builtin/m"),
        deadline: Instant::now() + within,
        engine: None,
        over_limit: None,
    };
    (events, SpillStream::new(Script(script), answer, options, report))
}

fn text(text: &str) -> Event {
    Event::Text { choice: 0, text: text.into(), tokens: 1, written: vec![] }
}

fn finished() -> [Event; 2] {
    [Event::Ended { choice: 0, reason: FinishReason::Length }, all_finished()]
}

fn all_finished() -> Event {
    Event::Finished(Finished {
        prompt_tokens: 9,
        cached_tokens: 4,
        completion_tokens: 2,
        queued: Duration::from_millis(1),
        prefill: Duration::from_millis(2),
        decode: Duration::from_millis(3),
    })
}

fn opening() -> [Event; 2] {
    [
        Event::Started { queued: Duration::from_millis(1) },
        Event::Prefilled { prefill: Duration::from_millis(2), prompt_tokens: 9, cached_tokens: 4 },
    ]
}

async fn send(to: &mpsc::Sender<Event>, events: impl IntoIterator<Item = Event>) {
    for event in events {
        to.send(event).await.unwrap();
    }
}

/// The texts of the events in a frame, `ROLE`, `END` and `USAGE` for the others.
fn told(frame: &[u8]) -> Vec<String> {
    let frame = std::str::from_utf8(frame).unwrap();
    assert!(frame.ends_with("\n\n"), "a frame holds whole events: {frame}");
    let events = frame.split_terminator("\n\n").map(|event| event.strip_prefix("data: ").unwrap());
    events
        .map(|event| {
            if event == "[DONE]" {
                return event.to_owned();
            }
            let value: serde_json::Value = serde_json::from_str(event).unwrap();
            if let Some(code) = value["error"]["code"].as_str() {
                return format!("ERROR {code}");
            }
            assert_eq!((&value["id"], &value["model"]), (&ID.into(), &"m".into()));
            let choice = &value["choices"][0];
            match (&choice["delta"]["role"], &choice["delta"]["content"], &choice["finish_reason"]) {
                (serde_json::Value::String(_), ..) => "ROLE".to_owned(),
                (_, serde_json::Value::String(text), _) => text.clone(),
                (.., serde_json::Value::String(reason)) => format!("END {reason}"),
                _ => format!("USAGE {}", value["usage"]["total_tokens"]),
            }
        })
        .collect()
}

const SOON: Duration = Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn text_is_passed_on_as_it_comes_and_what_is_ready_together_goes_out_together() {
    let (events, mut stream) = stream(true, SOON);
    send(&events, opening()).await;
    send(&events, [text("a")]).await;
    let head = stream.begin().await.unwrap();
    let header = |name| head.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.to_str().unwrap());
    assert_eq!(header("content-type"), Some("text/event-stream; charset=utf-8"));
    assert_eq!(header("x-spillway-served-by"), Some("builtin/m"));
    assert_eq!((head.status.as_u16(), head.content_length), (200, None));
    assert_eq!(told(&stream.next().await.unwrap()), ["ROLE", "a"]);
    let report = stream.report();
    assert_eq!((report.prompt_tokens, report.completion_tokens, report.complete), (Some(9), 1, false));
    assert!(report.first_token.is_some());

    // Nothing is there: dropping the wait loses nothing.
    assert!(tokio::time::timeout(Duration::from_secs(1), stream.next()).await.is_err());
    send(&events, [text("b"), text("c")]).await;
    assert_eq!(told(&stream.next().await.unwrap()), ["b", "c"]);
    send(&events, [text("d")].into_iter().chain(finished())).await;
    assert_eq!(told(&stream.next().await.unwrap()), ["d", "END length", "USAGE 11", "[DONE]"]);
    assert!(stream.next().await.is_none());
    assert!(stream.next().await.is_none());
    let report = stream.report();
    assert_eq!(
        (report.completion_tokens, report.finish_reason, report.complete),
        (2, Some(crate::protocol::FinishReason::Length), true)
    );
    assert_eq!(report.decode, Some(Duration::from_millis(3)));
    assert_eq!(report.error, None);
    assert!(events.is_closed(), "the engine's side ends with the answer, not with the last write");
}

#[tokio::test(start_paused = true)]
async fn a_frame_is_bounded() {
    let (events, mut stream) = stream(true, SOON);
    let long = "x".repeat(10 << 10);
    send(&events, [text(&long), text(&long), text(&long)].into_iter().chain(finished())).await;
    stream.begin().await.unwrap();
    let mut frames = Vec::new();
    while let Some(frame) = stream.next().await {
        assert!(frame.len() < 32 << 10);
        frames.extend(told(&frame));
    }
    assert_eq!(frames.len(), 7);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_not_streamed_comes_whole_with_its_length() {
    let (events, mut stream) = stream(false, SOON);
    send(&events, opening()).await;
    send(&events, [text("a"), text("b")]).await;
    // It can be asked again after it was dropped.
    assert!(tokio::time::timeout(Duration::from_secs(1), stream.begin()).await.is_err());
    send(&events, finished()).await;
    let head = stream.begin().await.unwrap();
    assert_eq!(head.headers[0].1, "application/json");
    let body = stream.next().await.unwrap();
    assert_eq!(head.content_length, Some(body.len()));
    let value: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(value["choices"][0]["message"]["content"], "ab");
    assert_eq!(value["usage"]["total_tokens"], 11);
    assert!(stream.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn several_answers_come_mixed_and_each_with_its_number() {
    let say = |choice, text: &str| Event::Text { choice, text: text.into(), tokens: 1, written: vec![] };
    let ends = |choice| Event::Ended { choice, reason: FinishReason::Stop };
    let script = || [say(0, "a"), say(2, "c"), say(0, "A"), ends(0), say(1, "b"), ends(2), ends(1), all_finished()];
    let (events, mut whole) = stream(false, SOON);
    send(&events, script()).await;
    whole.begin().await.unwrap();
    let value: serde_json::Value = serde_json::from_slice(&whole.next().await.unwrap()).unwrap();
    let texts: Vec<_> = value["choices"].as_array().unwrap().iter().map(|c| c["message"]["content"].clone()).collect();
    assert_eq!(texts, ["aA", "b", "c"]);
    assert_eq!(value["usage"]["prompt_tokens_details"]["cached_tokens"], 4);

    let (events, mut streamed) = stream(true, SOON);
    send(&events, script()).await;
    streamed.begin().await.unwrap();
    let frame = streamed.next().await.unwrap();
    let mut texts = vec![String::new(); 3];
    let mut ended = vec![0; 3];
    for event in std::str::from_utf8(&frame).unwrap().split_terminator("\n\n").filter(|e| *e != "data: [DONE]") {
        let value: serde_json::Value = serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap();
        let Some(choice) = value["choices"].get(0) else { continue };
        let at = choice["index"].as_u64().unwrap() as usize;
        assert_eq!(ended[at], 0, "nothing follows the end of an answer");
        texts[at].push_str(choice["delta"]["content"].as_str().unwrap_or_default());
        ended[at] += usize::from(choice["finish_reason"] == "stop");
    }
    assert_eq!((texts, ended), (vec!["aA".to_owned(), "b".to_owned(), "c".to_owned()], vec![1, 1, 1]));
}

#[tokio::test(start_paused = true)]
async fn an_answer_without_text_is_an_answer() {
    let (events, mut stream) = stream(true, SOON);
    send(&events, finished()).await;
    stream.begin().await.unwrap();
    assert_eq!(told(&stream.next().await.unwrap()), ["ROLE", "END length", "USAGE 11", "[DONE]"]);
}

#[tokio::test(start_paused = true)]
async fn a_failure_before_the_first_byte_is_an_error_and_after_it_an_event() {
    for (error, status, code) in [
        (EngineError::Deadline, 504, "request_timeout"),
        (EngineError::Stalled, 504, "not_read"),
        (EngineError::Shutdown, 503, "engine_stopped"),
        (EngineError::Device("SECRET".into()), 500, "engine_error"),
    ] {
        for streamed in [true, false] {
            // Text that was not sent yet does not count as begun.
            let (events, mut stream) = stream(streamed, SOON);
            send(&events, [text("a"), Event::Failed(error.clone())]).await;
            let refusal = stream.begin().await.unwrap_err();
            assert_eq!((refusal.status.as_u16(), refusal.code), (status, code));
            assert!(!refusal.message.contains("SECRET"));
            assert_eq!(stream.report().error, Some(error.to_string()));
            assert!(!stream.report().complete);
        }
        let (events, mut stream) = stream(true, SOON);
        send(&events, [text("a")]).await;
        stream.begin().await.unwrap();
        send(&events, [text("b"), Event::Failed(error.clone())]).await;
        assert_eq!(told(&stream.next().await.unwrap()), ["ROLE", "a"]);
        assert_eq!(told(&stream.next().await.unwrap()), ["b".to_owned(), format!("ERROR {code}")]);
        assert!(stream.next().await.is_none());
        assert!(!stream.report().complete);
    }
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_says_nothing_more_does_not_hold_the_caller() {
    // It ended without a word.
    let (events, mut lost) = stream(true, SOON);
    drop(events);
    assert_eq!(lost.begin().await.unwrap_err().code, "engine_error");
    assert!(lost.report().error.is_some());
    // It hangs, before the first byte and after it.
    let (events, mut hung) = stream(false, Duration::from_secs(3));
    let began = tokio::time::Instant::now();
    assert_eq!(hung.begin().await.unwrap_err().status, 504);
    assert!((2.9..3.1).contains(&began.elapsed().as_secs_f64()), "{:?}", began.elapsed());
    assert!(events.is_closed(), "its work is cancelled");
    let (events, mut hung) = stream(true, Duration::from_secs(3));
    send(&events, [text("a")]).await;
    hung.begin().await.unwrap();
    hung.next().await.unwrap();
    assert_eq!(told(&hung.next().await.unwrap()), ["ERROR request_timeout"]);
    assert!(hung.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_cancels_the_work() {
    let (events, mut left) = stream(true, SOON);
    send(&events, [text("a")]).await;
    left.begin().await.unwrap();
    assert!(!events.is_closed());
    drop(left);
    assert!(events.is_closed());
}
