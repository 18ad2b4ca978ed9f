//! Histogram of relaxed atomics, whose counts other rooms can read: that of the client library takes a lock for each value
//! and shows its counts to an encoder alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// Most bounds of a scale.
const MAX_BOUNDS: usize = 14;
/// Buckets of a histogram: one for each bound, and one for all values above.
pub const BUCKETS: usize = MAX_BOUNDS + 1;

/// Bounds of a histogram's buckets, and the unit that its sum is kept in.
#[derive(Debug)]
pub struct Scale {
    /// Upper bounds, rising.
    pub bounds: [f64; MAX_BOUNDS],
    /// Units of the sum for one of the value: sums are kept in tokens, or in tenths of a microsecond, which ten thousand
    /// requests in flight count up to the end of a word in five years.
    units: f64,
}

/// Buckets of HTTP durations in seconds (OpenTelemetry semantic conventions, `http.server.request.duration`).
pub static HTTP_SECONDS: Scale =
    Scale { bounds: [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0], units: 1e7 };
/// Buckets of model durations in seconds (`gen_ai.client.operation.duration`).
pub static MODEL_SECONDS: Scale = Scale {
    bounds: [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92],
    units: 1e7,
};
/// Buckets of round trips to a store in the same network, in seconds.
pub(super) static STORE_SECONDS: Scale = Scale {
    bounds: [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0],
    units: 1e7,
};
/// Buckets of token counts (`gen_ai.client.token.usage`): powers of four up to 4^13.
pub(super) static TOKEN_COUNTS: Scale = Scale {
    bounds: [
        1.0,
        4.0,
        16.0,
        64.0,
        256.0,
        1024.0,
        4096.0,
        16384.0,
        65536.0,
        262_144.0,
        1_048_576.0,
        4_194_304.0,
        16_777_216.0,
        67_108_864.0,
    ],
    units: 1.0,
};

/// Counts of a histogram, with the sum of its values in units of its scale.
#[derive(Debug)]
struct Counted {
    scale: &'static Scale,
    buckets: [AtomicU64; BUCKETS],
    sum: AtomicU64,
}

/// Histogram; clones share its counts.
#[derive(Debug, Clone)]
pub(super) struct Histogram(Arc<Counted>);

impl Histogram {
    pub(super) fn new(scale: &'static Scale) -> Self {
        Self(Arc::new(Counted { scale, buckets: Default::default(), sum: AtomicU64::new(0) }))
    }

    /// Counts a value, which is not negative; returns the index of its bucket.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "no value is negative, and a cast saturates"
    )]
    pub(super) fn observe(&self, value: f64) -> usize {
        let Counted { scale, buckets, sum } = &*self.0;
        let bucket = scale.bounds.iter().position(|bound| value <= *bound).unwrap_or(MAX_BOUNDS);
        if let Some(count) = buckets.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        sum.fetch_add((value * scale.units).round() as u64, Ordering::Relaxed);
        bucket
    }

    /// Upper bounds of the buckets; a last one has none.
    pub(super) fn bounds(&self) -> &'static [f64] {
        &self.0.scale.bounds
    }

    /// Sum of all values, in their own unit.
    #[allow(clippy::cast_precision_loss, reason = "a sum above 2^53 needs no last digits")]
    pub(super) fn total(&self) -> f64 {
        self.sum() as f64 / self.0.scale.units
    }

    /// Values in each bucket.
    pub(super) fn counts(&self) -> [u64; BUCKETS] {
        self.0.buckets.each_ref().map(|bucket| bucket.load(Ordering::Relaxed))
    }

    /// Sum of all values, in tenths of a microsecond or in tokens.
    pub(super) fn sum(&self) -> u64 {
        self.0.sum.load(Ordering::Relaxed)
    }
}

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder) -> Result<(), std::fmt::Error> {
        let counts = self.counts();
        let bounds = self.bounds().iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        encoder.encode_histogram::<NoLabelSet>(self.total(), counts.iter().sum(), &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_counts_in_the_first_bucket_that_holds_it() {
        for scale in [&HTTP_SECONDS, &MODEL_SECONDS, &STORE_SECONDS, &TOKEN_COUNTS] {
            assert!(scale.bounds.is_sorted());
            for (n, bound) in scale.bounds.into_iter().enumerate() {
                let histogram = Histogram::new(scale);
                histogram.observe(bound);
                histogram.observe(bound * 1.0001);
                let counts = histogram.counts();
                assert_eq!((counts[n], counts[n + 1]), (1, 1), "{bound}");
            }
        }
    }

    #[test]
    fn sums_are_kept_to_a_tenth_of_a_microsecond_and_to_a_token() {
        let (seconds, tokens) = (Histogram::new(&HTTP_SECONDS), Histogram::new(&TOKEN_COUNTS));
        seconds.observe(0.04);
        seconds.observe(1e-7);
        tokens.observe(5.0);
        tokens.observe(0.0);
        assert_eq!((seconds.sum(), tokens.sum()), (400_001, 5));
        assert_eq!(tokens.counts()[..3], [1, 0, 1]);
    }
}
