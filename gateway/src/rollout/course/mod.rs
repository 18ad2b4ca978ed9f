//! Course of a rollout: the state machine with the judge that it listens to, and the counts of the present step. Pure, as its
//! parts: time and observations come in, entries of the history come out.
//!
//! The gateway that leads calls [`Course::look`] with the counts of the others; the others only count. To change nothing
//! before it is stored, apply a look or a command to a clone, store that, and put it in place.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use spillway_statistics::distance::edges_of;
use spillway_statistics::sketch::Sketch;
use spillway_statistics::{Judgement, Kind, Metric, Plan, Rollout, RolloutError, Threshold, Version};

use super::command::{Command, CommandError};
use super::machine::{GateAnswer, Look, Machine, Schedule};
use super::record::{HeldUp, HistoryEntry, RolloutRecord, RolloutState, Strategy};
use super::stored::{Stored, WARM_UP};

pub use super::stored::Counts;

/// Share of the values of the stable version that lie below a cap.
const BELOW_CAP: f64 = 0.995;
/// Least cap, in multiples of the figure at which the candidate is worse: a lower one would hide that it is.
const CAP_ABOVE_THRESHOLD: f64 = 2.0;
/// Interval of the evidence that is shown while nothing is to be decided, seconds.
const EVIDENCE_EVERY: f64 = 10.0;
/// Candidate's share that the judge assumes for blue-green: only limits are judged, for which it has no meaning.
const SPLIT_OF_LIMITS: f64 = 0.5;

/// Candidate's share for a shadow: of each pair of answers one is its own.
const SPLIT_OF_PAIRS: f64 = 0.5;

/// Rollout under way with its judge.
#[derive(Clone, Debug)]
pub struct Course {
    machine: Machine,
    own: Counts,
    base: Option<Rollout>,
    judged_at: f64,
}

/// Machine and judge after a change of the weight.
struct Epoch {
    machine: Machine,
    base: Option<Rollout>,
}

impl Course {
    /// Rollout at the place of its machine: one that waits, or that has ended.
    #[must_use]
    pub fn new(machine: Machine) -> Self {
        let mut course = Self { machine, own: Counts::default(), base: None, judged_at: f64::NEG_INFINITY };
        course.clear_counts();
        course
    }

    /// Rollout as it was stored, with the counts that this gateway had published.
    ///
    /// # Errors
    ///
    /// Text of the fault, where what is stored does not fit the schedule or the plan.
    pub fn restored(schedule: Arc<Schedule>, stored: Stored, own: Option<Counts>) -> Result<Self, String> {
        let machine = Machine::restored(schedule, stored.record)?;
        let mut course = Self::new(machine);
        course.adopt_base(stored.base)?;
        if let Some(own) = own {
            course.count_in(own)?;
        }
        Ok(course)
    }

    /// Takes over what the leading gateway has stored. Counts of this gateway stay if the weight is still the same.
    ///
    /// # Errors
    ///
    /// As [`Course::restored`]; nothing is changed then.
    pub fn follow(&mut self, stored: Stored) -> Result<(), String> {
        let (before, after) = (self.counts_key(), counts_key(&stored.record));
        if before == after {
            self.machine = Machine::restored(self.machine.schedule().clone(), stored.record)?;
            return Ok(());
        }
        *self = Self::restored(self.machine.schedule().clone(), stored, None)?;
        Ok(())
    }

    fn adopt_base(&mut self, base: Option<Rollout>) -> Result<(), String> {
        let judged = self.machine.schedule().judge.is_some();
        let weights = self.machine.schedule().weights_up_to(self.record().step);
        let expected = self.machine.is_under_way() && judged && weights > 0;
        match base {
            Some(base) if expected => {
                let base = base.restored().map_err(|fault| fault.to_string())?;
                // Caps and edges were fixed before the first step, and are part of the stored plan alone.
                let plan = self.plan(|place, metric| {
                    let stored = base.plan().metrics.get(place).map(|stored| stored.kind);
                    let is_same = stored
                        .is_some_and(|kind| std::mem::discriminant(&kind) == std::mem::discriminant(&metric.kind));
                    stored.filter(|_| is_same).unwrap_or(metric.kind)
                });
                if base.step() + 1 != weights || plan.as_ref() != Some(base.plan()) {
                    return Err("the judge is of another plan or step".to_owned());
                }
                self.own.judge = Some(base.clone());
                self.base = Some(base);
                Ok(())
            }
            None if expected => Err("the judge is missing".to_owned()),
            _ => Ok(()),
        }
    }

    /// Adds counts to those of this gateway.
    fn count_in(&mut self, counts: Counts) -> Result<(), String> {
        let merged = merged(&self.own, std::slice::from_ref(&counts))?;
        self.own = merged;
        Ok(())
    }

    /// Record.
    #[must_use]
    pub fn record(&self) -> &RolloutRecord {
        self.machine.record()
    }

    /// Machine.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// State to be stored, under the fencing number of the lead. Its history is left out.
    #[must_use]
    pub fn stored(&self, fence: u64) -> Stored {
        let mut record = self.record().clone();
        record.history.clear();
        Stored { record, base: self.base.clone(), fence }
    }

    /// Counts of this gateway in the present step, to be published.
    #[must_use]
    pub fn own(&self) -> &Counts {
        &self.own
    }

    /// Key of the counts of the present step: identity, run and epoch.
    #[must_use]
    pub fn counts_key(&self) -> String {
        counts_key(self.record())
    }

    /// Counts a concluded request. One at the candidate counts only between the first step and the end.
    pub fn concluded(&mut self, version: Version) {
        match version {
            Version::Stable => self.own.stable_requests += 1,
            Version::Candidate if self.machine.is_under_way() => self.own.candidate_requests += 1,
            Version::Candidate => {}
        }
    }

    /// Adds an observation of a metric, by its place in the plan of the schedule, of a request of `unit`. It must have been
    /// assigned in the present epoch.
    pub fn observe(&mut self, metric: usize, version: Version, unit: u64, value: f64) {
        if let Some(judge) = &mut self.own.judge {
            judge.observe(metric, version, unit, value);
            return;
        }
        if !self.is_before_first_weight() || version != Version::Stable || !value.is_finite() {
            return;
        }
        let place = self.machine.schedule().needs_warm_up.iter().position(|place| *place == metric);
        if let Some(values) = place.and_then(|place| self.own.warm_up.get_mut(place))
            && values.len() < WARM_UP
        {
            values.push(value);
        }
    }

    /// Adds the time after which a caller left without the value of a metric, which would have been at least that.
    pub fn observe_at_least(&mut self, metric: usize, version: Version, unit: u64, bound: f64) {
        if let Some(judge) = &mut self.own.judge {
            judge.observe_at_least(metric, version, unit, bound);
        }
    }

    /// Looks at the counts of all gateways, `others` being those of the other ones under the present key, and makes the
    /// transitions that follow.
    ///
    /// # Errors
    ///
    /// Text of the fault, where counts of another gateway do not fit. Nothing is changed then.
    pub fn look(&mut self, now: f64, held_up: Option<HeldUp>, others: &[Counts]) -> Result<Vec<HistoryEntry>, String> {
        if self.record().state.is_end() {
            return Ok(Vec::new());
        }
        // One gateway alone has all counts; they are lent out for the look.
        let all = if others.is_empty() { None } else { Some(merged(&self.own, others)?) };
        let own = std::mem::take(&mut self.own);
        let looked = self.look_at(now, held_up, all.as_ref().unwrap_or(&own));
        match looked {
            Ok((entries, None)) => {
                self.own = own;
                Ok(entries)
            }
            Ok((entries, Some(next))) => {
                self.machine = next.machine;
                self.clear_counts();
                self.own.judge.clone_from(&next.base);
                self.base = next.base;
                Ok(entries)
            }
            Err(fault) => {
                self.own = own;
                Err(fault.to_string())
            }
        }
    }

    /// Look at counts; the next epoch where the weight changes.
    fn look_at(
        &mut self,
        now: f64,
        held_up: Option<HeldUp>,
        counts: &Counts,
    ) -> Result<(Vec<HistoryEntry>, Option<Epoch>), RolloutError> {
        let before = self.is_before_first_weight();
        let held_up = held_up.or_else(|| if before { self.warming_up(counts) } else { None });
        let judgement = self.judgement(now, counts);
        let look = Look {
            held_up,
            candidate_requests: counts.candidate_requests,
            stable_requests: counts.stable_requests,
            judgement,
        };
        let mut next = self.machine.clone();
        let entries = next.look(now, look);
        if next.record().epoch == self.record().epoch {
            self.machine = next;
            return Ok((entries, None));
        }
        let base = self.base_of(&next, counts)?;
        Ok((entries, Some(Epoch { machine: next, base })))
    }

    /// Judge for the step that the next state of the machine begins.
    fn base_of(&self, next: &Machine, counts: &Counts) -> Result<Option<Rollout>, RolloutError> {
        let split = match next.schedule().strategy {
            Strategy::Canary => short(next.record().weight / 100.0),
            Strategy::BlueGreen => SPLIT_OF_LIMITS,
            Strategy::Shadow => SPLIT_OF_PAIRS,
        };
        if !next.is_under_way() {
            return Ok(None);
        }
        if let Some(mut judge) = counts.judge.clone() {
            judge.next_step(split)?;
            return Ok(Some(judge));
        }
        let plan = self.plan(|place, metric| self.warmed_up(place, metric, counts).unwrap_or(metric.kind));
        plan.map(|plan| Rollout::new(plan, split)).transpose()
    }

    /// Carries out a command.
    ///
    /// # Errors
    ///
    /// As [`Machine::command`].
    pub fn command(
        &mut self,
        now: f64,
        command: Command,
        by: &str,
        reason: Option<&str>,
        held_up: Option<HeldUp>,
    ) -> Result<Vec<HistoryEntry>, CommandError> {
        let epoch = self.record().epoch;
        let entries = self.machine.command(now, command, by, reason, held_up)?;
        self.settle_end(epoch);
        Ok(entries)
    }

    /// Takes an answer of the gate that `asked` (run and step) was put to.
    pub fn gate_answered(&mut self, now: f64, asked: (u64, u32), answer: &GateAnswer) -> Vec<HistoryEntry> {
        self.machine.gate_answered(now, asked, answer)
    }

    /// Ends a rollout that an edit of the file has overtaken.
    pub fn overtaken(&mut self, now: f64, reason: &str) -> Vec<HistoryEntry> {
        let epoch = self.record().epoch;
        let entries = self.machine.overtaken(now, reason);
        self.settle_end(epoch);
        entries
    }

    /// Drops the counts after a command that changed the weight, which always ends a rollout or begins it anew.
    fn settle_end(&mut self, epoch: u64) {
        if self.record().epoch != epoch {
            self.clear_counts();
        }
    }

    fn clear_counts(&mut self) {
        let means = if self.is_before_first_weight() { self.machine.schedule().needs_warm_up.len() } else { 0 };
        self.own = Counts { warm_up: vec![Vec::new(); means], ..Counts::default() };
        self.base = None;
        self.judged_at = f64::NEG_INFINITY;
    }

    /// True until the candidate gets its first request: caps and edges are being fixed.
    fn is_before_first_weight(&self) -> bool {
        !self.record().state.is_end() && self.record().weight == 0.0
    }

    /// Evidence of this moment, where something may be decided by it or where it is time to show some.
    fn judgement(&mut self, now: f64, counts: &Counts) -> Option<Judgement> {
        let judge = counts.judge.as_ref()?;
        let record = self.machine.record();
        let is_wanted = match record.state {
            RolloutState::Running => {
                record.passed_at.is_none() && self.machine.is_hold_over(now, counts.candidate_requests)
            }
            RolloutState::Inconclusive => judge.is_fine(),
            _ => false,
        };
        // Negated, so that a clock that was set back shows evidence too.
        let is_due = !(0.0..EVIDENCE_EVERY).contains(&(now - self.judged_at));
        if !(is_wanted || is_due || judge.is_worse()) {
            return None;
        }
        self.judged_at = now;
        Some(judge.judge())
    }

    /// Metric whose cap or edges cannot be fixed yet.
    fn warming_up(&self, counts: &Counts) -> Option<HeldUp> {
        let plan = self.machine.schedule().judge.as_ref()?;
        let metrics = self.machine.schedule().needs_warm_up.iter().enumerate();
        let seen = metrics.filter_map(|(at, place)| {
            let seen = counts.warm_up.get(at).map_or(0, Vec::len);
            plan.metrics.get(*place).map(|metric| (seen, metric.name.clone()))
        });
        let (seen, metric) = seen.min()?;
        (seen < WARM_UP).then_some(HeldUp::WarmUp { metric, seen, needed: WARM_UP })
    }

    /// Plan of the schedule with its rate, its steps, and what was fixed before the first one.
    fn plan(&self, fixed: impl Fn(usize, &Metric) -> Kind) -> Option<Plan> {
        let schedule = self.machine.schedule();
        let mut plan = schedule.judge.clone()?;
        plan.false_alarm = short(schedule.false_alarm);
        plan.steps = schedule.weights().max(1);
        for place in &schedule.needs_warm_up {
            if let Some(metric) = plan.metrics.get_mut(*place) {
                metric.kind = fixed(*place, metric);
            }
        }
        Some(plan)
    }

    /// Kind of a metric with what the values of the stable version before the first step fix: the cap of a mean, or the edges
    /// of a distance.
    fn warmed_up(&self, place: usize, metric: &Metric, counts: &Counts) -> Option<Kind> {
        let at = self.machine.schedule().needs_warm_up.iter().position(|needs| *needs == place)?;
        let mut values = counts.warm_up.get(at)?.clone();
        values.sort_by(f64::total_cmp);
        match metric.kind {
            Kind::Mean { .. } => Some(Kind::Mean { cap: cap(&values, metric.threshold) }),
            Kind::Distance { .. } => {
                let mut before = Sketch::default();
                values.into_iter().for_each(|value| before.add(value));
                Some(Kind::Distance { edges: edges_of(&before)?.map(short) })
            }
            Kind::Share | Kind::Quantile { .. } => None,
        }
    }
}

/// Cap of a mean with this threshold, from sorted values of the stable version.
fn cap(values: &[f64], threshold: Threshold) -> Option<f64> {
    let number = f64::from(u32::try_from(values.len()).unwrap_or(u32::MAX));
    let mean = values.iter().sum::<f64>() / number;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place in the list")]
    let highest = (number * BELOW_CAP).ceil() as usize;
    let highest = *values.get(highest.checked_sub(1)?)?;
    let worse_from = match threshold {
        Threshold::Rise(rise) => mean + rise,
        Threshold::AtMost(ratio) => mean * ratio,
        Threshold::Limit(limit) => limit,
        Threshold::Drop(_) | Threshold::AtLeast(_) => mean,
    };
    let cap = highest.max(CAP_ABOVE_THRESHOLD * worse_from);
    // Where all values are 0 a cap would hide any other.
    (cap > 0.0 && cap.is_finite()).then_some(short(cap))
}

/// Number in twelve significant digits, which JSON keeps to the bit on its way through a store: plans and shares of two
/// gateways are compared.
fn short(value: f64) -> f64 {
    format!("{value:.11e}").parse().unwrap_or(value)
}

/// Sum of the counts of several gateways.
fn merged(own: &Counts, others: &[Counts]) -> Result<Counts, String> {
    let mut sum = own.clone();
    for other in others {
        sum.candidate_requests = sum.candidate_requests.saturating_add(other.candidate_requests);
        sum.stable_requests = sum.stable_requests.saturating_add(other.stable_requests);
        for (ours, theirs) in sum.warm_up.iter_mut().zip(&other.warm_up) {
            ours.extend(theirs.iter().copied().filter(|value| value.is_finite()).take(WARM_UP));
        }
        if let (Some(ours), Some(theirs)) = (&mut sum.judge, &other.judge) {
            let theirs = theirs.clone().restored().map_err(|fault| fault.to_string())?;
            ours.merge(&theirs).map_err(|fault| fault.to_string())?;
        }
    }
    Ok(sum)
}

fn counts_key(record: &RolloutRecord) -> String {
    format!("{}:{}:{}", record.identity, record.run, record.epoch)
}
