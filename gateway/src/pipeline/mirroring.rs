//! Copies of requests for a second backend: sent beside the request, never waited for. Each has a task of its own that
//! ends with its time limit; how many there are, and how many bytes they hold, is bounded by the route's filter.

use std::sync::Arc;

use pingora::protocols::http::ServerSession;
use tokio::sync::OwnedSemaphorePermit;

use crate::admission::{Journey, Order, Taken};
use crate::balancing::{Endpoint, now_millis};
use crate::exchange::Exchange;
use crate::server::Gateway;
use crate::snapshot::{MirrorPlan, Route};
use crate::upstream::{Attempt, BodyShare, MoveOn, Outcome, Ready, RequestBody, drain, open};

/// Sends the copies that this request is drawn for.
pub(super) fn mirror(gateway: &Arc<Gateway>, route: &Arc<Route>, session: &mut ServerSession, x: &Exchange) {
    for (place, plan) in route.mirrors.iter().enumerate() {
        if rand::random::<f64>() >= plan.share {
            continue;
        }
        match prepare(gateway, route, plan, session, x) {
            Some(copy) => {
                let (gateway, route) = (gateway.clone(), route.clone());
                tokio::spawn(async move {
                    let Some(plan) = route.mirrors.get(place) else { return };
                    let sent = tokio::time::timeout(plan.timeout, send(&gateway, &route, plan, copy)).await;
                    route.metrics.mirrored(if sent == Ok(true) { "answered" } else { "failed" });
                });
            }
            None => route.metrics.mirrored("skipped"),
        }
    }
}

struct Copy {
    endpoint: Arc<Endpoint>,
    ready: Ready,
    slot: Taken,
    /// The body counts as held until the copy has ended.
    _share: Option<Arc<BodyShare>>,
    _place: OwnedSemaphorePermit,
}

/// Everything that a copy needs of the request, or nothing where a bound is reached.
fn prepare(
    gateway: &Gateway,
    route: &Route,
    plan: &MirrorPlan,
    session: &mut ServerSession,
    x: &Exchange,
) -> Option<Copy> {
    let length = match &x.body {
        RequestBody::Held(held) => u64::try_from(held.bytes.len()).unwrap_or(u64::MAX),
        RequestBody::Unread if session.is_body_empty() => 0,
        RequestBody::Unread => return None,
    };
    if length > plan.max_body {
        return None;
    }
    let place = plan.places.clone().try_acquire_owned().ok()?;
    let mut journey = Journey::new(Order::default());
    let key = super::affinity::key(&plan.backend, session, x);
    let (endpoint, slot) = journey.admit_at(&plan.backend, now_millis(), rand::random(), key)?;
    let ready = Ready::copy(&attempt(gateway, route, plan, endpoint.clone(), &slot), session, x)?;
    let share = match &x.body {
        RequestBody::Held(held) => held.share.clone(),
        RequestBody::Unread => None,
    };
    Some(Copy { endpoint, ready, slot, _share: share, _place: place })
}

fn attempt<'a>(
    gateway: &'a Gateway,
    route: &'a Route,
    plan: &'a MirrorPlan,
    endpoint: Arc<Endpoint>,
    slot: &Taken,
) -> Attempt<'a> {
    super::forward::attempt(gateway, route, &plan.backend, endpoint, slot, MoveOn { full: true, retry: false })
}

/// Whether it was answered, well or not.
async fn send(gateway: &Gateway, route: &Route, plan: &MirrorPlan, copy: Copy) -> bool {
    let attempt = attempt(gateway, route, plan, copy.endpoint, &copy.slot);
    // The time of a copy may be shorter than that of the answers: one that is dropped for it says nothing of its server.
    let mut judged = Judged { attempt: &attempt, outcome: Outcome::GivenUp, status: 0 };
    judged.outcome = match open(&attempt, copy.ready).await {
        Ok(opened) => {
            judged.status = opened.head.status.as_u16();
            if drain(&attempt, opened).await { Outcome::Answered } else { Outcome::Broken }
        }
        Err(outcome) => outcome,
    };
    super::forward::note_if_full(&attempt, &judged.outcome);
    let answered = matches!(judged.outcome, Outcome::Answered);
    if !answered {
        tracing::debug!(event = "copy_failed", route = %route.name, backend = %plan.backend.name, outcome = ?judged.outcome);
    }
    answered
}

/// How a copy ended, which is told of its endpoint also when the copy is given up.
struct Judged<'a> {
    attempt: &'a Attempt<'a>,
    outcome: Outcome,
    status: u16,
}

impl Drop for Judged<'_> {
    fn drop(&mut self) {
        super::conclude::copied(self.attempt, &self.outcome, self.status);
    }
}
