//! Steps 6 to 9: the request goes to an endpoint, to another when that is full or fails, or to a model inside.
//!
//! Full is not failed. An endpoint that says it is full is left alone for a while and the request moves on; that is
//! neither a retry nor an error. A retry follows a failure, waits before it goes, and takes from the budget of the
//! backend that failed. Nothing is
//! tried again once a byte of an answer went to the client.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use pingora::protocols::http::ServerSession;
use rand::RngExt;
use spillway_filter::{ErrorKind, Refusal};
use tokio::time::Instant;

use super::queueing::{Wait, Waited};
use super::spilling::{self, Direct};
use super::{affinity, conclude, hedging, resuming};
use crate::admission::{Admission, Journey, Order, Retrying, Taken};
use crate::balancing::{Endpoint, now_millis};
use crate::exchange::{End, Exchange, Place, is_idempotent};
use crate::server::Gateway;
use crate::snapshot::{Backend, Route};
use crate::telemetry::Kind;
use crate::upstream::{Attempt, Failure, MoveOn, Outcome, RequestBody, malformed, run, too_slow};

/// How long a full endpoint without a Retry-After is left alone.
const FULL_FOR: Duration = Duration::from_secs(1);

/// Takes the request to whoever answers it.
pub(super) async fn forward(
    gateway: &Arc<Gateway>,
    route: &Arc<Route>,
    session: &mut ServerSession,
    x: &mut Exchange,
) -> Result<(), End> {
    let sticky = route.sticky.as_ref().and_then(|name| session.get_header(name)).map(|value| value.as_bytes());
    let mut journey = Journey::new(Order::draw(route, sticky));
    let mut retries = 0;
    let mut wait = Wait::default();
    // Held while a further try is on its way.
    let mut retrying: Option<Retrying> = None;
    loop {
        let admission = {
            let mut span = x.span.child("admission", Kind::Internal);
            let random = rand::random();
            let key = |backend: &Backend| affinity::key(backend, session, x);
            let admission = if wait.is_behind(route, &journey) {
                Admission::Saturated
            } else {
                match journey.admit(route, now_millis(), random, wait.is_called(), &key) {
                    // A retry that has no other endpoint goes to one that was tried.
                    Admission::Saturated if retries > 0 => journey.admit(route, now_millis(), random, true, &key),
                    admission => admission,
                }
            };
            conclude::admitted(&mut span, route, &admission);
            admission
        };
        match admission {
            Admission::Endpoint { backend, endpoint, slot } => {
                wait.admitted(route, &journey, x);
                let retry =
                    retries < route.retry.attempts || spilling::is_possible(&route.when_unavailable, session, x);
                let attempt = attempt(gateway, route, backend, endpoint, &slot, MoveOn { full: true, retry });
                if x.outcome.attempts == 0 {
                    backend.retries.request(route.retry.budget);
                }
                let hedge = route.retry.hedge.as_ref().filter(|_| hedging::is_allowed(backend, session, x));
                let (attempt, outcome) = match hedge {
                    // What few requests do is boxed, so that the others need not carry it.
                    Some(plan) => {
                        let place = Place { slot, retrying: retrying.take() };
                        Box::pin(hedging::race(gateway, route, plan, &mut journey, attempt, place, session, x)).await
                    }
                    None => {
                        x.outcome.attempts += 1;
                        x.place = Some(Place { slot, retrying: retrying.take() });
                        let outcome = observed(&attempt, session, x).await;
                        note_if_full(&attempt, &outcome);
                        x.place = None;
                        (attempt, outcome)
                    }
                };
                drop(retrying.take());
                match outcome {
                    Outcome::Answered | Outcome::Broken => return Ok(()),
                    Outcome::ClientGone | Outcome::GivenUp => return Err(left_at_work(x)),
                    Outcome::Unread => return Err(End::ClientGone),
                    Outcome::ClientSlow => return Err(too_slow()),
                    Outcome::Malformed(violation) => return Err(malformed(session, violation)),
                    Outcome::Died(died) => {
                        return Box::pin(resuming::resume(gateway, route, &mut journey, died, session, x)).await;
                    }
                    Outcome::Full(_) => {
                        if !journey.move_on() {
                            return spilling::last(gateway, route, &journey, "saturated", session, x).await;
                        }
                    }
                    Outcome::Failed(Failure::Deadline) => return Err(too_late()),
                    Outcome::Failed(Failure::TooLarge(what)) => return Err(too_large_answer(what)),
                    Outcome::Failed(failure) => {
                        if retries < route.retry.attempts
                            && may_retry(&failure, route, attempt.backend, session, x)
                            && let Some(begun) = begin_retry(route, attempt.backend)
                        {
                            retrying = Some(begun);
                            retries += 1;
                            route.metrics.retries.inc();
                            pause(route, retries, x.deadline(route)).await?;
                            continue;
                        }
                        tracing::debug!(event = "attempts_spent", route = %route.name, failure = ?failure);
                        return spilling::last(gateway, route, &journey, "unavailable", session, x).await;
                    }
                }
            }
            Admission::Model { target, model } => {
                drop(retrying.take());
                wait.elsewhere(x);
                let model = model.clone();
                match spilling::direct(&model, session, x).await? {
                    Direct::Answered => return Ok(()),
                    Direct::NoRoom => journey.close(target),
                }
            }
            Admission::Saturated => {
                let waited = wait.for_turn(route, &journey, session, x).await;
                if !matches!(waited, Waited::Called) {
                    // What comes now is no retry at a server, however long it takes.
                    drop(retrying.take());
                }
                match waited {
                    Waited::Called => {}
                    Waited::ClientGone => return Err(End::ClientGone),
                    Waited::Over(_) if Instant::now() >= x.deadline(route) => return Err(too_late()),
                    Waited::Over(_) | Waited::NoQueue if retries > 0 || !journey.is_available(route) => {
                        return spilling::last(gateway, route, &journey, "unavailable", session, x).await;
                    }
                    Waited::Over(why) => {
                        return spilling::last(gateway, route, &journey, why.reason(), session, x).await;
                    }
                    Waited::NoQueue => {
                        return spilling::last(gateway, route, &journey, "saturated", session, x).await;
                    }
                }
            }
            Admission::Unavailable => {
                drop(retrying.take());
                wait.elsewhere(x);
                return spilling::last(gateway, route, &journey, "unavailable", session, x).await;
            }
        }
    }
}

/// An attempt that begins now.
pub(super) fn attempt<'a>(
    gateway: &'a Gateway,
    route: &'a Route,
    backend: &'a Backend,
    endpoint: Arc<Endpoint>,
    slot: &Taken,
    move_on: MoveOn,
) -> Attempt<'a> {
    Attempt {
        route,
        backend,
        endpoint,
        in_flight: slot.in_flight_at_start(),
        began: now_millis(),
        started: std::time::Instant::now(),
        connector: &gateway.connector,
        downstream: &gateway.downstream,
        via: &gateway.via,
        move_on,
    }
}

/// Takes the request to a backend that stands in for the route's own. False when it has no room, or failed, before
/// anything was sent to the client.
pub(super) async fn stand_in(
    gateway: &Arc<Gateway>,
    route: &Arc<Route>,
    backend: &Arc<Backend>,
    reason: &'static str,
    session: &mut ServerSession,
    x: &mut Exchange,
) -> Result<bool, End> {
    let mut journey = Journey::new(Order::default());
    while can_resend(session, x)
        && let Some((endpoint, slot)) =
            journey.admit_at(backend, now_millis(), rand::random(), affinity::key(backend, session, x))
    {
        let move_on = MoveOn { full: true, retry: true };
        let attempt = attempt(gateway, route, backend, endpoint, &slot, move_on);
        x.outcome.attempts += 1;
        x.outcome.spilled = Some(reason);
        x.place = Some(Place { slot, retrying: None });
        let outcome = observed(&attempt, session, x).await;
        note_if_full(&attempt, &outcome);
        x.place = None;
        match outcome {
            Outcome::Answered | Outcome::Broken => return Ok(true),
            Outcome::ClientGone | Outcome::GivenUp => return Err(left_at_work(x)),
            Outcome::Unread => return Err(End::ClientGone),
            Outcome::ClientSlow => return Err(too_slow()),
            Outcome::Malformed(violation) => return Err(malformed(session, violation)),
            Outcome::Died(died) => {
                Box::pin(resuming::resume(gateway, route, &mut journey, died, session, x)).await?;
                return Ok(true);
            }
            Outcome::Full(_) => {}
            Outcome::Failed(Failure::Deadline) => return Err(too_late()),
            Outcome::Failed(Failure::TooLarge(what)) => return Err(too_large_answer(what)),
            Outcome::Failed(failure) => {
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

/// Leaves an endpoint alone that said that it is full: before its slot is given back, or whoever waits for one would be
/// sent there.
pub(super) fn note_if_full(attempt: &Attempt<'_>, outcome: &Outcome) {
    if let Outcome::Full(wait) = outcome {
        attempt.endpoint.state.mark_full(wait.unwrap_or(FULL_FOR).min(attempt.backend.max_full_for));
    }
}

/// Takes a retry from the budget of the backend that failed.
pub(super) fn begin_retry(route: &Route, backend: &Backend) -> Option<Retrying> {
    let begun = backend.retries.begin(now_millis(), backend.max_retries);
    if begun.is_none() {
        route.metrics.retries_denied.inc();
    }
    begun
}

/// One attempt, with its span and its counts.
async fn observed(attempt: &Attempt<'_>, session: &mut ServerSession, x: &mut Exchange) -> Outcome {
    let resend = x.outcome.attempts.saturating_sub(1);
    x.attempt = Some(super::conclude::attempt_span(attempt, session, x, resend));
    let outcome = run(attempt, session, x).await;
    if let Some(span) = x.attempt.take() {
        super::conclude::attempt_ended(attempt, x, span, &outcome);
    }
    outcome
}

/// Whether a failed attempt may be followed by another: the route asks for it, the request can be sent again, and a
/// server that may have acted on it does not act twice.
fn may_retry(failure: &Failure, route: &Route, backend: &Backend, session: &mut ServerSession, x: &Exchange) -> bool {
    if !can_resend(session, x) {
        return false;
    }
    // Answering a model call twice costs tokens but changes nothing; any other request must say that it is idempotent.
    let harmless = backend.protocol == spillway_config::schema::BackendProtocol::Openai
        || is_idempotent(&session.req_header().method);
    let retry = &route.retry;
    match failure {
        Failure::Connect(_) => retry.on_connect_failure,
        Failure::Stale(_) => retry.on_connect_failure && harmless,
        Failure::Reset(_) => retry.on_reset && harmless,
        Failure::Status(_) => harmless,
        Failure::Protocol(_) => harmless && retry.on_statuses.contains(&502),
        // A route that limits the wait for a first token wants it from somebody else then.
        Failure::Timeout("firstToken") => harmless,
        Failure::Timeout(_) => harmless && retry.on_statuses.contains(&504),
        // The answer is what it is: another endpoint would send it as well.
        Failure::Deadline | Failure::TooLarge(_) => false,
    }
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

fn can_resend(session: &mut ServerSession, x: &Exchange) -> bool {
    matches!(x.body, RequestBody::Held(_)) || session.is_body_empty() || session.body_bytes_read() == 0
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

/// Ends a request whose client left during an attempt.
pub(super) fn left_at_work(x: &mut Exchange) -> End {
    x.outcome.left_at_work = true;
    End::ClientGone
}

fn too_late() -> End {
    End::refuse(Refusal::new(
        StatusCode::GATEWAY_TIMEOUT,
        ErrorKind::Timeout,
        "request_timeout",
        "the time for this request is over (`timeouts.request` of its route)",
    ))
}
