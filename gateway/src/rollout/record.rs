//! Record of a rollout: what is stored, shown by the admin API and sent with notifications. Plain data; the module
//! `machine` alone changes it.

use std::fmt;

use serde::{Deserialize, Serialize};
use spillway_statistics::{Judgement, Verdict};

/// Most entries of a history; older ones are dropped.
pub const HISTORY: usize = 256;

/// State of a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RolloutState {
    /// Not begun: outside the allowed hours, or too few requests at the stable version to fix caps of means and edges of distances.
    Waiting,
    /// A step holds, or a gate is asked.
    Running,
    /// Steps up are stopped by a pause of the plan or by a person; judging goes on.
    Paused,
    /// A hold is over without enough evidence; judging goes on.
    Inconclusive,
    /// Ended: the candidate gets all requests; after a shadow, no more copies.
    Promoted,
    /// Ended: the candidate gets no request.
    Aborted,
}

impl RolloutState {
    /// Name, as in JSON and in labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Inconclusive => "inconclusive",
            Self::Promoted => "promoted",
            Self::Aborted => "aborted",
        }
    }

    /// All states, in the order of a rollout's life.
    pub const ALL: [Self; 6] =
        [Self::Waiting, Self::Running, Self::Paused, Self::Inconclusive, Self::Promoted, Self::Aborted];

    /// True for promoted and aborted.
    #[must_use]
    pub fn is_end(self) -> bool {
        matches!(self, Self::Promoted | Self::Aborted)
    }
}

/// Strategy of a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Strategy {
    /// The candidate's share grows in steps.
    Canary,
    /// Switch from 0 to 100 percent at once; the stable version is kept warm for a while.
    BlueGreen,
    /// The candidate gets copies of requests, and answers no caller.
    Shadow,
}

impl Strategy {
    /// Share of the requests that a promoted candidate gets, percent. A shadow moves none.
    #[must_use]
    pub fn weight_when_promoted(self) -> f64 {
        if self == Self::Shadow { 0.0 } else { 100.0 }
    }
}

/// Reason for which no step up is taken now.
#[derive(Clone, Debug, PartialEq)]
pub enum HeldUp {
    /// Outside the allowed hours.
    Hours {
        /// Time at which they begin, as text with its zone; none if they never do.
        opens: Option<String>,
    },
    /// The store of rollouts does not answer.
    Store,
    /// Too few requests at the stable version to fix the cap of a mean, or the edges of a distance.
    WarmUp {
        /// Metric with the fewest values.
        metric: String,
        /// Values so far.
        seen: usize,
        /// Values needed.
        needed: usize,
    },
}

impl fmt::Display for HeldUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hours { opens: Some(opens) } => write!(f, "outside the allowed hours, which begin {opens}"),
            Self::Hours { opens: None } => write!(f, "outside the allowed hours, which never begin"),
            Self::Store => write!(f, "the store of rollouts does not answer"),
            Self::WarmUp { metric, seen, needed } => {
                write!(f, "{seen} of {needed} requests at the stable version, by which {metric} is measured")
            }
        }
    }
}

/// Origin of a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PausedBy {
    /// A step of the plan.
    Step,
    /// A command.
    Person,
}

/// Kind of an entry of the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RolloutEvent {
    /// Begun anew by a command; waits for its first step.
    Started,
    /// First step taken.
    Begun,
    /// The candidate's share has grown.
    StepUp,
    /// Paused by a step or a person.
    Paused,
    /// A pause has ended, by a person or by time, or a person went on without enough evidence.
    Resumed,
    /// A hold is over without enough evidence.
    Inconclusive,
    /// A gate is asked for the first time.
    GateAsked,
    /// A gate did not agree, for the first time; later answers stand in the record's reason.
    GateRefused,
    /// A gate agreed.
    GateAgreed,
    /// Ended: the candidate gets all requests; after a shadow, no more copies.
    Promoted,
    /// Ended: the candidate gets no request.
    Aborted,
}

impl RolloutEvent {
    /// Name, as in JSON and in labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Begun => "begun",
            Self::StepUp => "stepUp",
            Self::Paused => "paused",
            Self::Resumed => "resumed",
            Self::Inconclusive => "inconclusive",
            Self::GateAsked => "gateAsked",
            Self::GateRefused => "gateRefused",
            Self::GateAgreed => "gateAgreed",
            Self::Promoted => "promoted",
            Self::Aborted => "aborted",
        }
    }

    /// All events.
    pub const ALL: [Self; 11] = [
        Self::Started,
        Self::Begun,
        Self::StepUp,
        Self::Paused,
        Self::Resumed,
        Self::Inconclusive,
        Self::GateAsked,
        Self::GateRefused,
        Self::GateAgreed,
        Self::Promoted,
        Self::Aborted,
    ];
}

/// Entry of a rollout's history: one transition, with the evidence that it rests on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HistoryEntry {
    /// Time, Unix seconds.
    pub at: f64,
    /// Kind of transition.
    pub event: RolloutEvent,
    /// State after it.
    pub state: RolloutState,
    /// Step after it, from 0.
    pub step: u32,
    /// Candidate's share after it, percent.
    pub weight: f64,
    /// Author: `gateway`, `file`, or the name of the person or token that sent a command.
    pub by: String,
    /// Reason in a sentence.
    pub reason: String,
    /// Evidence, for transitions that rest on evidence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judgement: Option<Judgement>,
}

/// Record of a rollout. Scalars stand first and flat, so that programs which read one JSON path need no more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RolloutRecord {
    /// Name of the rollout, which is that of its route.
    pub name: String,
    /// Name of the candidate, a target of the route.
    pub candidate: String,
    /// Names of the other targets, which are the stable version.
    pub stable: Vec<String>,
    /// Strategy.
    pub strategy: Strategy,
    /// Hash of the content of `rollout`, the candidate's identity and the names of the stable targets.
    pub identity: String,
    /// Number of the run of this identity, from 1; `start` begins another.
    pub run: u64,
    /// Number of the present weight; grows with each change of it. Observations of one epoch belong together.
    pub epoch: u64,
    /// State.
    pub state: RolloutState,
    /// Present step, from 0; `steps` after a promotion by the last step.
    pub step: u32,
    /// Number of steps.
    pub steps: u32,
    /// Candidate's share of the requests, percent from 0 to 100; of a shadow, that of the copies.
    pub weight: f64,
    /// Reason for the present state, in a sentence.
    pub reason: String,
    /// Time at which the first step was taken, Unix seconds.
    pub started_at: Option<f64>,
    /// Time at which the present step began, Unix seconds.
    pub step_at: f64,
    /// Time of the last change, Unix seconds.
    pub updated_at: f64,
    /// Time of the end, Unix seconds.
    pub ended_at: Option<f64>,
    /// Requests concluded at the candidate since its share last grew.
    pub candidate_requests: u64,
    /// Requests concluded at the stable version since the candidate's share last grew.
    pub stable_requests: u64,
    /// False-alarm rate of the whole rollout.
    pub false_alarm: f64,
    /// Verdict of the last look.
    pub verdict: Verdict,
    /// Origin of the present pause.
    pub paused_by: Option<PausedBy>,
    /// Time at which the present step was passed, while something else delays the next one; Unix seconds.
    pub passed_at: Option<f64>,
    /// True if this identity never begins by itself again.
    pub decided: bool,
    /// Evidence of the last look.
    pub judgement: Option<Judgement>,
    /// Transitions, oldest first; the last [`HISTORY`].
    #[serde(default)]
    pub history: Vec<HistoryEntry>,
}

impl RolloutRecord {
    /// Ends the rollout; returns the entry of the history. `decides` says that its identity does not begin again by itself. The
    /// figures of the last step stay to be read.
    pub(super) fn end(
        &mut self,
        now: f64,
        state: RolloutState,
        by: &str,
        reason: String,
        decides: bool,
    ) -> HistoryEntry {
        let (event, weight) = match state {
            RolloutState::Promoted => (RolloutEvent::Promoted, self.strategy.weight_when_promoted()),
            _ => (RolloutEvent::Aborted, 0.0),
        };
        (self.state, self.weight, self.epoch) = (state, weight, self.epoch + 1);
        (self.ended_at, self.decided) = (Some(now), decides);
        (self.paused_by, self.passed_at) = (None, None);
        self.note(now, event, by, reason, true)
    }

    /// Adds an entry to the history, and returns it.
    pub(super) fn note(
        &mut self,
        now: f64,
        event: RolloutEvent,
        by: &str,
        reason: String,
        with_evidence: bool,
    ) -> HistoryEntry {
        self.updated_at = now;
        self.reason.clone_from(&reason);
        let entry = HistoryEntry {
            at: now,
            event,
            state: self.state,
            step: self.step,
            weight: self.weight,
            by: by.to_owned(),
            reason,
            judgement: if with_evidence { self.judgement.clone() } else { None },
        };
        let over = (self.history.len() + 1).saturating_sub(HISTORY);
        self.history.drain(..over.min(self.history.len()));
        self.history.push(entry.clone());
        entry
    }
}
