//! A stream that died after its first byte, continued from the text so far where the route opts in: by another endpoint
//! that has room, else by the model inside. The head is out and cannot say it: the first chunk of the continuation does, in
//! a field `spillway` that clients who do not know it ignore.

use std::sync::Arc;

use bytes::Bytes;
use pingora::protocols::http::ServerSession;
use tokio::time::Instant;

use super::builtin::write_frames;
use super::may_spill::{is_allowed, is_possible};
use super::reading::{held, read, tenant};
use super::trying::{Try, begin_retry};
use super::{affinity, conclude};
use crate::admission::{Admission, Journey};
use crate::builtin;
use crate::clock::now_millis;
use crate::downstream::Unread;
use crate::exchange::{End, Exchange, Place};
use crate::gateway::Gateway;
use crate::off_loop::BUILDS_VALUES;
use crate::protocol::Operation;
use crate::topology::{Backend, Route, TargetKind};
use crate::upstream::{Died, Failure, MoveOn, Outcome, Ready, abandon, break_off, can_continue, go_on, open};

/// Endpoints that are asked to continue one answer.
const MAX_TRIES: u32 = 3;

/// Continues the stream, or ends it with an error event.
pub(super) async fn resume(
    gateway: &Arc<Gateway>,
    route: &Arc<Route>,
    journey: &mut Journey,
    mut died: Box<Died>,
    session: &mut ServerSession,
    x: &mut Exchange,
) -> Result<(), End> {
    for _ in 0..MAX_TRIES {
        if Instant::now() >= x.deadline(route) {
            break;
        }
        match elsewhere(gateway, route, journey, &died, session, x).await {
            Some(Outcome::Answered | Outcome::Broken) => return Ok(()),
            Some(
                Outcome::ClientGone
                | Outcome::ClientSlow
                | Outcome::Malformed(_)
                | Outcome::Refused(_)
                | Outcome::GivenUp
                | Outcome::Unread,
            ) => {
                return Err(End::ClientGone);
            }
            Some(Outcome::Died(more)) => died = more,
            // That one could not; another may.
            Some(Outcome::Full(_) | Outcome::Failed(_)) => {}
            None => break,
        }
    }
    let Some(mut stream) = inside(route, &died, x).await else {
        return match break_off(session, x, true, died.code, died.message).await {
            Outcome::ClientGone => Err(End::ClientGone),
            _ => Ok(()),
        };
    };
    resumed(route, x);
    let result = write_frames(&mut stream, Unread::default(), session, x).await;
    conclude::engine_ended(x, stream.report());
    result
}

fn resumed(route: &Route, x: &mut Exchange) {
    // A stream that dies again is still one.
    if !std::mem::replace(&mut x.outcome.resumed, true) {
        route.metrics.resumed.inc();
    }
}

/// Asks another endpoint of the route. `None` when there is none to ask, or the answer cannot be continued so. It is a
/// further try like any other: it takes a slot, and of the budget.
async fn elsewhere(
    gateway: &Arc<Gateway>,
    route: &Arc<Route>,
    journey: &mut Journey,
    died: &Died,
    session: &mut ServerSession,
    x: &mut Exchange,
) -> Option<Outcome> {
    let asked = held(x)?;
    let rewrite = || x.dialect.continuation(&asked, &died.said);
    let rewritten = x.off_loop.run(asked.len().saturating_mul(BUILDS_VALUES), rewrite).await;
    let (body, model_at) = rewritten.ok()??;
    let key = |backend: &Backend| affinity::key(backend, session, x);
    let Admission::Endpoint { backend, endpoint, slot } =
        journey.admit(route, now_millis(), rand::random(), false, &key)
    else {
        return None;
    };
    let place = Place { slot, retrying: Some(begin_retry(route, backend)?) };
    let move_on = MoveOn { full: true, retry: true };
    let mut this = Try::begin(gateway, route, backend, endpoint, place, move_on, session, x);
    this.lend_place(x);
    let ready = Ready::with_body(&this.attempt, session, x, body, model_at);
    let opened = tokio::select! {
        biased;
        opened = open(&this.attempt, ready) => opened,
        _ = session.read_body_or_idle(true) => Err(Outcome::ClientGone),
    };
    let outcome = match opened {
        Ok(opened) if can_continue(&opened.head) => {
            resumed(route, x);
            go_on(&this.attempt, died, opened, session, x).await
        }
        Ok(opened) => {
            let (status, endpoint) = (opened.head.status.as_u16(), &this.attempt.endpoint.address);
            tracing::debug!(event = "cannot_resume", route = %route.name, endpoint = %endpoint, status);
            abandon(&this.attempt, opened).await;
            Outcome::Failed(Failure::Status(status))
        }
        Err(outcome) => outcome,
    };
    this.conclude(&outcome, x);
    Some(outcome)
}

/// The model that `whenUnavailable` spills to.
async fn inside(route: &Arc<Route>, died: &Died, x: &Exchange) -> Option<builtin::SpillStream> {
    let last = &route.when_unavailable;
    let Some(TargetKind::Model(model)) = &last.spill_to else { return None };
    if !is_possible(last, x) || !is_allowed(route, last, x) {
        return None;
    }
    let body: Bytes = held(x)?;
    if x.resolved.operation != Operation::Chat {
        return None;
    }
    let request = read(x, &body, |body| x.dialect.read_chat(Operation::Chat, body)).await.ok()??.ok()?;
    let begun = builtin::Begun { text: &died.said.text, tokens: died.said.tokens };
    let deadline = x.started + route.request_timeout;
    let terms = builtin::Terms {
        dialect: x.dialect,
        max_prompt_tokens: route.spill.max_prompt_tokens,
        over_limit: None,
        tenant: tenant(x).cloned(),
    };
    match builtin::continue_answer(model, &request, begun, terms, deadline).await {
        Ok(stream) => Some(stream),
        Err(e) => {
            tracing::debug!(event = "cannot_resume", route = %route.name, reason = %e.refusal().message);
            None
        }
    }
}
