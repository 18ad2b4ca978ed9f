//! Answers that are read to judge the versions of a rollout: their tool calls, their form, and whether two of them differ.
//!
//! The request path copies an answer while it passes ([`AnswerTap`]), at most `maxAnswer` bytes of it, on routes alone whose
//! rollout names a metric that needs it. One task on a thread of its own reads it ([`AnswerChecker`]); no request waits for it. What
//! is too long, or finds no room, is dropped and counted, whichever version it is of. Nothing is kept.

mod checker;
mod difference;
mod expected;
mod given;
mod pair;
mod schema;

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use prometheus_client::metrics::counter::Counter;
use spillway_config::schema::{Rollout, RolloutMetric};
use spillway_filter::Fields;

pub(super) use checker::AnswerChecker;
pub use difference::AnswerKind;
pub use given::REFUSED;
pub use pair::{Pair, PairRules, Side};

use super::observation::Observation;
use crate::coding::Coding;
use crate::protocol::oip::INFERENCE_HEADER_CONTENT_LENGTH;

/// Longest body of a request whose answer is read, in bytes: tools and schemas are shorter.
const MOST_REQUEST: usize = 1 << 20;
/// Bytes of requests and answers of all routes that are held for this at a time.
const MOST_HELD: usize = 64 << 20;

/// Text of an answer of a model API, whole or streamed; `None` for one that cannot be read or reports an error.
pub fn answer_text(body: &[u8]) -> Option<String> {
    given::Given::read(body).map(|given| given.text())
}

/// True if a value is of a JSON Schema; `None` where the schema cannot be used, or the check would take too long.
pub fn satisfies(schema: &serde_json::Value, value: &serde_json::Value) -> Option<bool> {
    schema::Schemas::default().holds(schema, value)
}

/// Bytes that are held, given back on drop.
#[derive(Debug)]
struct Held {
    bytes: usize,
    all: Arc<AtomicUsize>,
}

impl Held {
    fn none(all: &Arc<AtomicUsize>) -> Self {
        Self { bytes: 0, all: all.clone() }
    }

    /// Counts further bytes; false where there is no room for them.
    fn add(&mut self, bytes: usize) -> bool {
        let before = self.all.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
        before.saturating_add(bytes) <= MOST_HELD
    }

    fn clear(&mut self) {
        self.all.fetch_sub(std::mem::take(&mut self.bytes), Ordering::Relaxed);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Reading of the answers of a rollout: what is looked for, and by whom.
#[derive(Debug)]
pub struct AnswerReading {
    /// Longest answer that is read, in bytes.
    max: usize,
    /// True if tool calls are checked.
    calls: bool,
    /// True if the form of answers is checked.
    forms: bool,
    /// True if the answers of a pair are compared.
    differences: bool,
    checker: Arc<AnswerChecker>,
}

impl AnswerReading {
    /// Reading for the metrics of a rollout; `None` where none of them needs it.
    pub(super) fn new(max: usize, metrics: &[RolloutMetric], checker: &Arc<AnswerChecker>) -> Option<Self> {
        metrics.iter().any(|metric| metric.reads_answers()).then(|| Self {
            max,
            calls: metrics.contains(&RolloutMetric::ToolCallErrors),
            forms: metrics.contains(&RolloutMetric::StructuredOutputErrors),
            differences: metrics.contains(&RolloutMetric::ShadowDifference),
            checker: checker.clone(),
        })
    }

    /// True if the answer to a request with this body may say something: of its form it does where one was asked for. A body that
    /// spells the word in escapes says nothing of it.
    pub fn wants(&self, body: &[u8]) -> bool {
        body.len() <= MOST_REQUEST && (self.calls || (self.forms && memchr::memmem::find(body, b"format").is_some()))
    }
}

/// Rollout whose answers are read.
pub trait Judged: std::fmt::Debug + Send + Sync {
    /// Reading of its answers, where a metric needs it.
    fn reading(&self) -> Option<&AnswerReading>;

    /// Leaves an observation for the controller. Never waits.
    fn observe(&self, observation: Observation);
}

/// Longest answer that the rollout of a file reads, in bytes.
pub(super) fn max_answer(written: &Rollout) -> usize {
    usize::try_from(written.max_answer.unwrap_or(Rollout::DEFAULT_MAX_ANSWER).0).unwrap_or(usize::MAX)
}

/// Tap on an answer that passes.
#[derive(Debug)]
pub struct AnswerTap {
    live: Arc<dyn Judged>,
    max: usize,
    unread: Counter,
    bytes: Vec<u8>,
    held: Held,
    is_cut: bool,
    is_success: bool,
    coding: Coding,
    /// Length of the JSON of an answer of the Open Inference Protocol.
    json: Option<HeaderValue>,
}

impl AnswerTap {
    /// Tap on the answer to a request; `None` on a route whose rollout reads none.
    pub fn new(live: Arc<dyn Judged>) -> Option<Self> {
        let reading = live.reading()?;
        let (max, unread, held) = (reading.max, reading.checker.unread().clone(), Held::none(reading.checker.held()));
        Some(Self {
            live,
            max,
            unread,
            bytes: Vec::new(),
            held,
            is_cut: false,
            is_success: false,
            coding: Coding::Identity,
            json: None,
        })
    }

    /// Notes the head of the answer.
    pub fn head(&mut self, status: StatusCode, headers: &Fields) {
        self.is_success = status.is_success();
        self.coding = Coding::of(headers);
        self.json = headers.get(&INFERENCE_HEADER_CONTENT_LENGTH).cloned();
    }

    /// Notes a part of the answer.
    pub fn part(&mut self, part: &[u8]) {
        if !self.is_success || self.is_cut {
            return;
        }
        if part.len() > self.max.saturating_sub(self.bytes.len()) || !self.held.add(part.len()) {
            self.is_cut = true;
            self.bytes = Vec::new();
            self.held.clear();
            return;
        }
        self.bytes.extend_from_slice(part);
    }

    /// Answer as it passed; `None` for one that was too long, found no room, or is no success.
    fn finish(self) -> Option<TappedAnswer> {
        if self.is_cut {
            self.unread.inc();
        }
        (self.is_success && !self.is_cut).then_some(TappedAnswer {
            bytes: self.bytes,
            coding: self.coding,
            json: self.json,
            max: self.max,
            _held: self.held,
        })
    }

    /// Hands a good answer over, whose request has this body and was counted as `observation`.
    pub fn hand_over(self, observation: &Observation, request: &Bytes) {
        let live = self.live.clone();
        let Some(reading) = live.reading() else { return };
        let observation = Observation {
            is_later: true,
            ..Observation::new(observation.version, observation.epoch, observation.unit)
        };
        if let Some(answer) = self.finish() {
            reading.checker.check(live.clone(), observation, request.clone(), answer);
        }
    }
}

/// Answer that was copied while it passed.
#[derive(Debug)]
struct TappedAnswer {
    bytes: Vec<u8>,
    coding: Coding,
    json: Option<HeaderValue>,
    max: usize,
    _held: Held,
}

impl TappedAnswer {
    /// Decoded bytes of the answer, as many as an answer without a coding may have; `None` for a longer one.
    fn decoded(&self) -> Option<Cow<'_, [u8]>> {
        if self.coding == Coding::Identity {
            return Some(Cow::Borrowed(&self.bytes));
        }
        self.coding.decode(&self.bytes, self.max).ok().map(Cow::Owned)
    }
}
