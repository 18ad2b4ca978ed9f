//! Rollouts as the store has them: read when a configuration is compiled, so that the first request after a restart goes where
//! the last one before it did.

use std::sync::Arc;

use super::RolloutPlan;
use super::course::Course;
use super::live::{LiveRollout, Present, Split};
use super::machine::Machine;
use super::record::{RolloutState, Strategy};
use super::store::{RolloutStore, StoreError};
use crate::clock::unix_seconds;

/// Split while the store has not answered yet: as before a rollout begins.
pub(super) const UNKNOWN: Present = Present { split: Split::Stable, epoch: 0 };

/// Rollout of a configuration that is compiled.
pub(super) struct Prepared {
    pub(super) plan: Arc<RolloutPlan>,
    pub(super) live: Arc<LiveRollout>,
    /// Course as the store has it; `None` for a rollout that runs in this process, and where the store does not answer.
    pub(super) course: Option<Course>,
    /// True for a rollout that an edit has added to a running process.
    pub(super) is_added: bool,
}

/// Reads the course of a rollout: where it was, its end if its identity was decided before, or its beginning. `None` where
/// the store does not answer.
pub(super) async fn course(store: &dyn RolloutStore, plan: &RolloutPlan) -> Result<Option<Course>, StoreError> {
    match read(store, plan).await {
        Ok(course) => Ok(Some(course)),
        Err(StoreError::Unreachable(reason)) => {
            tracing::warn!(
                event = "rollout_unknown",
                rollout = plan.name(),
                reason,
                "stable gets all until it answers"
            );
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// Reads the course of a rollout, as [`course`] does; fails where the store does not answer.
pub(super) async fn read(store: &dyn RolloutStore, plan: &RolloutPlan) -> Result<Course, StoreError> {
    let (name, schedule) = (plan.name(), plan.schedule.clone());
    let damaged = |reason: String| StoreError::Damaged { what: format!("the rollout `{name}`"), reason };
    if let Some(stored) = store.load(name).await?
        && stored.record.identity == plan.identity()
        // One that an edit ended before it began was not decided by that, and begins anew.
        && (stored.record.decided || !stored.record.state.is_end())
    {
        let course = Course::restored(schedule.clone(), stored.clone(), None).map_err(damaged)?;
        let key = course.counts_key();
        let counts = store.gather(name, &key).await?;
        let own = counts.into_iter().find(|(gateway, _)| gateway == store.gateway()).map(|(_, counts)| counts);
        return Course::restored(schedule, stored, own).map_err(damaged);
    }
    let now = unix_seconds();
    Ok(Course::new(match store.decided(name, plan.identity()).await? {
        Some(decided) => Machine::decided(schedule, &decided, now),
        None => Machine::new(schedule, now),
    }))
}

/// Split of the requests in a state.
pub(super) fn presented(course: &Course) -> Present {
    let record = course.record();
    let split = match record.state {
        RolloutState::Aborted => Split::Stable,
        RolloutState::Promoted if record.strategy == Strategy::Shadow => Split::Stable,
        RolloutState::Promoted => Split::Candidate,
        _ if record.weight > 0.0 && record.strategy == Strategy::Shadow => Split::Shadow(record.weight / 100.0),
        _ if record.weight >= 100.0 => Split::Switched,
        _ if record.weight > 0.0 && record.strategy == Strategy::Canary => Split::Both(record.weight / 100.0),
        _ => Split::Waiting,
    };
    #[allow(clippy::cast_possible_truncation, reason = "the lower half tells neighbours apart")]
    let epoch = record.epoch as u32;
    Present { split, epoch }
}
