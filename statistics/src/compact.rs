//! Sketch of values in at most [`MAX_BINS`] bins: for many streams at once, each in two kilobytes.
//!
//! Bins are those of [`crate::sketch`], half a percent wide. When there are too many, each two neighbours become one, for all
//! values, as in UDDSketch (Epicoco, Melle, Cafaro, Pulimeno and Morleo, arXiv 2004.08604): the relative error doubles and
//! stays the same over the whole range. Merging first brings both sketches to the wider bins and is then exact. Count, mean,
//! deviation, least and greatest value are kept beside the bins, in Welford's form, which merges too (Chan, Golub and LeVeque
//! 1983).

use serde::{Deserialize, Serialize};

use crate::sketch::{BEYOND, BINS, LEAST, Sketch, place};
use crate::units::count;

/// Most bins with values.
pub const MAX_BINS: usize = 256;
/// Greatest magnitude that counts as itself in mean and deviation, so that sums of squares stay finite.
const GREATEST: f64 = 1e100;
/// Most halvings of the bins: with one more, each sign would have one bin.
const MAX_LEVEL: u8 = 13;

/// Mergeable sketch of the values of one stream in bounded memory. Takes at most 2.2 KB.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Compact {
    /// Times that the bins were halved.
    level: u8,
    /// Bins with values in rising order: 0 for zero, `n` and `-n` for the `n`-th bin of positive and negative values, from 1.
    bins: Vec<(i16, u32)>,
    count: u64,
    missing: u64,
    /// Values in the last bins, which tell them apart from nothing else there.
    #[serde(default)]
    beyond: u64,
    mean: f64,
    squares: f64,
    least: f64,
    greatest: f64,
}

impl Compact {
    /// Adds a value. One that is not finite counts as missing.
    pub fn add(&mut self, value: f64) {
        self.add_many(value, 1);
    }

    /// Adds a value that came so many times.
    pub fn add_many(&mut self, value: f64, times: u32) {
        if times == 0 {
            return;
        }
        if !value.is_finite() {
            self.missing += u64::from(times);
            return;
        }
        let value = value.clamp(-GREATEST, GREATEST);
        (self.least, self.greatest) =
            if self.count == 0 { (value, value) } else { (self.least.min(value), self.greatest.max(value)) };
        self.count += u64::from(times);
        let difference = value - self.mean;
        self.mean += difference * f64::from(times) / count(self.count);
        self.squares += f64::from(times) * difference * (value - self.mean);
        let magnitude = value.abs();
        if magnitude >= BEYOND {
            self.beyond += u64::from(times);
        }
        let bin = if magnitude < LEAST {
            0
        } else {
            let bin = i16::try_from(place(magnitude) >> self.level).unwrap_or(i16::MAX - 1) + 1;
            if value < 0.0 { -bin } else { bin }
        };
        self.put(bin, times);
        self.fit();
    }

    /// Counts values that are not there.
    pub fn add_missing(&mut self, values: u64) {
        self.missing += values;
    }

    fn put(&mut self, bin: i16, added: u32) {
        match self.bins.binary_search_by_key(&bin, |entry| entry.0) {
            Ok(at) => {
                if let Some(entry) = self.bins.get_mut(at) {
                    entry.1 = entry.1.saturating_add(added);
                }
            }
            Err(at) => self.bins.insert(at, (bin, added)),
        }
    }

    fn fit(&mut self) {
        while self.bins.len() > MAX_BINS && self.level < MAX_LEVEL {
            self.halve();
        }
        if self.bins.capacity() > MAX_BINS + 1 {
            self.bins.shrink_to(MAX_BINS + 1);
        }
    }

    /// Joins each two neighbouring bins.
    fn halve(&mut self) {
        self.level += 1;
        let mut joined: Vec<(i16, u32)> = Vec::with_capacity(self.bins.len());
        for (bin, values) in self.bins.drain(..) {
            let half = |bin: i16| ((bin - 1) >> 1) + 1;
            let bin = match bin {
                0 => 0,
                1.. => half(bin),
                _ => -half(-bin),
            };
            match joined.last_mut() {
                Some(last) if last.0 == bin => last.1 = last.1.saturating_add(values),
                _ => joined.push((bin, values)),
            }
        }
        joined.shrink_to_fit();
        self.bins = joined;
    }

    fn widen(&mut self, level: u8) {
        while self.level < level.min(MAX_LEVEL) {
            self.halve();
        }
    }

    /// Adds the values of another sketch.
    pub fn merge(&mut self, other: &Self) {
        self.missing += other.missing;
        self.beyond += other.beyond;
        if other.count == 0 {
            return;
        }
        if self.count == 0 {
            (self.least, self.greatest) = (other.least, other.greatest);
        }
        self.least = self.least.min(other.least);
        self.greatest = self.greatest.max(other.greatest);
        let (ours, theirs) = (count(self.count), count(other.count));
        let difference = other.mean - self.mean;
        self.mean += difference * theirs / (ours + theirs);
        self.squares += other.squares + difference * difference * ours * theirs / (ours + theirs);
        self.count += other.count;
        self.widen(other.level);
        let mut other = other.clone();
        other.widen(self.level);
        for (bin, values) in other.bins {
            self.put(bin, values);
        }
        self.fit();
    }

    /// Number of values.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Number of values that were not there or not finite.
    #[must_use]
    pub fn missing(&self) -> u64 {
        self.missing
    }

    /// Number of values of 1e18 and more of either sign: they are above, or below, all others, and alike among themselves.
    #[must_use]
    pub fn beyond(&self) -> u64 {
        self.beyond
    }

    /// Mean; `None` without values.
    #[must_use]
    pub fn mean(&self) -> Option<f64> {
        (self.count > 0).then_some(self.mean)
    }

    /// Standard deviation of the values themselves; `None` without values.
    #[must_use]
    pub fn deviation(&self) -> Option<f64> {
        (self.count > 0).then(|| (self.squares / count(self.count)).max(0.0).sqrt())
    }

    /// Least and greatest value; `None` without values.
    #[must_use]
    pub fn range(&self) -> Option<(f64, f64)> {
        (self.count > 0).then_some((self.least, self.greatest))
    }

    /// Quantile at `level` from 0 to 1, within the width of a bin; `None` without values.
    #[must_use]
    pub fn quantile(&self, level: f64) -> Option<f64> {
        self.sketch().quantile(level).map(|value| value.clamp(self.least, self.greatest))
    }

    /// Sketch with the same values, those of a bin in the middle of it.
    #[must_use]
    pub fn sketch(&self) -> Sketch {
        let mut sketch = Sketch::default();
        let half = (1_i32 << self.level) / 2;
        for (bin, values) in &self.bins {
            let place = (*bin != 0).then(|| {
                let first = (i32::from(bin.unsigned_abs()) - 1) << self.level;
                (*bin < 0, first + half)
            });
            sketch.add_at(place, u64::from(*values));
        }
        sketch
    }

    /// Sketches of two streams with bins of one width, so that a difference is never that of the widths.
    #[must_use]
    pub fn sketches(&self, other: &Self) -> (Sketch, Sketch) {
        let level = self.level.max(other.level);
        let widened = |one: &Self| {
            let mut one = one.clone();
            one.widen(level);
            one.sketch()
        };
        (widened(self), widened(other))
    }

    /// Bytes in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.bins.capacity() * size_of::<(i16, u32)>()
    }

    /// True if no reader can be misled: of a sketch that was read from a file.
    #[must_use]
    pub fn is_consistent(&self) -> bool {
        let within = |entry: &(i16, u32)| i32::from(entry.0.unsigned_abs()) <= BINS;
        let values = self.bins.iter().map(|entry| u64::from(entry.1)).sum::<u64>();
        self.level <= MAX_LEVEL
            && self.bins.len() <= MAX_BINS
            && self.bins.iter().all(within)
            && self.bins.is_sorted_by(|one, next| one.0 < next.0)
            && values <= self.count
            && self.beyond <= self.count
            && [self.mean, self.squares, self.least, self.greatest].into_iter().all(f64::is_finite)
            && self.least <= self.greatest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(values: &[f64]) -> Compact {
        let mut compact = Compact::default();
        values.iter().for_each(|value| compact.add(*value));
        compact
    }

    fn values() -> impl Strategy<Value = Vec<f64>> {
        let one = prop_oneof![
            -1e3..1e3_f64,
            Just(0.0),
            1e-12..1e-6_f64,
            Just(1e300),
            Just(f64::NAN),
            (-9i32..9).prop_map(|exponent| 10f64.powi(exponent))
        ];
        prop::collection::vec(one, 0..900)
    }

    proptest! {
        #[test]
        fn a_merge_has_the_bins_of_both_streams(first in values(), second in values()) {
            let mut merged = of(&first);
            merged.merge(&of(&second));
            let both: Vec<f64> = first.iter().chain(&second).copied().collect();
            let mut whole = of(&both);
            prop_assert!(merged.level >= whole.level);
            whole.widen(merged.level);
            prop_assert_eq!(&merged.bins, &whole.bins);
            prop_assert_eq!((merged.count, merged.missing, merged.range()), (whole.count, whole.missing, whole.range()));
            if let (Some(one), Some(other)) = (merged.mean(), whole.mean()) {
                prop_assert!((one - other).abs() <= 1e-9 * other.abs().max(1.0));
            }
            prop_assert!(merged.is_consistent() && merged.bytes() < 2300, "{}", merged.bytes());
        }

        #[test]
        fn quantiles_are_within_the_width_of_a_bin(values in prop::collection::vec(1e-3..1e5_f64, 1..900), level in 0.0..1.0_f64) {
            let mut sorted = values.clone();
            sorted.sort_by(f64::total_cmp);
            let rank = ((level * sorted.len() as f64).ceil() as usize).clamp(1, sorted.len());
            let compact = of(&values);
            let width = crate::sketch::GROWTH.powi(1 << compact.level);
            let (found, exact) = (compact.quantile(level).unwrap(), sorted[rank - 1]);
            prop_assert!(found / exact <= width && exact / found <= width, "{found} against {exact}");
        }
    }

    #[test]
    fn integers_have_bins_of_their_own_and_figures_are_exact() {
        let compact = of(&(1..=100).map(f64::from).collect::<Vec<_>>());
        assert_eq!((compact.level, compact.bins.len()), (0, 100));
        assert_eq!(compact.mean(), Some(50.5));
        assert!((compact.deviation().unwrap() - 833.25_f64.sqrt()).abs() < 1e-9);
        assert_eq!(compact.range(), Some((1.0, 100.0)));
    }

    #[test]
    fn large_numbers_are_told_apart_and_larger_ones_counted() {
        let of_ten = |value: f64| of(&[value; 10]);
        for (one, other) in [(1.7e9, 1.9e9), (1e12, 1e15), (-1e10, -1e11), (1e17, 1e19)] {
            let (one, other) = of_ten(one).sketches(&of_ten(other));
            assert_eq!(crate::drift::distance::kolmogorov_smirnov(&one, &other).unwrap().statistic, 1.0);
        }
        let mut beyond = of(&[1.0, 1e18, -1e300]);
        beyond.merge(&of(&[1e20]));
        assert_eq!((beyond.beyond(), beyond.count()), (3, 4));
        assert!(beyond.is_consistent());
    }

    proptest! {
        #[test]
        fn a_value_that_came_often_is_as_many_values(values in prop::collection::vec((-1e3..1e3_f64, 1u32..5), 1..60)) {
            let mut often = Compact::default();
            values.iter().for_each(|(value, times)| often.add_many(*value, *times));
            let each: Vec<f64> = values.iter().flat_map(|(value, times)| vec![*value; *times as usize]).collect();
            let each = of(&each);
            prop_assert_eq!((&often.bins, often.count), (&each.bins, each.count));
            prop_assert!((often.mean - each.mean).abs() < 1e-6 && (often.squares - each.squares).abs() <= 1e-6 * each.squares.max(1.0));
        }
    }

    #[test]
    fn equal_streams_in_bins_of_different_width_have_no_distance() {
        let narrow = of(&[1.0, 2.0, 3.0]);
        let mut wide = of(&(0..1_000).map(|n| 1.03_f64.powi(n % 900 - 450)).collect::<Vec<_>>());
        assert!(wide.level > 0);
        wide.bins.clear();
        (wide.count, wide.squares) = (0, 0.0);
        [1.0, 2.0, 3.0].into_iter().for_each(|value| wide.add(value));
        let (one, other) = narrow.sketches(&wide);
        assert_eq!(crate::drift::distance::kolmogorov_smirnov(&one, &other).unwrap().statistic, 0.0);
    }
}
