//! Steps 7 and 8: the request goes to an endpoint, to another when that is full or fails, or to a built-in model that the
//! route names.
//!
//! Full is not failed. An endpoint that says it is full is left alone for a while and the request moves on; that is
//! neither a retry nor an error. A retry follows a failure, waits before it goes, and takes from the budget of the
//! backend that failed. Nothing is tried again once a byte of an answer went to the client.

use std::sync::Arc;

use http::StatusCode;
use pingora::protocols::http::ServerSession;
use rand::RngExt;
use spillway_filter::{ErrorKind, Refusal};
use tokio::time::Instant;

use super::builtin::{self, Direct};
use super::may_spill::is_possible;
use super::queueing::{Wait, Waited};
use super::trying::{Try, begin_retry, can_resend, may_retry};
use super::{affinity, conclude, hedging, resuming};
use crate::admission::{Admission, Journey, Order};
use crate::balancing::Endpoint;
use crate::clock::now_millis;
use crate::exchange::{End, Exchange, Place, malformed, too_slow};
use crate::gateway::Gateway;
use crate::queueing::{Retrying, Taken};
use crate::telemetry::{Kind, SpillReason};
use crate::topology::{Backend, Route};
use crate::upstream::{Failure, MoveOn, Outcome};

/// What became of a request that was offered to its targets.
pub(super) enum Forwarded {
    /// It was answered, or its answer was broken off.
    Served,
    /// No target took it; nothing was sent to the client.
    Unserved(SpillReason),
}

/// What follows an attempt.
enum Next {
    /// The request has ended.
    Ended(Forwarded),
    /// Its endpoint is full: the request may move on to another.
    Full,
    /// It failed.
    Failed(Failure),
}

/// Tries of one request at the targets of its route.
struct Forwarding<'r> {
    gateway: &'r Arc<Gateway>,
    route: &'r Arc<Route>,
    journey: &'r mut Journey,
    wait: Wait,
    retries: u32,
    /// Held while a further try is on its way.
    retrying: Option<Retrying>,
}

/// Step 6: the order of the targets, by weights and by what keeps a caller on one of them.
pub(super) fn select(route: &Route, session: &ServerSession) -> Journey {
    let sticky = route.sticky.as_ref().and_then(|name| session.get_header(name)).map(|value| value.as_bytes());
    Journey::new(Order::draw(route, sticky))
}

/// Offers the request to the targets of its route, in the order of `journey`.
pub(super) async fn forward(
    gateway: &Arc<Gateway>,
    route: &Arc<Route>,
    journey: &mut Journey,
    session: &mut ServerSession,
    x: &mut Exchange,
) -> Result<Forwarded, End> {
    let mut forwarding = Forwarding { gateway, route, journey, wait: Wait::default(), retries: 0, retrying: None };
    loop {
        let Forwarding { journey, wait, retries, .. } = &mut forwarding;
        let forwarded = match admit(route, journey, wait, *retries > 0, session, x) {
            Admission::Endpoint { backend, endpoint, slot } => {
                wait.admitted(route, journey, x);
                forwarding.try_endpoint(backend, endpoint, slot, session, x).await?
            }
            Admission::Model { target, model } => {
                wait.elsewhere(x);
                forwarding.retrying = None;
                match builtin::direct(model, session, x).await? {
                    Direct::Answered => Some(Forwarded::Served),
                    Direct::NoRoom => {
                        forwarding.journey.close(target);
                        None
                    }
                }
            }
            Admission::Saturated => forwarding.wait_for_slot(session, x).await?,
            Admission::Unavailable => {
                wait.elsewhere(x);
                Some(Forwarded::Unserved(SpillReason::Unavailable))
            }
        };
        if let Some(forwarded) = forwarded {
            return Ok(forwarded);
        }
    }
}

impl Forwarding<'_> {
    /// One try at an endpoint and what follows it; `None` where the request is to be admitted again.
    async fn try_endpoint(
        &mut self,
        backend: &Backend,
        endpoint: Arc<Endpoint>,
        slot: Taken,
        session: &mut ServerSession,
        x: &mut Exchange,
    ) -> Result<Option<Forwarded>, End> {
        let (gateway, route) = (self.gateway, self.route);
        let retry = self.retries < route.retry.attempts || is_possible(&route.when_unavailable, x);
        if x.outcome.attempts == 0 {
            backend.retries.request(route.retry.budget);
        }
        let place = Place { slot, retrying: self.retrying.take() };
        let move_on = MoveOn { full: true, retry };
        let first = Try::begin(gateway, route, backend, endpoint, place, move_on, session, x);
        let hedge = route.retry.hedge.as_ref().filter(|_| hedging::is_allowed(backend, session, x));
        let (decided_by, outcome) = match hedge {
            // What few requests do is boxed, so that the others need not carry it.
            Some(plan) => Box::pin(hedging::race(gateway, route, plan, self.journey, first, session, x)).await,
            None => (backend, first.run(session, x).await),
        };
        match after(self.gateway, route, self.journey, outcome, session, x).await? {
            Next::Ended(forwarded) => Ok(Some(forwarded)),
            Next::Full if self.journey.move_on() => Ok(None),
            Next::Full => Ok(Some(Forwarded::Unserved(SpillReason::Saturated))),
            Next::Failed(failure) => {
                if self.retries < route.retry.attempts
                    && may_retry(&failure, route, decided_by, session, x)
                    && let Some(begun) = begin_retry(route, decided_by)
                {
                    self.retrying = Some(begun);
                    self.retries += 1;
                    route.metrics.retries.inc();
                    pause(route, self.retries, x.deadline(route)).await?;
                    return Ok(None);
                }
                tracing::debug!(event = "attempts_spent", route = %route.name, failure = ?failure);
                Ok(Some(Forwarded::Unserved(SpillReason::Unavailable)))
            }
        }
    }

    /// Waits in the queue of the route, if it has one.
    async fn wait_for_slot(&mut self, session: &mut ServerSession, x: &mut Exchange) -> Result<Option<Forwarded>, End> {
        let route = self.route;
        let waited = self.wait.for_turn(route, self.journey, session, x).await;
        if !matches!(waited, Waited::Called) {
            // What comes now is no retry at a server, however long it takes.
            self.retrying = None;
        }
        let reason = match waited {
            Waited::Called => return Ok(None),
            Waited::ClientGone => return Err(End::ClientGone),
            Waited::Over(_) if Instant::now() >= x.deadline(route) => return Err(too_late()),
            Waited::Over(_) | Waited::NoQueue if self.retries > 0 || !self.journey.is_available(route) => {
                SpillReason::Unavailable
            }
            Waited::Over(why) => why.reason(),
            Waited::NoQueue => SpillReason::Saturated,
        };
        Ok(Some(Forwarded::Unserved(reason)))
    }
}

/// Step 7: an endpoint and its slot in one step, a built-in model, or no room.
fn admit<'r>(
    route: &'r Route,
    journey: &mut Journey,
    wait: &Wait,
    is_retry: bool,
    session: &ServerSession,
    x: &Exchange,
) -> Admission<'r> {
    let mut span = x.span.child("admission", Kind::Internal);
    let random = rand::random();
    let key = |backend: &Backend| affinity::key(backend, session, x);
    let admission = if wait.is_behind(route, journey) {
        Admission::Saturated
    } else {
        match journey.admit(route, now_millis(), random, wait.is_called(), &key) {
            // A retry that has no other endpoint goes to one that was tried.
            Admission::Saturated if is_retry => journey.admit(route, now_millis(), random, true, &key),
            admission => admission,
        }
    };
    conclude::admitted(&mut span, route, &admission);
    admission
}

/// What follows an attempt that ended so.
async fn after(
    gateway: &Arc<Gateway>,
    route: &Arc<Route>,
    journey: &mut Journey,
    outcome: Outcome,
    session: &mut ServerSession,
    x: &mut Exchange,
) -> Result<Next, End> {
    match outcome {
        Outcome::Answered | Outcome::Broken => Ok(Next::Ended(Forwarded::Served)),
        Outcome::ClientGone | Outcome::GivenUp => Err(x.left_at_work()),
        Outcome::Unread => Err(End::ClientGone),
        Outcome::ClientSlow => Err(too_slow()),
        Outcome::Malformed(violation) => Err(malformed(session, violation)),
        Outcome::Refused(refusal) => {
            // The rest of the body is not read.
            session.set_keepalive(None);
            Err(End::Refuse(refusal))
        }
        Outcome::Died(died) => {
            Box::pin(resuming::resume(gateway, route, journey, died, session, x)).await?;
            Ok(Next::Ended(Forwarded::Served))
        }
        Outcome::Full(_) => Ok(Next::Full),
        Outcome::Failed(Failure::Deadline) => Err(too_late()),
        Outcome::Failed(Failure::TooLarge(what)) => Err(too_large_answer(what)),
        Outcome::Failed(failure) => Ok(Next::Failed(failure)),
    }
}

/// Offers the request to a backend that stands in for the route's own. False when it has no room, or failed, before
/// anything was sent to the client.
pub(super) async fn stand_in(
    gateway: &Arc<Gateway>,
    route: &Arc<Route>,
    backend: &Arc<Backend>,
    reason: SpillReason,
    session: &mut ServerSession,
    x: &mut Exchange,
) -> Result<bool, End> {
    let mut journey = Journey::new(Order::default());
    while can_resend(session, x)
        && let Some((endpoint, slot)) =
            journey.admit_at(backend, now_millis(), rand::random(), affinity::key(backend, session, x))
    {
        x.outcome.spilled = Some(reason);
        let (place, move_on) = (Place { slot, retrying: None }, MoveOn { full: true, retry: true });
        let outcome = Try::begin(gateway, route, backend, endpoint, place, move_on, session, x).run(session, x).await;
        match after(gateway, route, &mut journey, outcome, session, x).await? {
            Next::Ended(_) => return Ok(true),
            Next::Full => {}
            Next::Failed(failure) => {
                tracing::debug!(event = "stand_in_failed", route = %route.name, failure = ?failure);
                if !may_retry(&failure, route, backend, session, x) {
                    break;
                }
            }
        }
        if !journey.move_on() {
            break;
        }
    }
    x.outcome.spilled = None;
    Ok(false)
}

/// The refusal of an answer that is larger than its backend's limits allow beside its body.
fn too_large_answer(what: &'static str) -> End {
    End::refuse(Refusal::new(
        StatusCode::BAD_GATEWAY,
        ErrorKind::Upstream,
        "upstream_header_too_large",
        format!(
            "{what} of the backend is over its limit (`backends[].limits.maxHeaderBytes`, 256 fields, 16 early answers)"
        ),
    ))
}

/// Waits between tries: any part of a time that doubles ("full jitter": Brooker, "Exponential Backoff And Jitter", AWS
/// Architecture Blog, 2015), so that callers who failed together do not return together.
async fn pause(route: &Route, retry: u32, deadline: Instant) -> Result<(), End> {
    let doubled = route.retry.backoff_base.saturating_mul(1 << (retry - 1).min(16));
    let most = doubled.min(route.retry.backoff_max);
    let wait = most.mul_f64(rand::rng().random_range(0.0..=1.0));
    if Instant::now() + wait >= deadline {
        return Err(too_late());
    }
    tokio::time::sleep(wait).await;
    Ok(())
}

fn too_late() -> End {
    End::refuse(Refusal::new(
        StatusCode::GATEWAY_TIMEOUT,
        ErrorKind::Timeout,
        "request_timeout",
        "the time for this request is over (`timeouts.request` of its route)",
    ))
}
