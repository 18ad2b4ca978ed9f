//! Agreement of predictions with labels that come later: accuracy, precision, recall, F1, calibration, errors of numbers.
//!
//! All accumulators are sums, so they merge exactly. A figure whose denominator is zero is `None`, not 0.

use serde::{Deserialize, Serialize};

use crate::units::count;

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| count(part) / count(whole))
}

/// Outcomes of yes-or-no predictions. 32 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confusion {
    /// Predicted yes, labelled yes.
    pub true_positives: u64,
    /// Predicted yes, labelled no.
    pub false_positives: u64,
    /// Predicted no, labelled yes.
    pub false_negatives: u64,
    /// Predicted no, labelled no.
    pub true_negatives: u64,
}

impl Confusion {
    /// Adds a prediction with its label.
    pub fn add(&mut self, predicted: bool, labelled: bool) {
        let cell = match (predicted, labelled) {
            (true, true) => &mut self.true_positives,
            (true, false) => &mut self.false_positives,
            (false, true) => &mut self.false_negatives,
            (false, false) => &mut self.true_negatives,
        };
        *cell += 1;
    }

    /// Adds another accumulator.
    pub fn merge(&mut self, other: &Self) {
        self.true_positives += other.true_positives;
        self.false_positives += other.false_positives;
        self.false_negatives += other.false_negatives;
        self.true_negatives += other.true_negatives;
    }

    /// Share of predictions that were right.
    #[must_use]
    pub fn accuracy(&self) -> Option<f64> {
        let right = self.true_positives + self.true_negatives;
        ratio(right, right + self.false_positives + self.false_negatives)
    }

    /// Share of predicted yes that was labelled yes.
    #[must_use]
    pub fn precision(&self) -> Option<f64> {
        ratio(self.true_positives, self.true_positives + self.false_positives)
    }

    /// Share of labelled yes that was predicted yes.
    #[must_use]
    pub fn recall(&self) -> Option<f64> {
        ratio(self.true_positives, self.true_positives + self.false_negatives)
    }

    /// Harmonic mean of precision and recall.
    #[must_use]
    pub fn f1(&self) -> Option<f64> {
        ratio(2 * self.true_positives, 2 * self.true_positives + self.false_positives + self.false_negatives)
    }
}

/// Bins of [`Calibration`]: ten equal ones, as is usual for the expected calibration error.
const BINS: usize = 10;

/// Predicted probabilities against outcomes. 264 bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Count, sum of probabilities and number of yes in each bin.
    bins: [(u64, f64, u64); BINS],
    squares: f64,
}

impl Default for Calibration {
    fn default() -> Self {
        Self { bins: [(0, 0.0, 0); BINS], squares: 0.0 }
    }
}

impl Calibration {
    /// Adds a predicted probability of yes with its label; one outside 0 to 1 is passed over.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub fn add(&mut self, probability: f64, labelled: bool) {
        if !(0.0..=1.0).contains(&probability) {
            return;
        }
        // Bins are open below and closed above, as in Guo et al. 2017.
        let place = ((probability * 10.0).ceil() as usize).saturating_sub(1).min(BINS - 1);
        if let Some((count, sum, yes)) = self.bins.get_mut(place) {
            *count += 1;
            *sum += probability;
            *yes += u64::from(labelled);
        }
        self.squares += (probability - f64::from(u8::from(labelled))).powi(2);
    }

    /// Adds another accumulator.
    pub fn merge(&mut self, other: &Self) {
        for (ours, theirs) in self.bins.iter_mut().zip(&other.bins) {
            ours.0 += theirs.0;
            ours.1 += theirs.1;
            ours.2 += theirs.2;
        }
        self.squares += other.squares;
    }

    fn total(&self) -> u64 {
        self.bins.iter().map(|bin| bin.0).sum()
    }

    /// Brier score: mean squared difference of probability and outcome.
    #[must_use]
    pub fn brier(&self) -> Option<f64> {
        (self.total() > 0).then(|| self.squares / count(self.total()))
    }

    /// Expected calibration error (Guo et al., arXiv 1706.04599): mean over predictions of the distance between a bin's share of yes
    /// and its mean probability.
    #[must_use]
    pub fn expected_error(&self) -> Option<f64> {
        let sum: f64 = self.bins.iter().map(|(_, sum, yes)| (count(*yes) - sum).abs()).sum();
        (self.total() > 0).then(|| sum / count(self.total()))
    }
}

/// Errors of predicted numbers. 24 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Errors {
    count: u64,
    absolute: f64,
    squares: f64,
}

impl Errors {
    /// Adds a prediction with its label; one that is not finite is passed over.
    pub fn add(&mut self, predicted: f64, labelled: f64) {
        let error = predicted - labelled;
        if error.is_finite() {
            self.count += 1;
            self.absolute += error.abs();
            self.squares += error * error;
        }
    }

    /// Adds another accumulator.
    pub fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.absolute += other.absolute;
        self.squares += other.squares;
    }

    /// Mean absolute error.
    #[must_use]
    pub fn mean_absolute(&self) -> Option<f64> {
        (self.count > 0).then(|| self.absolute / count(self.count))
    }

    /// Root of the mean squared error.
    #[must_use]
    pub fn root_mean_square(&self) -> Option<f64> {
        (self.count > 0).then(|| (self.squares / count(self.count)).sqrt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn figures_without_a_denominator_are_none() {
        let mut confusion = Confusion::default();
        assert_eq!((confusion.accuracy(), confusion.f1()), (None, None));
        confusion.add(false, false);
        assert_eq!((confusion.accuracy(), confusion.precision(), confusion.recall()), (Some(1.0), None, None));
        assert_eq!((Calibration::default().brier(), Errors::default().mean_absolute()), (None, None));
    }

    proptest! {
        #[test]
        fn merge_is_the_accumulator_of_both_streams(
            rows in prop::collection::vec((0.0..=1.0_f64, any::<bool>(), any::<bool>()), 0..80), cut in 0usize..80,
        ) {
            let gather = |rows: &[(f64, bool, bool)]| {
                let mut all = (Confusion::default(), Calibration::default(), Errors::default());
                for (probability, first, second) in rows {
                    all.0.add(*first, *second);
                    all.1.add(*probability, *second);
                    all.2.add(*probability, f64::from(u8::from(*second)));
                }
                all
            };
            let (left, right) = rows.split_at(cut.min(rows.len()));
            let (mut merged, both) = (gather(left), gather(&rows));
            let other = gather(right);
            merged.0.merge(&other.0);
            merged.1.merge(&other.1);
            merged.2.merge(&other.2);
            prop_assert_eq!(merged.0, both.0);
            let near = |one: Option<f64>, other: Option<f64>| match (one, other) {
                (Some(one), Some(other)) => (one - other).abs() < 1e-9,
                (one, other) => one == other,
            };
            prop_assert!(near(merged.1.brier(), both.1.brier()) && near(merged.1.expected_error(), both.1.expected_error()));
            prop_assert!(near(merged.2.root_mean_square(), both.2.root_mean_square()));
        }
    }
}
