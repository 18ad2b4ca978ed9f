//! Agreement of predictions with labels that come later: accuracy, precision, recall, F1, calibration, errors of numbers.
//!
//! All accumulators are sums, so they merge exactly, and a label that is corrected can be taken out again. A figure whose
//! denominator is zero is `None`, not 0.

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
        self.add_many(predicted, labelled, 1);
    }

    /// Adds predictions with the same label.
    fn add_many(&mut self, predicted: bool, labelled: bool, more: u64) {
        let cell = match (predicted, labelled) {
            (true, true) => &mut self.true_positives,
            (true, false) => &mut self.false_positives,
            (false, true) => &mut self.false_negatives,
            (false, false) => &mut self.true_negatives,
        };
        *cell += more;
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

/// Outcomes of predictions among several classes: a count for each pair of predicted and labelled class.
///
/// Classes are numbers below the bound that it was made with; its owner gives them names. It takes 8 bytes for each pair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Classes {
    classes: usize,
    /// Counts, row by row: one row for each predicted class.
    cells: Vec<u64>,
}

impl Classes {
    /// Accumulator for classes `0..classes`.
    #[must_use]
    pub fn new(classes: usize) -> Self {
        Self { classes, cells: vec![0; classes.saturating_mul(classes)] }
    }

    fn cell(&mut self, predicted: usize, labelled: usize) -> Option<&mut u64> {
        let is_known = predicted < self.classes && labelled < self.classes;
        self.cells.get_mut(predicted * self.classes + labelled).filter(|_| is_known)
    }

    /// Adds a prediction with its label; a class out of bounds is passed over.
    pub fn add(&mut self, predicted: usize, labelled: usize) {
        if let Some(cell) = self.cell(predicted, labelled) {
            *cell += 1;
        }
    }

    /// Takes out a prediction that was added with this label.
    pub fn remove(&mut self, predicted: usize, labelled: usize) {
        if let Some(cell) = self.cell(predicted, labelled) {
            *cell = cell.saturating_sub(1);
        }
    }

    /// Counts a class as `into` from now on, together with all predictions so far. A prediction of one for the other was wrong and
    /// stays in no count: it is no hit of the two together.
    pub fn fold(&mut self, class: usize, into: usize) {
        if class == into || class >= self.classes || into >= self.classes {
            return;
        }
        for (predicted, labelled) in (0..self.classes).flat_map(|other| [(class, other), (other, class)]) {
            let count = self.cell(predicted, labelled).map_or(0, std::mem::take);
            let place = |of: usize| if of == class { into } else { of };
            if (predicted == labelled || (predicted != into && labelled != into))
                && let Some(cell) = self.cell(place(predicted), place(labelled))
            {
                *cell += count;
            }
        }
    }

    /// Adds another accumulator of as many classes; one of another number of classes is passed over.
    pub fn merge(&mut self, other: &Self) {
        if self.classes == other.classes {
            self.cells.iter_mut().zip(&other.cells).for_each(|(ours, theirs)| *ours += theirs);
        }
    }

    /// Predictions with labels.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.cells.iter().sum()
    }

    /// Share of predictions that were right.
    #[must_use]
    pub fn accuracy(&self) -> Option<f64> {
        // The diagonal: every row is one longer than the step before it.
        ratio(self.cells.iter().step_by(self.classes + 1).sum(), self.total())
    }

    /// Outcomes of one class against all others.
    #[must_use]
    pub fn one_against_rest(&self, class: usize) -> Confusion {
        let mut outcomes = Confusion::default();
        if self.classes == 0 {
            return outcomes;
        }
        for (place, count) in self.cells.iter().enumerate() {
            let (predicted, labelled) = (place / self.classes == class, place % self.classes == class);
            outcomes.add_many(predicted, labelled, *count);
        }
        outcomes
    }

    /// Precision, recall and F1, each the plain mean over the classes that were predicted or labelled; a class whose figure has
    /// no denominator counts as 0 (`average="macro", zero_division=0` of scikit-learn).
    #[must_use]
    pub fn macro_average(&self) -> Option<(f64, f64, f64)> {
        let (mut seen, mut sums) = (0, (0.0, 0.0, 0.0));
        for outcomes in (0..self.classes).map(|class| self.one_against_rest(class)) {
            if outcomes.true_positives + outcomes.false_positives + outcomes.false_negatives == 0 {
                continue;
            }
            seen += 1;
            sums.0 += outcomes.precision().unwrap_or(0.0);
            sums.1 += outcomes.recall().unwrap_or(0.0);
            sums.2 += outcomes.f1().unwrap_or(0.0);
        }
        let mean = |sum: f64| sum / count(seen);
        (seen > 0).then(|| (mean(sums.0), mean(sums.1), mean(sums.2)))
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
    /// Bin of a probability; `None` for one outside 0 to 1.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    fn bin(&mut self, probability: f64) -> Option<&mut (u64, f64, u64)> {
        if !(0.0..=1.0).contains(&probability) {
            return None;
        }
        // Bins are open below and closed above, as in Guo et al. 2017.
        self.bins.get_mut(((probability * 10.0).ceil() as usize).saturating_sub(1).min(BINS - 1))
    }

    /// Adds a predicted probability of yes with its label; one outside 0 to 1 is passed over.
    pub fn add(&mut self, probability: f64, labelled: bool) {
        let Some((count, sum, yes)) = self.bin(probability) else { return };
        *count += 1;
        *sum += probability;
        *yes += u64::from(labelled);
        self.squares += square(probability, labelled);
    }

    /// Takes out a probability that was added with this label.
    pub fn remove(&mut self, probability: f64, labelled: bool) {
        let Some((count, sum, yes)) = self.bin(probability) else { return };
        *count = count.saturating_sub(1);
        *sum -= probability;
        *yes = yes.saturating_sub(u64::from(labelled));
        if *count == 0 {
            // Rounding leaves nothing behind.
            *sum = 0.0;
        }
        self.squares = if self.total() == 0 { 0.0 } else { self.squares - square(probability, labelled) };
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

    /// Probabilities with labels.
    #[must_use]
    pub fn total(&self) -> u64 {
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

/// Squared difference of a probability and its outcome.
fn square(probability: f64, labelled: bool) -> f64 {
    (probability - f64::from(u8::from(labelled))).powi(2)
}

/// Errors of predicted numbers. 32 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Errors {
    count: u64,
    sum: f64,
    absolute: f64,
    squares: f64,
}

impl Errors {
    /// Adds a prediction with its label; one whose error or its square is not finite is passed over.
    pub fn add(&mut self, predicted: f64, labelled: f64) {
        let error = predicted - labelled;
        if (error * error).is_finite() {
            self.count += 1;
            self.sum += error;
            self.absolute += error.abs();
            self.squares += error * error;
        }
    }

    /// Takes out a prediction that was added with this label.
    pub fn remove(&mut self, predicted: f64, labelled: f64) {
        let error = predicted - labelled;
        if (error * error).is_finite() {
            self.count = self.count.saturating_sub(1);
            self.sum -= error;
            self.absolute -= error.abs();
            self.squares -= error * error;
            if self.count == 0 {
                // Rounding leaves nothing behind.
                *self = Self::default();
            }
        }
    }

    /// Predictions with labels.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.count
    }

    /// Mean error: above 0 where predictions are too high.
    #[must_use]
    pub fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / count(self.count))
    }

    /// Adds another accumulator.
    pub fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.sum += other.sum;
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
        (self.count > 0).then(|| (self.squares.max(0.0) / count(self.count)).sqrt())
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

    #[test]
    fn classes_out_of_bounds_are_passed_over_and_what_is_taken_out_leaves_nothing() {
        let mut classes = Classes::new(2);
        classes.add(2, 0);
        classes.add(0, 2);
        assert_eq!((classes.total(), classes.accuracy(), classes.macro_average()), (0, None, None));
        assert_eq!((Classes::new(0).total(), Classes::new(0).one_against_rest(0)), (0, Confusion::default()));
        let (mut calibration, mut errors) = (Calibration::default(), Errors::default());
        for _ in 0..3 {
            classes.add(0, 1);
            calibration.add(0.7, true);
            errors.add(0.1, 0.3);
        }
        for _ in 0..3 {
            classes.remove(0, 1);
            calibration.remove(0.7, true);
            errors.remove(0.1, 0.3);
        }
        assert_eq!((classes.total(), calibration, errors), (0, Calibration::default(), Errors::default()));
    }

    proptest! {
        #[test]
        fn corrected_labels_give_the_figures_of_the_last_ones(
            rows in prop::collection::vec((0usize..4, 0usize..4, 0usize..4, 0.0..=1.0_f64), 1..60),
        ) {
            let (mut corrected, mut last) = (Classes::new(4), Classes::new(4));
            let (mut calibration, mut expected) = (Calibration::default(), Calibration::default());
            for (predicted, first, second, confidence) in rows {
                corrected.add(predicted, first);
                calibration.add(confidence, predicted == first);
                corrected.remove(predicted, first);
                calibration.remove(confidence, predicted == first);
                corrected.add(predicted, second);
                calibration.add(confidence, predicted == second);
                last.add(predicted, second);
                expected.add(confidence, predicted == second);
            }
            prop_assert_eq!(&corrected, &last);
            let near = |one: Option<f64>, other: Option<f64>| (one.unwrap() - other.unwrap()).abs() < 1e-9;
            prop_assert!(near(calibration.brier(), expected.brier()));
            prop_assert!(near(calibration.expected_error(), expected.expected_error()));
            let right: u64 = (0..4).map(|class| last.one_against_rest(class).true_positives).sum();
            prop_assert_eq!(last.accuracy(), ratio(right, last.total()));
        }

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
