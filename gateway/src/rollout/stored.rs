//! Documents of a rollout in a store. Plain data.

use serde::{Deserialize, Serialize};
use spillway_statistics::Rollout;

use super::record::{RolloutRecord, RolloutState};

/// Values of the stable version that fix the cap of a mean, or the edges of a distance, before the first step.
pub const WARM_UP: usize = 200;

/// Counts of one gateway in the present step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Requests concluded at the candidate.
    pub candidate_requests: u64,
    /// Requests concluded at the stable version.
    pub stable_requests: u64,
    /// Before the first step: values of the stable version for each metric that needs them, at most [`WARM_UP`] each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warm_up: Vec<Vec<f64>>,
    /// From the first step on: observations.
    pub judge: Option<Rollout>,
}

/// State of a rollout as stored, without the counts of the present step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stored {
    /// Record. Its history is stored entry by entry.
    pub record: RolloutRecord,
    /// Judge at the begin of the present step: evidence of earlier steps, no observations of this one.
    pub base: Option<Rollout>,
    /// Fencing number of the lead under which the state was written.
    pub fence: u64,
}

/// Decision about an identity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Decided {
    /// End of its last run: promoted or aborted.
    pub state: RolloutState,
    /// Time, Unix seconds.
    pub at: f64,
    /// Number of its last run.
    pub run: u64,
    /// Reason of its end.
    pub reason: String,
}
