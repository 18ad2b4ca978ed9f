//! A second attempt beside a slow first one. The answer whose head comes first is passed on; the others are given up at
//! once, which is no error of theirs. Hedges take from the budget for retries, and go only to endpoints that have room.

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use pingora::protocols::http::ServerSession;
use tokio::time::{Instant, sleep_until};

use crate::admission::{Admission, Journey};
use crate::balancing::now_millis;
use crate::exchange::{Exchange, Place, is_idempotent};
use crate::server::Gateway;
use crate::snapshot::{Backend, HedgePlan, Route};
use crate::telemetry::Span;
use crate::upstream::{Attempt, Failure, MoveOn, Outcome, Ready, RequestBody, open, relay};

/// Whether a request may be sent twice at the same time: a call of a model whose answer is not streamed, or one of an
/// idempotent method.
pub(super) fn is_allowed(backend: &Backend, session: &mut ServerSession, x: &Exchange) -> bool {
    let is_held = matches!(x.body, RequestBody::Held(_)) || session.is_body_empty();
    let is_model = backend.protocol == spillway_config::schema::BackendProtocol::Openai;
    let is_streamed = x.asked.as_ref().is_some_and(|asked| asked.stream);
    is_held && (is_model && !is_streamed || is_idempotent(&session.req_header().method))
}

/// One of the attempts.
struct Runner<'a> {
    attempt: Attempt<'a>,
    span: Span,
    /// Given back when it is given up.
    place: Place,
}

/// Runs the first attempt, and others beside it when it is slow. Gives the one that decided, and how it ended.
#[allow(clippy::too_many_arguments, reason = "what an attempt needs, and where further ones come from")]
pub(super) async fn race<'a>(
    gateway: &'a Gateway,
    route: &'a Route,
    plan: &HedgePlan,
    journey: &mut Journey,
    first: Attempt<'a>,
    place: Place,
    session: &mut ServerSession,
    x: &mut Exchange,
) -> (Attempt<'a>, Outcome) {
    let mut runners: Vec<Option<Runner<'a>>> = Vec::new();
    // Dropped before the runners: a slot is free when its connection is gone, not earlier.
    let mut running = FuturesUnordered::new();
    let move_on = first.move_on;
    let mut next = Some((first.clone(), place));
    let mut due = Instant::now();
    loop {
        if let Some((attempt, held)) = next.take() {
            x.outcome.attempts += 1;
            let resend = x.outcome.attempts.saturating_sub(1);
            x.attempt = Some(super::conclude::attempt_span(&attempt, session, x, resend));
            let ready = Ready::new(&attempt, session, x);
            let span = x.attempt.take().unwrap_or_else(Span::none);
            let place = runners.len();
            runners.push(Some(Runner { attempt: attempt.clone(), span, place: held }));
            // Whether it can be sent twice was asked before; one that cannot would be waited for in vain.
            let Some(ready) = ready else {
                running.clear();
                give_up(&mut runners, x);
                return (attempt, Outcome::Failed(Failure::Protocol("the body is not held".to_owned())));
            };
            running.push(async move { (place, open(&attempt, ready).await) });
            due = Instant::now() + plan.after;
        }
        let may_hedge = runners.len() <= plan.max;
        let opened = tokio::select! {
            biased;
            Some(opened) = running.next() => Some(opened),
            _ = session.read_body_or_idle(true) => {
                running.clear();
                give_up(&mut runners, x);
                return (first, Outcome::ClientGone);
            }
            () = sleep_until(due), if may_hedge => None,
        };
        match opened {
            None => {
                due = Instant::now() + plan.after;
                let key = |backend: &Backend| super::affinity::key(backend, session, x);
                next = another(gateway, route, journey, move_on, &key);
            }
            Some((place, Ok(opened))) => {
                let Some(winner) = runners.get_mut(place).and_then(Option::take) else { continue };
                running.clear();
                give_up(&mut runners, x);
                x.place = Some(winner.place);
                let outcome = relay(&winner.attempt, session, x, opened).await;
                x.place = None;
                super::conclude::attempt_ended(&winner.attempt, x, winner.span, &outcome);
                return (winner.attempt, outcome);
            }
            Some((place, Err(outcome))) => {
                let Some(lost) = runners.get_mut(place).and_then(Option::take) else { continue };
                super::conclude::attempt_ended(&lost.attempt, x, lost.span, &outcome);
                super::forward::note_if_full(&lost.attempt, &outcome);
                if running.is_empty() {
                    return (lost.attempt, outcome);
                }
            }
        }
    }
}

/// Another endpoint that has room, where the budget allows a further attempt.
fn another<'a>(
    gateway: &'a Gateway,
    route: &'a Route,
    journey: &mut Journey,
    move_on: MoveOn,
    key: &dyn Fn(&Backend) -> Option<u64>,
) -> Option<(Attempt<'a>, Place)> {
    let now = now_millis();
    // Those who wait for a place go before those who want a second one.
    if journey.queue(route).is_some_and(|queue| !queue.is_empty()) {
        return None;
    }
    let Admission::Endpoint { backend, endpoint, slot } = journey.admit(route, now, rand::random(), false, key) else {
        return None;
    };
    let retrying = super::forward::begin_retry(route, backend)?;
    route.metrics.hedges.inc();
    let attempt = super::forward::attempt(gateway, route, backend, endpoint, &slot, move_on);
    Some((attempt, Place { slot, retrying: Some(retrying) }))
}

/// Those that lost, whose connections are gone: their time counts for nothing, their slots are free at once.
fn give_up(runners: &mut [Option<Runner<'_>>], x: &mut Exchange) {
    for lost in runners.iter_mut().filter_map(Option::take) {
        super::conclude::attempt_ended(&lost.attempt, x, lost.span, &Outcome::GivenUp);
    }
}
