//! A stream that died after its first byte, continued by the model inside from the text so far, where the route opts in.
//! The head is out and cannot say it: the first chunk of the continuation does, in a field `spillway` that clients who
//! do not know it ignore, and its `model` is the one that answers.

use std::sync::Arc;

use bytes::Bytes;
use pingora::protocols::http::ServerSession;

use super::spilling;
use crate::exchange::{End, Exchange};
use crate::protocol::openai::ChatRequest;
use crate::snapshot::{Route, TargetKind};
use crate::spill;
use crate::upstream::{Died, Outcome, break_off};

/// Continues the stream, or ends it with an error event.
pub(super) async fn resume(
    route: &Arc<Route>,
    died: &Died,
    session: &mut ServerSession,
    x: &mut Exchange,
) -> Result<(), End> {
    let stream = continuation(route, died, session, x).await;
    let Some(mut stream) = stream else {
        return match break_off(session, x, true, died.code, died.message).await {
            Outcome::ClientGone => Err(End::ClientGone),
            _ => Ok(()),
        };
    };
    x.outcome.resumed = true;
    route.metrics.resumed.inc();
    let result = spilling::write_frames(&mut stream, session, x).await;
    super::conclude::engine_ended(x, stream.report());
    result
}

async fn continuation(route: &Route, died: &Died, session: &ServerSession, x: &Exchange) -> Option<spill::SpillStream> {
    let last = &route.when_unavailable;
    let Some(TargetKind::Model(model)) = &last.spill_to else { return None };
    if !spilling::is_possible(last, session, x) || !spilling::is_allowed(route, last, x) {
        return None;
    }
    let body: Bytes = spilling::held(x)?;
    let request = ChatRequest::parse(&body).ok()?;
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
