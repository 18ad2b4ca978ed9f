//! Quality of one target by the labels of its answers: scores, counts by label, classes, calibration, errors of numbers, and
//! detectors of change. Labels can be corrected: what a request contributed before is taken out. The detectors see the first
//! score and the first judgement of each request, which they cannot forget.

use serde_json::{Value, json};
use spillway_statistics::drift::agreement::{Calibration, Classes, Errors};
use spillway_statistics::drift::stream::{Adwin, Ddm, Level};

use super::LabelError;
use super::label::{Answer, NewLabel};
use crate::places::{Places, Use};
use crate::telemetry::{ClassSample, FeedbackSample};

/// Most labels of a target that are counted by name; further ones count as `other`.
const MAX_LABELS: usize = 64;
/// Most classes of a target with figures of their own; further ones count as `other`.
const MAX_CLASSES: usize = 32;
/// Name of labels and classes above the bound.
const OTHER: &str = "other";

/// Seconds without use after which the name of a label or class is free for others: as long as requests are remembered by default.
const NAME_IDLE: u64 = 86_400;

/// Label, or class of an answer. Two are equal if they have the same name, wherever they are counted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Name {
    /// Place of its name; one past the last for `other`.
    index: usize,
    /// Names that had the place before. One that has lost its place counts as `other`.
    generation: u32,
    /// Hash of its name, which tells apart those that count as `other`.
    hash: u64,
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
    }
}

/// Answer that was predicted or expected.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum GivenAnswer {
    Class(Name),
    Number(f64),
}

/// All that was said of one request.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Given {
    pub(super) score: Option<f64>,
    label: Option<Name>,
    predicted: Option<GivenAnswer>,
    expected: Option<GivenAnswer>,
    confidence: Option<f64>,
    /// True once the detector of wrong answers has seen a judgement of the request.
    is_judged: bool,
}

impl Given {
    /// Classes that were predicted and expected.
    fn classes(&self) -> Option<(Name, Name)> {
        match (self.predicted, self.expected) {
            (Some(GivenAnswer::Class(predicted)), Some(GivenAnswer::Class(expected))) => Some((predicted, expected)),
            _ => None,
        }
    }

    /// Numbers that were predicted and expected.
    fn numbers(&self) -> Option<(f64, f64)> {
        match (self.predicted, self.expected) {
            (Some(GivenAnswer::Number(predicted)), Some(GivenAnswer::Number(expected))) => Some((predicted, expected)),
            _ => None,
        }
    }

    /// True if the predicted class was right; `None` where either is not known.
    fn is_right(&self) -> Option<bool> {
        self.classes().map(|(predicted, expected)| predicted == expected)
    }
}

/// Names of labels or classes in `most` places.
#[derive(Debug)]
struct Names {
    places: Places,
    most: usize,
}

impl Names {
    fn new(most: usize) -> Self {
        Self { places: Places::default(), most }
    }

    /// Name with its place, and the place that another name has lost to it. `is_free` tells places without a count.
    fn name_of(&mut self, name: &str, by: NamedBy, is_free: impl Fn(usize) -> bool) -> (Name, Option<usize>) {
        let hash = ahash::RandomState::with_seeds(1, 2, 3, 4).hash_one(name);
        let by = Use { caller: by.caller, now: by.now / 1000, idle: NAME_IDLE };
        let taken = if name == OTHER { None } else { self.places.take(name, by, self.most, is_free) };
        match taken {
            Some(taken) => {
                let lost = taken.displaced.map(|_| taken.index);
                (Name { index: taken.index, generation: taken.generation, hash }, lost)
            }
            None => (Name { index: self.most, generation: 0, hash }, None),
        }
    }

    /// Index that a name is counted at now.
    fn index(&self, name: Name) -> usize {
        if self.places.is_at(name.index, name.generation) { name.index } else { self.most }
    }

    fn name(&self, index: usize) -> &str {
        self.places.name(index).unwrap_or(OTHER)
    }
}

/// Indices of a predicted and an expected class; `None` for two different classes that both count as `other`, which is no hit of
/// that.
fn told(names: &Names, predicted: Name, expected: Name) -> Option<(usize, usize)> {
    let indices = (names.index(predicted), names.index(expected));
    if predicted == expected {
        // The name may have lost its place and found another one between the two: the one that it has counts.
        let now = indices.0.min(indices.1);
        return Some((now, now));
    }
    (indices.0 != indices.1).then_some(indices)
}

/// Caller that names a label or a class, and the time.
#[derive(Debug, Clone, Copy)]
pub(super) struct NamedBy {
    /// Number of the caller.
    pub(super) caller: u64,
    /// Time in milliseconds.
    pub(super) now: u64,
}

/// Detector of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Detector {
    /// Mean of the scores.
    Adwin,
    /// Share of wrong answers.
    Ddm,
}

/// Change that a detector has found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Change {
    pub(super) detector: Detector,
    /// Mean of the window before it was cut, or the least share of wrong answers since the last change.
    pub(super) before: f64,
    /// Mean of the window that is left, or the share of wrong answers since the last change.
    pub(super) after: f64,
}

/// Quality of one target. Takes some kilobytes: 9 KB for the classes, where there are any, and the rest below 10 KB.
#[derive(Debug)]
pub(super) struct Figures {
    /// Requests with a label of any kind.
    labelled: u64,
    scored: u64,
    score_sum: f64,
    label_names: Names,
    labels: Vec<u64>,
    class_names: Names,
    /// Outcomes of classes; empty until the first.
    classes: Option<Classes>,
    wrong: u64,
    right: u64,
    calibration: Calibration,
    errors: Errors,
    adwin: Adwin,
    adwin_changes: u64,
    ddm: Ddm,
    ddm_level: Level,
    ddm_changes: u64,
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            labelled: 0,
            scored: 0,
            score_sum: 0.0,
            label_names: Names::new(MAX_LABELS),
            labels: Vec::new(),
            class_names: Names::new(MAX_CLASSES),
            classes: None,
            wrong: 0,
            right: 0,
            calibration: Calibration::default(),
            errors: Errors::default(),
            adwin: Adwin::default(),
            adwin_changes: 0,
            ddm: Ddm::default(),
            ddm_level: Level::Stable,
            ddm_changes: 0,
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "2^53 labels are not reached")]
fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

impl Figures {
    /// All that is said of a request when `label` is added to what was given before. Refuses fields that contradict each other.
    pub(super) fn merged(&mut self, given: &Given, label: &NewLabel, by: NamedBy) -> Result<Given, LabelError> {
        let mut after = *given;
        after.score = label.score.or(given.score);
        after.confidence = label.confidence.or(given.confidence);
        // Checked before names are kept: a label that is refused leaves none.
        let is_number = |answer: &Answer| matches!(answer, Answer::Number(_));
        let was_number = |answer: GivenAnswer| matches!(answer, GivenAnswer::Number(_));
        let predicts_number = label.predicted.as_ref().map(is_number).or(given.predicted.map(was_number));
        let expects_number = label.expected.as_ref().map(is_number).or(given.expected.map(was_number));
        if predicts_number.zip(expects_number).is_some_and(|(predicted, expected)| predicted != expected) {
            let field = if label.expected.is_some() { "expected" } else { "predicted" };
            let reason = "must be of the type of the other answer: both are classes (strings), or both are numbers";
            return Err(LabelError::Mismatch { field, reason });
        }
        if after.confidence.is_some() && predicts_number.or(expects_number) == Some(true) {
            let reason = "goes with classes (strings), not with numbers";
            return Err(LabelError::Mismatch { field: "confidence", reason });
        }
        if let Some(name) = &label.label {
            let labels = &mut self.labels;
            let is_free = |index: usize| labels.get(index).is_none_or(|count| *count == 0);
            let (label, lost) = self.label_names.name_of(name, by, is_free);
            if let Some(lost) = lost {
                // Requests with the name that has lost its place count as `other`, where a correction finds them.
                labels.resize(MAX_LABELS + 1, 0);
                let count = labels.get_mut(lost).map_or(0, std::mem::take);
                if let Some(other) = labels.get_mut(MAX_LABELS) {
                    *other += count;
                }
            }
            // The same name again stays counted where it is.
            after.label = given.label.filter(|given| *given == label).or(Some(label));
        }
        for (answer, place) in [(&label.predicted, &mut after.predicted), (&label.expected, &mut after.expected)] {
            match answer {
                Some(Answer::Number(number)) => *place = Some(GivenAnswer::Number(*number)),
                Some(Answer::Class(name)) => {
                    let (name, lost) = self.class_names.name_of(name, by, |_| false);
                    if let (Some(classes), Some(lost)) = (&mut self.classes, lost) {
                        classes.fold(lost, MAX_CLASSES);
                    }
                    let named = GivenAnswer::Class(name);
                    *place = place.filter(|given| *given == named).or(Some(named));
                }
                None => {}
            }
        }
        after.is_judged |= after.is_right().is_some();
        Ok(after)
    }

    /// Replaces what was given before by what is given now. Returns the changes that detectors have found.
    pub(super) fn replace(&mut self, before: &Given, after: &Given) -> Vec<Change> {
        if before == after {
            return Vec::new();
        }
        if *before == Given::default() {
            self.labelled += 1;
        }
        self.remove(before);
        self.add(after);
        let of_scores = after.score.filter(|_| before.score.is_none()).and_then(|score| self.feed_score(score));
        let of_answers = after.is_right().filter(|_| !before.is_judged).and_then(|right| self.feed_answer(!right));
        of_scores.into_iter().chain(of_answers).collect()
    }

    fn remove(&mut self, given: &Given) {
        if let Some(score) = given.score {
            self.scored = self.scored.saturating_sub(1);
            // Rounding leaves nothing behind.
            self.score_sum = if self.scored == 0 { 0.0 } else { self.score_sum - score };
        }
        if let Some(count) = given.label.and_then(|label| self.labels.get_mut(self.label_names.index(label))) {
            *count = count.saturating_sub(1);
        }
        if let Some((predicted, expected)) = given.classes() {
            let is_right = predicted == expected;
            if let (Some(classes), Some((predicted, expected))) =
                (&mut self.classes, told(&self.class_names, predicted, expected))
            {
                classes.remove(predicted, expected);
            }
            let count = if is_right { &mut self.right } else { &mut self.wrong };
            *count = count.saturating_sub(1);
            if let Some(confidence) = given.confidence {
                self.calibration.remove(confidence, is_right);
            }
        }
        if let Some((predicted, expected)) = given.numbers() {
            self.errors.remove(predicted, expected);
        }
    }

    fn add(&mut self, given: &Given) {
        if let Some(score) = given.score {
            self.scored += 1;
            self.score_sum += score;
        }
        if let Some(label) = given.label {
            let index = self.label_names.index(label);
            if self.labels.len() <= index {
                self.labels.resize(index + 1, 0);
            }
            if let Some(count) = self.labels.get_mut(index) {
                *count += 1;
            }
        }
        if let Some((predicted, expected)) = given.classes() {
            let is_right = predicted == expected;
            let classes = self.classes.get_or_insert_with(|| Classes::new(MAX_CLASSES + 1));
            if let Some((predicted, expected)) = told(&self.class_names, predicted, expected) {
                classes.add(predicted, expected);
            }
            *(if is_right { &mut self.right } else { &mut self.wrong }) += 1;
            if let Some(confidence) = given.confidence {
                self.calibration.add(confidence, is_right);
            }
        }
        if let Some((predicted, expected)) = given.numbers() {
            self.errors.add(predicted, expected);
        }
    }

    fn feed_score(&mut self, score: f64) -> Option<Change> {
        let before = self.adwin.mean();
        if !self.adwin.add(score) {
            return None;
        }
        self.adwin_changes += 1;
        Some(Change { detector: Detector::Adwin, before, after: self.adwin.mean() })
    }

    fn feed_answer(&mut self, is_wrong: bool) -> Option<Change> {
        let before = self.ddm.least_rate().unwrap_or(0.0);
        self.ddm_level = self.ddm.add(is_wrong);
        if self.ddm_level != Level::Drift {
            return None;
        }
        self.ddm_changes += 1;
        Some(Change { detector: Detector::Ddm, before, after: self.ddm.rate() })
    }

    /// Figures of the target at a scrape.
    pub(super) fn sample(&self, route: String, target: String) -> FeedbackSample {
        let of_labels = self.labels.iter().enumerate().filter(|(_, count)| **count > 0);
        let classes = self.classes.as_ref();
        let of_class = |index: usize| {
            let outcomes = classes?.one_against_rest(index);
            let is_seen = outcomes.true_positives + outcomes.false_positives + outcomes.false_negatives > 0;
            is_seen.then(|| ClassSample {
                class: self.class_names.name(index).to_owned(),
                expected: outcomes.true_positives + outcomes.false_negatives,
                precision: outcomes.precision(),
                recall: outcomes.recall(),
                f1: outcomes.f1(),
            })
        };
        let average = classes.and_then(Classes::macro_average);
        #[allow(clippy::cast_precision_loss, reason = "2^53 labels are not reached")]
        let mean = |sum: f64, n: u64| (n > 0).then(|| sum / n as f64);
        FeedbackSample {
            route,
            target,
            labelled: self.labelled,
            scored: self.scored,
            score: mean(self.score_sum, self.scored),
            recent_scored: self.adwin.width(),
            recent_score: (self.adwin.width() > 0.0).then(|| self.adwin.mean()),
            labels: of_labels.map(|(n, count)| (self.label_names.name(n).to_owned(), *count)).collect(),
            judged: self.right + self.wrong,
            accuracy: share(self.right, self.right + self.wrong),
            macro_average: average,
            classes: (0..=MAX_CLASSES).filter_map(of_class).collect(),
            calibrated: self.calibration.total(),
            brier: self.calibration.brier(),
            expected_calibration_error: self.calibration.expected_error(),
            numbers: self.errors.total(),
            mean_error: self.errors.mean(),
            mean_absolute_error: self.errors.mean_absolute(),
            root_mean_square_error: self.errors.root_mean_square(),
            adwin_changes: self.adwin_changes,
            ddm_changes: self.ddm_changes,
            ddm_level: match self.ddm_level {
                Level::Stable => 0,
                Level::Warning => 1,
                Level::Drift => 2,
            },
        }
    }
}

/// Figures of a target for the admin API.
pub(super) fn shown(sample: &FeedbackSample) -> Value {
    let labels: serde_json::Map<String, Value> =
        sample.labels.iter().map(|(label, count)| (label.clone(), (*count).into())).collect();
    let classes: Vec<Value> = sample
        .classes
        .iter()
        .map(|class| {
            json!({
                "class": class.class,
                "expected": class.expected,
                "precision": class.precision,
                "recall": class.recall,
                "f1": class.f1,
            })
        })
        .collect();
    let (precision, recall, f1) = sample
        .macro_average
        .map_or((None, None, None), |(precision, recall, f1)| (Some(precision), Some(recall), Some(f1)));
    json!({
        "target": sample.target,
        "labelled": sample.labelled,
        "scores": {
            "count": sample.scored,
            "mean": sample.score,
            "recentCount": sample.recent_scored,
            "recentMean": sample.recent_score,
            "changes": sample.adwin_changes,
        },
        "labels": labels,
        "answers": {
            "count": sample.judged,
            "accuracy": sample.accuracy,
            "macro": {"precision": precision, "recall": recall, "f1": f1},
            "classes": classes,
            "changes": sample.ddm_changes,
            "state": match sample.ddm_level {
                0 => "stable",
                1 => "warning",
                _ => "drift",
            },
        },
        "calibration": {
            "count": sample.calibrated,
            "brier": sample.brier,
            "expectedError": sample.expected_calibration_error,
        },
        "numbers": {
            "count": sample.numbers,
            "meanError": sample.mean_error,
            "meanAbsoluteError": sample.mean_absolute_error,
            "rootMeanSquareError": sample.root_mean_square_error,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(name: &str) -> Option<Answer> {
        Some(Answer::Class(name.to_owned()))
    }

    fn label(figures: &mut Figures, given: &mut Given, label: &NewLabel) -> Vec<Change> {
        label_of(figures, given, label, NamedBy { caller: 1, now: 0 })
    }

    fn label_of(figures: &mut Figures, given: &mut Given, label: &NewLabel, by: NamedBy) -> Vec<Change> {
        let after = figures.merged(given, label, by).unwrap();
        let changes = figures.replace(given, &after);
        *given = after;
        changes
    }

    #[test]
    fn a_label_that_is_corrected_counts_once_with_its_last_values() {
        let (mut figures, mut given) = (Figures::default(), Given::default());
        label(&mut figures, &mut given, &NewLabel { score: Some(0.3), ..NewLabel::default() });
        label(&mut figures, &mut given, &NewLabel { predicted: class("spam"), ..NewLabel::default() });
        let expected = NewLabel { expected: class("ham"), confidence: Some(0.9), ..NewLabel::default() };
        label(&mut figures, &mut given, &expected);
        let seen = figures.sample(String::new(), String::new());
        assert_eq!((seen.labelled, seen.scored, seen.judged, seen.accuracy), (1, 1, 1, Some(0.0)));
        assert_eq!(label(&mut figures, &mut given, &expected), [], "the same again");
        let corrected = NewLabel {
            score: Some(1.0),
            label: Some("good".to_owned()),
            expected: class("spam"),
            ..NewLabel::default()
        };
        label(&mut figures, &mut given, &corrected);
        label(&mut figures, &mut given, &NewLabel { label: Some("great".to_owned()), ..NewLabel::default() });
        let seen = figures.sample(String::new(), String::new());
        assert_eq!((seen.labelled, seen.score, seen.accuracy, seen.calibrated), (1, Some(1.0), Some(1.0), 1));
        assert_eq!(seen.labels, [("great".to_owned(), 1)]);
        assert_eq!(seen.macro_average, Some((1.0, 1.0, 1.0)));
        assert!((seen.brier.unwrap() - 0.01).abs() < 1e-9);
        assert!((seen.recent_scored - 1.0).abs() < 1e-9, "the detector has seen the first score");
    }

    #[test]
    fn names_above_the_bound_count_as_other_and_are_judged_by_themselves() {
        let mut figures = Figures::default();
        for n in 0..200 {
            let name = format!("c{n}");
            let expected = if n % 2 == 0 { name.clone() } else { format!("d{n}") };
            let new = NewLabel {
                label: Some(name.clone()),
                predicted: class(&name),
                expected: class(&expected),
                ..NewLabel::default()
            };
            label(&mut figures, &mut Given::default(), &new);
        }
        let seen = figures.sample(String::new(), String::new());
        assert_eq!((seen.labels.len(), seen.classes.len()), (MAX_LABELS + 1, MAX_CLASSES + 1));
        assert_eq!((seen.accuracy, seen.judged), (Some(0.5), 200));
        assert_eq!(seen.labels.last(), Some(&(OTHER.to_owned(), 136)));
        assert_eq!(seen.classes.last().map(|class| class.class.as_str()), Some(OTHER));
    }

    /// Figures of a target where caller 1 has taken every place of labels and classes, with what it gave.
    fn occupied() -> (Figures, Vec<Given>) {
        let mut figures = Figures::default();
        let of = |n: usize| {
            let name = format!("c{n}");
            let expected = class(if n.is_multiple_of(2) { &name } else { "c0" });
            let label = Some(format!("l{n}"));
            let new = NewLabel { label, predicted: class(&name), expected, ..NewLabel::default() };
            let mut given = Given::default();
            label_of(&mut figures, &mut given, &new, NamedBy { caller: 1, now: 0 });
            given
        };
        let all = (0..100).map(of).collect();
        (figures, all)
    }

    #[test]
    fn names_of_another_caller_find_places_where_one_has_taken_all() {
        let (mut figures, mut all) = occupied();
        let of_other = NewLabel {
            label: Some("helpful".to_owned()),
            predicted: class("spam"),
            expected: class("ham"),
            ..NewLabel::default()
        };
        let mut given = Given::default();
        label_of(&mut figures, &mut given, &of_other, NamedBy { caller: 2, now: 1 });
        let seen = figures.sample(String::new(), String::new());
        assert!(seen.labels.contains(&("helpful".to_owned(), 1)), "{:?}", seen.labels);
        assert!(["spam", "ham"].iter().all(|name| seen.classes.iter().any(|class| class.class == *name)));
        assert_eq!(seen.labels.iter().map(|(_, count)| count).sum::<u64>(), 101, "no label is lost");
        assert_eq!((seen.labels.last().map(|(name, _)| name.as_str()), seen.judged), (Some(OTHER), 101));
        // The first caller does not take them back.
        for n in 200..300 {
            let new =
                NewLabel { label: Some(format!("l{n}")), predicted: class(&format!("c{n}")), ..NewLabel::default() };
            label_of(&mut figures, &mut Given::default(), &new, NamedBy { caller: 1, now: 2 });
        }
        let seen = figures.sample(String::new(), String::new());
        assert!(seen.labels.contains(&("helpful".to_owned(), 1)));
        // What was counted under a name that is gone can be corrected.
        let corrected = NewLabel {
            label: Some("helpful".to_owned()),
            predicted: class("spam"),
            expected: class("spam"),
            ..NewLabel::default()
        };
        for given in all.iter_mut().chain([&mut given]) {
            label_of(&mut figures, given, &corrected, NamedBy { caller: 2, now: 3 });
        }
        let seen = figures.sample(String::new(), String::new());
        assert_eq!(seen.labels.iter().find(|(name, _)| name == "helpful").map(|(_, count)| *count), Some(101));
        let others: u64 = seen.labels.iter().filter(|(name, _)| name != "helpful").map(|(_, count)| count).sum();
        assert_eq!((others, seen.judged, seen.accuracy), (100, 101, Some(1.0)));
        let left: Vec<_> = seen.classes.iter().map(|class| (class.class.as_str(), class.expected)).collect();
        assert_eq!(left, [("spam", 101)], "nothing is left behind");
    }

    #[test]
    fn a_name_that_nobody_has_used_for_a_day_is_free() {
        let (mut figures, _) = occupied();
        let new = |name: &str| NewLabel { label: Some(name.to_owned()), ..NewLabel::default() };
        let later = NamedBy { caller: 1, now: 1000 * (NAME_IDLE + 1) };
        label_of(&mut figures, &mut Given::default(), &new("late"), later);
        let seen = figures.sample(String::new(), String::new());
        assert!(seen.labels.contains(&("late".to_owned(), 1)));
    }

    #[test]
    fn two_classes_above_the_bound_are_no_hit_of_other() {
        let mut figures = Figures::default();
        for n in 0..MAX_CLASSES {
            let name = format!("c{n}");
            let new = NewLabel { predicted: class(&name), expected: class(&name), ..NewLabel::default() };
            label(&mut figures, &mut Given::default(), &new);
        }
        let mut given = Given::default();
        let missed = NewLabel { predicted: class("x"), expected: class("y"), ..NewLabel::default() };
        label(&mut figures, &mut given, &missed);
        let of_other = |figures: &Figures| {
            let seen = figures.sample(String::new(), String::new());
            (seen.accuracy.unwrap() < 1.0, seen.classes.iter().any(|class| class.class == OTHER))
        };
        assert_eq!(of_other(&figures), (true, false), "wrong, and no hit of a class");
        label(&mut figures, &mut given, &NewLabel { expected: class("x"), ..NewLabel::default() });
        assert_eq!(of_other(&figures), (false, true), "corrected, it is one");
    }

    #[test]
    fn answers_of_two_types_are_refused_and_leave_nothing() {
        let (mut figures, mut given) = (Figures::default(), Given::default());
        let number = NewLabel { predicted: Some(Answer::Number(1.0)), ..NewLabel::default() };
        label(&mut figures, &mut given, &number);
        let wrong = |figures: &mut Figures, given: &Given, new: NewLabel| match figures.merged(
            given,
            &new,
            NamedBy { caller: 1, now: 0 },
        ) {
            Err(LabelError::Mismatch { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        assert_eq!(wrong(&mut figures, &given, NewLabel { expected: class("a"), ..NewLabel::default() }), "expected");
        let confident = NewLabel { confidence: Some(0.5), ..NewLabel::default() };
        assert_eq!(wrong(&mut figures, &given, confident), "confidence");
        let both = NewLabel { predicted: class("a"), ..number.clone() };
        label(&mut figures, &mut given, &NewLabel { expected: Some(Answer::Number(3.0)), ..NewLabel::default() });
        assert_eq!(wrong(&mut figures, &given, both), "predicted");
        let seen = figures.sample(String::new(), String::new());
        assert_eq!((seen.numbers, seen.mean_error, seen.mean_absolute_error), (1, Some(-2.0), Some(2.0)));
        assert_eq!(figures.class_names.places.len(), 0, "what was refused left no name");
    }

    #[test]
    fn detectors_find_worse_scores_and_more_wrong_answers() {
        let mut figures = Figures::default();
        let mut found = Vec::new();
        for n in 0..2000u32 {
            let is_bad = if n < 1000 { n % 10 == 0 } else { n % 2 == 0 };
            let new = NewLabel {
                score: Some(if is_bad { 0.0 } else { 1.0 }),
                predicted: class("yes"),
                expected: class(if is_bad { "no" } else { "yes" }),
                ..NewLabel::default()
            };
            let changes = label(&mut figures, &mut Given::default(), &new);
            found.extend(changes.into_iter().map(|change| (n, change)));
        }
        for detector in [Detector::Adwin, Detector::Ddm] {
            let (at, first) = *found.iter().find(|(_, change)| change.detector == detector).unwrap();
            assert!((1000..1300).contains(&at), "{detector:?} at {at}");
            assert!((first.after - first.before).abs() > 0.01, "{first:?}");
        }
        let seen = figures.sample(String::new(), String::new());
        assert!(seen.adwin_changes >= 1 && seen.ddm_changes >= 1);
    }
}
