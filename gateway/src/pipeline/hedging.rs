//! Hedging: a second attempt beside a slow first one. The answer whose head comes first is passed on; the others are given
//! up at once, which is no error of their endpoints. Hedges take from the budget for retries, and go only to endpoints that have room.

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::sleep_until;

use super::admit::Tries;
use super::translating::{self, Prepared, Source};
use super::trying::{Try, begin_retry};
use crate::admission::Admission;
use crate::clock::{self, now_millis};
use crate::downstream::ClientSession;
use crate::exchange::{AttemptSlot, Exchange, is_idempotent};
use crate::gateway::Gateway;
use crate::topology::{Backend, HedgePlan, Route};
use crate::upstream::{AttemptOutcome, Failure, MoveOn, Ready, open};

/// True if the request may be sent twice at the same time: a call of a model whose answer is not streamed, or an idempotent
/// method.
pub(super) fn is_allowed(backend: &Backend, session: &mut ClientSession, exchange: &Exchange) -> bool {
    if exchange.upgrade.is_some() || exchange.line.is_some() {
        return false;
    }
    let is_held = exchange.body.is_at_hand(session);
    let is_streamed = exchange.asked.as_ref().is_some_and(|asked| asked.stream);
    is_held && (backend.may_repeat() && !is_streamed || is_idempotent(&session.req_header().method))
}

/// Runs the first try, and others beside it when it is slow. Returns the backend of the one that decided, and how that
/// ended. Tries that lose are dropped: their slots are free when their connections are gone.
pub(super) async fn race<'a>(
    gateway: &'a Gateway,
    route: &'a Route,
    plan: &HedgePlan,
    tries: &mut Tries,
    first: Try<'a>,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> (&'a Backend, AttemptOutcome) {
    let (backend, move_on) = (first.attempt.backend, first.attempt.move_on);
    let mut running = FuturesUnordered::new();
    let mut begun = 0;
    let (first_began, before) = (first.attempt.started, exchange.outcome.at_targets);
    let mut next = Some(first);
    let mut due = clock::now();
    loop {
        if let Some(this) = next.take() {
            begun += 1;
            // Whether it can be sent twice was asked before; one that cannot would be waited for in vain.
            let Some(ready) = Ready::new(&this.attempt, session, exchange) else {
                return (backend, AttemptOutcome::Failed(Failure::Protocol("the body is not held".to_owned())));
            };
            running.push(async move {
                let opened = open(&this.attempt, ready).await;
                (this, opened)
            });
            due = clock::now() + plan.after;
        }
        let may_hedge = begun <= plan.max;
        let opened = tokio::select! {
            biased;
            Some(opened) = running.next() => Some(opened),
            _ = session.read_body_or_idle(true) => return (backend, AttemptOutcome::ClientGone),
            () = sleep_until(due), if may_hedge => None,
        };
        match opened {
            None => {
                due = clock::now() + plan.after;
                next = another(gateway, route, tries, move_on, session, exchange).await;
            }
            Some((winner, Ok(opened))) => {
                // The losers' time counts for nothing, and their slots are free at once.
                running.clear();
                // Tries beside each other take their time once; that of the winner's own is counted with its answer.
                let alone = winner.attempt.started.saturating_duration_since(first_began);
                exchange.outcome.at_targets = before.saturating_add(alone);
                let backend = winner.attempt.backend;
                return (backend, winner.relay(opened, session, exchange).await);
            }
            Some((lost, Err(outcome))) => {
                let backend = lost.attempt.backend;
                lost.conclude(&outcome, exchange);
                if running.is_empty() {
                    exchange.outcome.at_targets = before.saturating_add(clock::since(first_began));
                    return (backend, outcome);
                }
            }
        }
    }
}

/// A try at another endpoint that has room and can take the request, where the budget allows one more.
async fn another<'a>(
    gateway: &'a Gateway,
    route: &'a Route,
    tries: &mut Tries,
    move_on: MoveOn,
    session: &ClientSession,
    exchange: &mut Exchange,
) -> Option<Try<'a>> {
    // A request that waits for its first slot goes before one that wants a second.
    if tries.selection.queue(route).is_some_and(|queue| !queue.is_empty()) {
        return None;
    }
    let (target, backend, endpoint, slot, written) = loop {
        let key = |backend: &Backend| super::affinity::key(backend, session, exchange);
        let Admission::Endpoint { target, backend, endpoint, slot } =
            tries.selection.admit(route, now_millis(), rand::random(), false, &key)
        else {
            return None;
        };
        if !translating::is_rewritten(backend, exchange) {
            break (target, backend, endpoint, slot, None);
        }
        // Without a turn for the work there is no hedge.
        let source = Source { route, session, exchange };
        if let Prepared::Ready(written) = translating::prepare(target, backend, tries.writing(), source).await.ok()? {
            break (target, backend, endpoint, slot, written);
        }
    };
    let place = AttemptSlot { slot, retrying: Some(begin_retry(route, backend)?) };
    route.metrics.hedges.inc();
    let mut this = Try::begin(gateway, route, (Some(target), backend), endpoint, place, move_on, session, exchange);
    this.rewrite(written);
    Some(this)
}
