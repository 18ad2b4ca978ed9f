//! A stream that died after its first byte, continued from the text so far where the route opts in: by another endpoint
//! that has room, else by the model inside. The head is out and cannot say it: the first chunk of the continuation does, in
//! a field `spillway` that clients who do not know it ignore.

use std::sync::Arc;

use bytes::Bytes;
use pingora::protocols::http::ServerSession;
use tokio::time::Instant;

use super::{affinity, conclude, forward, spilling};
use crate::admission::{Admission, Journey};
use crate::balancing::now_millis;
use crate::downstream::Unread;
use crate::exchange::{End, Exchange, Place};
use crate::off_loop::BUILDS_VALUES;
use crate::protocol::openai::{ChatRequest, continuation, model_at};
use crate::server::Gateway;
use crate::snapshot::{Backend, Route, TargetKind};
use crate::spill;
use crate::telemetry::Span;
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
                Outcome::ClientGone | Outcome::ClientSlow | Outcome::Malformed(_) | Outcome::GivenUp | Outcome::Unread,
            ) => {
                return Err(End::ClientGone);
            }
            Some(Outcome::Died(more)) => died = more,
            // That one could not; another may.
            Some(Outcome::Full(_) | Outcome::Failed(_)) => {}
            None => break,
        }
    }
    let Some(mut stream) = inside(route, &died, session, x).await else {
        return match break_off(session, x, true, died.code, died.message).await {
            Outcome::ClientGone => Err(End::ClientGone),
            _ => Ok(()),
        };
    };
    resumed(route, x);
    let result = spilling::write_frames(&mut stream, Unread::default(), session, x).await;
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
    let held = spilling::held(x)?;
    let rewrite = || {
        let body = continuation(&held, &died.text, died.tokens)?;
        let model_at = model_at(&body);
        Some((body, model_at))
    };
    let rewritten = x.off_loop.run(held.len().saturating_mul(BUILDS_VALUES), rewrite).await;
    let (body, model_at) = rewritten.ok()??;
    let key = |backend: &Backend| affinity::key(backend, session, x);
    let Admission::Endpoint { backend, endpoint, slot } =
        journey.admit(route, now_millis(), rand::random(), false, &key)
    else {
        return None;
    };
    let retrying = forward::begin_retry(route, backend)?;
    let attempt = forward::attempt(gateway, route, backend, endpoint, &slot, MoveOn { full: true, retry: true });
    x.place = Some(Place { slot, retrying: Some(retrying) });
    x.outcome.attempts += 1;
    let resend = x.outcome.attempts.saturating_sub(1);
    x.attempt = Some(conclude::attempt_span(&attempt, session, x, resend));
    let ready = Ready::with_body(&attempt, session, x, body, model_at);
    let opened = tokio::select! {
        biased;
        opened = open(&attempt, ready) => opened,
        _ = session.read_body_or_idle(true) => Err(Outcome::ClientGone),
    };
    let outcome = match opened {
        Ok(opened) if can_continue(&opened.head) => {
            resumed(route, x);
            go_on(&attempt, died, opened, session, x).await
        }
        Ok(opened) => {
            let status = opened.head.status.as_u16();
            tracing::debug!(event = "cannot_resume", route = %route.name, endpoint = %attempt.endpoint.address, status);
            abandon(&attempt, opened).await;
            Outcome::Failed(Failure::Status(status))
        }
        Err(outcome) => outcome,
    };
    forward::note_if_full(&attempt, &outcome);
    let span = x.attempt.take().unwrap_or_else(Span::none);
    conclude::attempt_ended(&attempt, x, span, &outcome);
    x.place = None;
    Some(outcome)
}

/// The model that `whenUnavailable` spills to.
async fn inside(route: &Arc<Route>, died: &Died, session: &ServerSession, x: &Exchange) -> Option<spill::SpillStream> {
    let last = &route.when_unavailable;
    let Some(TargetKind::Model(model)) = &last.spill_to else { return None };
    if !spilling::is_possible(last, session, x) || !spilling::is_allowed(route, last, x) {
        return None;
    }
    let body: Bytes = spilling::held(x)?;
    let request = spilling::read(x, &body, ChatRequest::parse).await.ok()?.ok()?;
    let begun = spill::Begun { text: &died.text, tokens: died.tokens };
    let deadline = x.started + route.request_timeout;
    let terms = spill::Terms {
        max_prompt_tokens: route.spill.max_prompt_tokens,
        tenant: spilling::tenant(x).cloned(),
        ..spill::Terms::default()
    };
    match spill::continue_answer(model, &request, begun, terms, deadline).await {
        Ok(stream) => Some(stream),
        Err(e) => {
            tracing::debug!(event = "cannot_resume", route = %route.name, reason = %e.refusal().message);
            None
        }
    }
}
