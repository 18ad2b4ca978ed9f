//! Handles on the series of signals of conversations.

use std::sync::Arc;
use std::time::Duration;

use super::held::{Count, Holder, held};
use super::histogram::HTTP_SECONDS;
use super::{Families, Histogram};
use crate::telemetry::label::{ByLabel, SignalOutcome};

/// Series of a signal.
pub struct SignalMetrics {
    outcomes: ByLabel<SignalOutcome, Count>,
    /// Time that its model took, or was waited for.
    seconds: Histogram,
    /// Vectors of its examples that were made.
    pub example_vectors: Count,
    families: Arc<Families>,
    name: Arc<str>,
}

impl SignalMetrics {
    pub(super) fn new(families: &Arc<Families>, name: &Arc<str>) -> Self {
        Self {
            outcomes: ByLabel::new(|_| Count::default()),
            seconds: Histogram::new(&HTTP_SECONDS),
            example_vectors: Count::default(),
            families: families.clone(),
            name: name.clone(),
        }
    }

    /// Counts a request for which the signal had this outcome, after its model had this time.
    pub fn count(&self, outcome: SignalOutcome, took: Option<Duration>) {
        if let Some(count) = self.outcomes.get(outcome) {
            count.inc();
        }
        if let Some(took) = took {
            self.seconds.observe(took.as_secs_f64());
        }
    }
}

impl Holder for SignalMetrics {
    const LABEL: &'static str = "signal";

    fn name(&self) -> &str {
        &self.name
    }
}

held! {
    register_signals(SignalMetrics) {
        /// Requests for which a signal was worked out, by outcome
        results: Counter = "spillway_signal_results", |signal, values| values.counts("outcome", &signal.outcomes);
        /// Time that the model of a signal took, or was waited for
        seconds: Histogram = "spillway_signal_duration_seconds", |signal, values| values.histogram(&signal.seconds);
        /// Vectors of examples that were made
        vectors: Counter = "spillway_signal_example_vectors", |signal, values| values.count(&signal.example_vectors);
    }
}

impl Drop for SignalMetrics {
    fn drop(&mut self) {
        self.families.live_signals.gone(&self.name, || {});
    }
}
