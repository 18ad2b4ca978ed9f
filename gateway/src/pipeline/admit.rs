//! Steps 6 and 7: the order of the targets, then an endpoint and its slot in one step, or a built-in model. Where
//! neither has room, the request waits for a slot at an endpoint.

use std::sync::Arc;

use spillway_engine::Task;

use super::answers::too_late;
use super::translating::{Prepared, Rewritten, Source, Translations};
use super::waiting::{Wait, Waited};
use super::{affinity, batch_lines, conclude, translating};
use crate::admission::{Admission, Order, TargetSelection};
use crate::balancing::Endpoint;
use crate::builtin::LoadedModel;
use crate::clock::{self, now_millis};
use crate::downstream::ClientSession;
use crate::exchange::{End, Exchange, RolloutPart};
use crate::protocol::model_not_found;
use crate::queueing::{Retrying, WakingSlot};
use crate::rollout::UnitOf;
use crate::telemetry::{SpanKind, SpillReason};
use crate::topology::{Answerers, Backend, Route, RouteRollout};

/// Tries of one request: the targets that are left, its wait for them, and its retries.
pub(super) struct Tries {
    pub(super) selection: TargetSelection,
    /// The request as it was written for some targets, and the targets that cannot take it.
    pub(super) translations: Translations,
    wait: Wait,
    pub(super) retries: u32,
    /// Times that the request was sent again because a server had not looked at it.
    pub(super) resends: u32,
    /// Permit of the retry that is under way.
    pub(super) retrying: Option<Retrying>,
}

impl Tries {
    /// Parts that writing the request for a target needs.
    pub(super) fn writing(&mut self) -> (&mut TargetSelection, &mut Translations) {
        (&mut self.selection, &mut self.translations)
    }

    /// Ends the tries: releases the permit of a retry that found no target.
    pub(super) fn into_selection(self) -> TargetSelection {
        self.selection
    }
}

/// Target that takes a request.
pub(super) enum Admitted<'r> {
    /// An endpoint, with the index of its target, its slot, and the request as it was written for it.
    Endpoint {
        target: usize,
        backend: &'r Arc<Backend>,
        endpoint: Arc<Endpoint>,
        slot: WakingSlot,
        written: Option<Rewritten>,
    },
    /// A built-in model, and its index among the targets of the route.
    Model { target: usize, model: &'r Arc<LoadedModel> },
}

/// Draws the order of the targets that serve the model asked for: by weights, and by the header that keeps a caller at one
/// of them.
pub(super) fn select(route: &Route, session: &ClientSession, exchange: &mut Exchange) -> Result<Tries, End> {
    let asked = exchange.asked.as_ref().and_then(|asked| asked.model.as_deref());
    // Vectors of another model are wrong answers; text of another is a lesser one.
    let stands_in = |model: &LoadedModel| {
        exchange.resolved.operation.asks_for_text()
            && model.task() == Task::Generate
            && !exchange.refuses_fallback
            && exchange.caller.as_ref().is_none_or(|caller| caller.may_use(Some(model.name())))
    };
    let mut answerers = route.answerers(asked, stands_in);
    if exchange.upgrade.is_some() {
        answerers = route.upgraders(&answerers);
    }
    if answerers.is_empty() {
        return Err(model_not_found(exchange.model_sent().unwrap_or_default(), exchange.dialect).into());
    }
    let sticky = route.sticky.as_ref().and_then(|name| session.get_header(name)).map(|value| value.as_bytes());
    let selection = match &route.rollout {
        None => TargetSelection::new(Order::draw(route, &answerers, sticky)),
        Some(rollout) => select_version(route, rollout, &answerers, sticky, exchange)?,
    };
    let selection = selection.among(exchange.picked.clone());
    let (translations, wait) = (Translations::default(), Wait::default());
    Ok(Tries { selection, translations, wait, retries: 0, resends: 0, retrying: None })
}

/// Draws the order of the targets of a route with a rollout, and notes the version that the request is given to.
fn select_version(
    route: &Route,
    rollout: &RouteRollout,
    answerers: &Answerers,
    key: Option<&[u8]>,
    exchange: &mut Exchange,
) -> Result<TargetSelection, End> {
    let consumer = exchange.caller.as_ref().map(|caller| caller.number);
    let (order, assigned) = Order::draw_version(route, rollout, answerers, UnitOf { consumer, key });
    if order.indices().is_empty() {
        // Only a candidate that gets nothing now serves the model.
        return Err(model_not_found(exchange.model_sent().unwrap_or_default(), exchange.dialect).into());
    }
    let mut selection = TargetSelection::new(order);
    selection.keep_version(rollout.candidate);
    // Of a shadow, the part in it was made with its copy.
    if let Some(assigned) = assigned {
        if let Some(tap) = super::comparing::tap(&rollout.live, exchange) {
            exchange.taps.get_or_insert_default().rollout = Some(tap);
        }
        exchange.rollout = Some(Box::new(RolloutPart {
            live: rollout.live.clone(),
            version: assigned.version,
            epoch: assigned.epoch,
            unit: assigned.unit,
            has_failed: assigned.is_gone,
            answered_in: None,
            is_first_token_told: false,
            pair: None,
        }));
    }
    Ok(selection)
}

/// Admits the request at one of its targets, waiting in the queue of the route where none has room. A target that cannot take
/// the request is passed over. The inner `Err` gives the reason why none takes it; the outer one ends the request.
pub(super) async fn admit<'r>(
    route: &'r Route,
    tries: &mut Tries,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<Result<Admitted<'r>, SpillReason>, End> {
    loop {
        let admission = look_for_slot(route, tries, session, exchange);
        if let Some(part) = &mut exchange.rollout {
            part.has_failed |= tries.selection.has_left_version();
        }
        match admission {
            Admission::Endpoint { target, backend, endpoint, slot } => {
                if exchange.line.is_some() && !batch_lines::seat_at_endpoint(backend, &endpoint, exchange) {
                    drop(slot);
                    return Ok(Err(no_seat(tries, exchange)));
                }
                let mut written = None;
                // Rare branches are boxed, so that the future of every request does not carry them.
                if translating::is_rewritten(backend, exchange) {
                    let source = Source { route, session, exchange };
                    match Box::pin(translating::prepare(target, backend, tries.writing(), source)).await? {
                        Prepared::Ready(ready) => written = ready,
                        Prepared::Excluded => {
                            drop(slot);
                            tries.translations.check_left(&tries.selection)?;
                            continue;
                        }
                    }
                }
                tries.wait.admitted(route, &tries.selection, exchange);
                return Ok(Ok(Admitted::Endpoint { target, backend, endpoint, slot, written }));
            }
            Admission::Model { target, model } => {
                if exchange.line.is_some() && !batch_lines::seat_at_model(model, exchange) {
                    return Ok(Err(no_seat(tries, exchange)));
                }
                tries.wait.leave_without_slot(exchange);
                tries.retrying = None;
                return Ok(Ok(Admitted::Model { target, model }));
            }
            Admission::Saturated => {
                if translating::next_unknown(route, &tries.selection, &tries.translations, exchange).is_some()
                    && Box::pin(translating::exclude_unable(tries.writing(), Source { route, session, exchange }))
                        .await?
                {
                    continue;
                }
                if exchange.line.is_some() {
                    return Ok(Err(no_seat(tries, exchange)));
                }
                if exchange.picked.is_some() {
                    // No place in the queue is one at the endpoints that were picked.
                    tries.wait.leave_without_slot(exchange);
                    tries.retrying = None;
                    return Ok(Err(SpillReason::Saturated));
                }
                if let Some(reason) = wait_for_slot(route, tries, session, exchange).await? {
                    return Ok(Err(reason));
                }
            }
            Admission::Unavailable => {
                tries.wait.leave_without_slot(exchange);
                return Ok(Err(SpillReason::Unavailable));
            }
        }
    }
}

/// Gives up a line of a batch that found no place beside callers. It waits in its batch, and not where callers do.
fn no_seat(tries: &mut Tries, exchange: &mut Exchange) -> SpillReason {
    tries.wait.leave_without_slot(exchange);
    tries.retrying = None;
    SpillReason::Saturated
}

/// Looks for a target with room, without waiting.
fn look_for_slot<'r>(
    route: &'r Route,
    tries: &mut Tries,
    session: &ClientSession,
    exchange: &Exchange,
) -> Admission<'r> {
    let mut span = exchange.span.child("admission", SpanKind::Internal);
    let random = rand::random();
    let key = |backend: &Backend| affinity::key(backend, session, exchange);
    let is_retry = tries.retries > 0 || tries.resends > 0;
    let (wait, selection) = (&tries.wait, &mut tries.selection);
    let admission = if exchange.picked.is_none() && wait.is_behind(route, selection) {
        Admission::Saturated
    } else {
        match selection.admit(route, now_millis(), random, wait.is_called(), &key) {
            // A retry that has no other endpoint goes to one that was tried.
            Admission::Saturated if is_retry => selection.admit(route, now_millis(), random, true, &key),
            admission => admission,
        }
    };
    conclude::admitted(&mut span, route, &admission);
    admission
}

/// Waits in the queue of the route, if it has one. `None` where a slot may be free now, else the reason why no target takes
/// the request.
async fn wait_for_slot(
    route: &Route,
    tries: &mut Tries,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<Option<SpillReason>, End> {
    tries.translations.drop_bodies();
    let waited = tries.wait.for_turn(route, &tries.selection, session, exchange).await;
    if !matches!(waited, Waited::Called) {
        // The retry permit is released here: a fallback follows, which is no retry, however long it takes.
        tries.retrying = None;
    }
    let reason = match waited {
        Waited::Called => return Ok(None),
        Waited::ClientGone => return Err(End::ClientGone),
        Waited::Over(_) if clock::now() >= exchange.deadline(route) => return Err(too_late(route, exchange)),
        Waited::Over(_) | Waited::NoQueue if tries.retries > 0 || !tries.selection.is_available(route) => {
            SpillReason::Unavailable
        }
        Waited::Over(why) => why.reason(),
        Waited::NoQueue => SpillReason::Saturated,
    };
    Ok(Some(reason))
}
