//! A request that waits for a place: until it is called, its time is over, or its client leaves. A client that leaves
//! frees its place in the queue at once, because the wait is dropped with the request.

use std::net::IpAddr;
use std::time::Duration;

use pingora::protocols::http::ServerSession;
use smallvec::SmallVec;
use tokio::time::{Instant, sleep, sleep_until};

use crate::admission::Journey;
use crate::clock::now_millis;
use crate::exchange::Exchange;
use crate::queueing::{NotHeld, Party, Pending, Ticket, Turn};
use crate::telemetry::{Label, Span, SpanKind, names};
use crate::topology::Route;

/// What a wait has come to.
pub(super) enum Waited {
    /// There may be a place now.
    Called,
    /// It is over without one.
    Over(NotHeld),
    /// The client left.
    ClientGone,
    /// The route has no queue.
    NoQueue,
}

/// The waiting of one request, over all its turns.
#[derive(Default)]
pub(super) struct Wait {
    ticket: Option<Ticket>,
    /// When all waiting must be over, from the first time that it waits.
    until: Option<Instant>,
    span: Option<Span>,
    /// Calls in a row that found no place, and when the last one was.
    misses: u32,
    missed_at: Option<Instant>,
    /// Its place among those who wait for its backends, as long as it has a ticket.
    pending: SmallVec<[Pending; 2]>,
}

/// Calls in a row that may be repeated at once. More of them mean that an endpoint seems to have room and takes nobody:
/// then it is asked again after a while, not in a loop.
const MAX_MISSES: u32 = 3;
const AFTER_MISSES: Duration = Duration::from_millis(20);

impl Wait {
    /// Whether it was called and has not taken a place yet.
    pub(super) fn is_called(&self) -> bool {
        self.ticket.is_some()
    }

    /// Whether others wait already, whom a newcomer must not overtake.
    pub(super) fn is_behind(&self, route: &Route, journey: &Journey) -> bool {
        self.ticket.is_none()
            && self.until.is_none()
            && journey.queue(route).is_some_and(|queue| !queue.is_empty())
            && journey.is_available(route)
    }

    /// Waits. One who was called and found no place stands where it stood.
    pub(super) async fn for_turn(
        &mut self,
        route: &Route,
        journey: &Journey,
        session: &mut ServerSession,
        x: &mut Exchange,
    ) -> Waited {
        let Some(queue) = journey.queue(route) else { return Waited::NoQueue };
        let ticket = match self.ticket.take() {
            Some(ticket) => {
                ticket.back();
                self.missed();
                ticket
            }
            None => {
                let Some(pending) = journey.wait(route) else { return Waited::Over(queue.turned_away()) };
                let until = *self.until.get_or_insert_with(|| last_moment(route, x));
                let priority = x.caller.as_ref().map_or(0, |caller| caller.priority);
                match queue.enter(party(x), priority, until) {
                    Ok(ticket) => {
                        let mut span = x.span.child("queue", SpanKind::Internal);
                        span.set(names::SPILLWAY_QUEUE_PRIORITY, i64::from(priority));
                        self.span = Some(span);
                        self.pending = pending;
                        ticket
                    }
                    Err(no) => return Waited::Over(no),
                }
            }
        };
        // A place may have come free between the look for one and the entry, when nobody was there to be called.
        let mut again = None;
        let is_worth_it = journey.has_room(route, now_millis()) || !journey.is_available(route);
        if is_worth_it && ticket.told().is_none() {
            if self.misses < MAX_MISSES {
                queue.call();
            } else {
                again = Some(AFTER_MISSES);
            }
        }
        loop {
            let change = again.into_iter().chain(journey.next_change(route, now_millis())).min();
            tokio::select! {
                biased;
                turn = ticket.turn() => match turn {
                    Turn::Called => {
                        self.ticket = Some(ticket);
                        return Waited::Called;
                    }
                    Turn::MovedOn => return self.over(ticket, NotHeld::TooLate, x),
                },
                () = sleep_until(ticket.until()) => return self.over(ticket, NotHeld::TimeOut, x),
                // An endpoint that said that it is full may be asked again: nobody gives back a place then.
                () = sleep(change.unwrap_or(AFTER_MISSES)), if change.is_some() => {
                    if again.is_some() || journey.has_room(route, now_millis()) {
                        queue.call();
                    }
                }
                _ = session.read_body_or_idle(true) => {
                    self.told(&ticket, x, "abandoned");
                    return Waited::ClientGone;
                }
            }
        }
    }

    fn missed(&mut self) {
        let now = Instant::now();
        let in_a_row = self.missed_at.replace(now).is_some_and(|last| now.duration_since(last) < 2 * AFTER_MISSES);
        self.misses = if in_a_row { self.misses.saturating_add(1) } else { 1 };
    }

    fn over(&mut self, ticket: Ticket, why: NotHeld, x: &mut Exchange) -> Waited {
        self.told(&ticket, x, why.reason().as_str());
        ticket.given_up(why);
        Waited::Over(why)
    }

    /// It has a place at an endpoint. Where there is more room, the next one is called.
    pub(super) fn admitted(&mut self, route: &Route, journey: &Journey, x: &mut Exchange) {
        let Some(ticket) = self.ticket.take() else { return };
        self.told(&ticket, x, "admitted");
        ticket.admitted();
        journey.offer_rest(route, now_millis());
    }

    /// It goes where nobody waits for. Whoever is next has the call that it had, and does not wait for what it does now.
    pub(super) fn elsewhere(&mut self, x: &mut Exchange) {
        let Some(ticket) = self.ticket.take() else { return };
        self.told(&ticket, x, "moved_on");
        ticket.moved_on();
    }

    fn told(&mut self, ticket: &Ticket, x: &mut Exchange, outcome: &'static str) {
        self.pending.clear();
        x.outcome.queued = Some(x.outcome.queued.unwrap_or_default() + ticket.waited());
        if let Some(mut span) = self.span.take() {
            span.set(names::SPILLWAY_QUEUE_OUTCOME, outcome);
        }
    }
}

/// When a request that begins to wait now must wait no longer: its queue's time, its own, and that of a first token that
/// has to come from somewhere else after it.
fn last_moment(route: &Route, x: &Exchange) -> Instant {
    let mut until = x.deadline(route).min(Instant::now() + route.max_queue_wait);
    if let Some(limit) = route.first_token_timeout
        && x.asked.as_ref().is_some_and(|asked| asked.stream)
    {
        until = until.min(Instant::from_std(x.started + limit));
    }
    until
}

fn party(x: &Exchange) -> Party {
    match &x.caller {
        Some(consumer) => Party::Tenant(consumer.tenant.clone()),
        None => Party::Address(network(x.client)),
    }
}

/// What counts as one address: a household or server has a /64 of IPv6.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) >> 64 << 64).into()),
        v4 => v4,
    }
}
