//! Steps 6 to 9: the request goes to an endpoint, to another when that is full or fails, or to a model inside.
//!
//! Full is not failed. An endpoint that says it is full is left alone for a while and the request moves on; that is
//! neither a retry nor an error. A retry follows a failure, has a budget of attempts and waits in between. Nothing is
//! tried again once a byte of an answer went to the client.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use pingora::protocols::http::ServerSession;
use rand::RngExt;
use spillway_filter::{ErrorKind, Refusal};
use tokio::time::Instant;

use super::spilling::{self, Direct};
use super::{affinity, conclude};
use crate::admission::{Admission, Journey, Order};
use crate::balancing::now_millis;
use crate::exchange::{End, Exchange, is_idempotent};
use crate::server::Gateway;
use crate::snapshot::{Backend, Route};
use crate::telemetry::Kind;
use crate::upstream::{Attempt, Failure, MoveOn, Outcome, RequestBody, run};

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
    loop {
        let admission = {
            let mut span = x.span.child("admission", Kind::Internal);
            let random = rand::random();
            let key = |backend: &Backend| affinity::key(backend, session, x);
            let admission = match journey.admit(route, now_millis(), random, false, &key) {
                // A retry that has no other endpoint goes to one that was tried.
                Admission::Saturated if retries > 0 => journey.admit(route, now_millis(), random, true, &key),
                admission => admission,
            };
            conclude::admitted(&mut span, route, &admission);
            admission
        };
        match admission {
            Admission::Endpoint { backend, endpoint, slot } => {
                let retry =
                    retries < route.retry.attempts || spilling::is_possible(&route.when_unavailable, session, x);
                let attempt = Attempt {
                    route,
                    backend,
                    endpoint: &endpoint,
                    in_flight: slot.in_flight_at_start(),
                    began: now_millis(),
                    started: std::time::Instant::now(),
                    connector: &gateway.connector,
                    via: &gateway.via,
                    move_on: MoveOn { full: true, retry },
                };
                x.outcome.attempts += 1;
                let outcome = observed(&attempt, session, x).await;
                drop(slot);
                match outcome {
                    Outcome::Answered | Outcome::Broken => return Ok(()),
                    Outcome::ClientGone => return Err(End::ClientGone),
                    Outcome::Full(wait) => {
                        endpoint.state.mark_full(wait.unwrap_or(FULL_FOR).min(backend.max_full_for));
                        if !journey.move_on() {
                            return spilling::last(gateway, route, &route.when_saturated, "saturated", session, x)
                                .await;
                        }
                    }
                    Outcome::Failed(Failure::Deadline) => return Err(too_late()),
                    Outcome::Failed(failure) => {
                        if retries < route.retry.attempts && may_retry(&failure, route, backend, session, x) {
                            retries += 1;
                            route.metrics.retries.inc();
                            pause(route, retries, x.deadline(route)).await?;
                            continue;
                        }
                        tracing::debug!(event = "attempts_spent", route = %route.name, failure = ?failure);
                        return spilling::last(gateway, route, &route.when_unavailable, "unavailable", session, x)
                            .await;
                    }
                }
            }
            Admission::Model { target, model } => {
                let model = model.clone();
                match spilling::direct(&model, session, x).await? {
                    Direct::Answered => return Ok(()),
                    Direct::NoRoom => journey.close(target),
                }
            }
            Admission::Saturated if retries > 0 => {
                return spilling::last(gateway, route, &route.when_unavailable, "unavailable", session, x).await;
            }
            Admission::Saturated => {
                return spilling::last(gateway, route, &route.when_saturated, "saturated", session, x).await;
            }
            Admission::Unavailable => {
                return spilling::last(gateway, route, &route.when_unavailable, "unavailable", session, x).await;
            }
        }
    }
}

/// One attempt, with its span and its counts.
async fn observed(attempt: &Attempt<'_>, session: &mut ServerSession, x: &mut Exchange) -> Outcome {
    let resend = x.outcome.attempts.saturating_sub(1);
    x.attempt = Some(super::conclude::attempt_span(attempt, session, x, resend));
    let outcome = run(attempt, session, x).await;
    if let Some(span) = x.attempt.take() {
        super::conclude::attempt_ended(attempt, x, span, &outcome, attempt.started.elapsed());
    }
    outcome
}

/// Whether a failed attempt may be followed by another: the route asks for it, the request can be sent again, and a
/// server that may have acted on it does not act twice.
fn may_retry(failure: &Failure, route: &Route, backend: &Backend, session: &mut ServerSession, x: &Exchange) -> bool {
    let can_resend =
        matches!(x.body, RequestBody::Held(_)) || session.is_body_empty() || session.body_bytes_read() == 0;
    if !can_resend {
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
        Failure::Timeout(_) => harmless && retry.on_statuses.contains(&504),
        Failure::Deadline => false,
    }
}

/// Waits between tries: doubled each time, with full jitter so that callers who failed together do not return together.
async fn pause(route: &Route, retry: u32, deadline: Instant) -> Result<(), End> {
    let doubled = route.retry.backoff_base.saturating_mul(1 << (retry - 1).min(16));
    let most = doubled.min(route.retry.backoff_max);
    let wait = most.mul_f64(rand::rng().random_range(0.5..=1.0));
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
