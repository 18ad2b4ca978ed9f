//! Pair of answers to the same request: that of the stable version, which the caller gets, and that of a shadow's candidate.

use std::any::Any;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use spillway_statistics::Version;

use super::difference::AnswerKind;
use super::{AnswerTap, Judged, TappedAnswer};
use crate::builtin::LoadedModel;
use crate::rollout::observation::Observation;
use crate::telemetry::{PairEnd, RouteMetrics};

/// Rules by which the answers of a pair are compared.
#[derive(Clone)]
pub struct PairRules {
    /// Greatest difference of two numbers that are the same, in parts of the greater one.
    pub tolerance: f64,
    /// Model for embeddings, and the least cosine of two texts that are the same.
    pub embedder: Option<(Arc<LoadedModel>, f64)>,
}

/// Side of a pair: what one version has answered.
#[derive(Debug)]
pub struct Side {
    pub(super) observation: Observation,
    /// Status of the answer; 0 where there was none.
    pub(super) status: u16,
    pub(super) answer: Option<TappedAnswer>,
}

impl Side {
    /// Side with its figures; `tap` has copied its answer.
    pub fn new(observation: Observation, status: u16, tap: Option<AnswerTap>) -> Self {
        Self { observation, status, answer: tap.and_then(AnswerTap::finish) }
    }
}

/// Things that are held until both sides are there: the permit of the copy, the share of the body.
type Kept = Box<dyn Any + Send + Sync>;

/// Pair whose sides come one after the other. One that is dropped before says nothing of either version.
pub struct Pair {
    live: Arc<dyn Judged>,
    metrics: Arc<RouteMetrics>,
    open: Mutex<Option<Open>>,
}

struct Open {
    request: Bytes,
    kind: AnswerKind,
    rules: Arc<PairRules>,
    first: Option<Side>,
    kept: Kept,
}

/// Pair with both sides.
pub(super) struct WholePair {
    pub stable: Side,
    pub candidate: Side,
    pub request: Bytes,
    pub kind: AnswerKind,
    pub rules: Arc<PairRules>,
    /// Held until the pair was compared.
    pub _kept: Kept,
}

impl WholePair {
    /// Leaves the figures of both sides.
    pub(super) fn observe(self, live: &dyn Judged) {
        live.observe(self.stable.observation);
        live.observe(self.candidate.observation);
    }
}

impl Pair {
    /// Pair of answers to a request. `kept` is dropped when both were compared.
    pub fn new(
        live: Arc<dyn Judged>,
        metrics: Arc<RouteMetrics>,
        request: Bytes,
        kind: AnswerKind,
        rules: Arc<PairRules>,
        kept: Kept,
    ) -> Self {
        let open = Mutex::new(Some(Open { request, kind, rules, first: None, kept }));
        Self { live, metrics, open }
    }

    /// Adds a side. The second one has the pair compared.
    pub fn put(&self, side: Side) {
        let mut place = self.open.lock();
        let Some(mut open) = place.take() else { return };
        let Some(first) = open.first.take() else {
            *place = Some(Open { first: Some(side), ..open });
            return;
        };
        drop(place);
        if first.observation.version == side.observation.version {
            return;
        }
        let (stable, candidate) =
            if first.observation.version == Version::Stable { (first, side) } else { (side, first) };
        let Open { request, kind, rules, kept, .. } = open;
        self.metrics.paired(PairEnd::Compared);
        let pair = WholePair { stable, candidate, request, kind, rules, _kept: kept };
        match self.live.reading() {
            Some(reading) => reading.checker.compare(self.live.clone(), pair),
            None => pair.observe(&*self.live),
        }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if self.open.get_mut().is_some() {
            self.metrics.paired(PairEnd::Unmatched);
        }
    }
}
