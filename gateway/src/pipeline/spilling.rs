//! The exchange answered by a model inside: because the route names it, or because nothing else took the request.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, Method, StatusCode, Version, header};
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use spillway_filter::{ErrorKind, Refusal};

use crate::exchange::{End, Exchange, ServedBy};
use crate::protocol::openai::ChatRequest;
use crate::server::Gateway;
use crate::snapshot::{Last, Route};
use crate::spill::{self, LoadedModel, SpillError, SpillStream};
use crate::upstream::{RequestBody, outgoing_response};

/// What a caller says who would rather have an error than a lesser answer.
static FALLBACK: HeaderName = HeaderName::from_static("x-spillway-fallback");

/// How long a client may take to accept one write of an answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// What became of a request that was addressed to a model inside.
pub(super) enum Direct {
    /// It was answered.
    Answered,
    /// The model has no room.
    NoRoom,
}

fn is_chat(session: &ServerSession) -> bool {
    let head = session.req_header();
    head.method == Method::POST && head.uri.path() == "/v1/chat/completions"
}

fn held(x: &Exchange) -> Option<Bytes> {
    match &x.body {
        RequestBody::Held(held) => Some(held.bytes.clone()),
        RequestBody::Unread => None,
    }
}

/// For whom the engine works; anonymous callers share one turn.
fn tenant(x: &Exchange) -> Option<&Arc<str>> {
    x.caller.as_ref().map(|consumer| &consumer.tenant)
}

/// Whether a model could answer in place of a backend, as far as the head tells.
pub(super) fn is_possible(last: &Last, session: &ServerSession, x: &Exchange) -> bool {
    last.spill_to.is_some()
        && is_chat(session)
        && matches!(x.body, RequestBody::Held(_))
        && !session.get_header(&FALLBACK).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"never"))
}

/// A request that the route sends to a model inside.
pub(super) async fn direct(
    model: &Arc<LoadedModel>,
    session: &mut ServerSession,
    x: &mut Exchange,
) -> Result<Direct, End> {
    let Some(body) = held(x).filter(|_| is_chat(session)) else {
        return Err(End::refuse(Refusal::new(
            StatusCode::NOT_FOUND,
            ErrorKind::NotFound,
            "unsupported_endpoint",
            "the model inside the gateway answers POST /v1/chat/completions and GET /v1/models",
        )));
    };
    let request = ChatRequest::parse(&body)?;
    request.addressed_to(model.name())?;
    let deadline = x.route.as_ref().map_or_else(std::time::Instant::now, |route| x.started + route.request_timeout);
    match spill::answer(model, &request, deadline, tenant(x)).await {
        Ok(stream) => {
            pass(stream, model, session, x).await?;
            Ok(Direct::Answered)
        }
        Err(SpillError::Busy(_)) => Ok(Direct::NoRoom),
        Err(other) => Err(other.into_refusal().into()),
    }
}

/// What is left when nothing took the request: the spill, if the route has one and it can, else the refusal.
pub(super) async fn last(
    _: &Gateway,
    route: &Arc<Route>,
    last: &Last,
    reason: &'static str,
    session: &mut ServerSession,
    x: &mut Exchange,
) -> Result<(), End> {
    let mut retry_after = last.retry_after;
    if is_possible(last, session, x)
        && let Some(model) = &last.spill_to
        && let Some(body) = held(x)
        && let Ok(request) = ChatRequest::parse(&body)
    {
        match spill::answer(model, &request, x.started + route.request_timeout, tenant(x)).await {
            Ok(stream) => {
                x.outcome.spilled = Some(reason);
                route.metrics.spilled(reason);
                return pass(stream, model, session, x).await;
            }
            Err(SpillError::Busy(refusal)) => retry_after = refusal.retry_after.unwrap_or(retry_after).max(retry_after),
            Err(e) => tracing::debug!(event = "cannot_spill", route = %route.name, reason = %e.refusal().message),
        }
    }
    route.metrics.shed(reason);
    let (code, message) = match reason {
        "saturated" => ("overloaded", "every server for this request is busy; try again"),
        _ => ("service_unavailable", "no server for this request is available; try again"),
    };
    Err(End::refuse(Refusal::new(last.status, ErrorKind::Overloaded, code, message).retry_after(retry_after)))
}

/// Writes what the engine gives, as it comes. A client that leaves ends the work within one step of the engine: the
/// stream is dropped here.
async fn pass(
    mut stream: SpillStream,
    model: &Arc<LoadedModel>,
    session: &mut ServerSession,
    x: &mut Exchange,
) -> Result<(), End> {
    x.outcome.served_by = ServedBy::Model(model.served_by_text().clone());
    let head = tokio::select! {
        biased;
        head = stream.begin() => head,
        _ = session.read_body_or_idle(true) => {
            super::conclude::engine_ended(x, stream.report());
            return Err(End::ClientGone);
        }
    };
    let head = match head {
        Ok(head) => head,
        Err(refusal) => {
            super::conclude::engine_ended(x, stream.report());
            return Err(refusal.into());
        }
    };
    let result = write(&mut stream, head, session, x).await;
    super::conclude::engine_ended(x, stream.report());
    result
}

async fn write(
    stream: &mut SpillStream,
    head: spill::Head,
    session: &mut ServerSession,
    x: &mut Exchange,
) -> Result<(), End> {
    let mut answer = ResponseHeader::build(head.status, Some(12)).map_err(|_| End::ClientGone)?;
    for (name, value) in head.headers {
        let _ = answer.insert_header(name, value);
    }
    if let Some(length) = head.content_length {
        let _ = answer.insert_header(header::CONTENT_LENGTH, header::HeaderValue::from(length));
    }
    x.outcome.status = head.status.as_u16();
    let is_http11 = session.req_header().version == Version::HTTP_11;
    session.set_write_timeout(Some(WRITE_TIMEOUT));
    let answer = outgoing_response(answer, x, is_http11, true);
    session.write_response_header(answer).await.map_err(|_| End::ClientGone)?;
    loop {
        // The write is never inside the select: a frame half written cannot be taken back.
        let frame = tokio::select! {
            biased;
            frame = stream.next() => frame,
            _ = session.read_body_or_idle(true) => return Err(End::ClientGone),
        };
        let Some(frame) = frame else { break };
        x.outcome.bytes_out = x.outcome.bytes_out.saturating_add(u64::try_from(frame.len()).unwrap_or(0));
        session.write_response_body(frame, false).await.map_err(|_| End::ClientGone)?;
    }
    session.write_response_body(Bytes::new(), true).await.map_err(|_| End::ClientGone)
}
