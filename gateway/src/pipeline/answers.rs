//! Answers that the gateway makes itself, and the requests that get them.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{Method, StatusCode, header};
use spillway_filter::{Answer, ErrorKind, Refusal};

use super::AfterRequest;
use super::rewritten::{self, api_path};
use crate::clock;
use crate::downstream::{ClientSession, Nothing, SLICE, deliver, slice};
use crate::exchange::{End, Exchange, ServedBy, malformed_refusal};
use crate::framing::Violation;
use crate::message::ResponseHead;
use crate::protocol::{self, ModelPath, ModelPlace, Operation, PROBLEM, ResolvedOperation, http2_required};
use crate::topology::{Route, TargetKind};
use crate::upstream::{client_write, finish_response};

/// Most time for an answer of the gateway's own, which is short.
const LONGEST: Duration = Duration::from_secs(600);

/// Time to tell a client that its request could not be read. The listener's `writeTimeout` may be shorter.
const MALFORMED: Duration = Duration::from_secs(10);

/// Sends a refusal. The connection is kept when the request was read to its end. Logs and metrics have the status that the
/// refusal stands for, also where the caller's dialect sends it in another form.
pub(super) async fn refuse(session: &mut ClientSession, exchange: &mut Exchange, refusal: &Refusal) -> AfterRequest {
    let (head, body) = exchange.render(refusal);
    exchange.outcome.error_code = Some(refusal.code);
    let sent = send(session, exchange, head, body).await;
    exchange.outcome.status = refusal.status.as_u16();
    match sent {
        Ok(()) => AfterRequest::Keep,
        Err(_) => {
            exchange.outcome.client_gone = true;
            AfterRequest::Close
        }
    }
}

/// Sends an answer that a filter made.
pub(super) async fn local(session: &mut ClientSession, exchange: &mut Exchange, answer: Answer) -> AfterRequest {
    let mut head = ResponseHead::new(answer.status, 8);
    for (name, value) in answer.headers {
        let _ = head.append_header(name, value);
    }
    match Box::pin(send_made(session, exchange, head, answer.body)).await {
        Ok(()) => AfterRequest::Keep,
        Err(End::Refuse(refusal)) => Box::pin(refuse(session, exchange, &refusal)).await,
        Err(_) => {
            exchange.outcome.client_gone = true;
            AfterRequest::Close
        }
    }
}

/// Sends a whole answer of a built-in model or a filter, as the filters of its route change it.
pub(super) async fn send_made(
    session: &mut ClientSession,
    exchange: &mut Exchange,
    mut head: ResponseHead,
    body: Bytes,
) -> Result<(), End> {
    let body = match &mut exchange.rewriting {
        None => body,
        Some(rewriting) => {
            let is_spilled = exchange.outcome.spilled.is_some();
            let changed = Box::pin(rewriting.change(&mut head, is_spilled, body, &exchange.off_loop)).await;
            let is_worked_for = !matches!(exchange.outcome.served_by, ServedBy::Gateway);
            changed.inspect_err(|_| exchange.outcome.is_answer_unread = is_worked_for)?
        }
    };
    send(session, exchange, head, body).await.map_err(|_| End::ClientGone)
}

/// Sends a whole answer as it is.
pub(super) async fn send(
    session: &mut ClientSession,
    exchange: &mut Exchange,
    mut head: ResponseHead,
    body: Bytes,
) -> pingora::Result<()> {
    let is_head = session.req_header().method == Method::HEAD;
    let is_error = head.status.is_client_error() || head.status.is_server_error();
    // 204 has no body and no length. HEAD gets the length that GET would have, or none for an error, whose text may name the
    // method (RFC 9110, 8.6).
    if head.status != StatusCode::NO_CONTENT && !(is_head && is_error) {
        let _ = head.insert_header(header::CONTENT_LENGTH, header::HeaderValue::from(body.len()));
    }
    let body = if is_head { Bytes::new() } else { body };
    finish_response(&mut head, session.req_header(), exchange);
    exchange.outcome.status = head.status.as_u16();
    exchange.rewriting = None;
    exchange.show(&body);
    // The deadline of the route may be over: this is what says so.
    let limits = exchange.write_limits(clock::now() + LONGEST);
    let ends = body.is_empty();
    deliver(pin!(session.write_head(Box::new(head), ends)), limits, &mut Nothing).await?;
    if ends {
        return Ok(());
    }
    let mut body = body;
    let last = body.split_off(body.len().saturating_sub(SLICE));
    while let Some(next) = slice(&mut body) {
        deliver(pin!(session.write_response_body(next, false)), limits, &mut Nothing).await?;
    }
    deliver(pin!(session.write_response_body(last, true)), limits, &mut Nothing).await
}

/// Sends the answer of a gRPC call: one message in its frame, and the status OK in trailers.
pub(super) async fn send_message(
    session: &mut ClientSession,
    exchange: &mut Exchange,
    mut head: ResponseHead,
    message: Bytes,
) -> Result<(), End> {
    if !session.is_http2() {
        return Err(End::refuse(http2_required()));
    }
    finish_response(&mut head, session.req_header(), exchange);
    exchange.outcome.status = head.status.as_u16();
    exchange.rewriting = None;
    exchange.show(&message);
    let limits = exchange.write_limits(clock::now() + LONGEST);
    let gone = |_| End::ClientGone;
    deliver(pin!(session.write_response_header(Box::new(head))), limits, &mut Nothing).await.map_err(gone)?;
    let mut message = message;
    while let Some(next) = slice(&mut message) {
        deliver(pin!(session.write_response_body(next, false)), limits, &mut Nothing).await.map_err(gone)?;
    }
    let trailers = [(protocol::GRPC_STATUS.clone(), header::HeaderValue::from_static("0"))].into_iter().collect();
    deliver(pin!(session.write_response_trailers(trailers)), limits, &mut Nothing).await.map_err(gone)
}

/// Refuses a request whose head could not be read; there is no exchange for it.
pub async fn refuse_malformed(session: &mut ClientSession, violation: Option<Violation>) {
    let refusal = match violation {
        Some(violation) => malformed_refusal(violation),
        None => Refusal::invalid("malformed_request", "the request is not well-formed HTTP/1.1"),
    };
    let rendered = protocol::render(&refusal, PROBLEM, "");
    let mut head = ResponseHead::new(rendered.status, 4);
    let _ = head.insert_header(header::CONTENT_TYPE, rendered.content_type);
    let _ = head.insert_header(header::CONTENT_LENGTH, rendered.body.len());
    session.close_after();
    let limit = clock::now() + MALFORMED;
    if client_write(limit, session.write_response_header(Box::new(head))).await.is_ok() {
        let _ = client_write(limit, session.write_response_body(rendered.body, true)).await;
    }
}

/// Refusal of a request whose time is over before an answer began.
pub(super) fn too_late(route: &Route, exchange: &Exchange) -> End {
    let message = if exchange.is_callers_deadline(route) {
        "the time that the caller gave this request is over (`grpc-timeout`)"
    } else {
        "the time for this request is over (`timeouts.request` of its route)"
    };
    End::refuse(Refusal::new(StatusCode::GATEWAY_TIMEOUT, ErrorKind::Timeout, "request_timeout", message))
}

/// True if the gateway answers this request of a route itself, with its models or one of them.
pub(super) fn is_models(route: &Route, resolved: ResolvedOperation) -> bool {
    resolved.operation == Operation::Models && lists_models(route)
}

/// True if the list of models has those of the route: its targets speak an API with such a list.
pub(super) fn lists_models(route: &Route) -> bool {
    route.calls_models && route.dialect.model_list(&[]).is_some()
}

/// True if the gateway answers this request itself, by a built-in model that the path names: no server reads the path.
pub(super) fn is_built_in_by_path<'r>(
    resolved: ResolvedOperation,
    method: &Method,
    target: &PathAndQuery,
    mut routes: impl Iterator<Item = &'r Arc<Route>>,
) -> bool {
    resolved.model_place == ModelPlace::Path
        && routes.all(|route| {
            let targets = route.targets.iter().map(|target| &target.kind);
            let fallbacks = [&route.when_saturated, &route.when_unavailable];
            let mut all = targets.chain(fallbacks.into_iter().filter_map(|fallback| fallback.spill_to.as_ref()));
            all.all(|kind| matches!(kind, TargetKind::Model(_)))
                && !route.targets.is_empty()
                && route.mirrors.is_empty()
                && rewritten::model(route, resolved, method, target).is_some()
        })
}

/// True if the gateway answers this request itself with one model, whichever of the routes it takes.
pub(super) fn is_model_by_id<'r>(
    resolved: ResolvedOperation,
    method: &Method,
    target: &PathAndQuery,
    mut routes: impl Iterator<Item = &'r Arc<Route>>,
) -> bool {
    resolved.operation == Operation::Models
        && routes.all(|route| {
            let path = api_path(route, method, target);
            is_models(route, resolved) && matches!(resolved.dialect.model_path(&path), ModelPath::One(_))
        })
}
