//! Sketch of values that answers "how many are above x" and quantiles within a stated relative error.
//!
//! Bins grow by a factor of [`GROWTH`], as in DDSketch (Masson, Rim and Lee, arXiv 1908.10693), so a quantile is off by at
//! most a quarter of a percent of its value. Bins are fixed for all sketches: merging adds counts and is exact. Values from 1e-9 to
//! 1e18 of either sign have bins of their own; smaller ones count as zero, larger ones fall into the last bin, which is open.
//! A sketch takes eight bytes for each bin between the least and the greatest value: 11 KB for three decades, 200 KB
//! at most.
//!
//! Of a value that is only known to be at least so much ([`Sketch::add_at_least`]), questions for what is certain count that much, and
//! questions for what is possible count it above everything.

use serde::{Deserialize, Serialize};

use crate::units::count;

/// Ratio of the edges of a bin.
pub const GROWTH: f64 = 1.005;
/// Least magnitude with a bin of its own.
pub(crate) const LEAST: f64 = 1e-9;
/// Magnitude from which on values share the last bin.
pub(crate) const BEYOND: f64 = 1e18;
/// Bins of one sign: `ln(BEYOND / LEAST) / ln(GROWTH)`, rounded up.
pub(crate) const BINS: i32 = 12466;

/// Counts of magnitudes in the bins from `first` on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Store {
    first: i32,
    counts: Vec<u64>,
}

#[allow(clippy::cast_possible_truncation)]
pub(crate) fn place(magnitude: f64) -> i32 {
    let place = ((magnitude / LEAST).ln() / GROWTH.ln()).floor();
    if place < f64::from(BINS - 1) { place as i32 } else { BINS - 1 }
}

/// Lower edge of a bin of magnitudes; infinite past the last.
fn edge(place: i32) -> f64 {
    if place >= BINS { f64::INFINITY } else { LEAST * GROWTH.powi(place) }
}

impl Store {
    /// Cell of a bin, which the store is extended to; always there.
    fn cell(&mut self, place: i32) -> Option<&mut u64> {
        if self.counts.is_empty() {
            self.first = place;
        }
        if place < self.first {
            let missing = usize::try_from(self.first - place).unwrap_or(0);
            self.counts.splice(0..0, std::iter::repeat_n(0, missing));
            self.first = place;
        }
        let index = usize::try_from(place - self.first).unwrap_or(0);
        if index >= self.counts.len() {
            self.counts.resize(index + 1, 0);
        }
        self.counts.get_mut(index)
    }

    fn add(&mut self, place: i32, added: u64) {
        if let Some(cell) = self.cell(place) {
            *cell = cell.saturating_add(added);
        }
    }

    fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// Bins with their places, in rising order.
    fn bins(&self) -> impl DoubleEndedIterator<Item = (i32, u64)> + '_ {
        let place = |index: usize| self.first + i32::try_from(index).unwrap_or(0);
        self.counts.iter().enumerate().map(move |(index, count)| (place(index), *count))
    }

    fn is_consistent(&self) -> bool {
        let length = i32::try_from(self.counts.len()).unwrap_or(i32::MAX);
        self.first >= 0 && self.first.checked_add(length).is_some_and(|end| end <= BINS)
    }
}

/// Mergeable sketch of the values of one stream.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sketch {
    negative: Store,
    zero: u64,
    positive: Store,
    total: u64,
    /// Values that were no number, which belong to no bin.
    unordered: u64,
    /// Positive values, counted in their bins too, that are only known to be at least so much.
    #[serde(default, skip_serializing_if = "Store::is_empty")]
    at_least: Store,
}

/// Bin of a sketch: values from `low` up to `high`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bin {
    /// Lower edge.
    pub low: f64,
    /// Upper edge.
    pub high: f64,
    /// Values in the bin.
    pub count: u64,
}

impl Sketch {
    /// Adds a value; one that is no number is only counted as such.
    pub fn add(&mut self, value: f64) {
        if value.is_nan() {
            self.unordered += 1;
            return;
        }
        self.total += 1;
        if value >= LEAST {
            self.positive.add(place(value), 1);
        } else if value <= -LEAST {
            self.negative.add(place(-value), 1);
        } else {
            self.zero += 1;
        }
    }

    /// Adds a value of which no more is known than that it is at least `bound`.
    pub fn add_at_least(&mut self, bound: f64) {
        self.add(bound);
        if bound >= LEAST {
            self.at_least.add(place(bound), 1);
        }
    }

    /// Adds values to the bin of a place: of positive or negative values, of zero for `None`.
    pub(crate) fn add_at(&mut self, place: Option<(bool, i32)>, added: u64) {
        self.total += added;
        match place {
            None => self.zero += added,
            Some((true, place)) => self.negative.add(place.clamp(0, BINS - 1), added),
            Some((false, place)) => self.positive.add(place.clamp(0, BINS - 1), added),
        }
    }

    /// Adds the values of another sketch.
    pub fn merge(&mut self, other: &Self) {
        let stores = [
            (&mut self.negative, &other.negative),
            (&mut self.positive, &other.positive),
            (&mut self.at_least, &other.at_least),
        ];
        for (ours, theirs) in stores {
            for (place, added) in theirs.bins() {
                ours.add(place, added);
            }
        }
        self.zero += other.zero;
        self.total += other.total;
        self.unordered += other.unordered;
    }

    /// Number of values.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.total
    }

    /// Number of values that were no number.
    #[must_use]
    pub fn unordered(&self) -> u64 {
        self.unordered
    }

    /// Bins in rising order, empty ones between the least and the greatest value included.
    #[must_use]
    pub fn bins(&self) -> Vec<Bin> {
        self.rising().collect()
    }

    fn rising(&self) -> impl DoubleEndedIterator<Item = Bin> + '_ {
        let negative =
            self.negative.bins().rev().map(|(place, count)| Bin { low: -edge(place + 1), high: -edge(place), count });
        let positive =
            self.positive.bins().map(|(place, count)| Bin { low: edge(place), high: edge(place + 1), count });
        let zero = (self.zero > 0).then_some(Bin { low: -LEAST, high: LEAST, count: self.zero });
        negative.chain(zero).chain(positive)
    }

    /// Bin that `tail` of the values reach or exceed, found from above; `None` without values.
    pub(crate) fn bin_of_tail(&self, tail: f64) -> Option<Bin> {
        let wanted = tail * count(self.total);
        let mut above = 0;
        self.rising().rev().find(|bin| {
            above += bin.count;
            bin.count > 0 && count(above) >= wanted
        })
    }

    /// Share of values in bins that lie at or above `value`, found from above.
    pub(crate) fn share_above(&self, value: f64) -> f64 {
        let above: u64 = self.rising().rev().take_while(|bin| bin.low >= value).map(|bin| bin.count).sum();
        count(above) / count(self.total).max(1.0)
    }

    /// Quantile at `level` from 0 to 1, as the middle of its bin; `None` without values.
    #[must_use]
    pub fn quantile(&self, level: f64) -> Option<f64> {
        self.bin_of_quantile(level).map(|bin| match (bin.low, bin.high) {
            (low, high) if !low.is_finite() => high,
            (low, high) if !high.is_finite() => low,
            (low, high) => 0.5 * (low + high),
        })
    }

    /// Bin in which the quantile at `level` lies.
    #[must_use]
    pub fn bin_of_quantile(&self, level: f64) -> Option<Bin> {
        let wanted = level.clamp(0.0, 1.0) * count(self.total);
        let mut below = 0;
        let mut last = None;
        for bin in self.rising().filter(|bin| bin.count > 0) {
            below += bin.count;
            last = Some(bin);
            if count(below) >= wanted {
                break;
            }
        }
        last
    }

    /// Cumulated counts, to ask for many values.
    pub(crate) fn tails(&self) -> Tails {
        let bins = self.bins();
        let mut above = vec![0; bins.len()];
        let mut sum = 0;
        for (cell, bin) in above.iter_mut().zip(&bins).rev() {
            sum += bin.count;
            *cell = sum;
        }
        let mut open_below = Vec::new();
        if !self.at_least.is_empty() {
            // Those bounds are positive, and their bins are among the last of all.
            let positive = bins.len() - self.positive.counts.len();
            open_below.resize(bins.len() + 1, 0);
            for (place, open) in self.at_least.bins() {
                let index = positive + usize::try_from(place - self.positive.first).unwrap_or(0);
                open_below.iter_mut().skip(index + 1).for_each(|below| *below += open);
            }
        }
        Tails { bins, above, open_below }
    }

    pub(crate) fn is_consistent(&self) -> bool {
        let of = |place: i32| self.positive.bins().find(|bin| bin.0 == place).map_or(0, |bin| bin.1);
        self.negative.is_consistent()
            && self.positive.is_consistent()
            && self.at_least.is_consistent()
            && self.at_least.bins().all(|(place, open)| open <= of(place))
    }
}

/// Bins of a sketch, and for each the values in it and above.
#[derive(Clone, Debug)]
pub(crate) struct Tails {
    pub(crate) bins: Vec<Bin>,
    above: Vec<u64>,
    /// For each place among the bins, values in bins below that are only known to be at least so much; empty without any.
    open_below: Vec<u64>,
}

impl Tails {
    fn from(&self, index: usize) -> u64 {
        self.above.get(index).copied().unwrap_or(0)
    }

    /// Values that are certainly at or above `value`.
    pub(crate) fn surely_above(&self, value: f64) -> u64 {
        self.from(self.bins.partition_point(|bin| bin.low < value))
    }

    /// Values that may be above `value`.
    pub(crate) fn possibly_above(&self, value: f64) -> u64 {
        let index = self.bins.partition_point(|bin| bin.high <= value);
        self.from(index) + self.open_below.get(index).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sketch_of(values: &[f64]) -> Sketch {
        let mut sketch = Sketch::default();
        values.iter().for_each(|value| sketch.add(*value));
        sketch
    }

    fn values() -> impl Strategy<Value = Vec<f64>> {
        prop::collection::vec(
            prop_oneof![-1e3..1e3_f64, Just(0.0), 1e-12..1e-6_f64, Just(f64::INFINITY), Just(1e300), Just(-1e10)],
            0..200,
        )
    }

    proptest! {
        #[test]
        fn merge_is_the_sketch_of_both_streams(first in values(), second in values()) {
            let mut merged = sketch_of(&first);
            merged.merge(&sketch_of(&second));
            let both: Vec<f64> = first.iter().chain(&second).copied().collect();
            let expected = sketch_of(&both);
            prop_assert_eq!(merged, expected);
        }

        #[test]
        fn counts_above_enclose_the_truth(values in values(), at in prop_oneof![-1e3..1e3_f64, Just(0.0)]) {
            let tails = sketch_of(&values).tails();
            let above = values.iter().filter(|value| **value > at).count() as u64;
            prop_assert!(tails.surely_above(at) <= above && above <= tails.possibly_above(at));
        }

        #[test]
        fn values_that_are_at_least_so_much_are_possibly_above_everything(
            values in prop::collection::vec((0.0..1e3_f64, any::<bool>(), 0.0..1e3_f64), 0..100), at in -1.0..2e3_f64,
        ) {
            let (mut first, mut second) = (Sketch::default(), Sketch::default());
            for (n, (value, is_known, _)) in values.iter().enumerate() {
                let sketch = if n % 2 == 0 { &mut first } else { &mut second };
                if *is_known { sketch.add(*value) } else { sketch.add_at_least(*value) }
            }
            first.merge(&second);
            prop_assert!(first.is_consistent());
            let tails = first.tails();
            // The true value of one that is not known lies anywhere above its bound.
            let truth = values.iter().filter(|(value, is_known, more)| {
                *value + if *is_known { 0.0 } else { *more } > at
            });
            let truth = truth.count() as u64;
            prop_assert!(tails.surely_above(at) <= truth && truth <= tails.possibly_above(at));
        }

        #[test]
        fn quantiles_are_within_a_quarter_of_a_percent(values in prop::collection::vec(1e-3..1e5_f64, 1..300), level in 0.0..1.0_f64) {
            let mut sorted = values.clone();
            sorted.sort_by(f64::total_cmp);
            let rank = ((level * sorted.len() as f64).ceil() as usize).clamp(1, sorted.len());
            let exact = sorted[rank - 1];
            let found = sketch_of(&values).quantile(level).unwrap();
            prop_assert!((found / exact - 1.0).abs() <= 0.0026, "{found} against {exact}");
        }
    }

    #[test]
    fn memory_is_bounded_whatever_comes() {
        let mut sketch = sketch_of(&[
            f64::MIN_POSITIVE,
            f64::MAX,
            -f64::MAX,
            f64::INFINITY,
            f64::NEG_INFINITY,
            1e-9,
            -1e-9,
            f64::NAN,
        ]);
        assert!(sketch.bins().len() <= 2 * usize::try_from(BINS).unwrap() + 1);
        assert!(sketch.is_consistent());
        assert_eq!((sketch.count(), sketch.unordered()), (7, 1));
        sketch.positive.first = -5;
        assert!(!sketch.is_consistent());
    }
}
