//! Answers of built-in models: text as it is generated, and the requests of a route that names the model.

use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use http::{StatusCode, Version, header};

use super::answers::send_made;
use super::direct::{Direct, name_for_caller};
use super::reading::{held, read_chat, tenant, unsupported_endpoint};
use super::rewritten::api_path;
use super::{counting, encoding, inferring};
use crate::builtin::{self, LoadedModel, SpillError, SpillStream, Terms};
use crate::clock;
use crate::downstream::{Beside, ClientSession, Downstream, Nothing, SLICE, Unread, WriteLimits, deliver, slice};
use crate::exchange::{End, Exchange, ServedBy};
use crate::message::ResponseHead;
use crate::protocol::{BuiltinCard, FixedAsk, Operation, SERVED_BY, named};
use crate::topology::Route;
use crate::upstream::{CutReason, break_off, outgoing_response, refused};

/// Most bytes of an answer that is read whole to be changed by filters: the text of two million tokens.
const MOST_CHANGED: u64 = 8 << 20;

/// Answers a request that its route sends to a built-in model.
pub(super) async fn direct(
    route: &Route,
    model: &Arc<LoadedModel>,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<Direct, End> {
    if fixed(route, model, session, exchange).await? {
        return Ok(Direct::Answered);
    }
    if let Some(call) = inferring::call(exchange) {
        return inferring::direct(call, route, model, session, exchange).await;
    }
    if let Some(what) = exchange.dialect.encode_kind(exchange.resolved.operation) {
        return encoding::encode(route, model, what, session, exchange).await;
    }
    let Some(request) = read_chat(exchange).await? else { return Ok(Direct::Unable(Box::new(unsupported_endpoint()))) };
    let request = match request {
        Ok(request) => request,
        Err(refusal) => return Ok(Direct::Unable(Box::new(refusal))),
    };
    named(request.model.as_deref())?;
    let deadline = exchange.deadline(route).into_std();
    if exchange.resolved.operation == Operation::CountTokens {
        return counting::count(model, &request, deadline, session, exchange).await;
    }
    let (dialect, tenant) = (exchange.dialect, tenant(exchange).cloned());
    let operation = exchange.resolved.operation;
    let shown = exchange.alias().is_some().then(|| name_for_caller(route, model, exchange).into());
    let terms = Terms { dialect, operation, max_prompt_tokens: None, over_limit: None, tenant, shown };
    match builtin::answer(model, &request, terms, deadline).await {
        Ok(stream) => {
            pass(stream, model, session, exchange).await?;
            Ok(Direct::Answered)
        }
        Err(SpillError::Busy(_)) => Ok(Direct::NoRoom),
        // A backend of the route may be able to.
        Err(SpillError::CannotSpill(refusal) | SpillError::TooLong(refusal)) => Ok(Direct::Unable(Box::new(refusal))),
        Err(other) => Err(other.into_refusal().into()),
    }
}

/// Answers a request for which the model has to write nothing, such as one for its description. False for any other.
async fn fixed(
    route: &Route,
    model: &Arc<LoadedModel>,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<bool, End> {
    if !exchange.dialect.has_fixed_answers() {
        return Ok(false);
    }
    let (head, body) = (session.req_header(), held(exchange).unwrap_or_default());
    let path = head.uri.path_and_query().map(|target| api_path(route, &head.method, target)).unwrap_or_default();
    let ask = FixedAsk { method: &head.method, path: &path, body: &body };
    let card = BuiltinCard { id: name_for_caller(route, model, exchange), ..model.card() };
    let Some(fixed) = exchange.dialect.fixed_answer(&ask, &card) else { return Ok(false) };
    let body = fixed?;
    exchange.outcome.served_by = ServedBy::Model(model.served_by_text().clone());
    let mut answer = ResponseHead::new(StatusCode::OK, 4);
    let _ = answer.insert_header(header::CONTENT_TYPE, "application/json");
    let _ = answer.insert_header(&SERVED_BY, model.served_by());
    send_made(session, exchange, answer, body).await?;
    Ok(true)
}

/// Streams the answer of the engine to the client. A client that leaves ends the work within one step of the engine, because
/// the stream is dropped here.
pub(super) async fn pass(
    mut stream: SpillStream,
    model: &Arc<LoadedModel>,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<(), End> {
    exchange.outcome.begin_answer();
    let began = clock::instant();
    exchange.outcome.served_by = ServedBy::Model(model.served_by_text().clone());
    let head = tokio::select! {
        biased;
        head = stream.begin() => head,
        _ = session.read_body_or_idle(true) => {
            super::conclude::engine_ended(exchange, stream.report());
            return Err(exchange.left_at_work());
        }
    };
    exchange.outcome.was_at_target(clock::since(began));
    let head = match head {
        Ok(head) => head,
        Err(refusal) => {
            super::conclude::engine_ended(exchange, stream.report());
            return Err(refusal.into());
        }
    };
    let result = write(&mut stream, head, session, exchange).await;
    super::conclude::engine_ended(exchange, stream.report());
    result
}

async fn write(
    stream: &mut SpillStream,
    head: builtin::Head,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<(), End> {
    let mut answer = ResponseHead::new(head.status, 12);
    for (name, value) in head.headers {
        let _ = answer.insert_header(name, value);
    }
    if let Some(length) = head.content_length {
        let _ = answer.insert_header(header::CONTENT_LENGTH, header::HeaderValue::from(length));
    }
    exchange.outcome.status = head.status.as_u16();
    tell_first_token(stream, exchange);
    let mut unread = Unread::default();
    let answer = match &mut exchange.rewriting {
        None => Some(Box::new(answer)),
        Some(rewriting) => {
            Box::pin(rewriting.begin(Box::new(answer), exchange.outcome.spilled.is_some(), true, MOST_CHANGED)).await
        }
    };
    if let Some(answer) = answer {
        write_head(stream, *answer, &mut unread, session, exchange).await?;
    }
    write_frames(stream, unread, session, exchange).await
}

/// Writes the head of the answer, and reads the engine's answer ahead meanwhile.
async fn write_head(
    stream: &mut SpillStream,
    answer: ResponseHead,
    unread: &mut Unread,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<(), End> {
    let is_http11 = session.req_header().version == Version::HTTP_11;
    let answer = outgoing_response(answer, session.req_header(), exchange, is_http11, true);
    let mut ahead = Ahead::new(stream, unread, exchange);
    let write = session.write_response_header(answer);
    deliver(pin!(write), limits(exchange), &mut ahead).await.map_err(|_| End::ClientGone)
}

/// Tells a rollout when the first content of a stream was there.
fn tell_first_token(stream: &SpillStream, exchange: &mut Exchange) {
    let first = stream.report().first_token.filter(|_| exchange.rollout.is_some());
    let Some(first) = first else { return };
    exchange.outcome.first_token = Some(first.saturating_duration_since(exchange.started));
    let served_by = exchange.served_by().to_owned();
    exchange.tell_first_token(served_by.strip_prefix("builtin/").unwrap_or(&served_by));
}

/// Limits of a write to the client.
fn limits(exchange: &Exchange) -> WriteLimits<'_> {
    exchange
        .write_limits(exchange.route.as_ref().map_or_else(tokio::time::Instant::now, |route| exchange.deadline(route)))
}

/// Reads the engine's answer ahead while the client does not read, as far as there is memory for it, so that the model
/// finishes; the engine parks the rest.
struct Ahead<'a> {
    stream: &'a mut SpillStream,
    unread: &'a mut Unread,
    shared: &'a Arc<Downstream>,
    most: u64,
}

impl<'a> Ahead<'a> {
    fn new(stream: &'a mut SpillStream, unread: &'a mut Unread, exchange: &'a Exchange) -> Self {
        let (shared, most) = (&exchange.snapshot.downstream, exchange.snapshot.buffered_answers_per_request);
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

/// Writes the frames of the answer behind its head, those of `unread` first.
pub(super) async fn write_frames(
    stream: &mut SpillStream,
    mut unread: Unread,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<(), End> {
    loop {
        let frame = match unread.take_slice() {
            Some(waited) => Some(waited),
            // The write is never inside the select: a frame half written cannot be taken back.
            None => tokio::select! {
                biased;
                () = exchange.snapshot.downstream.ending.over() => {
                    break_off(session, exchange, stream.is_event_stream(), CutReason::ShuttingDown).await;
                    return Ok(());
                }
                frame = stream.next() => frame,
                _ = session.read_body_or_idle(true) => return Err(End::ClientGone),
            },
        };
        let Some(mut frame) = frame else { break };
        while let Some(next) = slice(&mut frame) {
            let mut passed = exchange.pass(next).await;
            while let Some(next) = slice(&mut passed) {
                let mut ahead = Ahead::new(stream, &mut unread, exchange);
                let write = session.write_response_body(next, false);
                deliver(pin!(write), limits(exchange), &mut ahead).await.map_err(|_| End::ClientGone)?;
            }
        }
        if let Some(cut) = refused(exchange) {
            break_off(session, exchange, stream.is_event_stream(), cut).await;
            return Ok(());
        }
    }
    let mut last = Bytes::new();
    if exchange.rewriting.is_some() {
        let ended = Box::pin(exchange.end_rewriting()).await.map_err(|refusal| {
            exchange.outcome.is_answer_unread = true;
            End::Refuse(refusal)
        })?;
        if let Some(head) = ended.head {
            write_head(stream, *head, &mut unread, session, exchange).await?;
        }
        exchange.show(&ended.body);
        last = ended.body;
        let mut before = last.split_to(last.len().saturating_sub(SLICE));
        while let Some(next) = slice(&mut before) {
            let write = session.write_response_body(next, false);
            deliver(pin!(write), limits(exchange), &mut Nothing).await.map_err(|_| End::ClientGone)?;
        }
        if let Some(cut) = refused(exchange) {
            break_off(session, exchange, stream.is_event_stream(), cut).await;
            return Ok(());
        }
    }
    let end = session.write_response_body(last, true);
    deliver(pin!(end), limits(exchange), &mut Nothing).await.map_err(|_| End::ClientGone)
}
