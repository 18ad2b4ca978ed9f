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
use crate::protocol::Operation;
use crate::protocol::oip::INFERENCE_HEADER_CONTENT_LENGTH;
use crate::telemetry::Span;

/// Longest body of a request that is looked at, in bytes. Of a longer one the length counts.
pub(super) const MOST_BODY: usize = 1 << 20;
/// Bytes of an answer that are looked at: some 400 events of a stream.
pub(super) const MOST_ANSWER: usize = 128 << 10;
/// Bytes of requests and answers that wait to be looked at.
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

    /// Hands a request and its answer over.
    pub fn hand_over(&self, sampled: Box<Sampled>) {
        let bytes = sampled.body.as_ref().map_or(0, Bytes::len) + sampled.answer.bytes.len();
        let before = self.waiting.fetch_add(bytes, Ordering::Relaxed);
        let message = Message::Sampled(self.route.clone(), sampled, Waiting { bytes, all: self.waiting.clone() });
        // A message that is refused gives its bytes back.
        let is_taken = before.saturating_add(bytes) <= MOST_WAITING && self.queue.try_send(message).is_ok();
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
}

impl Tap {
    /// Tap on a request with these headers.
    pub fn new(sampling: Arc<Sampling>, request: &Fields) -> Self {
        Self { sampling: Some(sampling), ..Self::alone(request) }
    }

    /// Tap on a request with these headers whose answer is read by [`Self::into_answer`].
    pub fn alone(request: &Fields) -> Self {
        let answer =
            AnswerBytes { bytes: Vec::new(), is_cut: false, coding: Coding::Identity, json: None, is_success: false };
        Self { sampling: None, request_json: request.get(&INFERENCE_HEADER_CONTENT_LENGTH).cloned(), answer }
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
        if !answer.is_success {
            return;
        }
        let room = MOST_ANSWER.saturating_sub(answer.bytes.len());
        answer.is_cut |= part.len() > room;
        answer.bytes.extend_from_slice(part.get(..room.min(part.len())).unwrap_or_default());
    }

    /// Beginning of the answer; empty for one that is no success.
    pub fn into_answer(self) -> AnswerBytes {
        self.answer
    }

    /// Hands the exchange over, if a target has answered it with success.
    pub fn end(self, ended: Ended<'_>) {
        let Self { sampling, request_json, answer } = self;
        let Some(sampling) = sampling.filter(|_| answer.is_success && !ended.served_by.is_empty()) else { return };
        let body_bytes = u64::try_from(ended.body.map_or(0, Bytes::len)).unwrap_or(u64::MAX);
        sampling.hand_over(Box::new(Sampled {
            version: ended.served_by.strip_prefix("builtin/").unwrap_or(ended.served_by).into(),
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
        }));
    }
}

/// Facts of an exchange that has ended.
pub struct Ended<'e> {
    /// Backend, or `builtin/NAME` for a built-in model; empty where neither has answered.
    pub served_by: &'e str,
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
