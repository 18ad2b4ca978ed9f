//! Findings about the probes at one target, and what a new answer changes about them. Pure: the time is given, nothing is read
//! or written.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use spillway_statistics::drift::stream::Adwin;

use crate::telemetry::ProbeChange;

/// Different values of a field of a provider that are remembered: a fleet of servers has several, all of which are known soon.
const MOST_VALUES: usize = 16;
/// Names of models that probes ask for at one target.
const MOST_MODELS: usize = 64;
/// Longest value of a field that is kept, in bytes.
const MOST_VALUE: usize = 256;
/// Points in time that are kept of each probe.
const HISTORY: usize = 64;
/// Chance of a false alarm of a running mean, river's default.
const ADWIN_DELTA: f64 = 0.002;

/// Judged or unjudged answer to a probe.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Seen {
    /// Unix time.
    pub(super) at: f64,
    /// Time from the beginning to the end of the answer, in seconds.
    pub(super) seconds: f64,
    /// Outcome.
    pub(super) outcome: Outcome,
    /// Model that the probe asked for.
    pub(super) asked: Option<String>,
    /// Model that the server named.
    pub(super) model: Option<String>,
    /// `system_fingerprint` of the server.
    pub(super) fingerprint: Option<String>,
}

/// Outcome of a probe.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::quality) enum Outcome {
    /// The answer is as near to what is expected.
    Similar(f64),
    /// The values are those that are expected.
    Exact,
    /// The answer is another one than expected, for this reason.
    Wrong(String),
    /// The server has answered, and nobody could compare: for this reason.
    Unjudged(&'static str),
    /// There was no answer, for this reason. The health of servers is watched elsewhere.
    Unanswered(String),
}

/// Event of a probe.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum ProbeEvent {
    /// The probe fails, and did not before.
    Failed(String),
    /// The probe passes again.
    Passed,
    /// Something is not what it was before.
    Changed { change: ProbeChange, before: String, now: String },
}

/// State of one probe at one target.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Course {
    /// Number of the probe's content: another content begins anew.
    pub(super) identity: u64,
    /// Unix time of the last answer, or of the last try without one.
    pub(super) at: f64,
    /// True once an answer was judged.
    is_judged: bool,
    /// True if the last judged answer was another one than expected.
    pub(super) is_failing: bool,
    /// Reason for which the last answer failed or was not judged; `None` for one that passed.
    pub(super) reason: Option<String>,
    /// Similarity of the last answer that was compared.
    pub(super) similarity: Option<f64>,
    /// Time of the last answer, in seconds.
    pub(super) seconds: Option<f64>,
    /// Similarities over time.
    pub(super) points: Vec<(u32, f32)>,
    /// Window of similarities of an even mean; `None` before the first.
    window: Option<Adwin>,
}

impl Course {
    /// True once an answer was judged.
    pub(super) fn judged(&self) -> bool {
        self.is_judged
    }

    /// Mean similarity since the last change.
    pub(super) fn mean(&self) -> Option<f64> {
        self.window.as_ref().filter(|window| window.width() > 0.0).map(Adwin::mean)
    }
}

/// Values of a provider's field, newest last, each with the Unix times at which it was first and last seen.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Values(pub(super) Vec<(String, f64, f64)>);

impl Values {
    /// Notes a value. Returns the value before it, where this one was never seen and another was.
    fn see(&mut self, value: &str, at: f64) -> Option<String> {
        let end = value.floor_char_boundary(MOST_VALUE.min(value.len()));
        let value = value.get(..end).unwrap_or_default();
        let known = self.0.iter().position(|(known, ..)| known == value).map(|place| self.0.remove(place));
        let is_new = known.is_none();
        let before = self.0.last().map(|(before, ..)| before.clone());
        let first = known.map_or(at, |(_, first, _)| first);
        self.0.push((value.to_owned(), first, at));
        if self.0.len() > MOST_VALUES {
            self.0.remove(0);
        }
        before.filter(|_| is_new)
    }
}

/// Facts that a provider tells about itself in its answers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Provider {
    /// Models that it named.
    pub(super) models: Values,
    /// Fingerprints that it named.
    pub(super) fingerprints: Values,
}

/// State of all probes at one target.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct TargetState {
    /// Probes by name.
    pub(super) probes: BTreeMap<String, Course>,
    /// Providers by the model that they were asked for; empty where a probe names none.
    pub(super) providers: BTreeMap<String, Provider>,
    /// Unix time of the next round.
    pub(super) next: f64,
}

impl TargetState {
    /// Probes of the file from now on; what is known of others, or of others of the same name, is forgotten.
    pub(super) fn keep(&mut self, known: impl Fn(&str) -> Option<u64>) {
        self.probes.retain(|name, course| known(name) == Some(course.identity));
    }

    /// True if the probe has no answer yet.
    pub(super) fn is_new(&self, name: &str) -> bool {
        !self.probes.contains_key(name)
    }

    /// Notes an answer, and returns what it changes. Similarities below `least` fail.
    pub(super) fn see(&mut self, name: &str, identity: u64, seen: Seen, least: f64) -> Vec<ProbeEvent> {
        let mut events = Vec::new();
        let Seen { at, seconds, outcome, asked, model, fingerprint } = seen;
        if !matches!(outcome, Outcome::Unanswered(_)) {
            let asked = asked.unwrap_or_default();
            if self.providers.len() >= MOST_MODELS && !self.providers.contains_key(&asked) {
                self.providers.pop_first();
            }
            let provider = self.providers.entry(asked).or_default();
            for (change, values, value) in [
                (ProbeChange::Model, &mut provider.models, model),
                (ProbeChange::Fingerprint, &mut provider.fingerprints, fingerprint),
            ] {
                let Some(now) = value else { continue };
                if let Some(before) = values.see(&now, at) {
                    events.push(ProbeEvent::Changed { change, before, now });
                }
            }
        }
        let course = self.probes.entry(name.to_owned()).or_default();
        if course.identity != identity {
            *course = Course { identity, ..Course::default() };
        }
        course.at = at;
        let failed = match outcome {
            Outcome::Unanswered(reason) => {
                course.reason = Some(reason);
                return events;
            }
            Outcome::Unjudged(reason) => {
                (course.reason, course.seconds) = (Some(reason.to_owned()), Some(seconds));
                return events;
            }
            Outcome::Similar(similarity) => {
                events.extend(course.compared(similarity, at));
                (similarity < least).then(|| format!("similarity {similarity:.3} is below {least}"))
            }
            Outcome::Exact => None,
            Outcome::Wrong(reason) => Some(reason),
        };
        course.seconds = Some(seconds);
        match (&failed, course.is_failing) {
            (Some(reason), false) => events.push(ProbeEvent::Failed(reason.clone())),
            (None, true) => events.push(ProbeEvent::Passed),
            _ => {}
        }
        (course.is_judged, course.is_failing) = (true, failed.is_some());
        course.reason = failed;
        events
    }
}

impl Course {
    /// Notes a similarity, and returns the change of its mean if there is one.
    fn compared(&mut self, similarity: f64, at: f64) -> Option<ProbeEvent> {
        self.similarity = Some(similarity);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "seconds until 2106, and a plot")]
        self.points.push((at as u32, similarity as f32));
        if self.points.len() > HISTORY {
            self.points.remove(0);
        }
        let window = self.window.get_or_insert_with(|| Adwin::new(ADWIN_DELTA));
        let before = window.mean();
        let has_changed = window.add(similarity);
        has_changed.then(|| ProbeEvent::Changed {
            change: ProbeChange::Mean,
            before: format!("{before:.3}"),
            now: format!("{:.3}", window.mean()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(at: f64, outcome: Outcome) -> Seen {
        Seen { at, seconds: 0.5, outcome, asked: None, model: None, fingerprint: None }
    }

    fn similar(state: &mut TargetState, at: f64, value: f64) -> Vec<ProbeEvent> {
        state.see("p", 1, seen(at, Outcome::Similar(value)), 0.85)
    }

    #[test]
    fn a_probe_that_fails_says_so_once_and_once_that_it_is_back() {
        let mut state = TargetState::default();
        assert!(state.is_new("p") && similar(&mut state, 1.0, 0.95).is_empty() && !state.is_new("p"));
        assert_eq!(similar(&mut state, 2.0, 0.5), [ProbeEvent::Failed("similarity 0.500 is below 0.85".into())]);
        assert!(similar(&mut state, 3.0, 0.4).is_empty(), "it fails already");
        let gone = state.see("p", 1, seen(4.0, Outcome::Unanswered("connect".into())), 0.85);
        assert!(gone.is_empty() && state.probes["p"].is_failing, "no answer is no pass");
        assert!(state.see("p", 1, seen(5.0, Outcome::Unjudged("busy")), 0.85).is_empty());
        assert_eq!(similar(&mut state, 6.0, 0.9), [ProbeEvent::Passed]);
        assert_eq!((state.probes["p"].points.len(), state.probes["p"].reason.clone()), (4, None));
        // The first answer may fail, too.
        let first = state.see("q", 1, seen(1.0, Outcome::Wrong("/a is 2".into())), 0.85);
        assert_eq!(first, [ProbeEvent::Failed("/a is 2".into())]);
        assert_eq!(state.see("q", 1, seen(2.0, Outcome::Exact), 0.85), [ProbeEvent::Passed]);
        // Another content under the same name.
        state.see("q", 2, seen(2.0, Outcome::Wrong("x".into())), 0.85);
        state.keep(|name| (name == "q").then_some(3));
        assert!(state.probes.is_empty());
    }

    #[test]
    fn a_model_or_fingerprint_that_was_never_seen_is_a_change() {
        let mut state = TargetState::default();
        let mut named = |at: f64, asked: &str, model: &str, fingerprint: Option<&str>| {
            let seen = Seen {
                asked: Some(asked.into()),
                model: Some(model.into()),
                fingerprint: fingerprint.map(Into::into),
                ..seen(at, Outcome::Exact)
            };
            state.see("p", 1, seen, 0.85)
        };
        assert!(named(1.0, "gpt", "gpt-0613", Some("fp_1")).is_empty(), "nothing was known");
        assert!(named(2.0, "other", "other-1", None).is_empty(), "another model was asked for");
        let changed =
            |change, before: &str, now: &str| ProbeEvent::Changed { change, before: before.into(), now: now.into() };
        assert_eq!(named(3.0, "gpt", "gpt-1106", Some("fp_1")), [changed(ProbeChange::Model, "gpt-0613", "gpt-1106")]);
        assert_eq!(named(4.0, "gpt", "gpt-1106", Some("fp_2")), [changed(ProbeChange::Fingerprint, "fp_1", "fp_2")]);
        // Servers of a fleet that differ take turns.
        assert!(named(5.0, "gpt", "gpt-0613", Some("fp_1")).is_empty());
        for n in 0..40 {
            named(6.0, "gpt", &format!("{n}{}", "é".repeat(300)), None);
        }
        let models = &state.providers["gpt"].models.0;
        assert!(models.len() == MOST_VALUES && models.iter().all(|(model, ..)| model.len() <= MOST_VALUE));
    }

    #[test]
    fn a_mean_that_moves_is_a_change_even_where_each_answer_passes() {
        let mut state = TargetState::default();
        let wave = |n: u32| 0.001 * f64::from(n % 5);
        for n in 0..200 {
            assert!(similar(&mut state, f64::from(n), 0.97 + wave(n)).is_empty(), "{n}");
        }
        let mut changes = Vec::new();
        for n in 200..400 {
            changes.extend(similar(&mut state, f64::from(n), 0.87 + wave(n)));
        }
        assert!(matches!(changes.first(), Some(ProbeEvent::Changed { change: ProbeChange::Mean, .. })), "{changes:?}");
        assert!(changes.iter().all(|event| !matches!(event, ProbeEvent::Failed(_))));
        assert!(state.probes["p"].points.len() <= HISTORY);
        let stored = serde_json::to_vec(&state).unwrap();
        let restored: TargetState = serde_json::from_slice(&stored).unwrap();
        // Sums may lose their last bit.
        let (one, other) = (&restored.probes["p"], &state.probes["p"]);
        assert_eq!((one.identity, &one.points, one.is_judged), (other.identity, &other.points, other.is_judged));
        assert!((one.mean().unwrap() - other.mean().unwrap()).abs() < 1e-12);
    }
}
