//! Observations of one version, gathered by the unit that was assigned to it, and the price of callers that repeat.
//!
//! **Model.** A rollout assigns sticky units (a session, a consumer) to versions, not requests. Requests of one unit
//! resemble each other, so the variance of a mean is that between units. A version's observations are added up in
//! [`BUCKETS`] buckets chosen by a hash of the unit: all requests of a unit fall into one bucket, at both versions and
//! at all gateways alike, so buckets are independent when units are, and memory is bounded however many units come.
//!
//! **Estimate.** The mean is a ratio of sums over buckets; its variance is the linearised (sandwich) one of ratio
//! estimators, `G/(G-1) * sum_b (S_b - mean * N_b)^2 / N^2`, as in cluster-robust inference (Liang and Zeger 1986,
//! DOI 10.1093/biomet/73.1.13; ratio metrics: arXiv 1803.06336). Few units are paid for by Student's factor with
//! effective degrees of freedom (Kish's `(sum N)^2 / sum N^2` buckets, joined for two versions as Welch does).
//!
//! **Assumption.** Units are assigned independently of what they will send. With fewer than about eight effective units
//! at a version no claim is made at all: one loud caller is no sample.

use serde::{Deserialize, Serialize};

use crate::special::{mix, student_factor};

/// Buckets of units at each version: a power of two, enough that 127 degrees of freedom cost 4 % in width.
pub(crate) const BUCKETS: usize = 128;
/// Bits of a hash that choose a bucket.
const BUCKET_BITS: u32 = BUCKETS.trailing_zeros();

/// Bucket of a unit.
pub(crate) fn bucket(unit: u64, buckets_bits: u32) -> usize {
    usize::try_from(mix(unit) >> (64 - buckets_bits)).unwrap_or(0)
}

/// Count and sum of the observations whose units fall into one bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Bucket {
    pub(crate) count: f64,
    pub(crate) sum: f64,
}

/// Count, mean and squared deviations of one version's observations, with their sums by bucket of units.
///
/// About 2 KiB in memory. Merging adds counts and sums exactly and deviations up to rounding (Chan's formula).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sample {
    count: u64,
    mean: f64,
    deviations: f64,
    capped: u64,
    buckets: Vec<Bucket>,
}

impl Default for Sample {
    fn default() -> Self {
        Self { count: 0, mean: 0.0, deviations: 0.0, capped: 0, buckets: vec![Bucket::default(); BUCKETS] }
    }
}

/// Variance of a version's mean, and what it rests on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    /// As if every request were independent.
    pub(crate) independent: f64,
    /// Between units.
    pub(crate) clustered: f64,
    /// Effective number of buckets less one.
    pub(crate) freedom: f64,
}

impl Sample {
    /// Adds an observation of a unit; `capped` says that the value was cut to the metric's cap.
    pub(crate) fn observe(&mut self, unit: u64, value: f64, capped: bool) {
        self.count += 1;
        self.capped += u64::from(capped);
        let deviation = value - self.mean;
        self.mean += deviation / count(self.count);
        self.deviations += deviation * (value - self.mean);
        if let Some(bucket) = self.buckets.get_mut(bucket(unit, BUCKET_BITS)) {
            bucket.count += 1.0;
            bucket.sum += value;
        }
    }

    /// Observations so far.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Mean of the observations, after capping; 0 without any.
    pub(crate) fn mean(&self) -> f64 {
        self.mean
    }

    /// Share of observations that were cut to the cap.
    pub(crate) fn capped_share(&self) -> f64 {
        if self.count == 0 { 0.0 } else { count(self.capped) / count(self.count) }
    }

    /// Adds what another gateway saw.
    pub(crate) fn merge(&mut self, other: &Self) {
        let total = self.count + other.count;
        if other.count > 0 {
            let difference = other.mean - self.mean;
            let share = count(other.count) / count(total);
            self.deviations += other.deviations + difference * difference * count(self.count) * share;
            self.mean += difference * share;
        }
        self.count = total;
        self.capped += other.capped;
        for (bucket, added) in self.buckets.iter_mut().zip(&other.buckets) {
            bucket.count += added.count;
            bucket.sum += added.sum;
        }
    }

    /// Sum of the observations.
    pub(crate) fn sum(&self) -> f64 {
        self.buckets.iter().map(|bucket| bucket.sum).sum()
    }

    /// Variance of the mean.
    pub(crate) fn spread(&self) -> Spread {
        let total = count(self.count);
        let independent = if self.count < 2 { f64::INFINITY } else { self.deviations.max(0.0) / (total - 1.0) / total };
        let (clustered, freedom) = clustered(self.buckets.iter().copied(), self.mean);
        Spread { independent, clustered, freedom }
    }

    /// True if the parts fit each other, as a deserialised value may not.
    pub(crate) fn is_consistent(&self) -> bool {
        self.buckets.len() == BUCKETS
    }
}

/// Variance between buckets of the ratio of sums, and its degrees of freedom.
pub(crate) fn clustered(buckets: impl Iterator<Item = Bucket> + Clone, mean: f64) -> (f64, f64) {
    let (mut filled, mut total, mut squares, mut residuals) = (0.0, 0.0, 0.0, 0.0);
    for bucket in buckets.filter(|bucket| bucket.count > 0.0) {
        filled += 1.0;
        total += bucket.count;
        squares += bucket.count * bucket.count;
        let residual = bucket.sum - mean * bucket.count;
        residuals += residual * residual;
    }
    if filled < 2.0 {
        return (f64::INFINITY, 0.0);
    }
    (filled / (filled - 1.0) * residuals / (total * total), total * total / squares - 1.0)
}

/// Degrees of freedom of a sum of two estimated variances (Welch and Satterthwaite).
pub(crate) fn joined_freedom(first: (f64, f64), second: (f64, f64)) -> f64 {
    let part = |(variance, freedom): (f64, f64)| if variance > 0.0 { variance * variance / freedom } else { 0.0 };
    let parts = part(first) + part(second);
    let sum = first.0 + second.0;
    if parts > 0.0 { sum * sum / parts } else { first.1.min(second.1) }
}

/// Design effect: how many requests of units that repeat are worth one independent request; at least 1.
///
/// Evidence about shares is exact for independent requests. For repeating callers its logarithm is divided by this
/// ratio of variances, which is to treat counts as smaller ones (Rao and Scott 1992, DOI 10.2307/2532311). As the
/// divisor is at least 1, the guarantee for independent requests stays exact.
pub(crate) fn design_effect(independent: f64, clustered: f64, freedom: f64, level: f64) -> f64 {
    let factor = student_factor(level, freedom);
    let effect = clustered * factor * factor / independent;
    if independent > 0.0 { effect.max(1.0) } else { 1.0 }
}

/// Count as a float; exact up to 2^53.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn count(count: u64) -> f64 {
    count as f64
}
