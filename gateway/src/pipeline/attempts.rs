//! Step 8: the attempts of one request at the targets of its route, one after another, and what follows each.
//!
//! Full is not failed. A request leaves an endpoint that reports full for another; that is neither a retry nor an error. A
//! retry follows a failure, waits before it goes, and takes from the budget of the backend that failed. Nothing is tried
//! again once a byte of an answer was sent to the client.

use std::sync::Arc;

use http::StatusCode;
use rand::RngExt;
use spillway_filter::{ErrorKind, Refusal};

use super::admit::{Admitted, Tries};
use super::answers::too_late;
use super::builtin;
use super::direct::Direct;
use super::may_spill::is_possible;
use super::translating::Rewritten;
use super::trying::{Try, begin_retry, may_retry};
use super::{affinity, hedging, resuming};
use crate::admission::{Order, TargetSelection};
use crate::balancing::Endpoint;
use crate::clock::{self, now_millis};
use crate::downstream::ClientSession;
use crate::exchange::{AttemptSlot, End, Exchange, malformed, too_slow};
use crate::gateway::Gateway;
use crate::queueing::WakingSlot;
use crate::telemetry::SpillReason;
use crate::topology::{Backend, Route};
use crate::upstream::{AttemptOutcome, Failure, MoveOn, Oversized};

/// Most times that one request is sent again because a server had not looked at it. A server that ends its connections after
/// a few requests each meets several in a row; one that never looks at any must not get them without end.
const MAX_RESENDS: u32 = 8;

/// Times of these that the request shares a connection with others. Where many wait for a server that ends its connections
/// after a few requests, each new one may be used up by others; later times have a connection of their own.
const SHARED_RESENDS: u32 = 2;

/// Consequence of an attempt.
enum AfterAttempt {
    /// The request was answered, or its answer was broken off.
    Served,
    /// The endpoint is full: the request may move on to another.
    Full,
    /// The attempt failed before a byte was sent to the client.
    Failed(Failure),
}

/// Consequence of the try of an admitted request.
pub(super) enum Tried {
    /// The request was answered, or its answer was broken off.
    Served,
    /// The request is to be admitted again.
    Again,
    /// No target is left that could take it; nothing was sent to the client.
    Unserved(SpillReason),
}

/// Tries an admitted request at its endpoint or built-in model.
pub(super) async fn attempt(
    gateway: &Arc<Gateway>,
    route: &Arc<Route>,
    admitted: Admitted<'_>,
    tries: &mut Tries,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<Tried, End> {
    match admitted {
        Admitted::Endpoint { target, backend, endpoint, slot, written } => {
            let place = (endpoint, slot, written);
            at_endpoint(gateway, route, (target, backend), place, tries, session, exchange).await
        }
        Admitted::Model { target, model } => match builtin::direct(route, model, session, exchange).await? {
            Direct::Answered => Ok(Tried::Served),
            Direct::NoRoom => {
                tries.selection.close(target);
                Ok(Tried::Again)
            }
            Direct::Unable(refusal) => {
                tries.translations.exclude(target, refusal, &mut tries.selection);
                tries.translations.check_left(&tries.selection)?;
                Ok(Tried::Again)
            }
        },
    }
}

/// Tries the request, as it was written for it, at an endpoint in whose slot it is.
async fn at_endpoint(
    gateway: &Arc<Gateway>,
    route: &Arc<Route>,
    (target, backend): (usize, &Backend),
    (endpoint, slot, written): (Arc<Endpoint>, WakingSlot, Option<Rewritten>),
    tries: &mut Tries,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<Tried, End> {
    let retry = tries.retries < route.retry.attempts || is_possible(&route.when_unavailable, exchange);
    if exchange.outcome.attempts == 0 {
        backend.retries.request(route.retry.budget);
    }
    let place = AttemptSlot { slot, retrying: tries.retrying.take() };
    let move_on = MoveOn { full: true, retry };
    let mut first = Try::begin(gateway, route, (Some(target), backend), endpoint, place, move_on, session, exchange);
    first.attempt.alone = tries.resends > SHARED_RESENDS;
    first.rewrite(written);
    let hedge = route.retry.hedge.as_ref().filter(|_| hedging::is_allowed(backend, session, exchange));
    let (decided_by, outcome) = match hedge {
        // Rare branches are boxed, so that the future of every request does not carry them.
        Some(plan) => Box::pin(hedging::race(gateway, route, plan, tries, first, session, exchange)).await,
        None => (backend, first.run(session, exchange).await),
    };
    match after(gateway, route, &mut tries.selection, outcome, session, exchange).await? {
        AfterAttempt::Served => Ok(Tried::Served),
        AfterAttempt::Full if tries.selection.move_on() => Ok(Tried::Again),
        AfterAttempt::Full => Ok(Tried::Unserved(SpillReason::Saturated)),
        AfterAttempt::Failed(Failure::Unprocessed { .. })
            if tries.resends < MAX_RESENDS && exchange.body.can_resend(session) =>
        {
            // No retry: no server has seen it.
            tries.resends += 1;
            if tries.resends > 1 {
                pause(route, tries.resends - 1, exchange).await?;
            }
            Ok(Tried::Again)
        }
        AfterAttempt::Failed(failure) => {
            let may_retry =
                tries.retries < route.retry.attempts && may_retry(&failure, route, decided_by, session, exchange);
            if may_retry && tries.selection.leave_candidate(route) {
                // No budget and no pause: each request moves once, away from the servers that fail. A candidate that is down
                // hurts nobody.
                tries.retries += 1;
                route.metrics.retries.inc();
                return Ok(Tried::Again);
            }
            if may_retry && let Some(begun) = begin_retry(route, decided_by) {
                tries.retrying = Some(begun);
                tries.retries += 1;
                route.metrics.retries.inc();
                pause(route, tries.retries, exchange).await?;
                return Ok(Tried::Again);
            }
            tracing::debug!(event = "attempts_spent", route = %route.name, failure = ?failure);
            Ok(Tried::Unserved(SpillReason::Unavailable))
        }
    }
}

/// Decides from the outcome of an attempt what follows it, and continues a stream that died.
async fn after(
    gateway: &Arc<Gateway>,
    route: &Arc<Route>,
    selection: &mut TargetSelection,
    outcome: AttemptOutcome,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<AfterAttempt, End> {
    match outcome {
        AttemptOutcome::Answered | AttemptOutcome::Broken(_) => Ok(AfterAttempt::Served),
        AttemptOutcome::ClientGone | AttemptOutcome::GivenUp => Err(exchange.left_at_work()),
        AttemptOutcome::Unread => Err(End::ClientGone),
        AttemptOutcome::ClientSlow => Err(too_slow()),
        AttemptOutcome::Malformed(violation) => Err(malformed(session, violation)),
        AttemptOutcome::Refused(refusal) => {
            // The rest of the body is not read.
            session.close_after();
            Err(End::Refuse(refusal))
        }
        AttemptOutcome::Died(died) => {
            Box::pin(resuming::resume(gateway, route, selection, died, session, exchange)).await?;
            Ok(AfterAttempt::Served)
        }
        AttemptOutcome::Full(_) => Ok(AfterAttempt::Full),
        AttemptOutcome::Failed(Failure::Deadline(_)) => Err(too_late(route, exchange)),
        AttemptOutcome::Failed(Failure::TooLarge(part)) => Err(too_large_answer(part)),
        AttemptOutcome::Failed(failure) => Ok(AfterAttempt::Failed(failure)),
    }
}

/// Offers the request, as it was written for it, to a backend in place of the route's own. False where that has no room, or
/// failed before a byte was sent to the client.
pub(super) async fn stand_in(
    gateway: &Arc<Gateway>,
    route: &Arc<Route>,
    (backend, written): (&Arc<Backend>, Option<Rewritten>),
    reason: SpillReason,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<bool, End> {
    let mut selection = TargetSelection::new(Order::default());
    while exchange.body.can_resend(session)
        && let Some((endpoint, slot)) =
            selection.admit_at(backend, now_millis(), rand::random(), affinity::key(backend, session, exchange))
    {
        exchange.outcome.spilled = Some(reason);
        let (place, move_on) = (AttemptSlot { slot, retrying: None }, MoveOn { full: true, retry: true });
        let mut this = Try::begin(gateway, route, (None, backend), endpoint, place, move_on, session, exchange);
        this.rewrite(written.clone());
        let outcome = this.run(session, exchange).await;
        match after(gateway, route, &mut selection, outcome, session, exchange).await? {
            AfterAttempt::Served => return Ok(true),
            AfterAttempt::Full => {}
            AfterAttempt::Failed(failure) => {
                tracing::debug!(event = "stand_in_failed", route = %route.name, failure = ?failure);
                if !may_retry(&failure, route, backend, session, exchange) {
                    break;
                }
            }
        }
        if !selection.move_on() {
            break;
        }
    }
    exchange.outcome.spilled = None;
    Ok(false)
}

/// Refusal of an answer whose head is over its backend's limits.
fn too_large_answer(part: Oversized) -> End {
    End::refuse(Refusal::new(
        StatusCode::BAD_GATEWAY,
        ErrorKind::Upstream,
        "upstream_header_too_large",
        format!(
            "{} of the backend is over its limit (`backends[].limits.maxHeaderBytes`, 256 fields, 16 early answers)",
            part.as_str()
        ),
    ))
}

/// Waits before a retry: any part of a time that doubles ("full jitter": Brooker, "Exponential Backoff And Jitter", AWS
/// Architecture Blog, 2015), so that callers who failed together do not return together.
async fn pause(route: &Route, retry: u32, exchange: &Exchange) -> Result<(), End> {
    let doubled = route.retry.backoff_base.saturating_mul(1 << (retry - 1).min(16));
    let most = doubled.min(route.retry.backoff_max);
    let wait = most.mul_f64(rand::rng().random_range(0.0..=1.0));
    if clock::now() + wait >= exchange.deadline(route) {
        return Err(too_late(route, exchange));
    }
    tokio::time::sleep(wait).await;
    Ok(())
}
