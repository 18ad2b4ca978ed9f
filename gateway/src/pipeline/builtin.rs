//! The exchange answered by a built-in model: text as it is written, and the answer of a route that names the model.

use std::sync::Arc;

use bytes::Bytes;
use http::{Version, header};
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;

use super::encoding;
use super::reading::{read_chat, tenant, unsupported_endpoint};
use crate::builtin::{self, LoadedModel, SpillError, SpillStream, Terms};
use crate::downstream::{Beside, Downstream, Nothing, Unread, WriteLimits, deliver, slice};
use crate::exchange::{End, Exchange, ServedBy};
use crate::upstream::{SHUTTING_DOWN, STOPPING, break_off, outgoing_response};

/// Outcome of a request that its route sends to a built-in model.
pub(super) enum Direct {
    /// The model answered.
    Answered,
    /// The model has no room.
    NoRoom,
}

/// Answers a request that its route sends to a built-in model.
pub(super) async fn direct(
    model: &Arc<LoadedModel>,
    session: &mut ServerSession,
    x: &mut Exchange,
) -> Result<Direct, End> {
    if let Some(what) = x.dialect.encodes(x.resolved.operation) {
        return match encoding::encode(model, what, session, x).await? {
            true => Ok(Direct::Answered),
            false => Ok(Direct::NoRoom),
        };
    }
    let Some(request) = read_chat(x).await? else { return Err(unsupported_endpoint()) };
    let request = request?;
    request.addressed_to(model.name())?;
    let deadline = x.route.as_ref().map_or_else(std::time::Instant::now, |route| x.started + route.request_timeout);
    let (dialect, tenant) = (x.dialect, tenant(x).cloned());
    let terms = Terms { dialect, max_prompt_tokens: None, over_limit: None, tenant };
    match builtin::answer(model, &request, terms, deadline).await {
        Ok(stream) => {
            pass(stream, model, session, x).await?;
            Ok(Direct::Answered)
        }
        Err(SpillError::Busy(_)) => Ok(Direct::NoRoom),
        Err(other) => Err(other.into_refusal().into()),
    }
}

/// Writes what the engine gives, as it comes. A client that leaves ends the work within one step of the engine: the
/// stream is dropped here.
pub(super) async fn pass(
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
            return Err(x.left_at_work());
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
    head: builtin::Head,
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
            x.pass(&next);
            let mut ahead = Ahead::new(stream, &mut unread, x);
            let written = deliver(session.write_response_body(next, false), limits(x), &mut ahead).await;
            written.map_err(|_| End::ClientGone)?;
        }
    }
    let end = session.write_response_body(Bytes::new(), true);
    deliver(end, limits(x), &mut Nothing).await.map_err(|_| End::ClientGone)
}
