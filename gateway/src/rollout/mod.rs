//! Rollouts: a new version of a route's servers or model gets a growing share of the requests, is judged against the others,
//! and is promoted or aborted.
//!
//! The room owns the state of every rollout and its store; one thread, the controller, writes it. Requests read one number,
//! the split, and leave one observation at their end, with a copy of their answer where a metric needs it read. The room never
//! touches a request, and knows no route: what it needs of one comes as a plan.

mod answers;
pub mod command;
mod controller;
pub mod course;
pub mod gate;
pub mod hours;
mod live;
pub mod machine;
mod observation;
mod opening;
mod plan;
pub mod record;
mod reporting;
mod restore;
pub mod store;
pub mod stored;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use prometheus_client::metrics::counter::Counter;
use spillway_config::schema::StateStore;
use spillway_filter::HttpClient;
use spillway_statistics::Version;
use tokio::runtime::Handle;
use tokio::sync::{Notify, broadcast, mpsc, oneshot};

use answers::{AnswerChecker, AnswerReading};

use crate::feedback::{LabelSink, Score};
use crate::restarting;
pub use answers::{AnswerKind, AnswerTap, Pair, PairRules, REFUSED, Side, answer_text, satisfies};
pub use command::{Command, CommandError};
use course::Course;
pub use live::{LiveRollout, Present, Split, UnitOf};
pub use observation::Observation;
pub use opening::RolloutsError;
pub use plan::{PlanError, RolloutPlan, Versions};
pub use record::{HistoryEntry, RolloutEvent, RolloutRecord, RolloutState};
pub use reporting::{report, samples};
use restore::{Prepared, presented};
use store::{RolloutStore, StoreError};

/// Notices that a subscriber may be behind before it misses some: all of a rollout's history.
const NOTICES: usize = 256;
/// Commands that wait for the controller at a time; a person sends one.
const COMMANDS: usize = 16;
/// Longest wait for the controller to carry out a command, and to write its last state at the end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Event of a rollout, with its state after it.
#[derive(Debug, Clone)]
pub struct RolloutNotice {
    /// State of the rollout after the event.
    pub record: RolloutRecord,
    /// The event.
    pub entry: HistoryEntry,
}

/// Rollouts of the process, by the names of their routes. Cheap to clone.
#[derive(Clone)]
pub struct Rollouts(Arc<Shared>);

/// State that requests, operators and the controller share.
struct Shared {
    /// Records as they are shown, written by the controller alone.
    records: RwLock<BTreeMap<String, Arc<RolloutRecord>>>,
    /// Rollouts of the running configuration, by name. Written when a snapshot becomes active.
    adopted: Mutex<Adopted>,
    notices: broadcast::Sender<Arc<RolloutNotice>>,
    /// Wakes the controller.
    wake: Arc<Notify>,
    commands: mpsc::Sender<Order>,
    /// Receiver of the commands, until the controller is started.
    orders: Mutex<Option<mpsc::Receiver<Order>>>,
    /// Client for gates.
    http: Arc<dyn HttpClient>,
    /// Observations that were lost because the controller was held up.
    lost: Counter,
    /// Reader of answers.
    answers: Arc<AnswerChecker>,
    /// True from the last exchange before a hand-over on: a new process decides, and must not be overtaken by this one.
    is_leaving: AtomicBool,
}

/// Rollouts of the running configuration.
#[derive(Default)]
struct Adopted {
    /// Rollouts as requests see them, with their plans, by name.
    live: BTreeMap<String, (Arc<RolloutPlan>, Arc<LiveRollout>)>,
    /// Store, once a route has had a rollout; kept for the life of the process.
    store: Option<OpenStore>,
    /// Rollouts that the controller has not taken over yet.
    pending: Option<Vec<Prepared>>,
    /// True once the process has a configuration: a rollout of a later one is new, not one that a restart resumes.
    is_running: bool,
    /// True where the store has gone on since the first configuration was prepared.
    is_outdated: bool,
}

impl Adopted {
    /// Hands all rollouts to a controller that knows none: it goes on with what the store has.
    fn resume(&mut self) {
        let pending = self.pending.take().unwrap_or_default();
        let all = self.live.values().map(|(plan, live)| {
            let is_added = pending.iter().any(|one| one.is_added && one.plan.name() == plan.name());
            Prepared { plan: plan.clone(), live: live.clone(), course: None, is_added }
        });
        self.pending = Some(all.collect());
    }
}

/// Store with its place in the configuration.
#[derive(Clone)]
struct OpenStore {
    written: StateStore,
    store: Arc<dyn RolloutStore>,
}

/// Order to the controller.
enum Order {
    /// Command of a person.
    Command {
        name: String,
        command: Command,
        by: String,
        reason: Option<String>,
        reply: oneshot::Sender<Result<RolloutRecord, CommandError>>,
    },
    /// Answer of a gate that was asked at this run and step of the rollout of this identity.
    Gate { name: String, identity: String, asked: (u64, u32), answer: machine::GateAnswer },
    /// Writes everything and goes on: a new process reads it.
    Exchange(oneshot::Sender<()>),
    /// Reads the store, where its turn has not come yet.
    Know(oneshot::Sender<()>),
    /// Decides again, in place of a new process that is gone.
    Lead,
    /// Writes everything and ends.
    Close(oneshot::Sender<()>),
}

impl Rollouts {
    /// Rollouts of a process that has none yet. `lost` counts observations that found no room, `unread` answers.
    pub fn new(http: Arc<dyn HttpClient>, lost: Counter, unread: Counter) -> Self {
        let (commands, orders) = mpsc::channel(COMMANDS);
        Self(Arc::new(Shared {
            records: RwLock::default(),
            adopted: Mutex::default(),
            notices: broadcast::Sender::new(NOTICES),
            wake: Arc::default(),
            commands,
            orders: Mutex::new(Some(orders)),
            http,
            lost,
            answers: Arc::new(AnswerChecker::new(unread)),
            is_leaving: AtomicBool::new(false),
        }))
    }

    /// Rollouts of the running configuration, by name.
    pub fn list(&self) -> Vec<RolloutRecord> {
        self.0.records.read().values().map(|record| RolloutRecord::clone(record)).collect()
    }

    /// Rollout of a route.
    pub fn get(&self, name: &str) -> Option<RolloutRecord> {
        self.0.records.read().get(name).map(|record| RolloutRecord::clone(record))
    }

    /// True if a route of the running configuration has this rollout, whether its state is known already or not.
    pub fn is_configured(&self, name: &str) -> bool {
        self.0.adopted.lock().live.contains_key(name)
    }

    /// Waits until the store was asked for each rollout of the running configuration, for a bounded time.
    pub async fn known(&self) {
        if self.0.orders.lock().is_some() {
            return;
        }
        if !self.carried_out(Order::Know).await {
            tracing::warn!(event = "hand_over_behind", rollouts = false);
        }
    }

    /// Events from now on. One of a rollout that several gateways share is told by the gateway that decides.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<RolloutNotice>> {
        self.0.notices.subscribe()
    }

    /// Carries out a command of a person, named by `by`; returns the state after it.
    ///
    /// # Errors
    ///
    /// [`CommandError`] where there is no such rollout, its state does not allow the command, or the store fails.
    pub async fn command(
        &self,
        name: &str,
        command: Command,
        by: &str,
        reason: Option<String>,
    ) -> Result<RolloutRecord, CommandError> {
        if self.get(name).is_none() {
            return Err(CommandError::UnknownRollout { name: name.to_owned() });
        }
        if self.0.is_leaving.load(Ordering::Acquire) {
            let why = "a new process takes over at this moment; ask again".to_owned();
            return Err(CommandError::Store(StoreError::Unreachable(why)));
        }
        let (reply, answered) = oneshot::channel();
        let order = Order::Command { name: name.to_owned(), command, by: by.to_owned(), reason, reply };
        let busy = || CommandError::Store(StoreError::Unreachable("the gateway is busy with it or stops".to_owned()));
        let done = async {
            self.0.commands.send(order).await.map_err(|_| busy())?;
            answered.await.map_err(|_| busy())?
        };
        tokio::time::timeout(PATIENCE, done).await.unwrap_or_else(|_| Err(busy()))
    }

    /// Prepares the rollouts of a configuration that is being compiled; changes nothing. Those that run go on; the state of the
    /// others is read from the store.
    ///
    /// # Errors
    ///
    /// [`RolloutsError`] where the store cannot be used.
    pub(crate) async fn prepare(
        &self,
        plans: Vec<Arc<RolloutPlan>>,
        written: &StateStore,
    ) -> Result<PreparedRollouts, RolloutsError> {
        let (running, store, is_running) = {
            let adopted = self.0.adopted.lock();
            (adopted.live.clone(), adopted.store.clone(), adopted.is_running)
        };
        if plans.is_empty() {
            return Ok(PreparedRollouts { all: Vec::new(), store });
        }
        let store = match store {
            Some(open) if open.written == *written => open,
            Some(_) => return Err(RolloutsError::Changed),
            None => OpenStore { written: written.clone(), store: opening::open(written).await? },
        };
        let mut all = Vec::with_capacity(plans.len());
        for plan in plans {
            let known = running.get(plan.name()).filter(|(known, _)| known.identity() == plan.identity());
            let prepared = match known {
                Some((_, live)) => Prepared { plan, live: live.clone(), course: None, is_added: false },
                None => {
                    let mut course = restore::course(&*store.store, &plan).await?;
                    let is_added = is_running && !running.contains_key(plan.name());
                    // The controller decides what becomes of one that was under way once; until then stable gets all.
                    let is_old =
                        |course: &Course| course.record().started_at.is_some() && !course.record().state.is_end();
                    course = course.filter(|course| !(is_added && is_old(course)));
                    let present = course.as_ref().map_or(restore::UNKNOWN, presented);
                    let needs_costs = plan.metrics.contains(&spillway_config::schema::RolloutMetric::CostPerRequest);
                    let (lost, wake) = (self.0.lost.clone(), self.0.wake.clone());
                    let reading = AnswerReading::new(plan.max_answer, &plan.metrics, &self.0.answers);
                    let (candidate, identity) = (&plan.schedule.candidate, plan.identity());
                    let live = LiveRollout::new(candidate, identity, needs_costs, reading, present, lost, wake);
                    Prepared { plan, live: Arc::new(live), course, is_added }
                }
            };
            all.push(prepared);
        }
        Ok(PreparedRollouts { all, store: Some(store) })
    }

    /// Validates the store of a configuration with these plans, without making or changing anything.
    ///
    /// # Errors
    ///
    /// [`StoreError::File`] where the file cannot be used.
    pub(crate) async fn judge(
        plans: &[Arc<RolloutPlan>],
        written: &StateStore,
    ) -> Result<PreparedRollouts, RolloutsError> {
        let none = PreparedRollouts { all: Vec::new(), store: None };
        if !plans.is_empty() {
            opening::judge(written).await?;
        }
        Ok(none)
    }

    /// Makes prepared rollouts those of the running configuration. The controller ends the ones that are no more.
    pub(crate) fn adopt(&self, prepared: PreparedRollouts) {
        let mut adopted = self.0.adopted.lock();
        adopted.is_running = true;
        if prepared.all.is_empty() && adopted.live.is_empty() {
            return;
        }
        adopted.live =
            prepared.all.iter().map(|one| (one.plan.name().to_owned(), (one.plan.clone(), one.live.clone()))).collect();
        if adopted.live.values().any(|(_, live)| live.reading.is_some()) {
            self.0.answers.start();
        }
        if adopted.store.is_none() {
            adopted.store = prepared.store;
        }
        // The controller compares the newest with what it has: one that it never saw needs no end.
        let before = adopted.pending.take().unwrap_or_default();
        let mut all = prepared.all;
        if std::mem::take(&mut adopted.is_outdated) {
            // The controller reads them before it does anything.
            all.iter_mut().for_each(|one| one.course = None);
        }
        for one in &mut all {
            if one.course.is_none()
                && let Some(earlier) = before
                    .iter()
                    .find(|earlier| earlier.plan.name() == one.plan.name() && Arc::ptr_eq(&earlier.live, &one.live))
            {
                (one.course, one.is_added) = (earlier.course.clone(), earlier.is_added);
            }
        }
        adopted.pending = Some(all);
        let store = adopted.store.clone();
        drop(adopted);
        if let Some(store) = store {
            self.start(store);
        }
        self.0.wake.notify_one();
    }

    /// Starts the controller. Further calls do nothing.
    fn start(&self, store: OpenStore) {
        let Some(mut orders) = self.0.orders.lock().take() else { return };
        let Ok(runtime) = Handle::try_current() else {
            tracing::error!(event = "rollouts_not_started", reason = "no runtime");
            return;
        };
        let shared = self.0.clone();
        // A thread of its own: a judgement takes milliseconds, which no request waits for.
        let run = move || {
            let life = || {
                let run = controller::run(shared.clone(), store.clone(), &mut orders, runtime.clone());
                runtime.block_on(run);
            };
            restarting::until_end(restarting::FIRST_PAUSE, life, |reason, pause| {
                tracing::error!(event = "rollouts_panicked", reason, retry_after = pause.as_secs_f64());
                shared.adopted.lock().resume();
            });
        };
        if let Err(e) = std::thread::Builder::new().name("rollouts".into()).spawn(run) {
            tracing::error!(event = "rollouts_not_started", reason = %e, "weights stay as they are");
        }
    }

    /// Has the first configuration read the store again when it becomes active: until then another process goes on.
    pub fn begin_as_successor(&self) {
        self.0.adopted.lock().is_outdated = true;
    }

    /// Writes what was counted, for a new process to read. This process decides until that one does, which the store sees to, and
    /// takes no command any more. False where that took too long.
    pub async fn exchange(&self) -> bool {
        if self.0.orders.lock().is_some() {
            return true;
        }
        self.0.is_leaving.store(true, Ordering::Release);
        self.carried_out(Order::Exchange).await
    }

    /// Gives the controller an order and waits until it is carried out; false where that took too long.
    async fn carried_out(&self, order: fn(oneshot::Sender<()>) -> Order) -> bool {
        let (carried_out, done) = oneshot::channel();
        let work = async { self.0.commands.send(order(carried_out)).await.is_ok() && done.await.is_ok() };
        tokio::time::timeout(PATIENCE, work).await.unwrap_or(false)
    }

    /// Decides again: a new process that may have begun to is gone.
    pub async fn lead_again(&self) {
        self.0.is_leaving.store(false, Ordering::Release);
        if self.0.orders.lock().is_none() {
            let _ = tokio::time::timeout(PATIENCE, self.0.commands.send(Order::Lead)).await;
        }
    }

    /// Writes the last state and ends the controller, for a bounded time.
    pub async fn close(&self) {
        if self.0.orders.lock().is_some() {
            return;
        }
        let (closed, ended) = oneshot::channel();
        let done = async {
            if self.0.commands.send(Order::Close(closed)).await.is_ok() {
                let _ = ended.await;
            }
        };
        if tokio::time::timeout(PATIENCE, done).await.is_err() {
            tracing::error!(event = "rollouts_not_written", "the last counts of rollouts were not written in time");
        }
    }
}

impl LabelSink for Rollouts {
    /// Leaves the score for the judge. A label that comes after the weight has moved is not counted, because evidence of
    /// different weights is not mixed; nor is one for an answer of a stand-in, which is no version.
    fn labelled(&self, score: &Score<'_>) {
        let found = self.0.adopted.lock().live.get(score.route).cloned();
        let Some((plan, live)) = found else { return };
        let name = score.served_by.strip_prefix("builtin/").unwrap_or(score.served_by);
        let version = if *live.candidate == *name {
            Version::Candidate
        } else if plan.schedule.stable.iter().any(|stable| stable == name) {
            Version::Stable
        } else {
            return;
        };
        let present = live.present();
        if !matches!(present.split, Split::Both(_) | Split::Switched) || score.at < live.since() {
            return;
        }
        #[allow(clippy::cast_possible_truncation, reason = "seven digits of a score are enough")]
        let value = Some(score.score as f32);
        let observation = Observation::new(version, present.epoch, score.unit);
        live.observe(Observation { score: value, is_later: true, ..observation });
    }
}

/// Rollouts of a configuration that is not active yet.
pub(crate) struct PreparedRollouts {
    all: Vec<Prepared>,
    store: Option<OpenStore>,
}

impl PreparedRollouts {
    /// Rollout of a route, as its requests see it.
    pub(crate) fn live(&self, name: &str) -> Option<Arc<LiveRollout>> {
        self.all.iter().find(|one| one.plan.name() == name).map(|one| one.live.clone())
    }
}
