//! State machine of a rollout, over time that comes in as a number. No input or output, no clock, no randomness: the same
//! inputs give the same record. The module owns the record; inputs are looks, answers of gates, commands and edits; outputs
//! are the entries of the history that each of them adds.
//!
//! Promises for every sequence of inputs (property tests below):
//!
//! - The weight grows only at a call that is not held up, one step at a time but for a promotion.
//! - The weight falls only to 0, by an abort, by `start`, or at the end of a shadow.
//! - An end is an end: only `start` leaves it.
//! - An abort is possible in every state before the end, held up or not.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use spillway_config::values::Duration as WrittenDuration;
use spillway_statistics::{Finding, Judgement, Plan, Verdict};

use super::command::{Command, CommandError};
use super::record::{HistoryEntry, PausedBy, RolloutEvent, RolloutRecord, RolloutState, Strategy};
use super::stored::Decided;

pub use super::record::HeldUp;

/// Author of transitions that rest on evidence or time.
pub const BY_GATEWAY: &str = "gateway";
/// Author of transitions that an edit of the file causes.
pub const BY_FILE: &str = "file";

/// Difference between two weights that are the same, percent.
const WEIGHT_TOLERANCE: f64 = 1e-9;

/// Reaction to a hold that ends without enough evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnInconclusive {
    /// Keep the weight and go on looking.
    Pause,
    /// Take the next step.
    Promote,
    /// End the rollout.
    Abort,
}

/// Time and requests that a step holds for: both must be reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hold {
    /// Time, seconds; 0 where none is asked for.
    pub seconds: f64,
    /// Requests concluded at the candidate; 0 where none are asked for.
    pub requests: u64,
}

/// Webhook that must agree before the next step.
#[derive(Clone, Debug, PartialEq)]
pub struct Gate {
    /// URL that is asked.
    pub url: url::Url,
    /// Time limit of one question.
    pub timeout: Duration,
}

/// Step of a rollout.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Sets the candidate's share: of the requests, or of those that a shadow copies. A canary's share of 100 percent promotes;
    /// a blue-green one holds for `keepWarm` first.
    Weight {
        /// Share of the requests, percent above 0.
        percent: f64,
        /// Hold.
        hold: Hold,
    },
    /// Waits for a person, or for this many seconds.
    Pause {
        /// Length, seconds; none waits for a person.
        seconds: Option<f64>,
    },
    /// Waits for a webhook to agree.
    Gate(Gate),
}

/// Rollout as compiled from the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// Name of the route.
    pub name: String,
    /// Name of the candidate.
    pub candidate: String,
    /// Names of the other targets.
    pub stable: Vec<String>,
    /// Strategy.
    pub strategy: Strategy,
    /// Hash of the content of `rollout`, the candidate's identity and the names of the stable targets.
    pub identity: String,
    /// Steps, in order.
    pub steps: Vec<Step>,
    /// Reaction to a hold that ends without enough evidence.
    pub on_inconclusive: OnInconclusive,
    /// False-alarm rate of the whole rollout.
    pub false_alarm: f64,
    /// Plan of the judge; none without `abortWhen`. [`super::course::Course`] sets its false-alarm rate, steps and caps.
    pub judge: Option<Plan>,
    /// Places in the plan of metrics that the stable version's requests before the first step fix: caps of means that have no
    /// bound of their own, edges of distances.
    pub needs_warm_up: Vec<usize>,
}

impl Schedule {
    /// Number of weights that the candidate is judged at, up to and including a step.
    pub(super) fn weights_up_to(&self, step: u32) -> u32 {
        let taken = self.steps.iter().take(index(step).saturating_add(1));
        let judged = taken.filter(|step| matches!(step, Step::Weight { percent, .. } if !self.promotes_at(*percent)));
        u32::try_from(judged.count()).unwrap_or(u32::MAX)
    }

    /// Number of weights that the candidate is judged at.
    pub(super) fn weights(&self) -> u32 {
        self.weights_up_to(u32::MAX)
    }

    fn promotes_at(&self, percent: f64) -> bool {
        self.strategy == Strategy::Canary && percent >= 100.0
    }

    /// Candidate's share while a step is taken: that of the last weight up to it.
    fn weight_at(&self, step: u32) -> f64 {
        let taken = self.steps.iter().take(index(step).saturating_add(1));
        let weights = taken.filter_map(|step| match step {
            Step::Weight { percent, .. } if !self.promotes_at(*percent) => Some(*percent),
            _ => None,
        });
        weights.fold(0.0, f64::max).min(100.0)
    }
}

/// State of the world at a look.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// Reason for which no step up is taken now.
    pub held_up: Option<HeldUp>,
    /// Requests concluded at the candidate since its share last grew, at all gateways.
    pub candidate_requests: u64,
    /// Requests concluded at the stable version since then.
    pub stable_requests: u64,
    /// Evidence of this moment; none where it was not looked at.
    pub judgement: Option<Judgement>,
}

/// Answer of a gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GateAnswer {
    /// True if the webhook agreed.
    pub agreed: bool,
    /// Status or fault, as a short text.
    pub text: String,
}

/// Rollout of a route: its schedule and its record.
#[derive(Clone, Debug)]
pub struct Machine {
    schedule: Arc<Schedule>,
    record: RolloutRecord,
}

#[cfg(test)]
impl Schedule {
    /// Canary `v2` beside `v1` on the route `chat`, of which nothing is judged.
    pub(crate) fn for_tests(steps: Vec<Step>) -> Self {
        Self {
            name: "chat".to_owned(),
            candidate: "v2".to_owned(),
            stable: vec!["v1".to_owned()],
            strategy: Strategy::Canary,
            identity: "abc".to_owned(),
            steps,
            on_inconclusive: OnInconclusive::Pause,
            false_alarm: 0.01,
            judge: None,
            needs_warm_up: Vec::new(),
        }
    }
}

impl Machine {
    /// Rollout that waits for its first step.
    #[must_use]
    pub fn new(schedule: Arc<Schedule>, now: f64) -> Self {
        let record = RolloutRecord {
            name: schedule.name.clone(),
            candidate: schedule.candidate.clone(),
            stable: schedule.stable.clone(),
            strategy: schedule.strategy,
            identity: schedule.identity.clone(),
            run: 1,
            epoch: 0,
            state: RolloutState::Waiting,
            step: 0,
            steps: u32::try_from(schedule.steps.len()).unwrap_or(u32::MAX),
            weight: 0.0,
            reason: "begins with the next look".to_owned(),
            started_at: None,
            step_at: now,
            updated_at: now,
            ended_at: None,
            candidate_requests: 0,
            stable_requests: 0,
            false_alarm: schedule.false_alarm,
            verdict: Verdict::Inconclusive,
            paused_by: None,
            passed_at: None,
            decided: false,
            judgement: None,
            history: Vec::new(),
        };
        Self { schedule, record }
    }

    /// Rollout whose identity was decided before, while another one was in its place: it has ended as then.
    #[must_use]
    pub fn decided(schedule: Arc<Schedule>, decided: &Decided, now: f64) -> Self {
        let mut machine = Self::new(schedule, now);
        let promoted = decided.state == RolloutState::Promoted;
        let record = &mut machine.record;
        record.state = if promoted { RolloutState::Promoted } else { RolloutState::Aborted };
        record.weight = if promoted { record.strategy.weight_when_promoted() } else { 0.0 };
        record.run = decided.run;
        record.decided = true;
        record.ended_at = Some(decided.at);
        record.reason = decided.reason.clone();
        machine
    }

    /// Rollout from its stored record; the error says what does not fit the schedule.
    ///
    /// # Errors
    ///
    /// Text of the fault, where the record is of another identity or could not have been written by a machine.
    pub fn restored(schedule: Arc<Schedule>, mut record: RolloutRecord) -> Result<Self, &'static str> {
        let steps = u32::try_from(schedule.steps.len()).unwrap_or(u32::MAX);
        if record.identity != schedule.identity || record.steps != steps {
            return Err("it is of another rollout");
        }
        let times =
            [Some(record.step_at), Some(record.updated_at), record.started_at, record.ended_at, record.passed_at];
        if times.into_iter().flatten().any(|time| !time.is_finite()) {
            return Err("a time is no number");
        }
        let expected = match record.state {
            RolloutState::Promoted => schedule.strategy.weight_when_promoted(),
            RolloutState::Aborted | RolloutState::Waiting => 0.0,
            _ if record.step >= steps => return Err("its step is past the last"),
            _ => schedule.weight_at(record.step),
        };
        // JSON as read here may change the last bit of a number.
        let same = (record.weight - expected).abs() <= WEIGHT_TOLERANCE;
        if !same {
            return Err("its weight is not that of its step");
        }
        record.weight = expected;
        let begun = record.started_at.is_some();
        if matches!(record.state, RolloutState::Running | RolloutState::Paused | RolloutState::Inconclusive) && !begun {
            return Err("it has a step and never began");
        }
        Ok(Self { schedule, record })
    }

    /// Record.
    #[must_use]
    pub fn record(&self) -> &RolloutRecord {
        &self.record
    }

    /// Schedule.
    #[must_use]
    pub fn schedule(&self) -> &Arc<Schedule> {
        &self.schedule
    }

    /// True between the first step and the end: the rollout owns the weights, and the candidate is judged.
    #[must_use]
    pub fn is_under_way(&self) -> bool {
        matches!(self.record.state, RolloutState::Running | RolloutState::Paused | RolloutState::Inconclusive)
    }

    fn step(&self) -> Option<&Step> {
        self.schedule.steps.get(index(self.record.step))
    }

    /// Gate that is to be asked now, if nothing else holds the next step up.
    #[must_use]
    pub fn gate(&self, held_up: Option<&HeldUp>) -> Option<&Gate> {
        match self.step() {
            Some(Step::Gate(gate))
                if held_up.is_none()
                    && self.record.state == RolloutState::Running
                    && self.record.passed_at.is_none() =>
            {
                Some(gate)
            }
            _ => None,
        }
    }

    /// True if the hold of the present step is over, so that the next look needs evidence.
    #[must_use]
    pub fn is_hold_over(&self, now: f64, candidate_requests: u64) -> bool {
        match self.step() {
            Some(Step::Weight { hold, .. }) => {
                now - self.record.step_at >= hold.seconds && candidate_requests >= hold.requests
            }
            _ => false,
        }
    }

    /// Takes what is seen now into the record, and makes the transitions that follow: at most one step up.
    pub fn look(&mut self, now: f64, look: Look) -> Vec<HistoryEntry> {
        let mut entries = Vec::new();
        if self.record.state.is_end() {
            return entries;
        }
        // A clock that was set back must not lengthen a hold.
        self.record.step_at = self.record.step_at.min(now);
        self.record.candidate_requests = look.candidate_requests;
        self.record.stable_requests = look.stable_requests;
        let verdict = look.judgement.as_ref().map(|judgement| judgement.verdict);
        if let Some(judgement) = look.judgement {
            self.record.verdict = judgement.verdict;
            self.record.judgement = Some(judgement);
        }
        if self.record.state == RolloutState::Waiting {
            match look.held_up {
                Some(why) => self.record.reason = format!("has not begun: {why}"),
                None => self.begin(now, &mut entries),
            }
            return entries;
        }
        if self.is_judged() && verdict == Some(Verdict::Abort) {
            let reason = self.evidence(Finding::Worse);
            self.end(now, RolloutState::Aborted, BY_GATEWAY, reason, true, &mut entries);
            return entries;
        }
        if self.record.passed_at.is_none() {
            self.judge_step(now, verdict, &mut entries);
        }
        self.go_on(now, look.held_up.as_ref(), &mut entries);
        entries
    }

    fn is_judged(&self) -> bool {
        self.schedule.judge.is_some()
    }

    /// Decides whether the present step is passed.
    fn judge_step(&mut self, now: f64, verdict: Option<Verdict>, entries: &mut Vec<HistoryEntry>) {
        let elapsed = now - self.record.step_at;
        let paused_by_person = self.record.paused_by == Some(PausedBy::Person);
        match self.step() {
            Some(Step::Pause { seconds: Some(seconds) }) if elapsed >= *seconds && !paused_by_person => {
                self.record.passed_at = Some(now);
                self.resume(now, BY_GATEWAY, "the pause is over".to_owned(), entries);
            }
            Some(Step::Weight { hold, .. }) if !self.is_hold_over(now, self.record.candidate_requests) => {
                if self.record.state == RolloutState::Running {
                    self.record.reason = self.holding(elapsed, *hold);
                }
            }
            Some(Step::Weight { .. }) if !self.is_judged() => self.record.passed_at = Some(now),
            // A person's pause ends before the end of a hold is judged.
            Some(Step::Weight { .. }) if paused_by_person => {}
            Some(Step::Weight { .. }) => match verdict {
                Some(Verdict::Promote) => self.record.passed_at = Some(now),
                Some(Verdict::Inconclusive) => self.inconclusive(now, entries),
                // An abort has ended the look before.
                Some(Verdict::Abort) | None => {}
            },
            Some(Step::Pause { .. } | Step::Gate(_)) => {}
            // No step: the end is due.
            None => self.record.passed_at = Some(now),
        }
    }

    fn inconclusive(&mut self, now: f64, entries: &mut Vec<HistoryEntry>) {
        let reason = self.evidence(Finding::Undecided);
        match self.schedule.on_inconclusive {
            OnInconclusive::Promote => self.record.passed_at = Some(now),
            OnInconclusive::Abort => {
                let reason = format!("the hold ended without enough evidence: {reason}");
                self.end(now, RolloutState::Aborted, BY_GATEWAY, reason, true, entries);
            }
            OnInconclusive::Pause if self.record.state == RolloutState::Inconclusive => self.record.reason = reason,
            OnInconclusive::Pause => {
                self.record.state = RolloutState::Inconclusive;
                self.note(now, RolloutEvent::Inconclusive, BY_GATEWAY, reason, true, entries);
            }
        }
    }

    /// Takes the next step if the present one is passed and nothing holds it up.
    fn go_on(&mut self, now: f64, held_up: Option<&HeldUp>, entries: &mut Vec<HistoryEntry>) {
        if self.record.passed_at.is_none() || self.record.state.is_end() {
            return;
        }
        if self.record.paused_by.is_some() {
            return;
        }
        if let Some(why) = held_up {
            self.record.reason = format!("step {} of {} is passed; {why}", self.record.step + 1, self.record.steps);
            return;
        }
        self.enter(now, self.record.step.saturating_add(1), entries);
    }

    fn begin(&mut self, now: f64, entries: &mut Vec<HistoryEntry>) {
        self.record.started_at = Some(now);
        self.record.state = RolloutState::Running;
        self.enter(now, 0, entries);
    }

    /// Enters a step, or promotes where there is none.
    fn enter(&mut self, now: f64, step: u32, entries: &mut Vec<HistoryEntry>) {
        let first = step == 0;
        let number = format!("step {} of {}", step.saturating_add(1), self.record.steps);
        let was = self.record.step;
        (self.record.step, self.record.step_at, self.record.passed_at) = (step, now, None);
        self.record.paused_by = None;
        self.record.state = RolloutState::Running;
        match self.step().cloned() {
            Some(Step::Weight { percent, .. }) if !self.schedule.promotes_at(percent) => {
                let weight = self.schedule.weight_at(step).max(self.record.weight);
                self.set_weight(weight);
                let event = if first { RolloutEvent::Begun } else { RolloutEvent::StepUp };
                let what = if self.record.strategy == Strategy::Shadow { "copies of " } else { "" };
                let reason = format!("{number}: {what}{weight} % of the requests");
                // The evidence is that of the step before; there is none of this one.
                self.note(now, event, BY_GATEWAY, reason, !first, entries);
                self.record.judgement = None;
                self.record.verdict = Verdict::Inconclusive;
            }
            Some(Step::Pause { seconds }) => {
                if first {
                    self.note(now, RolloutEvent::Begun, BY_GATEWAY, number.clone(), false, entries);
                }
                self.record.state = RolloutState::Paused;
                self.record.paused_by = Some(PausedBy::Step);
                let reason = match seconds {
                    Some(seconds) => format!("{number}: a pause of {}", written(seconds)),
                    None => format!("{number}: a pause until `resume`"),
                };
                self.note(now, RolloutEvent::Paused, BY_GATEWAY, reason, !first, entries);
            }
            Some(Step::Gate(gate)) => {
                if first {
                    self.note(now, RolloutEvent::Begun, BY_GATEWAY, number.clone(), false, entries);
                }
                let reason = format!("{number}: the gate at {} is asked", place(&gate.url));
                self.note(now, RolloutEvent::GateAsked, BY_GATEWAY, reason, !first, entries);
            }
            Some(Step::Weight { .. }) | None => {
                if first {
                    self.note(now, RolloutEvent::Begun, BY_GATEWAY, number, false, entries);
                }
                let reason = match (self.is_judged(), self.schedule.on_inconclusive) {
                    _ if first => "the schedule has nothing before the promotion".to_owned(),
                    (true, _) if self.record.verdict == Verdict::Promote => {
                        format!("all {} steps are passed, every metric is within its threshold", self.record.steps)
                    }
                    (true, _) => format!("all {} steps are passed, no metric was shown to be worse", self.record.steps),
                    (false, _) => format!("all {} steps are passed; nothing was judged", self.record.steps),
                };
                let reason = match self.record.strategy {
                    Strategy::Shadow => format!("{reason}; a shadow moves no requests"),
                    Strategy::Canary | Strategy::BlueGreen => reason,
                };
                if step > self.record.steps {
                    self.record.step = was;
                }
                self.end(now, RolloutState::Promoted, BY_GATEWAY, reason, true, entries);
            }
        }
    }

    fn set_weight(&mut self, weight: f64) {
        self.record.weight = weight;
        self.record.epoch += 1;
        (self.record.candidate_requests, self.record.stable_requests) = (0, 0);
    }

    /// Takes an answer of the gate of a step. One of another step or run is late and changes nothing.
    pub fn gate_answered(&mut self, now: f64, asked: (u64, u32), answer: &GateAnswer) -> Vec<HistoryEntry> {
        let mut entries = Vec::new();
        let present = (self.record.run, self.record.step);
        let waits = self.record.state == RolloutState::Running && self.record.passed_at.is_none();
        if asked != present || !waits || !matches!(self.step(), Some(Step::Gate(_))) {
            return entries;
        }
        let number = format!("step {} of {}", self.record.step + 1, self.record.steps);
        if answer.agreed {
            self.record.passed_at = Some(now);
            let reason = format!("{number}: the gate agreed ({})", answer.text);
            self.note(now, RolloutEvent::GateAgreed, BY_GATEWAY, reason, false, &mut entries);
            return entries;
        }
        let reason = format!("{number}: the gate has not agreed ({}), it is asked again", answer.text);
        // One entry for each gate: it may be asked for days.
        let since = self.record.step_at;
        let entry = |entry: &HistoryEntry| entry.event == RolloutEvent::GateRefused && entry.at >= since;
        if self.record.history.iter().rev().take_while(|entry| entry.at >= since).any(entry) {
            self.record.reason = reason;
        } else {
            self.note(now, RolloutEvent::GateRefused, BY_GATEWAY, reason, false, &mut entries);
        }
        entries
    }

    /// Carries out a command.
    ///
    /// # Errors
    ///
    /// [`CommandError::NotAllowed`] where it does not fit the state, [`CommandError::HeldUp`] for a promotion while nothing
    /// goes up.
    pub fn command(
        &mut self,
        now: f64,
        command: Command,
        by: &str,
        reason: Option<&str>,
        held_up: Option<HeldUp>,
    ) -> Result<Vec<HistoryEntry>, CommandError> {
        let mut entries = Vec::new();
        let state = self.record.state;
        let refused = CommandError::NotAllowed { name: self.record.name.clone(), state, command };
        let reason = reason.map_or_else(|| format!("`{}` by {by}", command.as_str()), str::to_owned);
        match (command, state) {
            (Command::Start, RolloutState::Promoted | RolloutState::Aborted) => {
                let (run, epoch) = (self.record.run + 1, self.record.epoch + 1);
                let history = std::mem::take(&mut self.record.history);
                self.record = Self::new(self.schedule.clone(), now).record;
                (self.record.run, self.record.epoch, self.record.history) = (run, epoch, history);
                self.note(now, RolloutEvent::Started, by, reason, false, &mut entries);
            }
            (Command::Pause, RolloutState::Running | RolloutState::Inconclusive) => {
                self.record.state = RolloutState::Paused;
                self.record.paused_by = Some(PausedBy::Person);
                self.note(now, RolloutEvent::Paused, by, reason, false, &mut entries);
            }
            (Command::Pause, RolloutState::Paused) if self.record.paused_by == Some(PausedBy::Step) => {
                self.record.paused_by = Some(PausedBy::Person);
                self.note(now, RolloutEvent::Paused, by, reason, false, &mut entries);
            }
            (Command::Resume, RolloutState::Paused) => {
                if matches!(self.step(), Some(Step::Pause { .. })) {
                    self.record.passed_at = Some(now);
                }
                self.resume(now, by, reason, &mut entries);
            }
            (Command::Resume, RolloutState::Inconclusive) => {
                self.record.passed_at = Some(now);
                self.resume(now, by, reason, &mut entries);
            }
            (Command::Promote, state) if !state.is_end() => {
                if let Some(why) = held_up {
                    return Err(CommandError::HeldUp { name: self.record.name.clone(), why });
                }
                self.record.started_at.get_or_insert(now);
                self.end(now, RolloutState::Promoted, by, reason, true, &mut entries);
            }
            (Command::Abort, state) if !state.is_end() => {
                self.end(now, RolloutState::Aborted, by, reason, true, &mut entries);
            }
            _ => return Err(refused),
        }
        Ok(entries)
    }

    /// Ends a rollout that an edit of the file has overtaken. One that never began is not decided by that.
    pub fn overtaken(&mut self, now: f64, reason: &str) -> Vec<HistoryEntry> {
        let mut entries = Vec::new();
        if !self.record.state.is_end() {
            let decides = self.record.started_at.is_some();
            self.end(now, RolloutState::Aborted, BY_FILE, reason.to_owned(), decides, &mut entries);
        }
        entries
    }

    fn resume(&mut self, now: f64, by: &str, reason: String, entries: &mut Vec<HistoryEntry>) {
        self.record.state = RolloutState::Running;
        self.record.paused_by = None;
        self.note(now, RolloutEvent::Resumed, by, reason, false, entries);
    }

    fn end(
        &mut self,
        now: f64,
        state: RolloutState,
        by: &str,
        reason: String,
        decides: bool,
        entries: &mut Vec<HistoryEntry>,
    ) {
        entries.push(self.record.end(now, state, by, reason, decides));
    }

    /// Adds an entry to the history.
    fn note(
        &mut self,
        now: f64,
        event: RolloutEvent,
        by: &str,
        reason: String,
        with_evidence: bool,
        entries: &mut Vec<HistoryEntry>,
    ) {
        entries.push(self.record.note(now, event, by, reason, with_evidence));
    }

    /// Sentences of the metrics with a finding.
    fn evidence(&self, finding: Finding) -> String {
        let Some(judgement) = &self.record.judgement else { return "no evidence".to_owned() };
        let metrics = judgement.metrics.iter().filter(|metric| metric.finding == finding);
        let sentences: Vec<&str> = metrics.map(|metric| metric.sentence.as_str()).collect();
        if sentences.is_empty() { judgement.sentence.clone() } else { sentences.join(" ") }
    }

    /// Reason while a step holds: what is left of it.
    fn holding(&self, elapsed: f64, hold: Hold) -> String {
        let mut left = Vec::new();
        if elapsed < hold.seconds {
            left.push(written((hold.seconds - elapsed).ceil()));
        }
        let requests = hold.requests.saturating_sub(self.record.candidate_requests);
        if requests > 0 {
            left.push(format!("{requests} requests at the candidate"));
        }
        let (number, weight) = (self.record.step + 1, self.record.weight);
        format!("step {number} of {}: holds at {weight} % for {} more", self.record.steps, left.join(" and "))
    }
}

/// URL without user, path and query, which may hold secrets.
fn place(url: &url::Url) -> String {
    url.origin().ascii_serialization()
}

/// Seconds as the configuration writes them.
fn written(seconds: f64) -> String {
    let whole = Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX);
    WrittenDuration(whole).to_string()
}

fn index(step: u32) -> usize {
    usize::try_from(step).unwrap_or(usize::MAX)
}
