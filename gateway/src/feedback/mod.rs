//! Labels of answers that callers send, and the quality of each target by them. The room owns the memory of concluded requests
//! and the figures of every route and target, both kept over reloads. It keeps ids as hashes and no text but the names of labels
//! and classes, reads no HTTP, and decides nothing about a request. Inputs are the ends of requests, and labels that the
//! pipeline has read and whose callers it knows.

mod figures;
mod label;
mod memory;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::commit_steps::CommitSteps;
use crate::places;
use crate::telemetry::{FeedbackEnd, FeedbackSample, FeedbackSamples, Label};
use figures::{Change, Detector, Figures, Given, NamedBy};
pub use label::{Answer, MAX_COMMENT, MAX_LABEL, MAX_NAME, NewLabel};
use memory::{Found, Memory};
pub use memory::{Ids, Remembered};

/// Receiver of the score of a labelled request: what judges versions of a route by their labels.
pub trait LabelSink: Send + Sync {
    /// Takes the first score of a request.
    fn labelled(&self, score: &Score<'_>);
}

/// First score of a request.
#[derive(Debug, Clone, Copy)]
pub struct Score<'s> {
    /// Route of the request.
    pub route: &'s str,
    /// Target that answered, as `x-spillway-served-by` names it.
    pub served_by: &'s str,
    /// Unit that a rollout's judge counted the request for; a random number where none did.
    pub unit: u64,
    /// End of the request, as [`crate::clock::now_millis`] reads it.
    pub at: u64,
    /// Score, from 0 to 1.
    pub score: f64,
}

/// Target of a route whose answers are labelled.
pub struct LabelledTarget {
    route: Arc<str>,
    target: Arc<str>,
    figures: Mutex<Figures>,
    /// True once the running configuration has no such target.
    is_gone: AtomicBool,
}

/// Targets of one route, for its requests.
pub struct RouteLabels {
    feedback: Arc<Feedback>,
    targets: Box<[Arc<LabelledTarget>]>,
    /// True if callers with a scope may label the requests of others.
    has_scopes: bool,
}

impl RouteLabels {
    /// Remembers a request of the route that `served_by` has answered; one that no target of the route answered is forgotten.
    pub fn remember(&self, served_by: &str, ids: Ids<'_>, unit: u64, now: u64) {
        let Some(target) = self.targets.iter().find(|target| *target.target == *served_by) else { return };
        self.feedback.memory.remember(ids, self.has_scopes, Remembered { target: target.clone(), unit, at: now });
    }
}

/// Refusal of a label.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// No request with this id may be labelled by this caller, or its time is over.
    #[error("no request with this id is known")]
    Unknown,
    /// Requests of several consumers have the id.
    #[error("several consumers have sent this id")]
    Ambiguous,
    /// A field does not go with what was said of the request before.
    #[error("`{field}` {reason}")]
    Mismatch {
        /// Field of the label.
        field: &'static str,
        /// Contradiction, behind the name of the field.
        reason: &'static str,
    },
}

/// Request that a label was taken for.
pub struct Labelled {
    /// Effect of the label.
    pub end: FeedbackEnd,
    /// Route of the request.
    pub route: Arc<str>,
    /// Target that answered.
    pub target: Arc<str>,
}

/// Targets by the names of route and target.
type TargetsByName = HashMap<(Arc<str>, Arc<str>), Arc<LabelledTarget>>;

/// Memory and figures of the process.
#[derive(Default)]
pub struct Feedback {
    memory: Memory,
    targets: Mutex<TargetsByName>,
    ends: [AtomicU64; FeedbackEnd::ALL.len()],
    sink: OnceLock<Arc<dyn LabelSink>>,
}

/// Targets of a configuration in the making.
#[derive(Default)]
pub struct Targets {
    all: TargetsByName,
}

impl Feedback {
    /// Connects the receiver of scores; only the first one is connected.
    pub fn connect(&self, sink: Arc<dyn LabelSink>) {
        // A second receiver would be a mistake of the program's start, which has one.
        let _ = self.sink.set(sink);
    }

    /// Targets of a route of a new configuration. Figures are found again by the names of route and target.
    pub fn route<'n>(
        self: &Arc<Self>,
        new: &mut Targets,
        route: &str,
        targets: impl Iterator<Item = &'n str>,
        has_scopes: bool,
    ) -> Arc<RouteLabels> {
        let route: Arc<str> = route.into();
        let known = self.targets.lock();
        let find = |target: &str| {
            let key = (route.clone(), Arc::from(target));
            let made = new.all.entry(key.clone()).or_insert_with(|| {
                known.get(&key).cloned().unwrap_or_else(|| {
                    let (route, target) = key;
                    let figures = Mutex::new(Figures::default());
                    Arc::new(LabelledTarget { route, target, figures, is_gone: AtomicBool::new(false) })
                })
            });
            made.clone()
        };
        Arc::new(RouteLabels { feedback: self.clone(), targets: targets.map(find).collect(), has_scopes })
    }

    /// Keeps `requests` for the time `keep`, and the figures of `new` alone, once the new configuration is active.
    pub fn commit(self: &Arc<Self>, new: Targets, requests: u32, keep: Duration, steps: &CommitSteps) {
        let feedback = self.clone();
        steps.add(move || {
            feedback.memory.resize(requests, keep);
            let old = std::mem::replace(&mut *feedback.targets.lock(), new.all);
            for (key, target) in old {
                target.is_gone.store(!feedback.targets.lock().contains_key(&key), Ordering::Release);
            }
        });
    }

    /// Takes a label that `caller` gives to a request of `owner`. Callers share the names of labels and classes fairly.
    ///
    /// # Errors
    /// Refuses a label of a request that is not remembered, and one that contradicts an earlier one.
    pub fn label(
        &self,
        id: &str,
        owner: Owner,
        caller: u128,
        label: &NewLabel,
        now: u64,
    ) -> Result<Labelled, LabelError> {
        let labelled = self.apply(id, owner, label, NamedBy { caller: places::caller(caller), now });
        let end = match &labelled {
            Ok(labelled) => labelled.end,
            Err((_, end)) => *end,
        };
        self.count(end);
        labelled.map_err(|(error, _)| error)
    }

    /// True if a request with this id is remembered, whether it may still be labelled or not.
    pub fn knows(&self, id: &str, owner: Owner) -> bool {
        match owner {
            Owner::Of(consumer) => self.memory.find(id, consumer).is_some(),
            Owner::Anyone => !matches!(self.memory.find_of_anyone(id), Ok(None)),
        }
    }

    /// Counts a label that was refused before it was looked up.
    pub fn count(&self, end: FeedbackEnd) {
        if let Some(count) = self.ends.get(end.index()) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn apply(
        &self,
        id: &str,
        owner: Owner,
        label: &NewLabel,
        by: NamedBy,
    ) -> Result<Labelled, (LabelError, FeedbackEnd)> {
        let found = match owner {
            Owner::Of(consumer) => self.memory.find(id, consumer),
            Owner::Anyone => match self.memory.find_of_anyone(id) {
                Ok(found) => found,
                Err(memory::Ambiguous) => return Err((LabelError::Ambiguous, FeedbackEnd::Ambiguous)),
            },
        };
        let Some(Found { request, given }) = found else { return Err((LabelError::Unknown, FeedbackEnd::Unknown)) };
        if request.target.is_gone.load(Ordering::Acquire) || self.memory.is_over(request.at, by.now) {
            return Err((LabelError::Unknown, FeedbackEnd::Late));
        }
        let LabelledTarget { route, target, figures, .. } = &*request.target;
        // Held until the figures have it: of labels that come at the same time, each replaces the one before it.
        let mut given = given.lock();
        let (after, changes) = {
            let mut figures = figures.lock();
            let after = figures.merged(&given, label, by).map_err(|e| (e, FeedbackEnd::Refused))?;
            let changes = figures.replace(&given, &after);
            (after, changes)
        };
        let is_first_score = given.score.is_none();
        let end = if *given == after {
            FeedbackEnd::Unchanged
        } else if *given == Given::default() {
            FeedbackEnd::Recorded
        } else {
            FeedbackEnd::Replaced
        };
        let score = after.score.filter(|_| is_first_score);
        *given = after;
        drop(given);
        if let (Some(sink), Some(score)) = (self.sink.get(), score) {
            sink.labelled(&Score { route, served_by: target, unit: request.unit, at: request.at, score });
        }
        report(route, target, changes);
        Ok(Labelled { end, route: route.clone(), target: target.clone() })
    }

    /// State of the room for a scrape.
    pub fn samples(&self) -> FeedbackSamples {
        let state = self.memory.state();
        FeedbackSamples {
            remembered: state.remembered,
            capacity: state.capacity,
            evicted: state.evicted,
            ends: FeedbackEnd::ALL
                .iter()
                .zip(&self.ends)
                .map(|(end, count)| (end.as_str(), count.load(Ordering::Relaxed)))
                .collect(),
            targets: self.sorted().iter().map(|target| target.sample()).collect(),
        }
    }

    /// State of the room for the admin API.
    pub fn shown(&self) -> Value {
        let FeedbackSamples { remembered, capacity, evicted, ends, targets } = self.samples();
        let ends: serde_json::Map<String, Value> =
            ends.into_iter().map(|(end, n)| (end.to_owned(), n.into())).collect();
        let mut routes: Vec<Value> = Vec::new();
        for sample in targets {
            let target = figures::shown(&sample);
            match routes.last_mut().filter(|route| route["route"] == sample.route) {
                Some(route) => {
                    if let Some(list) = route["targets"].as_array_mut() {
                        list.push(target);
                    }
                }
                None => routes.push(json!({"route": sample.route, "targets": [target]})),
            }
        }
        let memory = json!({"requests": remembered, "capacity": capacity, "evicted": evicted});
        json!({"memory": memory, "labels": ends, "routes": routes})
    }

    fn sorted(&self) -> Vec<Arc<LabelledTarget>> {
        let mut all: Vec<_> = self.targets.lock().values().cloned().collect();
        all.sort_by(|a, b| (&a.route, &a.target).cmp(&(&b.route, &b.target)));
        all
    }
}

impl LabelledTarget {
    fn sample(&self) -> FeedbackSample {
        self.figures.lock().sample(self.route.to_string(), self.target.to_string())
    }
}

/// Caller whose request a label may be about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// The consumer with this number; `None` is a caller that was not known.
    Of(Option<u128>),
    /// Any caller.
    Anyone,
}

/// Writes changes that detectors have found.
fn report(route: &str, target: &str, changes: impl IntoIterator<Item = Change>) {
    for change in changes {
        let (before, after) = (change.before, change.after);
        match change.detector {
            Detector::Adwin => {
                tracing::warn!(
                    event = "feedback_scores_changed",
                    route,
                    target,
                    before,
                    after,
                    "the mean score changed"
                );
            }
            Detector::Ddm => {
                tracing::warn!(event = "feedback_errors_rose", route, target, before, after, "more answers are wrong");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Target of a route, for the tests of this room.
    pub(super) fn target(route: &str, target: &str) -> Arc<LabelledTarget> {
        let figures = Mutex::new(Figures::default());
        let is_gone = AtomicBool::new(false);
        Arc::new(LabelledTarget { route: route.into(), target: target.into(), figures, is_gone })
    }

    /// Makes a configuration with these targets of the route `chat` active.
    fn reload(feedback: &Arc<Feedback>, targets: &[&str]) -> Arc<RouteLabels> {
        let (mut new, steps) = (Targets::default(), CommitSteps::default());
        let labels = feedback.route(&mut new, "chat", targets.iter().copied(), false);
        feedback.commit(new, 100, Duration::from_secs(60), &steps);
        steps.run();
        labels
    }

    fn ids(request: &str) -> Ids<'_> {
        Ids { consumer: Some(1), request: request.as_bytes(), responses: [None; 2] }
    }

    fn score(score: f64) -> NewLabel {
        NewLabel { score: Some(score), ..NewLabel::default() }
    }

    const OWNER: Owner = Owner::Of(Some(1));

    #[derive(Default)]
    struct Sink(Mutex<Vec<(String, u64, f64)>>);

    impl LabelSink for Sink {
        fn labelled(&self, score: &Score<'_>) {
            self.0.lock().push((score.served_by.to_owned(), score.unit, score.score));
        }
    }

    #[test]
    fn labels_in_parallel_count_once_and_the_first_score_goes_to_the_sink() {
        let (feedback, sink) = (Arc::new(Feedback::default()), Arc::new(Sink::default()));
        feedback.connect(sink.clone());
        let labels = reload(&feedback, &["stable", "candidate"]);
        labels.remember("candidate", ids("r"), 42, 0);
        std::thread::scope(|scope| {
            for n in 0..8 {
                let feedback = &feedback;
                scope.spawn(move || {
                    for _ in 0..50 {
                        feedback.label("r", OWNER, 1, &score(if n % 2 == 0 { 0.0 } else { 1.0 }), 1).unwrap();
                    }
                });
            }
        });
        let last = feedback.label("r", OWNER, 1, &score(0.25), 2).unwrap();
        assert_eq!((last.end, &*last.target), (FeedbackEnd::Replaced, "candidate"));
        assert_eq!(feedback.label("r", OWNER, 1, &score(0.25), 2).unwrap().end, FeedbackEnd::Unchanged);
        let seen = feedback.samples();
        let candidate = seen.targets.iter().find(|target| target.target == "candidate").unwrap();
        assert_eq!((candidate.labelled, candidate.scored, candidate.score), (1, 1, Some(0.25)));
        assert_eq!(seen.ends.iter().find(|(end, _)| *end == "recorded"), Some(&("recorded", 1)));
        let sunk = sink.0.lock();
        assert_eq!((sunk.len(), &*sunk[0].0, sunk[0].1), (1, "candidate", 42));
    }

    #[test]
    fn a_reload_keeps_figures_by_name_and_drops_those_of_targets_that_are_gone() {
        let feedback = Arc::new(Feedback::default());
        let labels = reload(&feedback, &["stable", "candidate"]);
        labels.remember("stable", ids("s"), 1, 0);
        labels.remember("candidate", ids("c"), 1, 0);
        labels.remember("neither", ids("n"), 1, 0);
        feedback.label("s", OWNER, 1, &score(1.0), 1).unwrap();
        let again = reload(&feedback, &["stable", "other"]);
        again.remember("stable", ids("t"), 1, 0);
        feedback.label("t", OWNER, 1, &score(0.0), 1).unwrap();
        let targets: Vec<_> = feedback.samples().targets.into_iter().map(|one| (one.target, one.score)).collect();
        assert_eq!(targets, [("other".to_owned(), None), ("stable".to_owned(), Some(0.5))]);
        assert_eq!(feedback.label("c", OWNER, 1, &score(1.0), 1).err(), Some(LabelError::Unknown));
        assert_eq!(feedback.label("n", OWNER, 1, &score(1.0), 1).err(), Some(LabelError::Unknown));
        assert_eq!(
            feedback.label("s", OWNER, 1, &score(1.0), 60_002).err(),
            Some(LabelError::Unknown),
            "its time is over"
        );
        let count = |end: &str| feedback.samples().ends.iter().find(|one| one.0 == end).map(|one| one.1);
        assert_eq!((count("late"), count("unknown")), (Some(2), Some(1)));
    }

    #[test]
    fn a_configuration_that_is_not_adopted_changes_nothing() {
        let feedback = Arc::new(Feedback::default());
        let labels = reload(&feedback, &["stable"]);
        labels.remember("stable", ids("s"), 1, 0);
        let (mut new, steps) = (Targets::default(), CommitSteps::default());
        feedback.route(&mut new, "chat", ["other"].into_iter(), false);
        feedback.commit(new, 1, Duration::ZERO, &steps);
        drop(steps);
        feedback.label("s", OWNER, 1, &score(1.0), 1).unwrap();
        assert_eq!(feedback.samples().targets.len(), 1);
    }
}
