//! Conditions for an answer in place of the route's own backends.

use crate::exchange::{Exchange, RequestBody};
use crate::message::RequestHead;
use crate::telemetry::NotSpilled;
use crate::topology::{Fallback, Route, TargetKind};

/// True if a backend or built-in model could answer in place of the route's own backends, as far as the head tells.
pub(super) fn is_possible(last: &Fallback, exchange: &Exchange) -> bool {
    last.spill_to.as_ref().is_some_and(|target| bar_of_head(target, exchange).is_none())
}

/// Reason why the head of the request bars it from the spill; `None` where nothing does.
fn bar_of_head(target: &TargetKind, exchange: &Exchange) -> Option<NotSpilled> {
    if exchange.refuses_fallback {
        return Some(NotSpilled::CallerRefuses);
    }
    if exchange.upgrade.is_some() {
        return Some(NotSpilled::Operation);
    }
    let TargetKind::Model(model) = target else { return None };
    if !exchange.resolved.operation.asks_for_text() || !matches!(exchange.body, RequestBody::Held(_)) {
        return Some(NotSpilled::Operation);
    }
    let may_use = exchange.caller.as_ref().is_none_or(|caller| caller.may_use(Some(model.name())));
    (!may_use).then_some(NotSpilled::NotAllowed)
}

/// Reason why the request may not spill to `target`; `None` where it may. Draws the route's share of spilled requests, so it
/// is asked once for a spill.
pub(super) fn bar(
    route: &Route,
    last: &Fallback,
    target: &TargetKind,
    head: &RequestHead,
    exchange: &Exchange,
) -> Option<NotSpilled> {
    if let Some(bar) = bar_of_head(target, exchange) {
        return Some(bar);
    }
    if !is_allowed(route, last, head, exchange) {
        return Some(NotSpilled::NotAllowed);
    }
    let is_backend = matches!(target, TargetKind::Backend(_));
    (is_backend && is_too_long(route, exchange)).then_some(NotSpilled::PromptTooLong)
}

/// True if the route lets this request spill, and the caller may use both the model that it asked for and the one that would
/// answer.
pub(super) fn is_allowed(route: &Route, last: &Fallback, head: &RequestHead, exchange: &Exchange) -> bool {
    let asked = exchange.asked.as_ref().and_then(|asked| asked.model.as_deref());
    let tenant = exchange.caller.as_ref().map(|caller| &*caller.tenant);
    let may_use = exchange.caller.as_ref().is_none_or(|caller| {
        // A question to the server as a whole is about no model.
        let names_none = || caller.may_use(None) || exchange.resolved.operation.is_of_server();
        (if asked.is_some() { exchange.may_use_asked() } else { names_none() })
            && match &last.spill_to {
                Some(TargetKind::Model(model)) => caller.may_use(Some(model.name())),
                Some(TargetKind::Backend(backend)) => {
                    backend.model.as_deref().is_none_or(|name| caller.may_use(Some(name)))
                }
                None => true,
            }
    });
    may_use && route.spill.allows(asked, tenant, rand::random()) && route.spill.holds(|| exchange.request_view(head))
}

/// True if the prompt is longer than may spill to a backend, whose tokenizer is not known: four bytes are one token.
fn is_too_long(route: &Route, exchange: &Exchange) -> bool {
    let RequestBody::Held(held) = &exchange.body else { return false };
    let tokens = held.bytes.len() / 4;
    route.spill.max_prompt_tokens.is_some_and(|most| tokens > usize::try_from(most.get()).unwrap_or(usize::MAX))
}
