//! Series whose values the live handles hold themselves: a handle costs a word for each of them, where a family of the
//! client library keeps labels and a hash entry for each. A scrape reads them from the handles.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::histogram::Histogram;
use super::live::Live;
use crate::telemetry::label::{ByLabel, Label};

/// Counter of a series.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds so many.
    pub fn add(&self, times: u64) {
        self.0.fetch_add(times, Ordering::Relaxed);
    }

    /// Value now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Number of a series that rises and falls.
#[derive(Debug, Default)]
pub struct Running(AtomicI64);

impl Running {
    /// Adds one.
    pub fn inc(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Subtracts one.
    pub fn dec(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// Value now.
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Adds a number, which may be negative.
    pub fn add(&self, change: i64) {
        self.0.fetch_add(change, Ordering::Relaxed);
    }
}

/// Handle that holds values of series.
pub(super) trait Holder: Send + Sync + 'static {
    /// Name of the label that tells the handles apart.
    const LABEL: &'static str;

    /// Value of that label.
    fn name(&self) -> &str;
}

type Written = Result<(), fmt::Error>;

/// Writer of the values of one handle.
pub(super) struct Values<'e, 'm> {
    encoder: &'e mut MetricEncoder<'m>,
    own: [(&'static str, &'e str); 1],
}

impl Values<'_, '_> {
    /// Writes a counter.
    pub(super) fn count(&mut self, count: &Count) -> Written {
        self.encoder.encode_family(&self.own)?.encode_counter::<NoLabelSet, _, u64>(&count.get(), None)
    }

    /// Writes the counters of each value of the label `name`.
    pub(super) fn counts<L: Label>(&mut self, name: &'static str, counts: &ByLabel<L, Count>) -> Written {
        for (label, count) in counts.iter() {
            let labels = (self.own, [(name, label.as_str())]);
            self.encoder.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&count.get(), None)?;
        }
        Ok(())
    }

    /// Writes a histogram; none before its first value.
    pub(super) fn histogram(&mut self, histogram: &Histogram) -> Written {
        let counts = histogram.counts();
        let number: u64 = counts.iter().sum();
        if number == 0 {
            return Ok(());
        }
        let bounds = histogram.bounds().iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        let mut encoder = self.encoder.encode_family(&self.own)?;
        encoder.encode_histogram::<NoLabelSet>(histogram.total(), number, &buckets, None)
    }

    /// Writes a number that rises and falls.
    pub(super) fn running(&mut self, running: &Running) -> Written {
        self.encoder.encode_family(&self.own)?.encode_gauge(&running.get())
    }
}

/// Metric whose series the live handles of one kind hold.
struct Held<T> {
    live: Arc<Live<T>>,
    kind: MetricType,
    write: fn(&T, &mut Values<'_, '_>) -> Written,
}

impl<T> fmt::Debug for Held<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Held")
    }
}

impl<T: Holder> EncodeMetric for Held<T> {
    fn encode(&self, mut encoder: MetricEncoder) -> Written {
        for handle in self.live.all() {
            let own = [(T::LABEL, handle.name())];
            (self.write)(&handle, &mut Values { encoder: &mut encoder, own })?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        self.kind
    }

    fn is_empty(&self) -> bool {
        self.live.is_empty()
    }
}

/// Registers a metric whose series the handles of `live` hold.
pub(super) fn register_held<T: Holder>(
    registry: &mut Registry,
    (name, help): (&str, &str),
    kind: MetricType,
    live: &Arc<Live<T>>,
    write: fn(&T, &mut Values<'_, '_>) -> Written,
) {
    registry.register(name, help.trim(), Held { live: live.clone(), kind, write });
}

/// Declares metrics whose series handles hold: field, type, metric name, and how a handle's values are written. The doc of
/// a field is the help text of its metric.
macro_rules! held {
    (
        $register:ident($handle:ty) {
            $(
                #[doc = $help:literal]
                $field:ident: $kind:ident = $metric:literal, $write:expr;
            )+
        }
    ) => {
        pub(super) fn $register(
            registry: &mut prometheus_client::registry::Registry,
            live: &std::sync::Arc<super::live::Live<$handle>>,
        ) {
            $(
                let kind = prometheus_client::metrics::MetricType::$kind;
                super::held::register_held(registry, ($metric, $help), kind, live, $write);
            )+
        }
    };
}
pub(super) use held;
