//! Copies of requests for a second backend: sent beside the request, never waited for. Each has a task of its own that
//! ends with its time limit; how many there are, and how many bytes they hold, is bounded by the route's filter.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use super::copying::{self, Placed};
use super::limiting::view;
use super::translating;
use super::trying::Try;
use crate::downstream::ClientSession;
use crate::exchange::{BodyShare, Exchange};
use crate::gateway::Gateway;
use crate::telemetry::MirrorEnd;
use crate::topology::{MirrorPlan, Route};
use crate::upstream::{AttemptOutcome, CutReason, drain, open};

/// Sends the copies of a request: to the mirrors of its route, and to the candidate of a shadow.
pub(super) async fn copy(
    gateway: &Arc<Gateway>,
    route: &Arc<Route>,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) {
    mirror(gateway, route, session, exchange).await;
    super::shadowing::shadow(gateway, route, session, exchange).await;
}

/// Sends the copies for which this request is drawn and which its filters want.
async fn mirror(gateway: &Arc<Gateway>, route: &Arc<Route>, session: &mut ClientSession, exchange: &Exchange) {
    for (place, plan) in route.mirrors.iter().enumerate() {
        if rand::random::<f64>() >= plan.share {
            continue;
        }
        if !plan.filter.mirrors_request(&view(session, exchange), &plan.backend.name) {
            continue;
        }
        match prepare(gateway, route, plan, session, exchange).await {
            Some(copy) => {
                let (gateway, route) = (gateway.clone(), route.clone());
                tokio::spawn(async move {
                    let Some(plan) = route.mirrors.get(place) else { return };
                    let sent = tokio::time::timeout(plan.timeout, send(&gateway, &route, plan, copy)).await;
                    route.metrics.mirrored(if sent == Ok(true) { MirrorEnd::Answered } else { MirrorEnd::Failed });
                });
            }
            None => route.metrics.mirrored(MirrorEnd::Skipped),
        }
    }
}

struct Copy {
    placed: Placed,
    /// The body counts as held until the copy has ended.
    _share: Option<Arc<BodyShare>>,
    _place: OwnedSemaphorePermit,
}

/// Everything that a copy needs of the request, or nothing where a bound is reached.
async fn prepare(
    gateway: &Gateway,
    route: &Route,
    plan: &MirrorPlan,
    session: &mut ClientSession,
    exchange: &Exchange,
) -> Option<Copy> {
    let length = copying::length(session, exchange)?;
    // A copy is never translated.
    if length > plan.max_body || translating::is_foreign(&plan.backend, exchange) {
        return None;
    }
    // Without a turn for the work there is no copy.
    let cut = translating::without_dropped(&plan.backend, session, exchange).await.ok()?.ok()?;
    let place = plan.permits.clone().try_acquire_owned().ok()?;
    let placed = copying::place(gateway, route, &plan.backend, cut, session, exchange)?;
    Some(Copy { placed, _share: copying::share(exchange), _place: place })
}

/// Sends the copy. True if it was answered, well or not.
async fn send(gateway: &Gateway, route: &Route, plan: &MirrorPlan, copy: Copy) -> bool {
    // The time of a copy may be shorter than that of the answers: one that is dropped for it says nothing of its server.
    let Placed { endpoint, ready, slot } = copy.placed;
    let this = Try::copy(gateway, route, &plan.backend, endpoint, slot);
    let (outcome, status) = match open(&this.attempt, ready).await {
        Ok(opened) => match drain(&this.attempt, opened, |_| {}).await {
            Some(drained) => (AttemptOutcome::Answered, drained.status),
            None => (AttemptOutcome::Broken(CutReason::UpstreamReset), 0),
        },
        Err(outcome) => (outcome, 0),
    };
    this.conclude_copy(&outcome, status);
    let answered = matches!(outcome, AttemptOutcome::Answered);
    if !answered {
        tracing::debug!(event = "copy_failed", route = %route.name, backend = %plan.backend.name, outcome = ?outcome);
    }
    answered
}
