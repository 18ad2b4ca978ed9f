//! Probes: questions with known answers that are asked of each target of a route from time to time, so that a change of its
//! model, its provider or its words is noticed without a caller's help.
//!
//! A task for each route asks, one question at a time for each target, by an [`Asker`] that goes the way of requests. The module
//! owns what is known of the answers and the budget of the questions; both outlive configurations, and the former a restart. It
//! opens no connection and knows no route: its inputs are the file of probes and the answers.

mod budget;
mod course;
mod file;
mod judging;
mod report;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::HeaderValue;
use http::uri::PathAndQuery;
use parking_lot::Mutex;
use rand::RngExt;
use serde_json::json;
use spillway_config::schema;
use tokio::task::AbortHandle;

use self::budget::Budget;
pub(super) use self::course::Outcome;
use self::course::{ProbeEvent, Seen, TargetState};
use self::file::{Probe, Wanted};
pub(super) use self::file::{checked_name, line_error, pointers, request_of, with_model};
pub(super) use self::judging::exact;
use super::files;
use super::notices::{Notice, Notices};
use crate::builtin::LoadedModel;
use crate::clock::unix_fraction;
use crate::coding::Coding;
use crate::telemetry::{Label, LogThrottle, ProbeChange, ProbeResult, ProbeSample, ProbeTargetSample};

pub use self::file::ProbesError;
pub use self::report::{ProbeReport, ProbesReport, ProviderReport, SeenValue};

/// Part of `every` by which a round begins earlier or later, so that the gateways of a fleet do not ask together.
const JITTER: f64 = 0.1;
/// Time until a probe without any answer is tried again where its target had no room.
const AGAIN: Duration = Duration::from_secs(5);
/// Time to write the state at the end of the process.
const LAST_WRITE: Duration = Duration::from_secs(2);
/// End of the name of a file with the state of a route's probes.
const STORED: &str = "probes.json";

/// Question that is asked of a target.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Name of the route.
    pub route: Arc<str>,
    /// Name of its target.
    pub target: Box<str>,
    /// Path of the request, with its query.
    pub path: PathAndQuery,
    /// Body of the request, in JSON.
    pub body: Bytes,
    /// Longest time until the end of the answer.
    pub timeout: Duration,
}

/// End of a question.
#[derive(Debug)]
pub enum Asked {
    /// A server or model has answered, well or not.
    Answered(Box<ProbeAnswer>),
    /// The question was not asked, or was taken back, because of the state of the target.
    Skipped(Skipped),
    /// There was no answer, for this reason.
    Failed(String),
}

/// Reason why a question is not asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skipped {
    /// The target has no room beside that for callers, or a caller came to wait for it.
    Busy,
    /// No server of the target is there that is not ejected, drained or unhealthy, or its model is not loaded.
    Unavailable,
}

/// Answer to a question.
#[derive(Debug)]
pub struct ProbeAnswer {
    /// Status.
    pub status: u16,
    /// Body, or its beginning.
    pub body: Vec<u8>,
    /// True if the body is longer, or broke off.
    pub is_cut: bool,
    /// Coding of the body.
    pub coding: Coding,
    /// Length of the JSON of an answer of the Open Inference Protocol.
    pub json: Option<HeaderValue>,
    /// Model that the question asked for.
    pub asked: Option<String>,
    /// Model that the server named.
    pub model: Option<String>,
    /// Tokens that were used, those of the prompt and the answer, where they are told.
    pub tokens: Option<u64>,
    /// Time until the end of the answer.
    pub took: Duration,
}

/// Way on which questions go.
#[async_trait::async_trait]
pub trait Asker: Send + Sync {
    /// Asks a question. The future may be dropped at any time, which takes the question back.
    async fn ask(&self, ask: Ask) -> Asked;
}

/// Target that is probed.
#[derive(Debug, Clone)]
pub struct ProbedTarget {
    /// Name.
    pub name: Box<str>,
    /// Name of its model, for probes that name none.
    pub model: Option<String>,
}

/// Probes of a route in a configuration.
pub struct ProbePlan {
    route: Arc<str>,
    probes: Vec<Probe>,
    targets: Vec<ProbedTarget>,
    every: Duration,
    timeout: Duration,
    least: f64,
    max_per_hour: u32,
    max_tokens_per_hour: u32,
    embedder: Option<Arc<LoadedModel>>,
    /// Embeddings of what is expected, by the place of the probe.
    expected: Mutex<HashMap<usize, Arc<[f32]>>>,
}

impl ProbePlan {
    /// Plan of a route with these targets; `embedder` is the model that the configuration names.
    ///
    /// # Errors
    /// The file cannot be read, a line is no probe, or the probes do not fit the rest of the configuration.
    pub fn compile(
        route: &str,
        written: &schema::Probes,
        targets: Vec<ProbedTarget>,
        embedder: Option<Arc<LoadedModel>>,
    ) -> Result<Self, ProbesError> {
        let probes = file::read(&written.file)?;
        if embedder.is_none()
            && let Some(probe) = probes.iter().find(|probe| matches!(probe.wanted, Wanted::Similar(_)))
        {
            let message =
                format!("`{}` has `expected`: name a built-in model for embeddings in `embedding`", probe.name);
            return Err(ProbesError::Whole(message));
        }
        #[allow(clippy::cast_precision_loss, reason = "some hundred probes")]
        let an_hour = (probes.len() * targets.len()) as f64 * 3600.0 / written.every.0.as_secs_f64();
        if an_hour > f64::from(written.max_per_hour.get()) {
            return Err(ProbesError::Whole(format!(
                "{} probes at {} targets are {an_hour:.0} in an hour, and `maxPerHour` is {}: raise it, or `every`",
                probes.len(),
                targets.len(),
                written.max_per_hour
            )));
        }
        Ok(Self {
            route: route.into(),
            probes,
            targets,
            every: written.every.0,
            timeout: written.timeout.0,
            least: written.min_similarity,
            max_per_hour: written.max_per_hour.get(),
            max_tokens_per_hour: written.max_tokens_per_hour.get(),
            embedder,
            expected: Mutex::default(),
        })
    }
}

/// Counters of a target since the process began.
#[derive(Debug, Clone, Default)]
struct Counts {
    results: BTreeMap<ProbeResult, u64>,
    changes: BTreeMap<ProbeChange, u64>,
    tokens: u64,
    seconds: f64,
}

/// Findings about the probes of one route. Outlives configurations.
#[derive(Default)]
struct Known {
    /// State of each target; `None` until it was read from its file.
    targets: Mutex<Option<BTreeMap<String, TargetState>>>,
    counts: Mutex<BTreeMap<Box<str>, Counts>>,
    budget: Mutex<Budget>,
    /// True while the state has changes that are not written.
    is_dirty: AtomicBool,
}

/// Route that is probed.
#[derive(Clone)]
struct Probed {
    plan: Arc<ProbePlan>,
    known: Arc<Known>,
    folder: Arc<PathBuf>,
}

/// Probes of all routes. Outlives configurations.
pub(super) struct Prober(Arc<Shared>);

struct Shared {
    asker: OnceLock<Arc<dyn Asker>>,
    routes: Mutex<BTreeMap<Arc<str>, Probed>>,
    tasks: Mutex<Vec<AbortHandle>>,
    notices: Notices,
    unwritten: LogThrottle,
    write_failures: AtomicU64,
}

impl Prober {
    /// Prober without routes.
    pub(super) fn new(notices: Notices) -> Self {
        Self(Arc::new(Shared {
            asker: OnceLock::new(),
            routes: Mutex::default(),
            tasks: Mutex::default(),
            notices,
            unwritten: LogThrottle::default(),
            write_failures: AtomicU64::new(0),
        }))
    }

    /// Probes these routes from now on, with what is known of those that were probed before. Questions under way are taken back.
    pub(super) fn adopt(&self, plans: Vec<Arc<ProbePlan>>, folder: &Path) {
        let folder = Arc::new(folder.to_owned());
        let mut routes = self.0.routes.lock();
        let mut before = std::mem::take(&mut *routes);
        for plan in plans {
            let known = before.remove(&plan.route).filter(|known| known.folder == folder);
            let known = known.map(|probed| probed.known).unwrap_or_default();
            routes.insert(plan.route.clone(), Probed { plan, known, folder: folder.clone() });
        }
        drop(routes);
        self.run();
    }

    /// Begins to ask by this way. Further calls do nothing.
    pub(super) fn start(&self, asker: Arc<dyn Asker>) {
        if self.0.asker.set(asker).is_ok() {
            self.run();
        }
    }

    /// Replaces the running tasks by those of the routes as they are now.
    pub(super) fn run(&self) {
        let Some(asker) = self.0.asker.get() else { return };
        let mut tasks = self.0.tasks.lock();
        tasks.drain(..).for_each(|task| task.abort());
        for probed in self.0.routes.lock().values() {
            let (shared, probed, asker) = (self.0.clone(), probed.clone(), asker.clone());
            tasks.push(tokio::spawn(async move { shared.probe_route(&probed, &*asker).await }).abort_handle());
        }
    }

    /// Ends all tasks, and writes what has changed, for a bounded time.
    pub(super) async fn stop(&self) {
        self.0.tasks.lock().drain(..).for_each(|task| task.abort());
        let all: Vec<Probed> = self.0.routes.lock().values().cloned().collect();
        let writing = async {
            for probed in &all {
                self.0.write(probed).await;
            }
        };
        let _ = tokio::time::timeout(LAST_WRITE, writing).await;
    }

    /// Failed writes.
    pub(super) fn write_failures(&self) -> u64 {
        self.0.write_failures.load(Ordering::Relaxed)
    }

    /// Reports on the targets of a route; none where it has no probes.
    pub(super) fn reports(&self, route: &str) -> Vec<ProbesReport> {
        let Some(Probed { plan, known, .. }) = self.0.routes.lock().get(route).cloned() else { return Vec::new() };
        let targets = known.targets.lock();
        let counts = known.counts.lock();
        let of = |target: &ProbedTarget| {
            let state = targets.as_ref().and_then(|targets| targets.get(&*target.name));
            ProbesReport::of(&target.name, &plan, state, counts.get(&target.name))
        };
        plan.targets.iter().map(of).collect()
    }

    /// Figures of a route for a scrape.
    pub(super) fn samples(&self, route: &str) -> Vec<ProbeTargetSample> {
        let Some(Probed { plan, known, .. }) = self.0.routes.lock().get(route).cloned() else { return Vec::new() };
        let targets = known.targets.lock();
        let counts = known.counts.lock();
        let of = |target: &ProbedTarget| {
            let counts = counts.get(&target.name).cloned().unwrap_or_default();
            let state = targets.as_ref().and_then(|targets| targets.get(&*target.name));
            let courses = state.into_iter().flat_map(|state| &state.probes).filter(|(_, course)| course.judged());
            ProbeTargetSample {
                target: target.name.to_string(),
                // Zeros too: a counter that appears with its first event has no increase.
                results: all(&counts.results),
                changes: all(&counts.changes),
                tokens: counts.tokens,
                seconds: counts.seconds,
                probes: courses
                    .map(|(name, course)| ProbeSample {
                        name: name.clone(),
                        is_failing: course.is_failing,
                        similarity: course.similarity,
                    })
                    .collect(),
            }
        };
        plan.targets.iter().map(of).collect()
    }
}

/// Every value of a label with its count.
fn all<L: Label + Ord>(counts: &BTreeMap<L, u64>) -> Vec<(L, u64)> {
    L::ALL.iter().map(|label| (*label, counts.get(label).copied().unwrap_or(0))).collect()
}

fn now() -> f64 {
    unix_fraction(SystemTime::now())
}

impl Shared {
    /// Asks all targets of a route, each for itself, until the task is dropped.
    async fn probe_route(&self, probed: &Probed, asker: &dyn Asker) {
        restore(probed).await;
        let Probed { plan, known, .. } = probed;
        if let Some(targets) = known.targets.lock().as_mut() {
            let identities: HashMap<&str, u64> =
                plan.probes.iter().map(|probe| (&*probe.name, probe.identity)).collect();
            targets.retain(|name, _| plan.targets.iter().any(|target| *target.name == **name));
            targets.values_mut().for_each(|state| state.keep(|name| identities.get(name).copied()));
        }
        let targets = plan.targets.iter().map(|target| self.probe_target(probed, target, asker));
        futures::future::join_all(targets).await;
    }

    async fn probe_target(&self, probed: &Probed, target: &ProbedTarget, asker: &dyn Asker) {
        loop {
            let (is_due, new) = probed.state_of(target, |state| {
                let at = now();
                // A time far ahead is from before the clock was set back, or from a longer `every`.
                let is_due = state.next <= at || state.next > at + probed.plan.longest();
                if is_due {
                    state.next =
                        at + probed.plan.every.as_secs_f64() * rand::rng().random_range(1.0 - JITTER..=1.0 + JITTER);
                }
                let is_new = |probe: &Probe| state.is_new(&probe.name);
                (is_due, probed.plan.probes.iter().map(is_new).collect::<Vec<bool>>())
            });
            let mut is_waiting = false;
            for (place, is_new) in new.into_iter().enumerate() {
                if (is_due || is_new) && !self.probe(probed, target, place, asker).await {
                    is_waiting |= is_new;
                }
            }
            self.write(probed).await;
            let wait = probed.state_of(target, |state| Duration::from_secs_f64((state.next - now()).max(0.0)));
            tokio::time::sleep(if is_waiting { wait.min(AGAIN) } else { wait }).await;
        }
    }

    /// Asks one question. False if it was not asked.
    async fn probe(&self, probed: &Probed, target: &ProbedTarget, place: usize, asker: &dyn Asker) -> bool {
        let Probed { plan, known, .. } = probed;
        let Some(probe) = plan.probes.get(place) else { return true };
        let taken =
            known.budget.lock().take(Instant::now(), probe.tokens(), plan.max_per_hour, plan.max_tokens_per_hour);
        let Some(taken) = taken else {
            known.count(target, ProbeResult::OverBudget);
            return false;
        };
        let ask = Ask {
            route: plan.route.clone(),
            target: target.name.clone(),
            path: probe.path.clone(),
            body: probe.body(target.model.as_deref()),
            timeout: plan.timeout,
        };
        // A question that is taken back with its task stays spent: it may have been sent.
        let asked = asker.ask(ask).await;
        let at = now();
        let seen = match asked {
            Asked::Skipped(skipped) => {
                known.budget.lock().settle(taken, None);
                known.count(
                    target,
                    match skipped {
                        Skipped::Busy => ProbeResult::Busy,
                        Skipped::Unavailable => ProbeResult::Unavailable,
                    },
                );
                return false;
            }
            Asked::Failed(reason) => {
                let outcome = Outcome::Unanswered(reason);
                Seen { at, seconds: 0.0, outcome, asked: None, model: None, fingerprint: None }
            }
            Asked::Answered(answer) => {
                let tokens = answer.tokens.unwrap_or_else(|| probe.tokens());
                known.budget.lock().settle(taken, Some(tokens));
                let outcome = judging::judge(plan, place, probe, &answer).await;
                known.add(target, tokens, answer.took);
                let fingerprint = judging::fingerprint(&answer);
                let ProbeAnswer { asked, model, took, .. } = *answer;
                Seen { at, seconds: took.as_secs_f64(), outcome, asked, model, fingerprint }
            }
        };
        let outcome = seen.outcome.clone();
        let events = probed.state_of(target, |state| state.see(&probe.name, probe.identity, seen, plan.least));
        known.count(target, result(&outcome, plan.least));
        known.is_dirty.store(true, Ordering::Relaxed);
        for event in events {
            self.report(probed, target, probe, event);
        }
        true
    }

    /// Reports an event of a probe by the log, the counters and notifications.
    fn report(&self, probed: &Probed, target: &ProbedTarget, probe: &Probe, event: ProbeEvent) {
        let (route, served_by, probe) = (&*probed.plan.route, &*target.name, &*probe.name);
        match event {
            ProbeEvent::Failed(reason) => {
                tracing::warn!(event = "probe_failed", route, served_by, probe, reason);
                let data = json!({"route": route, "target": served_by, "probe": probe, "reason": reason});
                self.notices.send(Notice::ProbeFailed, route, data);
            }
            ProbeEvent::Passed => {
                tracing::info!(event = "probe_back", route, served_by, probe);
                let data = json!({"route": route, "target": served_by, "probe": probe});
                self.notices.send(Notice::ProbeBack, route, data);
            }
            ProbeEvent::Changed { change, before, now } => {
                let change_name = change.as_str();
                tracing::warn!(event = "probe_changed", route, served_by, probe, change = change_name, before, now);
                *probed
                    .known
                    .counts
                    .lock()
                    .entry(target.name.clone())
                    .or_default()
                    .changes
                    .entry(change)
                    .or_default() += 1;
                let data = json!({"route": route, "target": served_by, "probe": probe, "change": change_name,
                    "before": before, "now": now});
                self.notices.send(Notice::ProbeChanged, route, data);
            }
        }
    }

    /// Writes the state of a route, where it has changed.
    async fn write(&self, probed: &Probed) {
        let Probed { plan, known, folder } = probed;
        if !known.is_dirty.swap(false, Ordering::Relaxed) {
            return;
        }
        let state = known.targets.lock().clone();
        let (to, route) = (folder.clone(), plan.route.clone());
        let written = tokio::task::spawn_blocking(move || files::write_as(&to, &route, STORED, &state)).await;
        let failed = match written {
            Ok(Ok(())) => return,
            Ok(Err(e)) => e.to_string(),
            Err(e) => e.to_string(),
        };
        known.is_dirty.store(true, Ordering::Relaxed);
        self.write_failures.fetch_add(1, Ordering::Relaxed);
        self.unwritten.add(1, |times| {
            let folder = folder.display();
            tracing::warn!(event = "quality_not_stored", route = %plan.route, %folder, reason = failed, times);
        });
    }
}

/// Kind of an outcome.
fn result(outcome: &Outcome, least: f64) -> ProbeResult {
    match outcome {
        Outcome::Similar(similarity) if *similarity >= least => ProbeResult::Passed,
        Outcome::Exact => ProbeResult::Passed,
        Outcome::Similar(_) | Outcome::Wrong(_) => ProbeResult::Failed,
        Outcome::Unjudged(_) => ProbeResult::Unjudged,
        Outcome::Unanswered(_) => ProbeResult::Unanswered,
    }
}

/// Reads what is known of a route from its file, once in the life of the process. What cannot be read is logged, and written
/// over by the next round.
async fn restore(probed: &Probed) {
    let Probed { plan, known, folder } = probed;
    if known.targets.lock().is_some() {
        return;
    }
    let (from, route) = (folder.clone(), plan.route.clone());
    let read = tokio::task::spawn_blocking(move || files::read_as(&from, &route, STORED)).await;
    let restored = match read {
        Ok(Ok(state)) => state.unwrap_or_default(),
        Ok(Err(e)) => {
            let folder = folder.display();
            tracing::error!(event = "quality_not_restored", route = %plan.route, %folder, reason = %e);
            BTreeMap::new()
        }
        Err(_) => BTreeMap::new(),
    };
    known.targets.lock().get_or_insert(restored);
}

impl ProbePlan {
    /// Longest time from one round to the next, in seconds.
    fn longest(&self) -> f64 {
        self.every.as_secs_f64() * (1.0 + JITTER)
    }
}

impl Probed {
    /// Changes the state of a target.
    fn state_of<T>(&self, target: &ProbedTarget, change: impl FnOnce(&mut TargetState) -> T) -> T {
        let mut targets = self.known.targets.lock();
        change(targets.get_or_insert_default().entry(target.name.to_string()).or_default())
    }
}

impl Known {
    fn count(&self, target: &ProbedTarget, result: ProbeResult) {
        *self.counts.lock().entry(target.name.clone()).or_default().results.entry(result).or_default() += 1;
    }

    fn add(&self, target: &ProbedTarget, tokens: u64, took: Duration) {
        let mut counts = self.counts.lock();
        let counts = counts.entry(target.name.clone()).or_default();
        counts.tokens = counts.tokens.saturating_add(tokens);
        counts.seconds += took.as_secs_f64();
    }
}
