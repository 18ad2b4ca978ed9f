//! The part on the request path: draws the requests that are looked at, collects the beginning of their answers, and hands both
//! over. Never waits, and reads nothing: what finds no room is dropped and counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use spillway_filter::Fields;
use tokio::sync::mpsc;

use super::sampled::{AnswerBytes, Counters, Sampled, Waiting};
use super::worker::Message;
use crate::coding::Coding;
use crate::places;
use crate::protocol::Operation;
use crate::protocol::oip::INFERENCE_HEADER_CONTENT_LENGTH;
use crate::telemetry::Span;

/// Longest body of a request that is looked at, in bytes. Of a longer one the length counts.
pub(super) const MOST_BODY: usize = 1 << 20;
/// Bytes of an answer that are looked at: some 400 events of a stream.
pub(super) const MOST_ANSWER: usize = 128 << 10;
/// Bytes of answers that are being collected, and of requests and answers that wait to be looked at.
const MOST_WAITING: usize = 16 << 20;

/// Sampling of a route: its plan on the request path. Compiled at reload.
#[derive(Debug)]
pub struct Sampling {
    route: Arc<str>,
    /// Requests are looked at whose random number is below.
    threshold: u64,
    counters: Arc<Counters>,
    queue: mpsc::Sender<Message>,
    waiting: Arc<AtomicUsize>,
}

impl Sampling {
    /// Sampling of a share of the requests of a route.
    pub(super) fn new(
        route: Arc<str>,
        share: f64,
        counters: Arc<Counters>,
        queue: mpsc::Sender<Message>,
        waiting: Arc<AtomicUsize>,
    ) -> Self {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a share"
        )]
        let threshold = if share >= 1.0 { u64::MAX } else { (share.max(0.0) * u64::MAX as f64) as u64 };
        Self { route, threshold, counters, queue, waiting }
    }

    /// Draws whether a request is looked at.
    pub fn draws(&self) -> bool {
        self.threshold == u64::MAX || rand::random::<u64>() < self.threshold
    }

    /// Hands a request and its answer over, whose bytes `waiting` counts in part.
    fn hand_over(&self, sampled: Box<Sampled>, mut waiting: Waiting) {
        let bytes = sampled.body.as_ref().map_or(0, Bytes::len);
        // A message that is refused gives its bytes back.
        let is_taken = waiting.grow(bytes, MOST_WAITING)
            && self.queue.try_send(Message::Sampled(self.route.clone(), sampled, waiting)).is_ok();
        let counter = if is_taken { &self.counters.sampled } else { &self.counters.dropped };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Tap on an exchange that was drawn.
#[derive(Debug)]
pub struct Tap {
    /// Sampling that gets the exchange at its end; `None` for a probe, whose own task reads its answer.
    sampling: Option<Arc<Sampling>>,
    /// Length of the JSON of a call of the Open Inference Protocol.
    request_json: Option<HeaderValue>,
    answer: AnswerBytes,
    /// Memory of the answer's bytes; `None` once there was no room for them.
    memory: Option<Waiting>,
    /// Most bytes that its counter may have.
    most: usize,
}

impl Tap {
    /// Tap on a request with these headers.
    pub fn new(sampling: Arc<Sampling>, request: &Fields) -> Self {
        let memory = Some(Waiting { bytes: 0, all: sampling.waiting.clone() });
        Self { sampling: Some(sampling), memory, ..Self::alone(request) }
    }

    /// Tap on a request with these headers whose answer is read by [`Self::into_answer`].
    pub fn alone(request: &Fields) -> Self {
        let answer =
            AnswerBytes { bytes: Vec::new(), is_cut: false, coding: Coding::Identity, json: None, is_success: false };
        let memory = Some(Waiting { bytes: 0, all: Arc::default() });
        let request_json = request.get(&INFERENCE_HEADER_CONTENT_LENGTH).cloned();
        Self { sampling: None, request_json, answer, memory, most: MOST_WAITING }
    }

    /// Tap on a request with these headers whose answer, and those of others, take at most `most` bytes together.
    pub(super) fn within(request: &Fields, all: Arc<AtomicUsize>, most: usize) -> Self {
        Self { memory: Some(Waiting { bytes: 0, all }), most, ..Self::alone(request) }
    }

    /// Notes the head of the answer.
    pub fn head(&mut self, status: StatusCode, headers: &Fields) {
        self.answer.is_success = status.is_success();
        self.answer.coding = Coding::of(headers);
        self.answer.json = headers.get(&INFERENCE_HEADER_CONTENT_LENGTH).cloned();
    }

    /// Notes a part of the answer.
    pub fn part(&mut self, part: &[u8]) {
        let answer = &mut self.answer;
        let Some(memory) = self.memory.as_mut().filter(|_| answer.is_success) else { return };
        let room = MOST_ANSWER.saturating_sub(answer.bytes.len());
        answer.is_cut |= part.len() > room;
        let kept = part.get(..room.min(part.len())).unwrap_or_default();
        if answer.bytes.capacity() - answer.bytes.len() < kept.len() {
            let wanted = (answer.bytes.len() + kept.len()).next_power_of_two().min(MOST_ANSWER);
            if !memory.grow(wanted - answer.bytes.capacity(), self.most) {
                (self.memory, answer.bytes) = (None, Vec::new());
                return;
            }
            answer.bytes.reserve_exact(wanted - answer.bytes.len());
        }
        answer.bytes.extend_from_slice(kept);
    }

    /// Beginning of the answer; empty for one that is no success.
    pub fn into_answer(self) -> AnswerBytes {
        self.answer
    }

    /// Beginning of the answer with its memory; `None` where there was no room.
    pub(super) fn into_parts(self) -> Option<(AnswerBytes, Waiting)> {
        Some((self.answer, self.memory?))
    }

    /// Hands the exchange over, if a target has answered it with success.
    pub fn end(self, ended: Ended<'_>) {
        let Self { sampling, request_json, answer, memory, most: _ } = self;
        let Some(sampling) = sampling.filter(|_| answer.is_success && !ended.served_by.is_empty()) else { return };
        let Some(memory) = memory else {
            sampling.counters.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let body_bytes = u64::try_from(ended.body.map_or(0, Bytes::len)).unwrap_or(u64::MAX);
        let sampled = Box::new(Sampled {
            version: ended.served_by.strip_prefix("builtin/").unwrap_or(ended.served_by).into(),
            caller: places::caller(ended.caller),
            operation: ended.operation,
            is_grpc: ended.is_grpc,
            body: ended.body.filter(|body| body.len() <= MOST_BODY).cloned(),
            body_bytes,
            request_json,
            answer,
            is_whole: ended.is_whole,
            prompt_tokens: ended.prompt_tokens,
            completion_tokens: ended.completion_tokens,
            finish: ended.finish.map(str::to_owned),
            may_be_kept: ended.may_be_kept,
            span: ended.span,
            ended: SystemTime::now(),
        });
        sampling.hand_over(sampled, memory);
    }
}

/// Facts of an exchange that has ended.
pub struct Ended<'e> {
    /// Backend, or `builtin/NAME` for a built-in model; empty where neither has answered.
    pub served_by: &'e str,
    /// Number of the caller's consumer or address.
    pub caller: u128,
    /// Operation.
    pub operation: Operation,
    /// True for a gRPC call.
    pub is_grpc: bool,
    /// Body of the request, where it was held.
    pub body: Option<&'e Bytes>,
    /// True if the answer reached the client to its end.
    pub is_whole: bool,
    /// Tokens of the prompt.
    pub prompt_tokens: Option<u64>,
    /// Tokens of the answer.
    pub completion_tokens: Option<u64>,
    /// Finish reason.
    pub finish: Option<&'e str>,
    /// True if its texts may be kept.
    pub may_be_kept: bool,
    /// Span for what is found.
    pub span: Span,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tap(sampling: &Arc<Sampling>) -> Tap {
        let mut tap = Tap::new(sampling.clone(), &Fields::default());
        tap.head(StatusCode::OK, &Fields::default());
        tap
    }

    #[test]
    fn answers_that_are_being_collected_are_bounded_together() {
        let (queue, mut messages) = mpsc::channel(1024);
        let (counters, waiting) = (Arc::new(Counters::default()), Arc::new(AtomicUsize::new(0)));
        let sampling = Arc::new(Sampling::new("r".into(), 1.0, counters.clone(), queue, waiting.clone()));
        let most = MOST_WAITING / MOST_ANSWER;
        let mut taps: Vec<Tap> = (0..2 * most).map(|_| tap(&sampling)).collect();
        for _ in 0..40 {
            taps.iter_mut().for_each(|tap| tap.part(&[b'x'; MOST_ANSWER / 32]));
        }
        let held: usize = taps.iter().map(|tap| tap.answer.bytes.capacity()).sum();
        assert!((MOST_WAITING / 2..=MOST_WAITING).contains(&held), "{held} bytes");
        assert_eq!(waiting.load(Ordering::Relaxed), held);
        for tap in taps {
            tap.end(Ended {
                served_by: "a",
                caller: 1,
                operation: Operation::Chat,
                is_grpc: false,
                body: None,
                is_whole: true,
                prompt_tokens: None,
                completion_tokens: None,
                finish: None,
                may_be_kept: true,
                span: Span::none(),
            });
        }
        let [sampled, dropped] = [&counters.sampled, &counters.dropped].map(|count| count.load(Ordering::Relaxed));
        assert!(sampled > 0 && dropped > 0);
        assert_eq!(sampled + dropped, 2 * u64::try_from(most).unwrap());
        while let Ok(message) = messages.try_recv() {
            drop(message);
        }
        assert_eq!(waiting.load(Ordering::Relaxed), 0, "all is given back");
    }
}
