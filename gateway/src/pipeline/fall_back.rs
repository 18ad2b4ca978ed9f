//! Step 9: the fallback of a request that no target took or that is over a limit. Another backend or a built-in model answers
//! in place of the route's own backends, else the request is refused.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use spillway_filter::{ErrorKind, Refusal};
use tokio::sync::OwnedSemaphorePermit;

use super::attempts::stand_in;
use super::batch_lines;
use super::builtin::pass;
use super::may_spill::bar;
use super::reading::{read_chat, tenant};
use super::translating::{self, Source};
use crate::admission::TargetSelection;
use crate::balancing::Closed;
use crate::builtin::{self, LoadedModel, SpillError, SpillStream, Terms};
use crate::clock::now_millis;
use crate::downstream::ClientSession;
use crate::exchange::{End, Exchange, FailedAttempt};
use crate::gateway::Gateway;
use crate::telemetry::{NotSpilled, SpillReason};
use crate::topology::{Backend, Fallback, Route, TargetKind};

/// Answers a request that is over a limit whose rule has `onExceeded: spill`; refuses it where nothing can.
pub(super) async fn over_limit(
    gateway: &Arc<Gateway>,
    route: &Arc<Route>,
    filter: String,
    refusal: Box<Refusal>,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<(), End> {
    let last = &route.when_saturated;
    // The list of models is answered here and never spills.
    let own = super::answers::is_models(route, exchange.resolved);
    let mut why = None;
    if let Some(target) = last.spill_to.as_ref().filter(|_| !own) {
        match offer(gateway, route, last, target, SpillReason::OverLimit, session, exchange).await? {
            Offered::Answered => return Ok(()),
            Offered::Declined(declined) => why = Some(declined),
        }
    }
    let refusal = match why {
        Some(why) => Box::new(not_spilled(route, *refusal, why, exchange)),
        None => refusal,
    };
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
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<(), End> {
    if exchange.line.is_some() {
        return Err(batch_lines::no_room(exchange));
    }
    let last = if reason == SpillReason::Unavailable { &route.when_unavailable } else { &route.when_saturated };
    let mut why = None;
    if let Some(target) = &last.spill_to {
        match offer(gateway, route, last, target, reason, session, exchange).await? {
            Offered::Answered => return Ok(()),
            Offered::Declined(declined) => why = Some(declined),
        }
    }
    route.metrics.shed(reason);
    note_closed(route, reason, exchange);
    if let Some(limit) = exchange.outcome.failed.as_ref().and_then(|failed| failed.limit)
        && reason == SpillReason::Unavailable
    {
        return Err(End::refuse(Refusal::new(
            StatusCode::GATEWAY_TIMEOUT,
            ErrorKind::Timeout,
            "upstream_timeout",
            format!("the server for this request did not answer in the time that `{limit}` allows"),
        )));
    }
    let (code, message) = match reason {
        SpillReason::Unavailable => ("service_unavailable", "no server for this request is available; try again"),
        _ => ("overloaded", "every server for this request is busy; try again"),
    };
    // The time until there is a place for one more: as fast as places came free lately, or what was told. Where nobody is
    // there, no place comes free, whatever the rate was.
    let known =
        selection.queue(route).filter(|_| reason != SpillReason::Unavailable).and_then(|queue| queue.drained_in());
    let told = || last.retry_after.max(selection.next_change(route, now_millis()).unwrap_or_default());
    let busy = why.as_ref().and_then(|why| why.wait);
    let wait = known.unwrap_or_else(told).max(busy.unwrap_or_default());
    let refusal = Refusal::new(last.status, ErrorKind::Overloaded, code, message).retry_after(wait);
    Err(End::refuse(match why {
        Some(why) => not_spilled(route, refusal, why, exchange),
        None => refusal,
    }))
}

/// Records for the access line what left no room for a request, or which endpoint was not available.
fn note_closed(route: &Route, reason: SpillReason, exchange: &mut Exchange) {
    exchange.outcome.limit = match reason {
        SpillReason::QueueFull => Some("whenSaturated.queue.maxDepth"),
        SpillReason::QueueTooLong | SpillReason::QueueTimeout => Some("whenSaturated.queue.maxWait"),
        _ => None,
    };
    let is_tried = reason == SpillReason::Unavailable && exchange.outcome.failed.is_some();
    if is_tried || exchange.outcome.limit.is_some() {
        return;
    }
    let backends = || {
        route.targets.iter().filter_map(|target| match &target.kind {
            TargetKind::Backend(backend) => Some(backend),
            TargetKind::Model(_) => None,
        })
    };
    let mut closed = backends().flat_map(|backend| backend.balancer.passed_over(now_millis()));
    if reason == SpillReason::Unavailable {
        let unavailable = closed.find(|(_, closed)| !matches!(closed, Closed::Full(_)));
        exchange.outcome.failed = unavailable.map(|(endpoint, closed)| FailedAttempt {
            endpoint: endpoint.address.clone(),
            cause: closed.as_str(),
            limit: None,
        });
        return;
    }
    let full =
        closed.find_map(|(_, closed)| if let Closed::Full(reason) = closed { Some(reason.as_str()) } else { None });
    let is_at_most = |backend: &Arc<Backend>| backend.balancer.in_flight() >= backend.balancer.max_in_flight();
    exchange.outcome.limit = full.or_else(|| backends().any(is_at_most).then_some("circuitBreaker.maxInFlight"));
}

/// Outcome of an offer to a spill.
enum Offered {
    /// The spill answered the request.
    Answered,
    /// The spill did not take the request.
    Declined(Declined),
}

/// Reason why a spill did not take a request.
struct Declined {
    reason: NotSpilled,
    /// Field of the request at fault.
    field: Option<String>,
    /// Time until the spill has room.
    wait: Option<Duration>,
}

impl From<NotSpilled> for Declined {
    fn from(reason: NotSpilled) -> Self {
        Self { reason, field: None, wait: None }
    }
}

impl Declined {
    /// Reason for which a request could not be translated.
    fn of_translation(refusal: &Refusal) -> Self {
        let reason = match (refusal.status, &refusal.param) {
            (StatusCode::NOT_FOUND, None) => NotSpilled::Operation,
            (status, _) if status.is_client_error() => NotSpilled::UnsupportedField,
            _ => NotSpilled::Busy,
        };
        Self::of(refusal, reason)
    }

    fn of(refusal: &Refusal, reason: NotSpilled) -> Self {
        Self { reason, field: refusal.param.as_deref().map(str::to_owned), wait: refusal.retry_after }
    }
}

/// Offers the request to the spill of its route.
async fn offer(
    gateway: &Arc<Gateway>,
    route: &Arc<Route>,
    last: &Fallback,
    target: &TargetKind,
    reason: SpillReason,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<Offered, End> {
    if let Some(bar) = bar(route, last, target, session.req_header(), exchange) {
        return Ok(Offered::Declined(bar.into()));
    }
    match target {
        TargetKind::Backend(backend) => {
            let source = Source { route, session, exchange };
            let written = match translating::rewritten(backend, source).await {
                Ok(Ok(written)) => written,
                // The route's own servers could answer it later: what another API lacks is no fault of the request.
                Ok(Err(refusal)) | Err(End::Refuse(refusal)) => {
                    return Ok(Offered::Declined(Declined::of_translation(&refusal)));
                }
                Err(end) => return Err(end),
            };
            let target = (backend, written);
            if Box::pin(stand_in(gateway, route, target, reason, session, exchange)).await? {
                route.metrics.spilled(reason);
                return Ok(Offered::Answered);
            }
            Ok(Offered::Declined(NotSpilled::Busy.into()))
        }
        TargetKind::Model(model) => {
            let place = match reason {
                SpillReason::OverLimit => match model.slot_over_limit() {
                    Some(place) => Some(place),
                    None => return Ok(Offered::Declined(NotSpilled::Busy.into())),
                },
                _ => None,
            };
            match spill(route, model, place, exchange).await {
                Ok(stream) => {
                    exchange.outcome.spilled = Some(reason);
                    route.metrics.spilled(reason);
                    pass(stream, model, session, exchange).await.map(|()| Offered::Answered)
                }
                Err(declined) => Ok(Offered::Declined(declined)),
            }
        }
    }
}

/// Reports that the spill did not take the request, and adds the reason to its refusal.
fn not_spilled(route: &Route, refusal: Refusal, why: Declined, exchange: &mut Exchange) -> Refusal {
    route.metrics.not_spilled(why.reason);
    let field = why.field.as_deref().unwrap_or("a field");
    let because = match why.reason {
        NotSpilled::CallerRefuses => "`x-spillway-fallback` is `never`".to_owned(),
        NotSpilled::Operation => "no built-in model answers this kind of request".to_owned(),
        NotSpilled::NotAllowed => "the rules of this route or caller do not let it".to_owned(),
        NotSpilled::UnsupportedField => format!("`{field}` is not supported there"),
        NotSpilled::InvalidRequest => format!("`{field}` is invalid"),
        NotSpilled::PromptTooLong => "the prompt is too long".to_owned(),
        NotSpilled::Busy => "there is no room there either".to_owned(),
        NotSpilled::Failed => "it failed there".to_owned(),
    };
    exchange.outcome.not_spilled = Some((why.reason, why.field));
    let message = format!("{} (not answered by the spill of this route: {because})", refusal.message);
    Refusal { message: message.into(), ..refusal }
}

/// Submits the request to a built-in model.
async fn spill(
    route: &Route,
    model: &Arc<LoadedModel>,
    over_limit: Option<OwnedSemaphorePermit>,
    exchange: &Exchange,
) -> Result<SpillStream, Declined> {
    let request = match read_chat(exchange).await {
        Ok(Some(Ok(request))) => request,
        Ok(Some(Err(refusal))) => return Err(Declined::of(&refusal, NotSpilled::InvalidRequest)),
        Ok(None) => return Err(NotSpilled::Operation.into()),
        Err(_) => return Err(NotSpilled::Busy.into()),
    };
    let (dialect, tenant) = (exchange.dialect, tenant(exchange).cloned());
    let operation = exchange.resolved.operation;
    let terms =
        Terms { dialect, operation, max_prompt_tokens: route.spill.max_prompt_tokens, over_limit, tenant, shown: None };
    let answer = builtin::answer(model, &request, terms, exchange.deadline(route).into_std()).await;
    answer.map_err(|error| {
        let reason = match &error {
            SpillError::CannotSpill(_) => NotSpilled::UnsupportedField,
            SpillError::TooLong(_) => NotSpilled::PromptTooLong,
            SpillError::Busy(_) => NotSpilled::Busy,
            SpillError::Failed(_) => NotSpilled::Failed,
        };
        tracing::debug!(event = "cannot_spill", route = %route.name, reason = %error.refusal().message);
        Declined::of(error.refusal(), reason)
    })
}
