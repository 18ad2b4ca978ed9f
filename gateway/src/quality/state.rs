//! State of one route: sketches of each target in a few panes, and the judgement of the recent ones against the reference. Pure:
//! the time is given, nothing is read or written, so that tests go through weeks in milliseconds.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use spillway_statistics::drift::embedding::Clusters;

use super::facts::{Facts, Known};
use super::feature::{Feature, Recipe, Side};
use super::pane::{Distances, LEAST_ROWS, Pane, distances};
use super::reference::ReferenceFile;
use super::{MOST_TENSORS, TOPICS};
use crate::places::{Places, Use};

/// Parts of a reference window that one pane covers.
const PANES: f64 = 28.0;
/// Length of a pane in seconds where the reference is no window.
const HOUR: f64 = 3600.0;
/// Panes of recent requests: the live one and the one before it. A tensor that is in neither gives its place back.
const RECENT_PANES: f64 = 2.0;
/// Cosine from which two prompts are of one topic, while topics are found.
const NEAR: f64 = 0.5;
/// Embeddings by which topics are found; then they stay, so that shares mean the same over time.
const LEARN: u64 = 256;
/// Vectors that each side of a comparison of centres needs.
const LEAST_VECTORS: u64 = 100;
/// Share of the limit below which a feature counts as back.
const BACK: f64 = 0.8;
/// Points in time that are kept of each feature's distance.
const HISTORY: usize = 64;

/// Reference of a route.
#[derive(Debug, Clone)]
pub enum Reference {
    /// Requests of so many seconds before.
    Window(f64),
    /// Requests of a file.
    File(Arc<ReferenceFile>),
    /// Recent requests at this target.
    Stable(Box<str>),
}

/// Rules of a route, from the configuration.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Reference.
    pub reference: Reference,
    /// Limit of distances of inputs.
    pub inputs: f64,
    /// Limit of distances of outputs.
    pub outputs: f64,
    /// Targets, those of the spill included.
    pub targets: Vec<Box<str>>,
    /// Name of the model for embeddings.
    pub embedding: Option<Box<str>>,
}

impl Rules {
    /// Length of a pane in seconds.
    pub fn pane(&self) -> f64 {
        match self.reference {
            Reference::Window(window) => window / PANES,
            Reference::File(_) | Reference::Stable(_) => HOUR,
        }
    }

    /// Half the length of a pane.
    pub(super) fn half_pane(&self) -> std::time::Duration {
        std::time::Duration::from_secs_f64(self.pane().clamp(0.0, 86_400.0) / 2.0)
    }

    fn limit(&self, side: Side) -> f64 {
        match side {
            Side::Inputs => self.inputs,
            Side::Outputs => self.outputs,
        }
    }

    /// Tensors of each side that are followed: fewer where there are more targets, whose sketches share two megabytes.
    fn tensors(&self) -> usize {
        (24 / self.targets.len().max(1)).clamp(2, MOST_TENSORS)
    }
}

/// Passing of a limit, or the return below it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Crossing {
    /// Target.
    pub target: Box<str>,
    /// Feature.
    pub feature: Feature,
    /// Recipe of the distance.
    pub recipe: Recipe,
    /// Distance.
    pub distance: f64,
    /// Limit.
    pub limit: f64,
    /// True where the limit was passed.
    pub is_drift: bool,
}

/// Distance of a feature over time.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Course {
    /// True while the feature has drifted.
    pub is_drifted: bool,
    /// Unix seconds and distance, in the order of time.
    pub points: VecDeque<(u32, f32)>,
}

/// Sketches of one target.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct VersionState {
    /// Pane that is filled.
    live: Pane,
    /// Pane before it.
    last: Pane,
    /// Second half of the reference, which is filled.
    young: Pane,
    /// First half of the reference.
    old: Pane,
    /// Distances over time.
    pub courses: BTreeMap<Feature, Course>,
    /// Time of the last points.
    noted: f64,
}

impl VersionState {
    /// Sketches of the recent requests.
    pub(super) fn recent(&self) -> Pane {
        let mut recent = self.last.clone();
        recent.merge(&self.live);
        recent
    }

    fn before(&self) -> Pane {
        let mut before = self.old.clone();
        before.merge(&self.young);
        before
    }

    fn panes(&self) -> [&Pane; 4] {
        [&self.live, &self.last, &self.young, &self.old]
    }

    /// Makes `now` a time of the live pane.
    fn turn(&mut self, now: f64, rules: &Rules) {
        let length = rules.pane();
        if self.live.began == 0.0 {
            self.live.began = now;
        }
        // A clock that was set back begins the pane anew.
        if now < self.live.began - length {
            self.live.began = now;
        }
        if now - self.live.began < length {
            return;
        }
        let ended = std::mem::replace(&mut self.live, Pane::new(now));
        let before = std::mem::replace(&mut self.last, ended);
        let Reference::Window(window) = rules.reference else {
            if now - self.last.began >= 2.0 * length {
                self.last = Pane::default();
            }
            return;
        };
        self.young.merge(&before);
        // After a time without requests, those before it are no recent ones.
        if now - self.last.began >= 2.0 * length {
            self.young.merge(&std::mem::take(&mut self.last));
        }
        if self.young.rows > 0 && now - self.young.began >= window / 2.0 {
            self.old = std::mem::take(&mut self.young);
        }
        if now - self.old.began >= 2.0 * window {
            self.old = Pane::default();
        }
    }

    fn bytes(&self) -> usize {
        let course = |(feature, course): (&Feature, &Course)| {
            feature.tensor().map_or(0, str::len)
                + size_of::<(Feature, Course)>()
                + 16
                + course.points.capacity() * size_of::<(u32, f32)>()
        };
        self.panes().iter().map(|pane| pane.bytes()).sum::<usize>() + self.courses.iter().map(course).sum::<usize>()
    }

    fn is_consistent(&self) -> bool {
        self.panes().iter().all(|pane| pane.is_consistent())
            && self.courses.len() <= super::MAX_FEATURES
            && self.courses.values().all(|course| course.points.len() <= HISTORY)
    }
}

/// Sketches of one route.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct RouteState {
    /// Targets by their names.
    pub versions: BTreeMap<Box<str>, VersionState>,
    /// Clusters of embeddings.
    topics: Option<Clusters>,
    /// Embeddings by which the topics were found.
    learned: u64,
    /// Model of the embeddings.
    embedding: Option<Box<str>>,
    /// Names of the tensors of calls that are followed.
    inputs: Places,
    /// Names of the tensors of answers that are followed.
    outputs: Places,
}

/// Comparison of one feature at one target.
#[derive(Debug, Clone)]
pub(super) struct Comparison {
    /// Feature.
    pub feature: Feature,
    /// Distances; `None` where one side has nothing.
    pub distances: Option<Distances>,
    /// True if both sides have enough requests for a judgement.
    pub is_judged: bool,
    /// Limit.
    pub limit: f64,
}

impl RouteState {
    /// Fits the state to rules: forgets targets that are gone, and embeddings of another model.
    pub(super) fn adopt(&mut self, rules: &Rules) {
        self.versions.retain(|name, _| rules.targets.contains(name));
        for name in &rules.targets {
            self.versions.entry(name.clone()).or_default();
        }
        if self.embedding != rules.embedding {
            self.embedding.clone_from(&rules.embedding);
            self.forget_vectors();
        }
        if let Reference::File(file) = &rules.reference
            && file.topics.is_some()
            && file.embedding == rules.embedding
        {
            if self.topics != file.topics {
                // Numbers of other topics say nothing of these.
                self.keep(|feature| *feature != Feature::Topics);
            }
            self.topics.clone_from(&file.topics);
            self.learned = LEARN;
        }
        let (inputs, outputs): (&[_], &[_]) = match &rules.reference {
            Reference::File(file) => (&file.inputs, &file.outputs),
            Reference::Window(_) | Reference::Stable(_) => (&[], &[]),
        };
        // Fewer tensors are followed with more targets.
        self.inputs.fix(inputs, rules.tensors());
        self.outputs.fix(outputs, rules.tensors());
        self.forget_tensors();
    }

    /// Forgets tensors that are followed no more.
    fn forget_tensors(&mut self) {
        let (inputs, outputs) = (self.inputs.clone(), self.outputs.clone());
        let is_column =
            |of: &str, name: &str| name.strip_prefix(of).is_some_and(|rest| rest.is_empty() || rest.starts_with('['));
        self.keep(|feature| match feature {
            Feature::Input(name) | Feature::InputMissing(name) => inputs.contains(name),
            Feature::Output(name) | Feature::OutputMissing(name) => outputs.contains(name),
            Feature::OutputClass(name) => outputs.names().any(|followed| is_column(name, followed)),
            _ => true,
        });
    }

    /// Forgets embeddings and topics, which another model has found.
    fn forget_vectors(&mut self) {
        self.topics = None;
        self.learned = 0;
        self.keep(|feature| !matches!(feature, Feature::Embedding | Feature::Topics));
    }

    /// Forgets what was seen of other features than those that are `kept`.
    fn keep(&mut self, kept: impl Fn(&Feature) -> bool) {
        for version in self.versions.values_mut() {
            for pane in [&mut version.live, &mut version.last, &mut version.young, &mut version.old] {
                pane.features.retain(|feature, _| kept(feature));
            }
            version.courses.retain(|feature, _| kept(feature));
        }
    }

    /// Counts a request of a caller at a target; false for a target that is not watched.
    pub(super) fn add(&mut self, target: &str, caller: u64, facts: &Facts, now: f64, rules: &Rules) -> bool {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "seconds of this century")]
        let (seconds, idle) = (now as u64, (RECENT_PANES * rules.pane()) as u64);
        let by = Use { caller, now: seconds, idle };
        let mut is_displaced = false;
        for (followed, seen) in [(&mut self.inputs, &facts.inputs), (&mut self.outputs, &facts.outputs)] {
            for name in Facts::names(seen.as_ref()) {
                let taken = followed.take(&name, by, rules.tensors(), |_| false);
                is_displaced |= taken.is_some_and(|taken| taken.displaced.is_some());
            }
        }
        if is_displaced {
            self.forget_tensors();
        }
        let Some(version) = self.versions.get_mut(target) else { return false };
        version.turn(now, rules);
        facts.count(&mut version.live, &Known { inputs: &self.inputs, outputs: &self.outputs });
        true
    }

    /// Counts the embedding of a request.
    pub(super) fn add_vector(&mut self, target: &str, vector: &[f32], now: f64, rules: &Rules) -> Option<usize> {
        let vector = vector.get(..super::MAX_DIMENSION.min(vector.len()))?;
        if self.topics.as_ref().is_some_and(|topics| topics.dimension() != vector.len()) {
            if let Reference::File(file) = &rules.reference
                && file.topics.is_some()
            {
                // Topics of the file stay, and are of another model: no topic is told.
                return None;
            }
            self.forget_vectors();
        }
        let topics = self.topics.get_or_insert_with(|| Clusters::new(vector.len(), TOPICS, NEAR));
        let topic = if self.learned < LEARN {
            topics.add(vector).ok()?;
            self.learned += 1;
            None
        } else {
            topics.assign(vector).ok()?.map(|(place, _)| place)
        };
        let version = self.versions.get_mut(target)?;
        version.turn(now, rules);
        version.live.vector(Feature::Embedding, vector);
        if let Some(topic) = topic {
            version.live.bucket(Feature::Topics, topic, TOPICS);
        }
        topic
    }

    /// Reference of a target; `None` for the stable target itself.
    pub(super) fn reference_of(&self, target: &str, rules: &Rules) -> Option<Pane> {
        match &rules.reference {
            Reference::Window(_) => self.versions.get(target).map(VersionState::before),
            Reference::File(file) => Some(file.pane_of(target)),
            Reference::Stable(stable) if **stable == *target => None,
            Reference::Stable(stable) => self.versions.get(stable).map(VersionState::recent),
        }
    }

    /// Compares the recent requests of a target with its reference, feature by feature.
    pub(super) fn compare(recent: &Pane, reference: Option<&Pane>, rules: &Rules) -> Vec<Comparison> {
        let features: BTreeSet<&Feature> =
            recent.features.keys().chain(reference.into_iter().flat_map(|pane| pane.features.keys())).collect();
        let of = |feature: &Feature| {
            let window = recent.features.get(feature);
            let before = reference.and_then(|pane| pane.features.get(feature));
            let distances = before.zip(window).and_then(|(before, window)| distances(before, window));
            let least = if *feature == Feature::Embedding { LEAST_VECTORS } else { LEAST_ROWS };
            let counts = [before, window].map(|values| values.map_or(0, super::pane::Values::count));
            let rows = [reference.map_or(0, |pane| pane.rows), recent.rows];
            let is_judged = distances.is_some_and(|distances| distances.is_enough)
                && counts.iter().all(|count| *count >= least)
                && rows.iter().all(|rows| *rows >= least);
            Comparison { feature: feature.clone(), distances, is_judged, limit: rules.limit(feature.side()) }
        };
        features.into_iter().map(of).collect()
    }

    /// Judges all targets; returns the limits that were passed, and those below which a distance is again.
    pub(super) fn look(&mut self, now: f64, rules: &Rules) -> Vec<Crossing> {
        let mut crossings = Vec::new();
        for name in &rules.targets {
            let Some(version) = self.versions.get_mut(name) else { continue };
            version.turn(now, rules);
            let recent = version.recent();
            let reference = self.reference_of(name, rules);
            let comparisons = Self::compare(&recent, reference.as_ref(), rules);
            let Some(version) = self.versions.get_mut(name) else { continue };
            // A clock that was ahead is back.
            let is_due = now < version.noted || now - version.noted >= rules.pane() / 2.0;
            if is_due {
                version.noted = now;
            }
            let seen: BTreeSet<Feature> = comparisons.iter().map(|one| one.feature.clone()).collect();
            version.courses.retain(|feature, _| seen.contains(feature));
            for Comparison { feature, distances, is_judged, limit } in comparisons {
                let Some(distances) = distances.filter(|_| is_judged) else { continue };
                let course = version.courses.entry(feature.clone()).or_default();
                if is_due {
                    if course.points.len() == HISTORY {
                        course.points.pop_front();
                    }
                    #[allow(
                        clippy::cast_possible_truncation,
                        clippy::cast_sign_loss,
                        reason = "seconds and a distance to draw"
                    )]
                    course.points.push_back((now as u32, distances.judged as f32));
                }
                let is_drift =
                    if course.is_drifted { distances.judged > BACK * limit } else { distances.judged > limit };
                if is_drift != course.is_drifted {
                    course.is_drifted = is_drift;
                    let (target, recipe, distance) = (name.clone(), distances.recipe, distances.judged);
                    crossings.push(Crossing { target, feature, recipe, distance, limit, is_drift });
                }
            }
        }
        crossings
    }

    /// Sketches for a reference file: all that is known of each target.
    pub(super) fn to_reference(&self, route: &str, now: f64) -> ReferenceFile {
        let targets = self.versions.iter().map(|(name, version)| {
            let mut pane = version.before();
            pane.merge(&version.recent());
            (name.clone(), pane)
        });
        ReferenceFile {
            version: super::reference::VERSION,
            route: route.to_owned(),
            made: now,
            targets: targets.filter(|(_, pane)| pane.rows > 0).collect(),
            topics: self.topics.clone().filter(|_| self.learned >= LEARN),
            embedding: self.embedding.clone(),
            inputs: self.inputs.names().map(Box::from).collect(),
            outputs: self.outputs.names().map(Box::from).collect(),
        }
    }

    /// Bytes in memory.
    pub(super) fn bytes(&self) -> usize {
        let topics = self.topics.as_ref().map_or(0, |topics| {
            topics.clusters().iter().map(|cluster| size_of_val(cluster) + cluster.dimension() * size_of::<f64>()).sum()
        });
        size_of::<Self>()
            + topics
            + self.inputs.bytes()
            + self.outputs.bytes()
            + self.versions.iter().map(|(name, version)| name.len() + version.bytes()).sum::<usize>()
    }

    /// True if no reader can be misled: of a state that was read from a file.
    pub(super) fn is_consistent(&self) -> bool {
        let names =
            |names: &Places| names.len() <= MOST_TENSORS && names.names().all(|name| name.len() <= super::MAX_NAME);
        let topics = self.topics.as_ref().is_none_or(|topics| {
            topics.clusters().len() <= TOPICS
                && topics.clusters().iter().all(|cluster| cluster.dimension() <= super::MAX_DIMENSION)
        });
        self.versions.values().all(VersionState::is_consistent) && names(&self.inputs) && names(&self.outputs) && topics
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};

    use super::super::pane::Values;
    use super::*;

    const WEEK: f64 = 7.0 * 86_400.0;

    fn rules(reference: Reference, targets: &[&str]) -> Rules {
        let targets = targets.iter().map(|name| Box::from(*name)).collect();
        Rules { reference, inputs: 0.2, outputs: 0.2, targets, embedding: Some("e".into()) }
    }

    fn below(random: &mut ChaCha8Rng, most: u64) -> u64 {
        random.next_u64() % most
    }

    /// Request of a usual caller; of a shifted one where `is_shifted`.
    fn facts(random: &mut ChaCha8Rng, is_shifted: bool) -> Facts {
        let length = 20.0 * (1.0 + below(random, 50) as f64) * if is_shifted { 2.5 } else { 1.0 };
        let numbers = vec![(Feature::PromptLength, length), (Feature::AnswerTokens, below(random, 300) as f64 + 1.0)];
        let language = if below(random, 10) < if is_shifted { 6 } else { 1 } { "deu" } else { "eng" };
        let categories = vec![(Feature::Language, language.to_owned())];
        let words = (0..12).map(|_| (below(random, 16) * below(random, 16)) as usize).collect();
        Facts { numbers, categories, words, ..Facts::default() }
    }

    /// Sends `number` requests over `seconds`, and looks after every fiftieth.
    fn send(
        state: &mut RouteState,
        rules: &Rules,
        random: &mut ChaCha8Rng,
        (target, number): (&str, usize),
        (from, seconds): (f64, f64),
        is_shifted: bool,
    ) -> Vec<Crossing> {
        let mut crossings = Vec::new();
        for n in 0..number {
            let now = from + seconds * n as f64 / number as f64;
            assert!(state.add(target, 1, &facts(random, is_shifted), now, rules));
            if n % 50 == 49 {
                crossings.extend(state.look(now, rules));
            }
        }
        crossings
    }

    #[test]
    fn over_weeks_a_shift_is_noticed_and_no_shift_is_not() {
        let rules = rules(Reference::Window(WEEK), &["a"]);
        for seed in 0..4 {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            let mut state = RouteState::default();
            state.adopt(&rules);
            let start = 1.8e9;
            let quiet = send(&mut state, &rules, &mut random, ("a", 20_000), (start, 3.0 * WEEK), false);
            assert_eq!(quiet, [], "seed {seed}");
            let loud = send(&mut state, &rules, &mut random, ("a", 1_000), (start + 3.0 * WEEK, WEEK / 7.0), true);
            let features: BTreeSet<String> = loud.iter().map(|one| one.feature.to_string()).collect();
            assert_eq!(features, ["language", "promptLength"].map(str::to_owned).into(), "seed {seed}");
            assert!(loud.iter().all(|one| one.is_drift && one.distance > 0.2));
            let back = send(&mut state, &rules, &mut random, ("a", 3_000), (start + 3.2 * WEEK, WEEK / 2.0), false);
            // The day of the shift is a part of the reference now, from which later samples may be far.
            assert!(back.len() >= 2 && back.iter().take(2).all(|one| !one.is_drift), "seed {seed}: {back:?}");
        }
    }

    #[test]
    fn versions_are_compared_with_the_stable_one_and_with_a_file() {
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let stable = rules(Reference::Stable("a".into()), &["a", "b"]);
        let mut state = RouteState::default();
        state.adopt(&stable);
        let mut crossings = Vec::new();
        for (target, is_shifted) in [("a", false), ("b", true)] {
            crossings = send(&mut state, &stable, &mut random, (target, 600), (1.8e9, 1_000.0), is_shifted);
        }
        assert!(crossings.iter().all(|one| &*one.target == "b") && crossings.len() == 2, "{crossings:?}");
        assert!(state.reference_of("a", &stable).is_none());

        let file = state.to_reference("r", 1.8e9);
        let read = ReferenceFile::read(&serde_json::to_vec(&file).unwrap()).unwrap();
        assert_eq!(read, file);
        let fixed = rules(Reference::File(Arc::new(read)), &["a", "c"]);
        let mut other = RouteState::default();
        other.adopt(&fixed);
        let same = send(&mut other, &fixed, &mut random, ("a", 600), (1.9e9, 1_000.0), false);
        assert_eq!(same, []);
        let shifted = send(&mut other, &fixed, &mut random, ("a", 3_000), (1.9e9 + 9_000.0, 5_000.0), true);
        assert_eq!(shifted.len(), 2, "{shifted:?}");
    }

    #[test]
    fn few_requests_are_not_judged_and_idle_weeks_are_forgotten() {
        let rules = rules(Reference::Window(WEEK), &["a"]);
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let mut state = RouteState::default();
        state.adopt(&rules);
        send(&mut state, &rules, &mut random, ("a", 2_000), (1.8e9, WEEK), false);
        assert_eq!(send(&mut state, &rules, &mut random, ("a", 100), (1.8e9 + WEEK, WEEK / 60.0), true), []);
        let later = 1.8e9 + 9.0 * WEEK;
        send(&mut state, &rules, &mut random, ("a", 1_000), (later, WEEK / 10.0), true);
        assert!(
            state.versions["a"].courses.values().all(|course| !course.is_drifted),
            "two months ago is no reference"
        );
        assert!(!state.add("z", 1, &Facts::default(), later, &rules));
    }

    #[test]
    fn topics_are_found_then_stay_and_an_embedder_has_its_own() {
        let mut rules = rules(Reference::Stable("a".into()), &["a", "b"]);
        let mut random = ChaCha8Rng::seed_from_u64(3);
        let mut state = RouteState::default();
        state.adopt(&rules);
        let mut vector = |axis: usize| -> Vec<f32> {
            (0..8).map(|n| if n == axis { 1.0 } else { below(&mut random, 100) as f32 / 1_000.0 }).collect()
        };
        for n in 0..900 {
            state.add("a", 1, &Facts::default(), 1.8e9, &rules);
            state.add("b", 1, &Facts::default(), 1.8e9, &rules);
            assert_eq!(state.add_vector("a", &vector(n % 3), 1.8e9, &rules).is_some(), n >= 128);
            state.add_vector("b", &vector(if n < 128 { n % 3 } else { 2 }), 1.8e9, &rules);
        }
        let crossings = state.look(1.8e9 + 1.0, &rules);
        let features: Vec<String> = crossings.iter().map(|one| format!("{} {}", one.target, one.feature)).collect();
        assert_eq!(features, ["b embedding", "b topics"]);
        // A model of the same name with other vectors: nothing is mixed, and new topics are found.
        for n in 0..900 {
            let vector: Vec<f32> = (0..12).map(|axis| if axis == n % 3 { 1.0 } else { 0.01 }).collect();
            assert_eq!(state.add_vector("a", &vector, 1.8e9, &rules).is_some(), n >= 256, "{n}");
        }
        let Some(Values::Centre(centre)) = state.versions["a"].live.features.get(&Feature::Embedding) else { panic!() };
        assert_eq!((centre.dimension(), centre.count()), (12, 900));
        assert!(!state.versions["b"].live.features.contains_key(&Feature::Topics), "those of the other model are gone");
        rules.embedding = Some("other".into());
        state.adopt(&rules);
        assert!(state.topics.is_none() && !state.versions["a"].live.features.contains_key(&Feature::Topics));
    }

    #[test]
    fn tensors_of_one_caller_leave_places_to_those_of_others_and_unused_ones_are_forgotten() {
        use crate::protocol::oip::{TensorElements, TensorValues};
        let rules = rules(Reference::Window(28.0 * 3_600.0), &["a"]);
        let mut state = RouteState::default();
        state.adopt(&rules);
        let add = |state: &mut RouteState, caller: u64, name: String, now: f64| {
            let elements = TensorElements::Numbers(vec![1.0]);
            let inputs = Some(vec![TensorValues { name, shape: vec![1], elements, is_whole: true }]);
            state.add("a", caller, &Facts { inputs, ..Facts::default() }, now, &rules);
        };
        let followed = |state: &RouteState, name: &str| {
            let feature = Feature::Input(name.into());
            state.versions["a"].panes().iter().any(|pane| pane.features.contains_key(&feature))
        };
        let now = 1.8e9;
        (0..100).for_each(|n| add(&mut state, 1, format!("x{n}"), now));
        assert!(followed(&state, "x15") && !followed(&state, "x16"));
        (0..3).for_each(|n| add(&mut state, 2, format!("y{n}"), now));
        (100..200).for_each(|n| add(&mut state, 1, format!("x{n}"), now));
        assert!((0..3).all(|n| followed(&state, &format!("y{n}"))));
        assert!(!followed(&state, "x0") && followed(&state, "x15"));
        let names: BTreeSet<_> = state.versions["a"].live.features.keys().filter_map(Feature::tensor).collect();
        assert_eq!(names.len(), 16);
        add(&mut state, 1, "z".to_owned(), now + 3.0 * 3_600.0);
        assert!(followed(&state, "z"));
    }

    #[test]
    fn a_route_takes_two_megabytes_at_most_whatever_comes() {
        use crate::protocol::oip::{TensorElements, TensorValues};
        for targets in [&["a"][..], &["a", "b"], &["a", "b", "c", "d", "e", "f"]] {
            let rules = rules(Reference::Window(2_800.0), targets);
            let mut random = ChaCha8Rng::seed_from_u64(5);
            let mut state = RouteState::default();
            state.adopt(&rules);
            let mut now = 1.8e9;
            for n in 0..900_u64 {
                now += 3.0;
                let mut facts = facts(&mut random, n % 2 == 0);
                let wild = |random: &mut ChaCha8Rng| 10f64.powi(below(random, 36) as i32 - 18);
                for feature in [
                    Feature::PromptLength,
                    Feature::PromptTokens,
                    Feature::AnswerTokens,
                    Feature::AnswerLength,
                    Feature::Logprob,
                ] {
                    facts.numbers.push((feature, wild(&mut random)));
                }
                for feature in [Feature::Language, Feature::FinishReason, Feature::Refusal, Feature::Signals] {
                    facts.categories.push((feature, format!("{:0100}", below(&mut random, 1_000))));
                }
                let mut tensors = |prefix: &str| -> Vec<TensorValues> {
                    let names = (0..4).map(|_| format!("{prefix}{:0200}", below(&mut random, 40))).collect::<Vec<_>>();
                    let mut one = |name: String, k: i64| TensorValues {
                        name,
                        shape: vec![4, k],
                        elements: TensorElements::Numbers((0..4 * k).map(|_| wild(&mut random)).collect()),
                        is_whole: true,
                    };
                    names.into_iter().map(|name| one(name, 16)).collect()
                };
                (facts.inputs, facts.outputs) = (Some(tensors("i")), Some(tensors("o")));
                let target = targets[usize::try_from(n).unwrap() % targets.len()];
                state.add(target, n % 7, &facts, now, &rules);
                let vector: Vec<f32> = (0..1_536).map(|_| below(&mut random, 1_000) as f32 - 500.0).collect();
                state.add_vector(target, &vector, now, &rules);
                if n % 300 == 299 {
                    state.look(now, &rules);
                }
            }
            let bytes = state.bytes();
            println!("{} targets: {bytes} bytes", targets.len());
            assert!(bytes <= 2 << 20, "{bytes}");
            assert!(state.is_consistent());
            let written = serde_json::to_vec(&state).unwrap();
            let read: RouteState = serde_json::from_slice(&written).unwrap();
            assert!(read.is_consistent() && read.versions.len() == targets.len());
        }
    }
}
