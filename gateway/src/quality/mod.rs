//! Watch over what callers ask and what each target answers: drift from a reference, without a text being kept.
//!
//! The room owns the sketches of each route and target. A request that is drawn is handed over when it has ended ([`Tap`]); one
//! task on a thread of its own reads it, counts it and drops it ([`Quality`]), so that the request path copies at most the
//! beginning of an answer. Memory is bounded: two megabytes a route. Probes ([`Asker`]) are questions of the gateway's own. The
//! room changes no request, and knows no socket and no route; its inputs are bytes of bodies and the rules of the configuration.

mod content;
mod eval_set;
mod examples;
mod facts;
mod feature;
mod files;
mod notices;
mod pane;
mod probes;
mod reference;
mod report;
mod sampled;
mod sampling;
mod signals;
mod state;
mod texts;
mod worker;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

pub use content::{ContentTap, Contents};
pub use eval_set::EvalCase;
pub use examples::{Example, Keeping};
pub use feature::Feature;
pub use probes::{
    Ask, Asked, Asker, ProbeAnswer, ProbePlan, ProbeReport, ProbedTarget, ProbesError, ProbesReport, ProviderReport,
    SeenValue, Skipped,
};
pub use reference::{ReferenceError, ReferenceFile};
pub use report::{Bar, Counts, FeatureReport, Figures, RouteReport, TargetReport};
pub use sampled::Counters;
pub use sampling::{Ended, Sampling, Tap};
pub use signals::says_again;
pub use state::{Reference, Rules};

use crate::builtin::LoadedModel;
use crate::notify::Notifier;
use crate::telemetry::{QualityFeatureSample, QualitySample};
use examples::Examples;
use notices::Notices;
use probes::Prober;
use worker::{ExamplesAnswer, MOST_MESSAGES, Message, Watched};

/// Most targets of a route that are watched, as the configuration's check allows.
const MAX_TARGETS: usize = 6;
/// Most features of a target: those without tensors, and those of the tensors that are followed.
const MAX_FEATURES: usize = 128;
/// Longest name of a tensor, in bytes; longer ones are cut.
const MAX_NAME: usize = 64;
/// Tensors of one side that are followed at most.
const MOST_TENSORS: usize = 16;
/// Topics of prompts.
const TOPICS: usize = 16;
/// Numbers of an embedding that are used; of longer ones the first.
const MAX_DIMENSION: usize = 1024;
/// Time for the task to make a reference or to store what has changed.
const ANSWER: Duration = Duration::from_secs(5);

/// Reports that the task has published, for operators.
#[derive(Default)]
pub struct Published {
    reports: Mutex<BTreeMap<Arc<str>, Arc<Shown>>>,
    write_failures: AtomicU64,
    panics: AtomicU64,
}

struct Shown {
    report: RouteReport,
    counters: Arc<Counters>,
    signals: HashMap<(Box<str>, &'static str), u64>,
}

impl Published {
    fn put(
        &self,
        name: Arc<str>,
        report: RouteReport,
        counters: &Arc<Counters>,
        signals: &HashMap<(Box<str>, &'static str), u64>,
    ) {
        let shown = Shown { report, counters: counters.clone(), signals: signals.clone() };
        self.reports.lock().insert(name, Arc::new(shown));
    }

    fn retain(&self, keep: impl Fn(&str) -> bool) {
        self.reports.lock().retain(|name, _| keep(name));
    }

    fn write_failed(&self) {
        self.write_failures.fetch_add(1, Ordering::Relaxed);
    }

    fn panicked(&self) {
        self.panics.fetch_add(1, Ordering::Relaxed);
    }

    fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }

    fn all(&self) -> Vec<Arc<Shown>> {
        self.reports.lock().values().cloned().collect()
    }
}

/// Plan of a route that a new configuration watches.
pub struct Plan {
    /// Name of the route.
    pub route: String,
    /// Share of the requests.
    pub share: f64,
    /// Rules.
    pub rules: Rules,
    /// Model for embeddings.
    pub model: Option<Arc<LoadedModel>>,
    /// Probes of its targets.
    pub probes: Option<Arc<ProbePlan>>,
    /// Rules of the texts that are kept; `None` where none are.
    pub keeping: Option<Keeping>,
}

/// Sketches of all routes, and the task that owns them. Outlives configurations.
pub struct Quality {
    queue: mpsc::Sender<Message>,
    /// Queue of the task that has not begun: it does when a configuration watches a route.
    waiting: Mutex<Option<mpsc::Receiver<Message>>>,
    /// Counters of routes, kept over reloads.
    counters: Mutex<HashMap<Arc<str>, Weak<Counters>>>,
    bytes: Arc<AtomicUsize>,
    published: Arc<Published>,
    notices: Notices,
    prober: Prober,
}

/// Texts that cannot be shown or deleted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoExamples {
    /// The file cannot be read or written.
    #[error("the file of examples: {0}")]
    File(String),
    /// The task did not answer in time.
    #[error("the examples were not there in time; try again")]
    Busy,
}

impl Quality {
    /// Watch over no route yet. `notifier` tells receivers of drift.
    pub fn new(notifier: Arc<Notifier>) -> Self {
        let notices = Notices::new(notifier);
        let (queue, waiting) = mpsc::channel(MOST_MESSAGES);
        Self {
            queue,
            waiting: Mutex::new(Some(waiting)),
            counters: Mutex::default(),
            bytes: Arc::default(),
            published: Arc::default(),
            prober: Prober::new(notices.clone()),
            notices,
        }
    }
}

/// Reference that cannot be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoReference {
    /// The route is not watched.
    #[error("there is no route of that name with `quality`; /api/quality lists those there are")]
    Unknown,
    /// The task did not answer in time.
    #[error("the sketches were not there in time; try again")]
    Busy,
}

impl Quality {
    /// Sampling of a route for a new configuration.
    pub fn sampling(&self, plan: &Plan) -> Arc<Sampling> {
        let name: Arc<str> = plan.route.as_str().into();
        let counters = self.counters_of(&name);
        Arc::new(Sampling::new(name, plan.share, counters, self.queue.clone(), self.bytes.clone()))
    }

    fn counters_of(&self, route: &Arc<str>) -> Arc<Counters> {
        let mut all = self.counters.lock();
        if let Some(counters) = all.get(route).and_then(Weak::upgrade) {
            return counters;
        }
        all.retain(|_, counters| counters.strong_count() > 0);
        let counters = Arc::new(Counters::default());
        all.insert(route.clone(), Arc::downgrade(&counters));
        counters
    }

    /// Hands the plans of a configuration that has become active to the task, which begins with the first plan that there is.
    /// State of routes that are still watched goes on.
    pub fn adopt(&self, plans: Vec<Plan>, folder: PathBuf) {
        self.prober.adopt(plans.iter().filter_map(|plan| plan.probes.clone()).collect(), &folder);
        // Texts that were kept under an earlier configuration are deleted.
        if plans.is_empty() && self.waiting.lock().is_some() && !Examples::is_in(&folder) {
            return;
        }
        let waiting = self.waiting.lock().take();
        if let Some(waiting) = waiting
            && let Err(e) = worker::start(waiting, self.published.clone(), self.notices.clone())
        {
            tracing::error!(event = "quality_not_started", reason = %e);
            return;
        }
        let watched = plans.into_iter().map(|Plan { route, share, rules, model, probes: _, keeping }| {
            let name: Arc<str> = route.into();
            let counters = self.counters_of(&name);
            Watched { name, rules, share, model, counters, keeping, folder: folder.clone() }
        });
        let message = Message::Adopt(watched.collect(), folder.clone());
        // The queue may be full of samples, which the task is reading.
        let queue = self.queue.clone();
        match queue.try_send(message) {
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(message)) => {
                tokio::spawn(async move { queue.send(message).await });
            }
        }
    }

    /// Reports on all routes.
    pub fn reports(&self) -> Vec<RouteReport> {
        let shown = self.published.all();
        let report = |shown: &Arc<Shown>| {
            let report = shown.report.clone().counted(&shown.counters, &shown.signals);
            let probes = self.prober.reports(&report.route);
            RouteReport { probes, ..report }
        };
        shown.iter().map(report).collect()
    }

    /// Sketches of a route for a reference file.
    ///
    /// # Errors
    /// The route is not watched, or the task is busy.
    pub async fn reference(&self, route: &str) -> Result<ReferenceFile, NoReference> {
        if self.waiting.lock().is_some() {
            return Err(NoReference::Unknown);
        }
        let (answer, file) = oneshot::channel();
        let asking = async {
            self.queue.send(Message::Reference(route.to_owned(), answer)).await.ok()?;
            file.await.ok()
        };
        match tokio::time::timeout(ANSWER, asking).await {
            Ok(Some(Some(file))) => Ok(file),
            Ok(Some(None)) => Err(NoReference::Unknown),
            Ok(None) | Err(_) => Err(NoReference::Busy),
        }
    }

    /// Newest texts that were kept, of one route or of all.
    ///
    /// # Errors
    /// The task is busy, or the file cannot be read.
    pub async fn examples(&self, route: Option<String>) -> Result<Vec<Example>, NoExamples> {
        if self.waiting.lock().is_some() {
            return Ok(Vec::new());
        }
        self.ask(|answer| Message::Examples(route, answer)).await
    }

    /// Deletes the texts that were kept, of one route or of all. Returns their number.
    ///
    /// # Errors
    /// The task is busy, or the file cannot be written.
    pub async fn delete_examples(&self, route: Option<String>) -> Result<usize, NoExamples> {
        if self.waiting.lock().is_some() {
            return Ok(0);
        }
        self.ask(|answer| Message::DeleteExamples(route, answer)).await
    }

    async fn ask<T>(&self, message: impl FnOnce(ExamplesAnswer<T>) -> Message) -> Result<T, NoExamples> {
        let (answer, told) = oneshot::channel();
        let message = message(answer);
        let asking = async {
            self.queue.send(message).await.ok()?;
            told.await.ok()
        };
        match tokio::time::timeout(ANSWER, asking).await {
            Ok(Some(told)) => told.map_err(NoExamples::File),
            Ok(None) | Err(_) => Err(NoExamples::Busy),
        }
    }

    /// Stores what has changed and writes nothing more: a new process goes on with what is stored. Requests that end here meanwhile
    /// are not counted. Probes end too. False where that took too long.
    pub async fn pause(&self) -> bool {
        self.prober.stop().await;
        if self.waiting.lock().is_some() {
            return true;
        }
        let (done, stored) = oneshot::channel();
        let pausing = async { self.queue.send(Message::Pause(done)).await.is_ok() && stored.await.is_ok() };
        tokio::time::timeout(ANSWER, pausing).await.unwrap_or(false)
    }

    /// Goes on after [`Self::pause`]: there is no new process.
    pub async fn resume(&self) {
        self.prober.run();
        if self.waiting.lock().is_none() {
            let _ = tokio::time::timeout(ANSWER, self.queue.send(Message::Resume)).await;
        }
    }

    /// Stores what has changed, at the end of the process.
    pub async fn stop(&self) {
        if self.waiting.lock().is_some() {
            return;
        }
        let (done, stored) = oneshot::channel();
        let stopping = async {
            let _ = self.queue.send(Message::Stop(done)).await;
            let _ = stored.await;
        };
        let _ = tokio::time::timeout(ANSWER, stopping).await;
    }

    /// Figures for a scrape.
    pub fn samples(&self) -> Vec<QualitySample> {
        let sample = |report: RouteReport| {
            let features = report.targets.iter().flat_map(|target| {
                let of = |one: &FeatureReport| QualityFeatureSample {
                    target: target.target.clone(),
                    feature: one.feature.to_string(),
                    distance: one.distance.filter(|_| one.judged),
                    limit: one.limit,
                    drifted: one.drifted,
                };
                target.features.iter().map(of)
            });
            let signals = report.targets.iter().flat_map(|target| {
                target.signals.iter().map(|(signal, count)| (target.target.clone(), signal.clone(), *count))
            });
            QualitySample {
                features: features.collect(),
                signals: signals.collect(),
                probes: self.prober.samples(&report.route),
                route: report.route,
                bytes: u64::try_from(report.bytes).unwrap_or(u64::MAX),
                kept: report.counts.kept,
                sampled: report.counts.sampled,
                dropped: report.counts.dropped,
                unreadable: report.counts.unreadable,
                embedded: report.counts.embedded,
                not_embedded: report.counts.not_embedded,
                embedding_seconds: report.counts.embedding_seconds,
            }
        };
        self.reports().into_iter().map(sample).collect()
    }

    /// Panics of the task, after each of which it began again.
    pub fn panics(&self) -> u64 {
        self.published.panics()
    }

    /// Writes that have failed.
    pub fn write_failures(&self) -> u64 {
        self.published.write_failures.load(Ordering::Relaxed).saturating_add(self.prober.write_failures())
    }

    /// Begins to ask the probes of all routes by this way.
    pub fn probe_by(&self, asker: Arc<dyn Asker>) {
        self.prober.start(asker);
    }

    /// Ends all probes, which no request waits for, before the process drains.
    pub async fn stop_probes(&self) {
        self.prober.stop().await;
    }
}
