//! Controller: the one writer of every rollout. It gathers observations, looks, asks gates, carries out commands, and writes each
//! transition to the store before requests see it.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::command::{Command, CommandError};
use super::course::{Counts, Course};
use super::live::LiveRollout;
use super::machine::{BY_FILE, HeldUp, Machine};
use super::record::{HistoryEntry, RolloutRecord, RolloutState};
use super::restore::{Prepared, presented, read};
use super::store::{RolloutStore, StoreError};
use super::stored::Stored;
use super::{OpenStore, Order, RolloutNotice, RolloutPlan, Shared, gate};
use crate::clock::unix_seconds;

/// Time between two looks while a rollout is under way: far below what a person or a hold notices.
const TICK: Duration = Duration::from_millis(200);
/// Time between two writes of counts, and two looks at what other gateways have written: the most that a crash loses.
const SYNC: Duration = Duration::from_secs(1);
/// Time between two tidyings of the store, which also keep alive what a server would let expire after a week.
const TIDY: Duration = Duration::from_secs(86_400);

/// Ends that wait for a store that fails: more than a person edits meanwhile.
const ENDINGS: usize = 64;

/// Reason of the end of a rollout that an edit has changed.
const EDITED: &str = "the rollout or its candidate was edited";
/// Reason of the end of a rollout that an edit has removed.
const REMOVED: &str = "the rollout was removed from the file";
/// Reason of the end of a rollout that the file did not have for a while, in which this gateway did not run or had no rollouts.
const ABSENT: &str = "the rollout was removed from the file, and added again later";

/// Runs until it is closed.
pub(super) async fn run(shared: Arc<Shared>, store: OpenStore, orders: &mut mpsc::Receiver<Order>, runtime: Handle) {
    let mut controller = Controller {
        is_shared: matches!(store.written, spillway_config::schema::StateStore::Shared(_)),
        store: store.store,
        shared: shared.clone(),
        runtime,
        all: BTreeMap::new(),
        endings: VecDeque::new(),
        is_swept: false,
        tidied: Instant::now(),
    };
    loop {
        controller.adopt_pending().await;
        controller.finish().await;
        controller.tick().await;
        controller.sweep().await;
        if controller.tidied.elapsed() >= TIDY {
            controller.tidy().await;
        }
        tokio::select! {
            biased;
            order = orders.recv() => match order {
                Some(Order::Command { name, command, by, reason, reply }) => {
                    // A command after an edit is for what the edit has brought.
                    controller.adopt_pending().await;
                    // A caller that left has its command carried out all the same.
                    let _ = reply.send(controller.command(&name, command, &by, reason).await);
                }
                Some(Order::Gate { name, identity, asked, answer }) => {
                    controller.gate_answered(&name, &identity, asked, &answer).await;
                }
                Some(Order::Exchange(written)) => {
                    controller.exchange().await;
                    let _ = written.send(());
                }
                Some(Order::Know(asked)) => {
                    controller.adopt_pending().await;
                    controller.tick().await;
                    let _ = asked.send(());
                }
                Some(Order::Lead) => controller.lead_again().await,
                Some(Order::Close(closed)) => {
                    controller.close().await;
                    let _ = closed.send(());
                    return;
                }
                None => return,
            },
            () = shared.wake.notified() => {}
            () = tokio::time::sleep(controller.pause()), if !controller.is_idle() => {}
        }
    }
}

/// Rollout under the controller's eyes.
struct Active {
    plan: Arc<RolloutPlan>,
    live: Arc<LiveRollout>,
    /// Course; `None` until the store has answered.
    course: Option<Course>,
    /// True for a rollout that an edit has added while the process ran: one that the store has under way is of a time before.
    is_added: bool,
    /// Fencing number while this gateway decides.
    fence: Option<u64>,
    /// Transitions that were made while the store failed: an abort and nothing else.
    unsaved: Vec<HistoryEntry>,
    /// Time of the last exchange with the store, and whether there is anything new since.
    synced: Option<Instant>,
    is_changed: bool,
    /// Counts of the other gateways, as they were then.
    others: Vec<Counts>,
    /// True while the store fails.
    is_cut_off: bool,
    /// Time of the last question to a gate; `None` where none is under way.
    asked: Option<Instant>,
}

impl Active {
    fn new(prepared: Prepared) -> Self {
        Self {
            plan: prepared.plan,
            live: prepared.live,
            course: prepared.course,
            is_added: prepared.is_added,
            fence: None,
            unsaved: Vec::new(),
            synced: None,
            is_changed: true,
            others: Vec::new(),
            is_cut_off: false,
            asked: None,
        }
    }

    /// Takes what requests have left into the course.
    fn count(&mut self) {
        let (metrics, course, is_changed) = (&self.plan.metrics, &mut self.course, &mut self.is_changed);
        let Some(course) = course else {
            self.live.drain(|_| {});
            return;
        };
        let present = presented(course).epoch;
        self.live.drain(|observation| {
            // One of another weight belongs to no comparison of this one.
            if observation.epoch != present {
                return;
            }
            *is_changed = true;
            if !observation.is_later && !observation.is_part {
                course.concluded(observation.version);
            }
            for (place, metric) in metrics.iter().enumerate() {
                if let Some(value) = observation.value(*metric) {
                    course.observe(place, observation.version, observation.unit, value);
                } else if let Some(bound) = observation.at_least(*metric) {
                    course.observe_at_least(place, observation.version, observation.unit, bound);
                }
            }
        });
    }

    fn hours(&self, now: f64) -> Option<HeldUp> {
        let hours = self.plan.hours.as_ref().filter(|hours| !hours.allow(now))?;
        Some(HeldUp::Hours { opens: hours.opens(now) })
    }

    fn held_up(&self, now: f64) -> Option<HeldUp> {
        if self.is_cut_off { Some(HeldUp::Store) } else { self.hours(now) }
    }

    /// Assumes nothing about a store that failed: by the time it answers again another gateway may lead, and a server may have
    /// lost everything.
    fn distrust_store(&mut self) {
        self.fence = None;
        self.is_changed = true;
    }

    fn is_ended(&self) -> bool {
        self.course.as_ref().is_some_and(|course| course.record().state.is_end())
    }
}

/// End of a rollout that is no more in the file, and that the store does not know of yet.
struct Ending {
    course: Course,
    /// Transitions up to the end.
    unsaved: Vec<HistoryEntry>,
    /// True where it was aborted before the edit, while the store failed: it is stored, whoever decides by now.
    by_force: bool,
}

struct Controller {
    shared: Arc<Shared>,
    store: Arc<dyn RolloutStore>,
    /// True if other gateways may use the store.
    is_shared: bool,
    runtime: Handle,
    all: BTreeMap<String, Active>,
    /// Ends that the store does not know of yet, in their order.
    endings: VecDeque<Ending>,
    /// True once the rollouts that the store has under way, and the first file has not, are ended.
    is_swept: bool,
    tidied: Instant,
}

impl Controller {
    /// True where a new process decides, or is about to.
    fn is_leaving(&self) -> bool {
        self.shared.is_leaving.load(Ordering::Acquire)
    }

    /// True while there is nothing to do but by an order or an edit.
    fn is_idle(&self) -> bool {
        self.all.is_empty() && self.endings.is_empty() && self.is_swept
    }

    /// Time until the next tick.
    fn pause(&self) -> Duration {
        if !self.endings.is_empty() || !self.is_swept {
            return SYNC;
        }
        let sleeps = |active: &Active| active.is_ended() && active.unsaved.is_empty();
        match (self.all.values().all(sleeps), self.is_shared) {
            (false, _) => TICK,
            // Another gateway may begin an ended one anew.
            (true, true) => SYNC,
            (true, false) => Duration::from_secs(3600),
        }
    }

    /// Takes over the rollouts of a configuration that has become active, if there is one.
    async fn adopt_pending(&mut self) {
        let pending = self.shared.adopted.lock().pending.take();
        if let Some(pending) = pending {
            self.adopt(pending).await;
        }
    }

    /// Takes over the rollouts of another configuration.
    async fn adopt(&mut self, prepared: Vec<Prepared>) {
        let mut before = std::mem::take(&mut self.all);
        for one in prepared {
            let name = one.plan.name().to_owned();
            let active = match before.remove(&name) {
                Some(mut known) if known.plan.identity() == one.plan.identity() => {
                    known.count();
                    (known.plan, known.live) = (one.plan, one.live);
                    known
                }
                Some(known) => {
                    self.overtaken(known, EDITED).await;
                    Active::new(one)
                }
                None => Active::new(one),
            };
            self.all.insert(name, active);
        }
        for (_, gone) in before {
            self.overtaken(gone, REMOVED).await;
        }
        self.tidy().await;
        let mut records = self.shared.records.write();
        records.retain(|name, _| self.all.contains_key(name));
        drop(records);
        for active in self.all.values() {
            self.show(active);
        }
    }

    /// Removes what is stored of rollouts that are gone for long, and keeps the others alive.
    async fn tidy(&mut self) {
        self.tidied = Instant::now();
        let present: Vec<(String, String)> = self
            .all
            .iter()
            .filter_map(|(name, active)| Some((name.clone(), active.course.as_ref()?.counts_key())))
            .collect();
        if let Err(e) = self.store.tidy(&present, unix_seconds()).await {
            tracing::warn!(event = "rollouts_not_tidied", reason = %e);
        }
    }

    /// Ends a rollout that the configuration no longer has. Where the store fails, its end is written when that answers again.
    async fn overtaken(&mut self, mut active: Active, reason: &str) {
        active.count();
        let Some(mut course) = active.course.take() else { return };
        let mut unsaved = std::mem::take(&mut active.unsaved);
        if course.record().state.is_end() && unsaved.is_empty() {
            return;
        }
        let by_force = !unsaved.is_empty();
        // Where another gateway decides, it sees the edit too.
        if !by_force && matches!(self.store.lead(active.plan.name()).await, Ok(None)) {
            return;
        }
        let entries = course.overtaken(unix_seconds(), reason);
        active.live.set(presented(&course));
        unsaved.extend(entries.iter().cloned());
        self.tell(course.record(), entries);
        if self.endings.len() >= ENDINGS
            && let Some(lost) = self.endings.pop_front()
        {
            let reason = StoreError::Unreachable(format!("it has failed for too long: {ENDINGS} ends wait for it"));
            self.not_written(&lost.course.record().name, &reason);
        }
        self.endings.push_back(Ending { course, unsaved, by_force });
        self.finish().await;
    }

    /// Writes the ends that the store does not know of yet, in their order, until it fails.
    async fn finish(&mut self) {
        while let Some(ending) = self.endings.pop_front() {
            let written = self.write_end(&ending).await;
            let name = &ending.course.record().name;
            match written {
                // A successor that has the lead by now sees the edit too.
                Ok(()) | Err(StoreError::NotLeader(_)) => {}
                // What cannot be read now cannot be read later.
                Err(e @ StoreError::Damaged { .. }) => self.not_written(name, &e),
                Err(e) => {
                    tracing::debug!(event = "rollout_end_waits", rollout = name, reason = %e);
                    self.endings.push_front(ending);
                    return;
                }
            }
        }
    }

    /// Writes the end of a rollout, unless the store has a later state of it or another rollout in its place.
    async fn write_end(&self, ending: &Ending) -> Result<(), StoreError> {
        let record = ending.course.record();
        let led = if ending.by_force {
            Some(self.store.take_lead(&record.name).await?)
        } else {
            self.store.lead(&record.name).await?
        };
        let Some(fence) = led else { return Ok(()) };
        let stored = self.store.load(&record.name).await?;
        let is_superseded = stored.is_some_and(|stored| {
            stored.record.identity != record.identity || stored.record.run > record.run || stored.record.state.is_end()
        });
        if is_superseded {
            return Ok(());
        }
        self.store.save(&ending.course.stored(fence), &ending.unsaved).await
    }

    /// Ends what the store has under way and the file no more: removed while no gateway ran.
    async fn sweep(&mut self) {
        if self.is_swept {
            return;
        }
        match self.end_absent().await {
            Ok(()) | Err(StoreError::NotLeader(_)) => self.is_swept = true,
            Err(e) => tracing::debug!(event = "rollouts_not_swept", reason = %e),
        }
    }

    async fn end_absent(&self) -> Result<(), StoreError> {
        for name in self.store.names().await? {
            if self.all.contains_key(&name) {
                continue;
            }
            let stored = match self.store.load(&name).await {
                Err(e @ StoreError::Damaged { .. }) => {
                    self.not_written(&name, &e);
                    continue;
                }
                loaded => loaded?,
            };
            let Some(stored) = stored else { continue };
            if stored.record.state.is_end() || stored.record.started_at.is_none() {
                continue;
            }
            if let Some(fence) = self.store.lead(&name).await? {
                self.end_stored(stored, fence, REMOVED).await?;
            }
        }
        Ok(())
    }

    /// Ends a rollout that only the store knows.
    async fn end_stored(&self, stored: Stored, fence: u64, reason: &str) -> Result<(), StoreError> {
        let mut ended = Stored { base: None, fence, ..stored };
        let entry = ended.record.end(unix_seconds(), RolloutState::Aborted, BY_FILE, reason.to_owned(), true);
        // The store adds entries to the history that it has.
        ended.record.history.clear();
        self.store.save(&ended, std::slice::from_ref(&entry)).await?;
        self.tell(&ended.record, vec![entry]);
        Ok(())
    }

    /// Reads the course of a rollout from the store, if it is not known yet. One that an edit has added is not resumed where the
    /// store has it under way and no gateway leads it: it was removed meanwhile, and that has ended it.
    async fn know(&self, active: &mut Active) -> Result<(), StoreError> {
        if active.course.is_some() {
            return Ok(());
        }
        let mut course = read(&*self.store, &active.plan).await?;
        let is_under_way = course.record().started_at.is_some() && !course.record().state.is_end();
        if active.is_added
            && is_under_way
            && let Some(fence) = self.store.lead(active.plan.name()).await?
        {
            let entries = course.overtaken(unix_seconds(), ABSENT);
            self.store.save(&course.stored(fence), &entries).await?;
            self.tell(course.record(), entries);
        }
        active.is_added = false;
        active.course = Some(course);
        Ok(())
    }

    fn not_written(&self, name: &str, error: &StoreError) {
        tracing::error!(event = "rollout_not_written", rollout = name, reason = %error);
    }

    /// Shows a rollout to requests and operators.
    fn show(&self, active: &Active) {
        let Some(course) = &active.course else { return };
        active.live.set(presented(course));
        let record = Arc::new(course.record().clone());
        self.shared.records.write().insert(record.name.clone(), record);
    }

    fn tell(&self, record: &RolloutRecord, entries: Vec<HistoryEntry>) {
        for entry in entries {
            // Without a subscriber nobody is told.
            let _ = self.shared.notices.send(Arc::new(RolloutNotice { record: record.clone(), entry }));
        }
    }

    async fn tick(&mut self) {
        let names: Vec<String> = self.all.keys().cloned().collect();
        for name in names {
            let Some(mut active) = self.all.remove(&name) else { continue };
            active.count();
            self.look(&mut active).await;
            self.ask(&mut active);
            self.show(&active);
            self.all.insert(name, active);
        }
    }

    /// Looks at one rollout: exchanges counts with the store once a second, decides where this gateway does.
    async fn look(&self, active: &mut Active) {
        let is_due = active.synced.is_none_or(|synced| synced.elapsed() >= SYNC);
        if active.is_ended() && active.unsaved.is_empty() && !(self.is_shared && is_due) && active.synced.is_some() {
            return;
        }
        if is_due || active.is_cut_off {
            let was_cut_off = active.is_cut_off;
            let done = self.sync(active).await;
            active.is_cut_off = done.is_err();
            if done.is_err() {
                active.distrust_store();
            }
            match done {
                Err(e) if !was_cut_off => {
                    tracing::error!(event = "rollout_store_failed", rollout = active.plan.name(), reason = %e, "its weight stays");
                }
                Ok(()) if was_cut_off => {
                    tracing::info!(event = "rollout_store_back", rollout = active.plan.name());
                }
                _ => {}
            }
        }
        let may_decide = active.fence.is_some() || (active.is_cut_off && !self.is_leaving());
        if active.course.is_none() || !may_decide {
            return;
        }
        match self.decide(active).await {
            Ok(()) => {}
            // Its successor decides; this gateway follows from the next exchange on.
            Err(StoreError::NotLeader(_)) => (active.fence, active.synced) = (None, None),
            Err(e) => {
                active.is_cut_off = true;
                active.distrust_store();
                self.not_written(active.plan.name(), &e);
            }
        }
    }

    /// Exchanges with the store: the lead, this gateway's counts, those of the others, and the state where another leads.
    async fn sync(&self, active: &mut Active) -> Result<(), StoreError> {
        active.synced = Some(Instant::now());
        let name = active.plan.name().to_owned();
        self.know(active).await?;
        let fence = if active.unsaved.is_empty() || self.is_leaving() {
            self.store.lead(&name).await?
        } else {
            // An abort that was made while the store failed is stored, whoever decides by now.
            Some(self.store.take_lead(&name).await?)
        };
        if fence.is_none() || fence != active.fence {
            self.catch_up(active, fence).await?;
        }
        active.fence = fence;
        let Some(course) = &active.course else { return Ok(()) };
        if let Some(fence) = active.fence
            && (active.is_changed || !active.unsaved.is_empty())
        {
            self.store.save(&course.stored(fence), &active.unsaved).await?;
            active.unsaved.clear();
        }
        let key = course.counts_key();
        // A process that lost the file to another one has nothing to write there.
        if active.is_changed && (self.is_shared || active.fence.is_some()) {
            self.store.publish(&name, &key, course.own()).await?;
            active.is_changed = false;
        }
        if self.is_shared {
            let counts = self.store.gather(&name, &key).await?;
            let of_others = counts.into_iter().filter(|(gateway, _)| gateway != self.store.gateway());
            active.others = of_others.map(|(_, counts)| counts).collect();
        }
        Ok(())
    }

    /// Takes over what the gateway that led before has left, but for an abort that it does not know of; writes everything to a
    /// store that has nothing, where this gateway leads from now on.
    async fn catch_up(&self, active: &mut Active, fence: Option<u64>) -> Result<(), StoreError> {
        let name = active.plan.name();
        let Some(course) = &mut active.course else { return Ok(()) };
        let Some(stored) = self.store.load(name).await? else {
            // A new rollout, or a server that came back empty.
            if let Some(fence) = fence {
                self.store.save(&course.stored(fence), &course.record().history).await?;
                active.unsaved.clear();
                active.is_changed = true;
            }
            return Ok(());
        };
        let is_own = stored.record.identity == active.plan.identity();
        if !is_own {
            return self.end_other(active, fence, stored).await;
        }
        // One that an edit ended before it began was not decided by that, and begins anew.
        let is_undecided = stored.record.state.is_end() && !stored.record.decided;
        let is_older = stored.record.run == course.record().run && !stored.record.state.is_end();
        if !is_undecided && (active.unsaved.is_empty() || !is_older) {
            let damaged = |reason| StoreError::Damaged { what: format!("the rollout `{name}`"), reason };
            course.follow(stored).map_err(damaged)?;
            active.unsaved.clear();
        }
        Ok(())
    }

    /// Ends the rollout of another file that the store has in the place of this one, if this gateway leads; and takes over what was
    /// decided of this one meanwhile.
    async fn end_other(&self, active: &mut Active, fence: Option<u64>, stored: Stored) -> Result<(), StoreError> {
        let name = active.plan.name();
        let Some(course) = &mut active.course else { return Ok(()) };
        if let Some(fence) = fence
            && stored.record.started_at.is_some()
            && !stored.record.state.is_end()
        {
            self.end_stored(stored, fence, EDITED).await?;
        }
        if !course.record().state.is_end()
            && let Some(decided) = self.store.decided(name, active.plan.identity()).await?
            && decided.run >= course.record().run
        {
            let machine = Machine::decided(active.plan.schedule.clone(), &decided, unix_seconds());
            *course = Course::new(machine);
        }
        Ok(())
    }

    /// Makes the transitions that the counts lead to. They are stored before they count; while the store fails only an abort is
    /// made, and stored when it answers again.
    async fn decide(&self, active: &mut Active) -> Result<(), StoreError> {
        let now = unix_seconds();
        let held_up = active.held_up(now);
        let Some(course) = &active.course else { return Ok(()) };
        let mut next = course.clone();
        let entries = match next.look(now, held_up, &active.others) {
            Ok(entries) => entries,
            Err(reason) => {
                // Counts of a gateway that has not followed yet; its next ones fit.
                tracing::debug!(event = "rollout_counts_differ", rollout = active.plan.name(), reason);
                active.others.clear();
                return Ok(());
            }
        };
        if active.is_cut_off {
            if next.record().state == RolloutState::Aborted && !entries.is_empty() {
                active.unsaved.extend(entries.iter().cloned());
                self.replace(active, next, entries);
            }
            return Ok(());
        }
        if !entries.is_empty() {
            let Some(fence) = active.fence else { return Ok(()) };
            self.store.save(&next.stored(fence), &entries).await?;
        }
        self.replace(active, next, entries);
        Ok(())
    }

    /// Puts the next state of a rollout into effect.
    fn replace(&self, active: &mut Active, next: Course, entries: Vec<HistoryEntry>) {
        let has_moved = active.course.as_ref().is_some_and(|course| course.counts_key() != next.counts_key());
        if has_moved {
            active.others.clear();
            active.is_changed = true;
        }
        active.course = Some(next);
        self.show(active);
        if let Some(course) = &active.course
            && !entries.is_empty()
        {
            self.tell(course.record(), entries);
        }
    }

    /// Asks the gate of the present step, if one is due. The answer comes as an order.
    fn ask(&self, active: &mut Active) {
        let now = unix_seconds();
        let held_up = active.held_up(now);
        let Some(course) = active.course.as_ref().filter(|_| active.fence.is_some()) else { return };
        let Some(question) = course.machine().gate(held_up.as_ref()) else {
            active.asked = None;
            return;
        };
        if active.asked.is_some_and(|asked| asked.elapsed() < gate::ASK_EVERY.max(question.timeout)) {
            return;
        }
        active.asked = Some(Instant::now());
        let asking = gate::ask(course.machine(), question, &*self.shared.http);
        let (name, asked) = (active.plan.name().to_owned(), (course.record().run, course.record().step));
        let (identity, orders) = (active.plan.identity().to_owned(), self.shared.commands.clone());
        self.runtime.spawn(async move {
            let answer = asking.await;
            // A controller that has ended needs no answer.
            let _ = orders.send(Order::Gate { name, identity, asked, answer }).await;
        });
    }

    /// Takes an answer of a gate. One that was asked for another rollout of the name is no answer for this one.
    async fn gate_answered(
        &mut self,
        name: &str,
        identity: &str,
        asked: (u64, u32),
        answer: &super::machine::GateAnswer,
    ) {
        let Some(mut active) = self.all.remove(name) else { return };
        if let (Some(course), Some(fence)) = (&active.course, active.fence)
            && active.plan.identity() == identity
        {
            let mut next = course.clone();
            let entries = next.gate_answered(unix_seconds(), asked, answer);
            match self.store.save(&next.stored(fence), &entries).await {
                Ok(()) => self.replace(&mut active, next, entries),
                Err(e) => self.not_written(name, &e),
            }
        }
        self.all.insert(name.to_owned(), active);
    }

    async fn command(
        &mut self,
        name: &str,
        command: Command,
        by: &str,
        reason: Option<String>,
    ) -> Result<RolloutRecord, CommandError> {
        let unknown = || CommandError::UnknownRollout { name: name.to_owned() };
        let mut active = self.all.remove(name).ok_or_else(unknown)?;
        active.count();
        let done = self.commanded(&mut active, command, by, reason.as_deref()).await;
        self.show(&active);
        self.all.insert(name.to_owned(), active);
        done
    }

    async fn commanded(
        &self,
        active: &mut Active,
        command: Command,
        by: &str,
        reason: Option<&str>,
    ) -> Result<RolloutRecord, CommandError> {
        let now = unix_seconds();
        let led = self.take_over(active).await;
        let is_cut_off = led.is_err();
        let fence = match led {
            Ok(fence) => Some(fence),
            // Traffic is taken from a bad version even where nobody can be told of it yet.
            Err(_) if command == Command::Abort && active.course.is_some() => None,
            Err(e) => return Err(e.into()),
        };
        let held_up = if is_cut_off { Some(HeldUp::Store) } else { active.hours(now) };
        let Some(course) = &active.course else {
            return Err(StoreError::Unreachable("its state is not known yet".to_owned()).into());
        };
        let mut next = course.clone();
        let entries = next.command(now, command, by, reason, held_up)?;
        match fence {
            Some(fence) => self.store.save(&next.stored(fence), &entries).await?,
            None => active.unsaved.extend(entries.iter().cloned()),
        }
        let record = next.record().clone();
        self.replace(active, next, entries);
        Ok(record)
    }

    /// Takes the lead for a command, with the state that the gateway which led has left.
    async fn take_over(&self, active: &mut Active) -> Result<u64, StoreError> {
        let name = active.plan.name().to_owned();
        let fence = self.store.take_lead(&name).await?;
        self.know(active).await?;
        if active.fence != Some(fence) {
            self.catch_up(active, Some(fence)).await?;
        }
        active.fence = Some(fence);
        Ok(fence)
    }

    /// Writes what was counted.
    async fn exchange(&mut self) {
        self.finish().await;
        let names: Vec<String> = self.all.keys().cloned().collect();
        for name in names {
            let Some(mut active) = self.all.remove(&name) else { continue };
            active.count();
            if let Err(e) = self.sync(&mut active).await {
                self.not_written(&name, &e);
            }
            self.all.insert(name, active);
        }
    }

    /// Takes the file back that a new process may have claimed. A shared store gives the lead of one that is gone away by itself.
    async fn lead_again(&mut self) {
        for (name, active) in self.all.iter_mut().filter(|_| !self.is_shared) {
            if let Err(e) = self.store.take_lead(name).await {
                tracing::error!(event = "rollout_not_written", rollout = name, reason = %e);
            }
            (active.fence, active.synced) = (None, None);
        }
    }

    /// Writes what is left.
    async fn close(&mut self) {
        self.finish().await;
        for ending in std::mem::take(&mut self.endings) {
            let reason = StoreError::Unreachable("its end is not known to the store".to_owned());
            self.not_written(&ending.course.record().name, &reason);
        }
        let names: Vec<String> = self.all.keys().cloned().collect();
        for name in names {
            let Some(mut active) = self.all.remove(&name) else { continue };
            active.count();
            if let Err(e) = self.sync(&mut active).await {
                self.not_written(&name, &e);
            }
        }
        self.store.close().await;
    }
}
