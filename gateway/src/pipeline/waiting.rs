//! Wait of a request for a slot: until it is called, its time is over, or its client leaves. A client that leaves frees
//! its position in the queue at once, because the wait is dropped with the request.

use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::{Instant, sleep, sleep_until};

use crate::admission::TargetSelection;
use crate::clock::{self, now_millis};
use crate::downstream::ClientSession;
use crate::exchange::Exchange;
use crate::limits::network;
use crate::queueing::{NotHeld, Party, Pending, Turn, Waiter};
use crate::telemetry::{Label, Span, SpanKind, names};
use crate::topology::Route;

/// Result of a wait.
pub(super) enum Waited {
    /// A slot may be free now.
    Called,
    /// The wait ended without a slot.
    Over(NotHeld),
    /// The client left.
    ClientGone,
    /// The route has no queue.
    NoQueue,
}

/// Wait of one request, over all its turns in the queue.
#[derive(Default)]
pub(super) struct Wait {
    waiter: Option<Waiter>,
    /// Latest end of all waiting, fixed when the request waits for the first time.
    until: Option<Instant>,
    span: Option<Span>,
    /// Consecutive calls that found no slot, and the time of the last one.
    misses: u32,
    missed_at: Option<Instant>,
    /// Permits to wait for the backends, held as long as the request is in the queue.
    pending: SmallVec<[Pending; 2]>,
}

/// Consecutive calls without a slot from which on the next one waits for `AFTER_MISSES`. So many mean an endpoint that
/// seems to have room and admits nothing: without the pause it would be asked in a loop.
const MAX_MISSES: u32 = 3;
const AFTER_MISSES: Duration = Duration::from_millis(20);

impl Wait {
    /// True if the waiter was called and has no slot yet.
    pub(super) fn is_called(&self) -> bool {
        self.waiter.is_some()
    }

    /// True if other requests wait already, which a new one must not overtake.
    pub(super) fn is_behind(&self, route: &Route, selection: &TargetSelection) -> bool {
        self.waiter.is_none()
            && self.until.is_none()
            && selection.queue(route).is_some_and(|queue| !queue.is_empty())
            && selection.is_available(route)
    }

    /// Waits for a turn. A waiter that was called and found no slot keeps its position in the queue.
    pub(super) async fn for_turn(
        &mut self,
        route: &Route,
        selection: &TargetSelection,
        session: &mut ClientSession,
        exchange: &mut Exchange,
    ) -> Waited {
        let Some(queue) = selection.queue(route) else { return Waited::NoQueue };
        let waiter = match self.waiter.take() {
            Some(waiter) => {
                waiter.wait_again();
                self.note_miss();
                waiter
            }
            None => {
                let Some(pending) = selection.wait(route) else { return Waited::Over(queue.turned_away()) };
                let until = *self.until.get_or_insert_with(|| latest_end(route, exchange));
                let priority = exchange.caller.as_ref().map_or(0, |caller| caller.priority);
                match queue.enter(party(exchange), priority, until) {
                    Ok(waiter) => {
                        let mut span = exchange.span.child("queue", SpanKind::Internal);
                        span.set(names::SPILLWAY_QUEUE_PRIORITY, i64::from(priority));
                        self.span = Some(span);
                        self.pending = pending;
                        waiter
                    }
                    Err(no) => return Waited::Over(no),
                }
            }
        };
        // A slot may have been released between the look for one and the entry, when no waiter was there to be called.
        // Where no target is available any more, a call ends the wait early.
        let mut again = None;
        let is_worth_it = selection.has_room(route, now_millis()) || !selection.is_available(route);
        if is_worth_it && waiter.turn_now().is_none() {
            if self.misses < MAX_MISSES {
                queue.wake_next();
            } else {
                again = Some(AFTER_MISSES);
            }
        }
        loop {
            let change = again.into_iter().chain(selection.next_change(route, now_millis())).min();
            tokio::select! {
                biased;
                turn = waiter.turn() => match turn {
                    Turn::Called => {
                        self.waiter = Some(waiter);
                        return Waited::Called;
                    }
                    Turn::Displaced => return self.give_up(waiter, NotHeld::TooLate, exchange),
                },
                () = sleep_until(waiter.until()) => return self.give_up(waiter, NotHeld::TimeOut, exchange),
                // An endpoint that reported full may be asked again: no slot is released to wake a waiter then.
                () = sleep(change.unwrap_or(AFTER_MISSES)), if change.is_some() => {
                    if again.is_some() || selection.has_room(route, now_millis()) {
                        queue.wake_next();
                    }
                }
                _ = session.read_body_or_idle(true) => {
                    self.report(&waiter, exchange, "abandoned");
                    return Waited::ClientGone;
                }
            }
        }
    }

    fn note_miss(&mut self) {
        let now = clock::now();
        let in_a_row = self.missed_at.replace(now).is_some_and(|last| now.duration_since(last) < 2 * AFTER_MISSES);
        self.misses = if in_a_row { self.misses.saturating_add(1) } else { 1 };
    }

    fn give_up(&mut self, waiter: Waiter, why: NotHeld, exchange: &mut Exchange) -> Waited {
        self.report(&waiter, exchange, why.reason().as_str());
        waiter.given_up(why);
        Waited::Over(why)
    }

    /// Leaves the queue for a slot at an endpoint. Where more slots are free, the next waiter is woken.
    pub(super) fn admitted(&mut self, route: &Route, selection: &TargetSelection, exchange: &mut Exchange) {
        let Some(waiter) = self.waiter.take() else { return };
        self.report(&waiter, exchange, "admitted");
        waiter.admitted();
        selection.offer_rest(route, now_millis());
    }

    /// Leaves the queue for a built-in model, or because no target is available. The call passes on to the next waiter.
    pub(super) fn leave_without_slot(&mut self, exchange: &mut Exchange) {
        let Some(waiter) = self.waiter.take() else { return };
        self.report(&waiter, exchange, "moved_on");
        waiter.moved_on();
    }

    fn report(&mut self, waiter: &Waiter, exchange: &mut Exchange, outcome: &'static str) {
        self.pending.clear();
        exchange.outcome.queued = Some(exchange.outcome.queued.unwrap_or_default() + waiter.waited());
        if let Some(mut span) = self.span.take() {
            span.set(names::SPILLWAY_QUEUE_OUTCOME, outcome);
        }
    }
}

/// Latest end of a wait that begins now: the earliest of the queue's time limit, the request's deadline and the time limit
/// of the first token, which has to come after the wait.
fn latest_end(route: &Route, exchange: &Exchange) -> Instant {
    let mut until = exchange.deadline(route).min(clock::now() + route.max_queue_wait);
    if let Some(limit) = route.first_token_timeout
        && exchange.asked.as_ref().is_some_and(|asked| asked.stream)
    {
        until = until.min(Instant::from_std(exchange.started + limit));
    }
    until
}

fn party(exchange: &Exchange) -> Party {
    match &exchange.caller {
        Some(consumer) => Party::Tenant(consumer.tenant.clone()),
        None => Party::Address(network(exchange.client)),
    }
}
