//! The try at an endpoint, from its slot to its report. First attempts, retries, hedges, continuations,
//! stand-ins and mirrors all go through here. A [`Try`] that is dropped before its outcome is known was given up: its
//! endpoint is not judged by it.

use std::sync::Arc;
use std::time::Duration;

use super::conclude;
use super::translating::Rewritten;
use crate::balancing::{Endpoint, Verdict};
use crate::clock::{self, now_millis};
use crate::downstream::ClientSession;
use crate::exchange::{AttemptSlot, Exchange, is_idempotent};
use crate::gateway::Gateway;
use crate::queueing::{Retrying, WakingSlot};
use crate::telemetry::Span;
use crate::topology::{Backend, Route};
use crate::upstream::{Attempt, AttemptOutcome, Failure, MoveOn, OpenedAnswer, TimeLimit, relay, run};

/// Time for which a full endpoint without a Retry-After gets no requests.
const FULL_FOR: Duration = Duration::from_secs(1);

/// Attempt together with its slot at the endpoint: reports the outcome, and releases the slot.
pub(super) struct Try<'a> {
    /// Route, backend, endpoint and span of the try.
    pub(super) attempt: Attempt<'a>,
    /// Slot and retry permit, released when the try is dropped. Declared after the attempt, so that they are dropped
    /// last.
    place: Option<AttemptSlot>,
    is_concluded: bool,
    /// True for a try of the gateway's own, which counts for nobody and judges no endpoint.
    is_probe: bool,
}

impl<'a> Try<'a> {
    /// Begins a try for a request: counts it and opens its span.
    #[allow(clippy::too_many_arguments, reason = "where the try goes, and for which request")]
    pub(super) fn begin(
        gateway: &'a Gateway,
        route: &'a Route,
        (target, backend): (Option<usize>, &'a Backend),
        endpoint: Arc<Endpoint>,
        place: AttemptSlot,
        move_on: MoveOn,
        session: &ClientSession,
        exchange: &mut Exchange,
    ) -> Self {
        let resend = exchange.outcome.attempts;
        exchange.outcome.attempts += 1;
        if exchange.caller_key == 0 {
            exchange.caller_key = conclude::caller_key(backend, session.req_header(), exchange);
        }
        let mut attempt = attempt(gateway, route, backend, endpoint, &place.slot, move_on);
        attempt.target = target;
        attempt.span = conclude::attempt_span(&attempt, session, exchange, resend);
        Self { attempt, place: Some(place), is_concluded: false, is_probe: false }
    }

    /// Begins a try for the copy of a request, whose answer goes to no client.
    pub(super) fn copy(
        gateway: &'a Gateway,
        route: &'a Route,
        backend: &'a Backend,
        endpoint: Arc<Endpoint>,
        slot: WakingSlot,
    ) -> Self {
        let attempt = copy_attempt(gateway, route, backend, endpoint, &slot);
        Self { attempt, place: Some(AttemptSlot { slot, retrying: None }), is_concluded: false, is_probe: false }
    }

    /// Begins a try for a probe.
    pub(super) fn probe(
        gateway: &'a Gateway,
        route: &'a Route,
        backend: &'a Backend,
        endpoint: Arc<Endpoint>,
        slot: WakingSlot,
    ) -> Self {
        let mut this = Self::copy(gateway, route, backend, endpoint, slot);
        this.is_probe = true;
        this
    }

    /// Runs the try of a probe to its end. An endpoint that says that it is full is left alone, as after any request.
    pub(super) async fn run_probe(mut self, session: &mut ClientSession, exchange: &mut Exchange) -> AttemptOutcome {
        self.lend_place(exchange);
        let outcome = run(&self.attempt, session, exchange).await;
        note_if_full(&self.attempt, &outcome);
        exchange.place = None;
        outcome
    }

    /// Sends the request as it was written for the backend.
    pub(super) fn rewrite(&mut self, written: Option<Rewritten>) {
        match written {
            Some(Rewritten::Translated(translation)) => self.attempt.translation = Some(translation),
            Some(Rewritten::Cut(cut)) => self.attempt.cut = Some(cut),
            None => {}
        }
    }

    /// Runs the try to its end.
    pub(super) async fn run(mut self, session: &mut ClientSession, exchange: &mut Exchange) -> AttemptOutcome {
        self.lend_place(exchange);
        let outcome = run(&self.attempt, session, exchange).await;
        self.conclude(&outcome, exchange);
        outcome
    }

    /// Passes on an answer whose head has come.
    pub(super) async fn relay(
        mut self,
        opened: OpenedAnswer,
        session: &mut ClientSession,
        exchange: &mut Exchange,
    ) -> AttemptOutcome {
        self.lend_place(exchange);
        let outcome = relay(&self.attempt, session, exchange, opened).await;
        self.conclude(&outcome, exchange);
        outcome
    }

    /// Gives the exchange the slot, so that it is released as soon as the answer was read whole.
    pub(super) fn lend_place(&mut self, exchange: &mut Exchange) {
        exchange.place = self.place.take();
    }

    /// Reports how the try ended, and releases its slot.
    pub(super) fn conclude(mut self, outcome: &AttemptOutcome, exchange: &mut Exchange) {
        note_if_full(&self.attempt, outcome);
        self.is_concluded = true;
        let took = exchange.outcome.answered_in.take().unwrap_or_else(|| clock::since(self.attempt.started));
        // The server wrote no faster than its client read: the pauses are none of its time.
        let took = took.saturating_sub(exchange.outcome.pause.take());
        conclude::attempt_ended(&mut self.attempt, outcome, exchange, took);
        exchange.place = None;
    }

    /// Reports how the try for a copy ended, and its status if it was answered; returns what that says of its endpoint.
    pub(super) fn conclude_copy(mut self, outcome: &AttemptOutcome, status: u16) -> Verdict {
        note_if_full(&self.attempt, outcome);
        self.is_concluded = true;
        let took = clock::since(self.attempt.started);
        conclude::judged(&mut self.attempt, outcome, status, took)
    }
}

impl Drop for Try<'_> {
    fn drop(&mut self) {
        if self.is_probe {
            conclude::unjudged(&self.attempt);
        } else if !self.is_concluded {
            conclude::given_up(&mut self.attempt);
        }
    }
}

fn attempt<'a>(
    gateway: &'a Gateway,
    route: &'a Route,
    backend: &'a Backend,
    endpoint: Arc<Endpoint>,
    slot: &WakingSlot,
    move_on: MoveOn,
) -> Attempt<'a> {
    Attempt {
        route,
        backend,
        target: None,
        endpoint,
        in_flight: slot.in_flight_at_start(),
        began: now_millis(),
        started: clock::instant(),
        connector: &gateway.connector,
        downstream: &gateway.downstream,
        via: &gateway.via,
        move_on,
        alone: false,
        translation: None,
        cut: None,
        span: Span::none(),
    }
}

/// Attempt for the copy of a request.
pub(super) fn copy_attempt<'a>(
    gateway: &'a Gateway,
    route: &'a Route,
    backend: &'a Backend,
    endpoint: Arc<Endpoint>,
    slot: &WakingSlot,
) -> Attempt<'a> {
    attempt(gateway, route, backend, endpoint, slot, MoveOn { full: true, retry: false })
}

/// Marks an endpoint that reported full. This comes before the release of its slot, or the next waiter would be sent
/// there.
fn note_if_full(attempt: &Attempt<'_>, outcome: &AttemptOutcome) {
    if let AttemptOutcome::Full(wait) = outcome {
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

/// True if a failed attempt may be followed by another: the route asks for it, the request can be sent again, and a server
/// that may have acted on it does not act twice.
pub(super) fn may_retry(
    failure: &Failure,
    route: &Route,
    backend: &Backend,
    session: &mut ClientSession,
    exchange: &Exchange,
) -> bool {
    if !exchange.body.can_resend(session) {
        return false;
    }
    // Answering a model call twice costs tokens but changes nothing; any other request needs an idempotent method.
    let harmless = backend.may_repeat() || is_idempotent(&session.req_header().method);
    let retry = &route.retry;
    match failure {
        // No server has seen the request.
        Failure::Connect(_) | Failure::Timeout(TimeLimit::Connect) | Failure::Unprocessed { .. } => {
            retry.on_connect_failure
        }
        Failure::Stale(_) => retry.on_connect_failure && harmless,
        Failure::Reset(_) => retry.on_reset && harmless,
        Failure::Reported(status) => harmless && (retry.on_reset || retry.on_statuses.contains(status)),
        Failure::Status(_) => harmless,
        Failure::Protocol(_) => harmless && retry.on_statuses.contains(&502),
        // A route limits the wait for a first token to get it from another endpoint.
        Failure::Timeout(TimeLimit::FirstToken) => harmless,
        Failure::Timeout(_) => harmless && retry.on_statuses.contains(&504),
        // No time is left, or another endpoint would most likely send as large an answer.
        Failure::Deadline(_) | Failure::TooLarge(_) => false,
    }
}
