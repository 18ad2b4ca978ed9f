//! Step 9: the fallback of a request that no target took or that is over a limit. Another backend or a built-in model answers
//! in place of the route's own backends, else the request is refused.

use std::sync::Arc;
use std::time::Duration;

use pingora::protocols::http::ServerSession;
use spillway_filter::{ErrorKind, Refusal};
use tokio::sync::OwnedSemaphorePermit;

use super::attempts::stand_in;
use super::builtin::pass;
use super::may_spill::{is_allowed, is_possible, is_too_long};
use super::reading::{read_chat, tenant};
use crate::admission::TargetSelection;
use crate::builtin::{self, LoadedModel, SpillError, SpillStream, Terms};
use crate::clock::now_millis;
use crate::exchange::{End, Exchange};
use crate::gateway::Gateway;
use crate::telemetry::SpillReason;
use crate::topology::{Route, TargetKind};

/// Answers a request that is over a limit whose rule has `onExceeded: spill`; refuses it where nothing can.
pub(super) async fn over_limit(
    gateway: &Arc<Gateway>,
    route: &Arc<Route>,
    filter: String,
    refusal: Box<Refusal>,
    session: &mut ServerSession,
    exchange: &mut Exchange,
) -> Result<(), End> {
    let last = &route.when_saturated;
    // The list of models is answered here and never spills.
    let is_own = super::answers::is_models(route, exchange.resolved);
    if !is_own && is_possible(last, exchange) && is_allowed(route, last, exchange) {
        match &last.spill_to {
            Some(TargetKind::Backend(backend)) => {
                let may = !is_too_long(route, exchange);
                if may && Box::pin(stand_in(gateway, route, backend, SpillReason::OverLimit, session, exchange)).await?
                {
                    route.metrics.spilled(SpillReason::OverLimit);
                    return Ok(());
                }
            }
            Some(TargetKind::Model(model)) => {
                if let Some(place) = model.slot_over_limit()
                    && let Ok(stream) = spill(route, model, Some(place), exchange).await
                {
                    exchange.outcome.spilled = Some(SpillReason::OverLimit);
                    route.metrics.spilled(SpillReason::OverLimit);
                    return pass(stream, model, session, exchange).await;
                }
            }
            None => {}
        }
    }
    // A refused request takes nothing from any limit.
    exchange.ledger.release();
    exchange.refused_by = Some(filter);
    Err(End::Refuse(refusal))
}

/// Spills a request that no target took, if its route has a spill that can take it; refuses it otherwise.
pub(super) async fn fall_back(
    gateway: &Arc<Gateway>,
    route: &Arc<Route>,
    selection: &TargetSelection,
    reason: SpillReason,
    session: &mut ServerSession,
    exchange: &mut Exchange,
) -> Result<(), End> {
    let last = if reason == SpillReason::Unavailable { &route.when_unavailable } else { &route.when_saturated };
    let mut busy = None;
    if is_possible(last, exchange) && is_allowed(route, last, exchange) {
        match &last.spill_to {
            None => {}
            Some(TargetKind::Backend(backend)) => {
                let may = !is_too_long(route, exchange);
                if may && Box::pin(stand_in(gateway, route, backend, reason, session, exchange)).await? {
                    route.metrics.spilled(reason);
                    return Ok(());
                }
            }
            Some(TargetKind::Model(model)) => match spill(route, model, None, exchange).await {
                Ok(stream) => {
                    exchange.outcome.spilled = Some(reason);
                    route.metrics.spilled(reason);
                    return pass(stream, model, session, exchange).await;
                }
                Err(wait) => busy = wait,
            },
        }
    }
    route.metrics.shed(reason);
    let (code, message) = match reason {
        SpillReason::Unavailable => ("service_unavailable", "no server for this request is available; try again"),
        _ => ("overloaded", "every server for this request is busy; try again"),
    };
    // The time until there is a place for one more: as fast as places came free lately, or what was told. Where nobody is
    // there, no place comes free, whatever the rate was.
    let known =
        selection.queue(route).filter(|_| reason != SpillReason::Unavailable).and_then(|queue| queue.drained_in());
    let told = || last.retry_after.max(selection.next_change(route, now_millis()).unwrap_or_default());
    let wait = known.unwrap_or_else(told).max(busy.unwrap_or_default());
    Err(End::refuse(Refusal::new(last.status, ErrorKind::Overloaded, code, message).retry_after(wait)))
}

/// Submits the request to a built-in model. An error holds the time until the model has room, where it had none.
async fn spill(
    route: &Route,
    model: &Arc<LoadedModel>,
    over_limit: Option<OwnedSemaphorePermit>,
    exchange: &Exchange,
) -> Result<SpillStream, Option<Duration>> {
    let Ok(Some(Ok(request))) = read_chat(exchange).await else { return Err(None) };
    let (dialect, tenant) = (exchange.dialect, tenant(exchange).cloned());
    let terms = Terms { dialect, max_prompt_tokens: route.spill.max_prompt_tokens, over_limit, tenant };
    match builtin::answer(model, &request, terms, exchange.started + route.request_timeout).await {
        Ok(stream) => Ok(stream),
        Err(SpillError::Busy(refusal)) => Err(refusal.retry_after),
        Err(e) => {
            tracing::debug!(event = "cannot_spill", route = %route.name, reason = %e.refusal().message);
            Err(None)
        }
    }
}
