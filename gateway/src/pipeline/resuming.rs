//! A stream that died after its first byte, continued from the text so far where the route opts in: by another endpoint
//! that has room, else by the built-in model. The head is out and cannot say it: the first chunk of the continuation does, in
//! a field `spillway` that clients who do not know it ignore.

use std::sync::Arc;

use bytes::Bytes;

use super::builtin::write_frames;
use super::may_spill::{is_allowed, is_possible};
use super::reading::{held, read, tenant};
use super::trying::{Try, begin_retry};
use super::{affinity, conclude, translating};
use crate::admission::{Admission, TargetSelection};
use crate::builtin;
use crate::clock::{self, now_millis};
use crate::downstream::{ClientSession, Unread};
use crate::exchange::{AttemptSlot, End, Exchange};
use crate::gateway::Gateway;
use crate::off_loop::BUILDS_VALUES;
use crate::protocol::Operation;
use crate::topology::{Backend, Route, TargetKind};
use crate::upstream::{
    AttemptOutcome, Died, Failure, MoveOn, Ready, abandon, break_off, can_continue, open, pass_rest,
};

/// Endpoints that are asked to continue one answer.
const MAX_TRIES: u32 = 3;

/// Continues the stream, or ends it with an error event.
pub(super) async fn resume(
    gateway: &Arc<Gateway>,
    route: &Arc<Route>,
    selection: &mut TargetSelection,
    mut died: Box<Died>,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<(), End> {
    for _ in 0..MAX_TRIES {
        if clock::now() >= exchange.deadline(route) {
            break;
        }
        match continue_elsewhere(gateway, route, selection, &died, session, exchange).await {
            Some(AttemptOutcome::Answered | AttemptOutcome::Broken(_)) => return Ok(()),
            Some(
                AttemptOutcome::ClientGone
                | AttemptOutcome::ClientSlow
                | AttemptOutcome::Malformed(_)
                | AttemptOutcome::Refused(_)
                | AttemptOutcome::GivenUp
                | AttemptOutcome::Unread,
            ) => {
                return Err(End::ClientGone);
            }
            Some(AttemptOutcome::Died(more)) => died = more,
            // That one could not; another may.
            Some(AttemptOutcome::Full(_) | AttemptOutcome::Failed(_)) => {}
            None => break,
        }
    }
    let Some(mut stream) = inside(route, &died, session, exchange).await else {
        return match break_off(session, exchange, true, died.cut).await {
            AttemptOutcome::ClientGone => Err(End::ClientGone),
            _ => Ok(()),
        };
    };
    resumed(route, exchange);
    let result = write_frames(&mut stream, Unread::default(), session, exchange).await;
    conclude::engine_ended(exchange, stream.report());
    result
}

fn resumed(route: &Route, exchange: &mut Exchange) {
    // A stream that dies again is still one.
    if !std::mem::replace(&mut exchange.outcome.resumed, true) {
        exchange.outcome.shown_id.clone_from(&exchange.outcome.response_id);
        route.metrics.resumed.inc();
    }
}

/// Asks another endpoint of the route; `None` when there is none to ask, or the answer cannot be continued so. Such a try
/// takes a slot and a retry permit like any other.
async fn continue_elsewhere(
    gateway: &Arc<Gateway>,
    route: &Arc<Route>,
    selection: &mut TargetSelection,
    died: &Died,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Option<AttemptOutcome> {
    let asked = held(exchange)?;
    let rewrite = || exchange.dialect.continuation(&asked, &died.said);
    let rewritten = exchange.off_loop.run(asked.len().saturating_mul(BUILDS_VALUES), rewrite).await;
    let (body, model_at) = rewritten.ok()??;
    let key = |backend: &Backend| affinity::key(backend, session, exchange);
    let (target, backend, endpoint, slot) = loop {
        match selection.admit(route, now_millis(), rand::random(), false, &key) {
            // The text so far is continued in its own API only.
            Admission::Endpoint { target, backend, .. } if translating::is_foreign(backend, exchange) => {
                selection.exclude(target);
            }
            Admission::Endpoint { target, backend, endpoint, slot } => break (target, backend, endpoint, slot),
            _ => return None,
        }
    };
    let (body, model_at) = match translating::cut_body(backend, &body, exchange).await.ok()? {
        Some(cut) => cut,
        None => (body, model_at),
    };
    let place = AttemptSlot { slot, retrying: Some(begin_retry(route, backend)?) };
    let move_on = MoveOn { full: true, retry: true };
    let mut this = Try::begin(gateway, route, (Some(target), backend), endpoint, place, move_on, session, exchange);
    this.lend_place(exchange);
    let ready = Ready::with_body(&this.attempt, session, exchange, body, model_at);
    let opened = tokio::select! {
        biased;
        opened = open(&this.attempt, ready) => opened,
        _ = session.read_body_or_idle(true) => Err(AttemptOutcome::ClientGone),
    };
    let outcome = match opened {
        Ok(opened) if can_continue(&opened.head) => {
            resumed(route, exchange);
            pass_rest(&this.attempt, died, opened, session, exchange).await
        }
        Ok(opened) => {
            let (status, endpoint) = (opened.head.status.as_u16(), &this.attempt.endpoint.address);
            tracing::debug!(event = "cannot_resume", route = %route.name, endpoint = %endpoint, status);
            abandon(&this.attempt, opened).await;
            AttemptOutcome::Failed(Failure::Status(status))
        }
        Err(outcome) => outcome,
    };
    this.conclude(&outcome, exchange);
    if !matches!(outcome, AttemptOutcome::Answered | AttemptOutcome::Broken(_)) {
        // The client got nothing of its error.
        (exchange.outcome.reported, exchange.outcome.error_code) = (None, None);
    }
    Some(outcome)
}

/// Continuation by the built-in model that `whenUnavailable` spills to.
async fn inside(
    route: &Arc<Route>,
    died: &Died,
    session: &ClientSession,
    exchange: &Exchange,
) -> Option<builtin::SpillStream> {
    let last = &route.when_unavailable;
    let Some(TargetKind::Model(model)) = &last.spill_to else { return None };
    if !is_possible(last, exchange) || !is_allowed(route, last, session.req_header(), exchange) {
        return None;
    }
    let body: Bytes = held(exchange)?;
    if exchange.resolved.operation != Operation::Chat {
        return None;
    }
    let request = read(exchange, &body, |body| exchange.dialect.read_chat(Operation::Chat, body)).await.ok()??.ok()?;
    let begun = builtin::Begun { text: &died.said.text, tokens: died.said.tokens };
    let deadline = exchange.deadline(route).into_std();
    let terms = builtin::Terms {
        dialect: exchange.dialect,
        operation: Operation::Chat,
        max_prompt_tokens: route.spill.max_prompt_tokens,
        over_limit: None,
        tenant: tenant(exchange).cloned(),
        shown: None,
    };
    match builtin::continue_answer(model, &request, begun, terms, deadline).await {
        Ok(stream) => Some(stream),
        Err(e) => {
            tracing::debug!(event = "cannot_resume", route = %route.name, reason = %e.refusal().message);
            None
        }
    }
}
