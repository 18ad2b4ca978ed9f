//! The controller over a real file, and over one that fails. Ticks are called, none is waited for.

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use spillway_config::schema::RolloutMetric;
use spillway_statistics::{Kind, Metric, Plan, Version};

use super::super::machine::{Gate, GateAnswer, Hold, Schedule, Step};
use super::super::observation::Observation;
use super::super::store::{GatewayCounts, SqliteStore};
use super::super::stored::Decided;
use super::super::{Rollouts, restore};
use super::*;
use crate::http_client::Http;

/// Calls of a store that fail.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
enum Failing {
    #[default]
    None,
    Writes,
    All,
}

/// File that fails when it is told to.
struct Faulty {
    file: SqliteStore,
    failing: Mutex<Failing>,
}

impl Faulty {
    fn check(&self, is_write: bool) -> Result<(), StoreError> {
        match *self.failing.lock() {
            Failing::None => Ok(()),
            Failing::Writes if !is_write => Ok(()),
            _ => Err(StoreError::Unreachable("as the test wants it".to_owned())),
        }
    }
}

#[async_trait::async_trait]
impl RolloutStore for Faulty {
    fn gateway(&self) -> &str {
        self.file.gateway()
    }
    async fn names(&self) -> Result<Vec<String>, StoreError> {
        self.check(false)?;
        self.file.names().await
    }
    async fn load(&self, name: &str) -> Result<Option<Stored>, StoreError> {
        self.check(false)?;
        self.file.load(name).await
    }
    async fn save(&self, stored: &Stored, entries: &[HistoryEntry]) -> Result<(), StoreError> {
        self.check(true)?;
        self.file.save(stored, entries).await
    }
    async fn decided(&self, name: &str, identity: &str) -> Result<Option<Decided>, StoreError> {
        self.check(false)?;
        self.file.decided(name, identity).await
    }
    async fn publish(&self, name: &str, key: &str, counts: &Counts) -> Result<(), StoreError> {
        self.check(true)?;
        self.file.publish(name, key, counts).await
    }
    async fn gather(&self, name: &str, key: &str) -> Result<Vec<GatewayCounts>, StoreError> {
        self.check(false)?;
        self.file.gather(name, key).await
    }
    async fn lead(&self, name: &str) -> Result<Option<u64>, StoreError> {
        self.check(true)?;
        self.file.lead(name).await
    }
    async fn take_lead(&self, name: &str) -> Result<u64, StoreError> {
        self.check(true)?;
        self.file.take_lead(name).await
    }
    async fn release(&self, name: &str) -> Result<(), StoreError> {
        self.file.release(name).await
    }
    async fn tidy(&self, present: &[(String, String)], now: f64) -> Result<(), StoreError> {
        self.check(true)?;
        self.file.tidy(present, now).await
    }
    async fn close(&self) {
        self.file.close().await;
    }
}

/// Gateway over a file, with its controller.
struct Process {
    controller: Controller,
    store: Arc<Faulty>,
    _folder: Option<tempfile::TempDir>,
}

impl Process {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut process = Self::at(&folder.path().join("rollouts.db"));
        process._folder = Some(folder);
        process
    }

    fn at(path: &std::path::Path) -> Self {
        let store = Arc::new(Faulty { file: SqliteStore::open(path).unwrap(), failing: Mutex::default() });
        let rollouts = Rollouts::new(Arc::new(Http::default()), Counter::default(), Counter::default());
        let controller = Controller {
            shared: rollouts.0.clone(),
            store: store.clone(),
            is_shared: false,
            runtime: Handle::current(),
            all: BTreeMap::new(),
            endings: VecDeque::new(),
            is_swept: false,
            tidied: Instant::now(),
        };
        Self { controller, store, _folder: None }
    }

    fn fail(&self, failing: Failing) {
        *self.store.failing.lock() = failing;
    }

    /// Makes a configuration with these rollouts the running one.
    async fn adopt(&mut self, plans: &[&Arc<RolloutPlan>], is_added: bool) {
        let mut all = Vec::new();
        for plan in plans {
            let course = restore::course(&*self.store, plan).await.unwrap();
            let course = course.filter(|course| !is_added || course.record().started_at.is_none());
            let present = course.as_ref().map_or(restore::UNKNOWN, presented);
            let wake = Arc::default();
            let live = LiveRollout::new("v2", plan.identity(), false, None, present, Counter::default(), wake);
            all.push(Prepared { plan: (*plan).clone(), live: Arc::new(live), course, is_added });
        }
        self.controller.adopt(all).await;
        self.tick().await;
    }

    /// Round of the controller in which an exchange with the store is due.
    async fn tick(&mut self) {
        self.controller.all.values_mut().for_each(|active| active.synced = None);
        self.controller.finish().await;
        self.controller.tick().await;
        self.controller.sweep().await;
    }

    fn active(&self) -> &Active {
        &self.controller.all["chat"]
    }

    fn record(&self) -> RolloutRecord {
        self.active().course.as_ref().unwrap().record().clone()
    }

    /// Requests of which those at the candidate fail.
    fn fail_at_the_candidate(&self, requests: u64) {
        let live = &self.active().live;
        let epoch = live.present().epoch;
        for unit in 0..requests {
            for version in [Version::Stable, Version::Candidate] {
                let is_error = version == Version::Candidate;
                live.observe(Observation { is_error, ..Observation::new(version, epoch, unit) });
            }
        }
    }

    async fn decided(&self, identity: &str) -> Option<Decided> {
        self.store.file.decided("chat", identity).await.unwrap()
    }
}

fn weight(percent: f64) -> Step {
    Step::Weight { percent, hold: Hold { seconds: 3600.0, requests: 0 } }
}

fn plan_of(schedule: Schedule) -> Arc<RolloutPlan> {
    let metric = Metric { name: "errorRate".to_owned(), kind: Kind::Share, threshold: "+0.02".parse().unwrap() };
    let schedule = Schedule { judge: Some(Plan::new(vec![metric])), ..schedule };
    Arc::new(RolloutPlan {
        schedule: Arc::new(schedule),
        metrics: vec![RolloutMetric::ErrorRate],
        hours: None,
        max_answer: 0,
    })
}

fn plan(identity: &str) -> Arc<RolloutPlan> {
    plan_of(Schedule { identity: identity.to_owned(), ..Schedule::for_tests(vec![weight(20.0), weight(50.0)]) })
}

#[tokio::test]
async fn an_answer_of_a_gate_that_was_asked_for_another_rollout_is_none() {
    let mut process = Process::start();
    let gate = Gate { url: "http://127.0.0.1:1/".parse().unwrap(), timeout: Duration::from_secs(1) };
    let steps = vec![Step::Gate(gate), weight(50.0)];
    let plan = plan_of(Schedule { identity: "one".to_owned(), ..Schedule::for_tests(steps) });
    process.adopt(&[&plan], false).await;
    assert_eq!(process.record().step, 0);
    let agreed = GateAnswer { agreed: true, text: "200".to_owned() };
    for (identity, asked) in [("another", (1, 0)), ("one", (2, 0)), ("one", (1, 1))] {
        process.controller.gate_answered("chat", identity, asked, &agreed).await;
        process.tick().await;
        assert_eq!((process.record().step, process.record().weight), (0, 0.0), "{identity} {asked:?}");
    }
    process.controller.gate_answered("chat", "one", (1, 0), &agreed).await;
    process.tick().await;
    assert_eq!((process.record().step, process.record().weight), (1, 50.0));
}

#[tokio::test]
async fn the_rollout_of_another_file_is_ended_and_the_new_one_is_judged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rollouts.db");
    let mut before = Process::at(&path);
    before.adopt(&[&plan("one")], false).await;
    assert_eq!(before.record().state, RolloutState::Running);
    before.controller.close().await;
    let mut process = Process::at(&path);
    process.adopt(&[&plan("two")], false).await;
    let ended = process.decided("one").await.unwrap();
    assert_eq!((ended.state, ended.reason.as_str()), (RolloutState::Aborted, EDITED));
    assert_eq!(process.record().state, RolloutState::Running);
    process.fail_at_the_candidate(300);
    process.tick().await;
    assert_eq!(process.record().state, RolloutState::Aborted);
    assert_eq!(process.decided("two").await.unwrap().state, RolloutState::Aborted);
}

#[tokio::test]
async fn an_abort_is_kept_where_the_file_and_the_store_fail_it_together() {
    for edited in [None, Some(plan("two"))] {
        let mut process = Process::start();
        process.adopt(&[&plan("one")], false).await;
        process.fail(Failing::All);
        process.fail_at_the_candidate(300);
        process.tick().await;
        process.tick().await;
        assert_eq!(process.record().state, RolloutState::Aborted);
        process.fail(Failing::Writes);
        let plans: Vec<_> = edited.iter().collect();
        process.adopt(&plans, true).await;
        assert!(process.decided("one").await.is_none());
        assert!(!process.controller.is_idle());
        process.fail(Failing::None);
        process.tick().await;
        process.tick().await;
        let decided = process.decided("one").await.unwrap();
        assert_eq!(decided.state, RolloutState::Aborted);
        assert!(decided.reason.contains("errorRate"), "the evidence, not the edit: {}", decided.reason);
        if edited.is_some() {
            assert_eq!(process.record().state, RolloutState::Running, "the new one begins");
        } else {
            assert!(process.controller.is_idle());
        }
    }
}

#[tokio::test]
async fn an_edit_while_the_store_fails_ends_the_rollout_when_it_answers() {
    let mut process = Process::start();
    process.adopt(&[&plan("one")], false).await;
    process.fail(Failing::All);
    process.controller.adopt(Vec::new()).await;
    process.fail(Failing::None);
    assert_eq!(process.store.load("chat").await.unwrap().unwrap().record.state, RolloutState::Running);
    process.tick().await;
    let stored = process.store.load("chat").await.unwrap().unwrap().record;
    assert_eq!((stored.state, stored.reason.as_str()), (RolloutState::Aborted, REMOVED));
    assert_eq!(stored.history.last().unwrap().event, super::super::record::RolloutEvent::Aborted);
    // The same file again: its removal has ended it.
    process.adopt(&[&plan("one")], true).await;
    assert_eq!(process.record().state, RolloutState::Aborted);
}

#[tokio::test]
async fn ends_that_wait_for_the_store_are_bounded() {
    let mut process = Process::start();
    process.fail(Failing::All);
    for n in 0..ENDINGS + 3 {
        let identity = n.to_string();
        let plan = plan_of(Schedule { name: identity.clone(), identity, ..Schedule::for_tests(vec![weight(20.0)]) });
        let course = Some(Course::new(Machine::new(plan.schedule.clone(), 0.0)));
        let (present, wake) = (restore::UNKNOWN, Arc::default());
        let live = Arc::new(LiveRollout::new("v2", "", false, None, present, Counter::default(), wake));
        process.controller.overtaken(Active::new(Prepared { plan, live, course, is_added: false }), EDITED).await;
        assert_eq!(process.controller.endings.len(), (n + 1).min(ENDINGS));
    }
    process.fail(Failing::None);
    process.tick().await;
    assert!(process.controller.is_idle());
}

#[tokio::test]
async fn one_that_never_began_waits_again_when_it_is_added_again() {
    let mut process = Process::start();
    let metric = Metric {
        name: "costPerRequest".to_owned(),
        kind: Kind::Mean { cap: None },
        threshold: "1.3x".parse().unwrap(),
    };
    let schedule = Schedule {
        judge: Some(Plan::new(vec![metric])),
        needs_warm_up: vec![0],
        ..Schedule::for_tests(vec![weight(20.0)])
    };
    let metrics = vec![RolloutMetric::CostPerRequest];
    let waiting = Arc::new(RolloutPlan { schedule: Arc::new(schedule), metrics, hours: None, max_answer: 0 });
    for is_added in [false, true, true] {
        process.adopt(&[&waiting], is_added).await;
        assert_eq!(process.record().state, RolloutState::Waiting);
        process.adopt(&[], false).await;
        let stored = process.store.load("chat").await.unwrap().unwrap().record;
        assert_eq!((stored.state, stored.decided), (RolloutState::Aborted, false));
    }
}

#[tokio::test]
async fn a_rollout_that_was_removed_while_no_gateway_ran_is_not_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rollouts.db");
    let mut before = Process::at(&path);
    before.adopt(&[&plan("one")], false).await;
    before.controller.close().await;

    // A restart with the same file resumes it.
    let mut process = Process::at(&path);
    process.adopt(&[&plan("one")], false).await;
    assert_eq!((process.record().state, process.record().run), (RolloutState::Running, 1));
    process.controller.close().await;

    // A restart without it, and an edit that adds it again. The store may fail meanwhile.
    let mut process = Process::at(&path);
    process.fail(Failing::Writes);
    process.adopt(&[&plan("one")], true).await;
    assert!(process.active().course.is_none(), "stable gets all");
    assert_eq!(process.active().live.present(), restore::UNKNOWN);
    process.fail(Failing::None);
    process.tick().await;
    assert_eq!((process.record().state, process.record().reason.as_str()), (RolloutState::Aborted, ABSENT));
    assert_eq!(process.decided("one").await.unwrap().state, RolloutState::Aborted);
    process.controller.close().await;
}

#[tokio::test]
async fn a_start_with_other_rollouts_ends_those_that_the_file_has_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rollouts.db");
    let mut before = Process::at(&path);
    before.adopt(&[&plan("one")], false).await;
    before.controller.close().await;
    let mut process = Process::at(&path);
    process.fail(Failing::All);
    process.controller.adopt(Vec::new()).await;
    process.controller.sweep().await;
    assert!(!process.controller.is_idle(), "it is tried again");
    process.fail(Failing::None);
    let other = Schedule { name: "other".to_owned(), ..Schedule::for_tests(vec![weight(20.0)]) };
    process.adopt(&[&plan_of(other)], false).await;
    let ended = process.decided("one").await.unwrap();
    assert_eq!((ended.state, ended.reason.as_str()), (RolloutState::Aborted, REMOVED));
    assert!(process.controller.is_swept);
}

#[tokio::test]
async fn a_disk_that_hangs_keeps_no_candidate_from_being_aborted() {
    let mut process = Process::start();
    process.adopt(&[&plan("one")], false).await;
    let hanging = process.store.file.hang();
    // The patience for the disk is over at once.
    tokio::time::pause();
    process.fail_at_the_candidate(300);
    process.tick().await;
    process.tick().await;
    assert_eq!(process.record().state, RolloutState::Aborted);
    assert_eq!(process.active().live.present().split, super::super::Split::Stable);
    drop(hanging);
}
