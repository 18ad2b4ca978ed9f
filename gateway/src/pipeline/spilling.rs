//! The exchange answered by a model inside: because the route names it, or because nothing else took the request.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode, Version, header};
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use spillway_filter::{ErrorKind, Refusal};
use tokio::sync::OwnedSemaphorePermit;

use crate::admission::Journey;
use crate::balancing::now_millis;
use crate::downstream::{Beside, Downstream, Nothing, Unread, WriteLimits, deliver, slice};
use crate::exchange::{End, Exchange, ServedBy};
use crate::off_loop::BUILDS_VALUES;
use crate::protocol::openai::ChatRequest;
use crate::server::Gateway;
use crate::snapshot::{Last, Route, TargetKind};
use crate::spill::{self, LoadedModel, SpillError, SpillStream, Terms};
use crate::upstream::{RequestBody, SHUTTING_DOWN, STOPPING, break_off, outgoing_response};

/// Why a request is not answered by its route's own backends, where none of them can have traffic or all tries failed.
const UNAVAILABLE: &str = "unavailable";
/// The same for a request that is over a limit.
const OVER_LIMIT: &str = "over_limit";

/// What became of a request that was addressed to a model inside.
pub(super) enum Direct {
    /// It was answered.
    Answered,
    /// The model has no room.
    NoRoom,
}

/// How a request is read that a model inside could answer with text.
type Parse = fn(&[u8]) -> Result<ChatRequest, Refusal>;

/// Whether a request asks for text, as a conversation or as a text that is continued.
fn asks_for_text(session: &ServerSession) -> Option<Parse> {
    let head = session.req_header();
    match head.uri.path() {
        "/v1/chat/completions" if head.method == Method::POST => Some(ChatRequest::parse),
        "/v1/completions" if head.method == Method::POST => Some(ChatRequest::parse_text),
        _ => None,
    }
}

/// Reads a request for a built-in model, where a long one holds nobody up.
pub(super) async fn read<T>(
    x: &Exchange,
    body: &[u8],
    parse: impl FnOnce(&[u8]) -> Result<T, Refusal>,
) -> Result<Result<T, Refusal>, End> {
    x.off_loop.run(body.len().saturating_mul(BUILDS_VALUES), || parse(body)).await
}

pub(super) fn held(x: &Exchange) -> Option<Bytes> {
    match &x.body {
        RequestBody::Held(held) => Some(held.bytes.clone()),
        RequestBody::Unread => None,
    }
}

/// For whom the engine works; anonymous callers share one turn.
pub(super) fn tenant(x: &Exchange) -> Option<&Arc<str>> {
    x.caller.as_ref().map(|consumer| &consumer.tenant)
}

/// Whether somebody could answer in place of the route's own backends, as far as the head tells.
pub(super) fn is_possible(last: &Last, session: &ServerSession, x: &Exchange) -> bool {
    let can = match &last.spill_to {
        None => false,
        Some(TargetKind::Backend(_)) => true,
        Some(TargetKind::Model(model)) => {
            asks_for_text(session).is_some()
                && matches!(x.body, RequestBody::Held(_))
                && x.caller.as_ref().is_none_or(|caller| caller.may_use(Some(model.name())))
        }
    };
    can && !x.refuses_fallback
}

/// A request that the route sends to a model inside.
pub(super) async fn direct(
    model: &Arc<LoadedModel>,
    session: &mut ServerSession,
    x: &mut Exchange,
) -> Result<Direct, End> {
    if let Some(what) = super::encoding::asked(session) {
        return super::encoding::direct(model, what, session, x).await;
    }
    let Some((body, parse)) = held(x).zip(asks_for_text(session)) else {
        return Err(End::refuse(Refusal::new(
            StatusCode::NOT_FOUND,
            ErrorKind::NotFound,
            "unsupported_endpoint",
            "models inside the gateway answer POST /v1/chat/completions, /v1/completions, /v1/embeddings and /v1/rerank, and GET /v1/models",
        )));
    };
    let request = read(x, &body, parse).await??;
    request.addressed_to(model.name())?;
    let deadline = x.route.as_ref().map_or_else(std::time::Instant::now, |route| x.started + route.request_timeout);
    let terms = Terms { tenant: tenant(x).cloned(), ..Terms::default() };
    match spill::answer(model, &request, terms, deadline).await {
        Ok(stream) => {
            pass(stream, model, session, x).await?;
            Ok(Direct::Answered)
        }
        Err(SpillError::Busy(_)) => Ok(Direct::NoRoom),
        Err(other) => Err(other.into_refusal().into()),
    }
}

/// Whether the route lets this request spill, and the caller may use who answers then: its models must allow the one that
/// it asked for and the one that answers.
pub(super) fn is_allowed(route: &Route, last: &Last, x: &Exchange) -> bool {
    let asked = x.asked.as_ref().and_then(|asked| asked.model.as_deref());
    let tenant = x.caller.as_ref().map(|caller| &*caller.tenant);
    let may_use = x.caller.as_ref().is_none_or(|caller| {
        caller.may_use(asked)
            && match &last.spill_to {
                Some(TargetKind::Model(model)) => caller.may_use(Some(model.name())),
                Some(TargetKind::Backend(backend)) => {
                    backend.model.as_deref().is_none_or(|name| caller.may_use(Some(name)))
                }
                None => true,
            }
    });
    may_use && route.spill.allows(asked, tenant, rand::random())
}

/// A request that is over a limit whose rule wants the lesser answer for it; where nobody gives one, the refusal.
pub(super) async fn over_limit(
    gateway: &Arc<Gateway>,
    route: &Arc<Route>,
    filter: String,
    refusal: Box<Refusal>,
    session: &mut ServerSession,
    x: &mut Exchange,
) -> Result<(), End> {
    let last = &route.when_saturated;
    // The list of models is answered here and never spills.
    let is_own = super::answers::is_models(route, session.req_header());
    if !is_own && is_possible(last, session, x) && is_allowed(route, last, x) {
        match &last.spill_to {
            Some(TargetKind::Backend(backend)) => {
                let may = !is_too_long(route, x);
                if may && Box::pin(super::forward::stand_in(gateway, route, backend, OVER_LIMIT, session, x)).await? {
                    route.metrics.spilled(OVER_LIMIT);
                    return Ok(());
                }
            }
            Some(TargetKind::Model(model)) => {
                if let Some(place) = model.place_over_limit()
                    && let Ok(stream) = spill(route, model, Some(place), session, x).await
                {
                    x.outcome.spilled = Some(OVER_LIMIT);
                    route.metrics.spilled(OVER_LIMIT);
                    return pass(stream, model, session, x).await;
                }
            }
            None => {}
        }
    }
    // A refused request takes nothing from any limit.
    x.ledger.give_back();
    x.refused_by = Some(filter);
    Err(End::Refuse(refusal))
}

/// What is left when nothing took the request: the spill, if the route has one and it can, else the refusal.
pub(super) async fn last(
    gateway: &Arc<Gateway>,
    route: &Arc<Route>,
    journey: &Journey,
    reason: &'static str,
    session: &mut ServerSession,
    x: &mut Exchange,
) -> Result<(), End> {
    let last = if reason == UNAVAILABLE { &route.when_unavailable } else { &route.when_saturated };
    let mut busy = None;
    if is_possible(last, session, x) && is_allowed(route, last, x) {
        match &last.spill_to {
            None => {}
            Some(TargetKind::Backend(backend)) => {
                let may = !is_too_long(route, x);
                if may && Box::pin(super::forward::stand_in(gateway, route, backend, reason, session, x)).await? {
                    route.metrics.spilled(reason);
                    return Ok(());
                }
            }
            Some(TargetKind::Model(model)) => match spill(route, model, None, session, x).await {
                Ok(stream) => {
                    x.outcome.spilled = Some(reason);
                    route.metrics.spilled(reason);
                    return pass(stream, model, session, x).await;
                }
                Err(wait) => busy = wait,
            },
        }
    }
    route.metrics.shed(reason);
    let (code, message) = match reason {
        UNAVAILABLE => ("service_unavailable", "no server for this request is available; try again"),
        _ => ("overloaded", "every server for this request is busy; try again"),
    };
    // The time until there is a place for one more: as fast as places came free lately, or what was told. Where nobody is
    // there, no place comes free, whatever the rate was.
    let known = journey.queue(route).filter(|_| reason != UNAVAILABLE).and_then(|queue| queue.drained_in());
    let told = || last.retry_after.max(journey.next_change(route, now_millis()).unwrap_or_default());
    let wait = known.unwrap_or_else(told).max(busy.unwrap_or_default());
    Err(End::refuse(Refusal::new(last.status, ErrorKind::Overloaded, code, message).retry_after(wait)))
}

/// Whether the prompt is longer than may spill to a backend, whose tokenizer is not known: four bytes are one token.
fn is_too_long(route: &Route, x: &Exchange) -> bool {
    let RequestBody::Held(held) = &x.body else { return false };
    let tokens = held.bytes.len() / 4;
    route.spill.max_prompt_tokens.is_some_and(|most| tokens > usize::try_from(most.get()).unwrap_or(usize::MAX))
}

/// Gives the request to a model. Else says how long that has no room, if this is why.
async fn spill(
    route: &Route,
    model: &Arc<LoadedModel>,
    over_limit: Option<OwnedSemaphorePermit>,
    session: &ServerSession,
    x: &Exchange,
) -> Result<SpillStream, Option<Duration>> {
    let Some((body, parse)) = held(x).zip(asks_for_text(session)) else { return Err(None) };
    let Ok(Ok(request)) = read(x, &body, parse).await else { return Err(None) };
    let tenant = tenant(x).cloned();
    let terms = Terms { max_prompt_tokens: route.spill.max_prompt_tokens, over_limit, tenant };
    match spill::answer(model, &request, terms, x.started + route.request_timeout).await {
        Ok(stream) => Ok(stream),
        Err(SpillError::Busy(refusal)) => Err(refusal.retry_after),
        Err(e) => {
            tracing::debug!(event = "cannot_spill", route = %route.name, reason = %e.refusal().message);
            Err(None)
        }
    }
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
            return Err(super::forward::left_at_work(x));
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
    let answer = outgoing_response(answer, x, is_http11, true);
    let mut unread = Unread::default();
    let mut ahead = Ahead::new(stream, &mut unread, x);
    deliver(session.write_response_header(answer), limits(x), &mut ahead).await.map_err(|_| End::ClientGone)?;
    write_frames(stream, unread, session, x).await
}

/// Limits of a write to the client.
fn limits(x: &Exchange) -> WriteLimits<'_> {
    x.write_limits(x.route.as_ref().map_or_else(tokio::time::Instant::now, |route| x.deadline(route)))
}

/// The model's side while the client does not take what is written to it: the answer is taken on as far as there is
/// memory for it, so that the model is done with it; what is over that is parked in the engine.
struct Ahead<'a> {
    stream: &'a mut SpillStream,
    unread: &'a mut Unread,
    shared: &'a Arc<Downstream>,
    most: u64,
}

impl<'a> Ahead<'a> {
    fn new(stream: &'a mut SpillStream, unread: &'a mut Unread, x: &'a Exchange) -> Self {
        let (shared, most) = (&x.snapshot.downstream, x.snapshot.buffered_answers_per_request);
        Self { stream, unread, shared, most }
    }
}

impl Beside for Ahead<'_> {
    async fn take_in(&mut self) {
        if !self.unread.has_room() {
            return std::future::pending().await;
        }
        match self.stream.next().await {
            Some(frame) => self.unread.push(&frame, self.shared, self.most),
            None => std::future::pending().await,
        }
    }
}

/// Writes what comes after the head, what waits in `unread` first.
pub(super) async fn write_frames(
    stream: &mut SpillStream,
    mut unread: Unread,
    session: &mut ServerSession,
    x: &mut Exchange,
) -> Result<(), End> {
    loop {
        let frame = match unread.take_slice() {
            Some(waited) => Some(waited),
            // The write is never inside the select: a frame half written cannot be taken back.
            None => tokio::select! {
                biased;
                () = x.snapshot.downstream.ending.over() => {
                    break_off(session, x, stream.is_event_stream(), SHUTTING_DOWN, STOPPING).await;
                    return Ok(());
                }
                frame = stream.next() => frame,
                _ = session.read_body_or_idle(true) => return Err(End::ClientGone),
            },
        };
        let Some(mut frame) = frame else { break };
        while let Some(next) = slice(&mut frame) {
            x.outcome.bytes_out = x.outcome.bytes_out.saturating_add(u64::try_from(next.len()).unwrap_or(0));
            let mut ahead = Ahead::new(stream, &mut unread, x);
            let written = deliver(session.write_response_body(next, false), limits(x), &mut ahead).await;
            written.map_err(|_| End::ClientGone)?;
        }
    }
    let end = session.write_response_body(Bytes::new(), true);
    deliver(end, limits(x), &mut Nothing).await.map_err(|_| End::ClientGone)
}
