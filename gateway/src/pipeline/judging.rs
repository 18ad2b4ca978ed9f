//! Part of step 4: the route of a request whose candidates have conditions on its conversation. What these read is worked out here, once
//! for a request; a request without a conversation is judged by its head, and its body is not read for them.

use std::net::IpAddr;
use std::sync::Arc;

use spillway_cel::Prompt;

use super::target::route_key;
use crate::downstream::ClientSession;
use crate::exchange::{Exchange, RequestBody};
use crate::message::RequestHead;
use crate::prompt_signals::{JudgedPrompt, JudgedRequest, PromptSignals};
use crate::protocol::Operation;
use crate::routing::{Candidates, HeadContext, HeadView};
use crate::topology::Route;

/// Candidates of a request by its head: conditions on a conversation are told where its operation has none.
pub(super) fn without_prompt<'s>(
    candidates: Candidates<'s>,
    operation: Operation,
    head: &RequestHead,
    client: IpAddr,
) -> Candidates<'s> {
    if !candidates.ask_for_prompt() || PromptSignals::has_conversation(operation) {
        return candidates;
    }
    let (path, silent) = (route_key(head), Prompt::default());
    let view = view(head, &path, client);
    candidates.without_prompt(|condition| condition.holds(&view, &silent))
}

/// Route for the model that the request asks for and its conversation.
pub(super) async fn by_body<'s>(
    candidates: &Candidates<'s>,
    session: &ClientSession,
    exchange: &mut Exchange,
) -> Option<&'s Arc<Route>> {
    if !candidates.ask_for_prompt() {
        return candidates.by_model(model(exchange));
    }
    let signals = exchange.snapshot.signals.clone();
    let wanted = signals.wanted(candidates.conditions(model(exchange)).map(|condition| condition.expression()));
    let mut judged = exchange.prompt.take().unwrap_or_default();
    let body = match &exchange.body {
        RequestBody::Held(held) => Some(held.bytes.clone()),
        RequestBody::Unread => None,
    };
    let request = JudgedRequest {
        operation: exchange.resolved.operation,
        body: body.as_deref(),
        tokens: exchange.asked.as_ref().map(|asked| asked.expected.input),
    };
    Box::pin(signals.judge(&wanted, request, &exchange.off_loop, &mut judged)).await;
    signals.show(&judged, &mut exchange.span);
    let found = by_prompt(candidates, session.req_header(), &judged, exchange);
    exchange.prompt = Some(judged);
    found
}

fn by_prompt<'s>(
    candidates: &Candidates<'s>,
    head: &RequestHead,
    judged: &JudgedPrompt,
    exchange: &Exchange,
) -> Option<&'s Arc<Route>> {
    let path = route_key(head);
    let view = view(head, &path, exchange.client);
    candidates.by_body(model(exchange), |condition| condition.holds(&view, judged.prompt()))
}

fn view<'a>(head: &'a RequestHead, path: &'a str, client: IpAddr) -> HeadView<'a> {
    let context = HeadContext { query: head.uri.query().unwrap_or_default(), client };
    HeadView { path, method: &head.method, headers: &head.headers, context }
}

fn model(exchange: &Exchange) -> Option<&str> {
    exchange.asked.as_ref().and_then(|asked| asked.model.as_deref())
}
