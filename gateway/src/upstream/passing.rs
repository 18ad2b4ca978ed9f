//! An answer on its way to the client: its head, its parts, its end, or that it ended before its time. Event streams pass
//! in whole events; what they say of tokens is read as it passes.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{StatusCode, Version, header};
use pingora::ErrorType;
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::client::HttpSession;
use spillway_filter::{ErrorKind, Refusal};
use tokio::time::{Instant, timeout_at};

use super::attempt::{Attempt, Died, Outcome};
use super::bounds::has_room_for;
use super::converse::State;
use super::events::{Gate, Transcript};
use super::headers::outgoing_response;
use crate::balancing::{Class, orca};
use crate::exchange::{Exchange, ServedBy};
use crate::protocol::openai::{Observation, Observer};

/// Says who answered in place of the route's own backends.
static SERVED_BY: header::HeaderName = header::HeaderName::from_static("x-spillway-served-by");
/// Time for trailers to follow the end of a body.
const TRAILERS: Duration = Duration::from_secs(5);
/// Time for an error event to reach the client.
const LAST_WORD: Duration = Duration::from_secs(1);
/// Most of an event stream that waits for its first content.
const MAX_WAITING: usize = 64 << 10;
/// What an answer passes on its way.
#[derive(Default)]
pub(super) struct Passing {
    pub(super) observer: Option<Observer>,
    /// For event streams.
    gate: Option<Gate>,
    pub(super) transcript: Option<Transcript>,
    /// The head of an event stream that waits for its first content: until then another endpoint can answer instead.
    waiting: Option<Waiting>,
}

struct Waiting {
    head: ResponseHeader,
    /// What has come since.
    parts: BytesMut,
}

/// An answer that will be passed on begins: its head and what was read of its body go to the client. An outcome means
/// that it has ended already.
#[allow(clippy::too_many_arguments, reason = "the two halves of a conversation share all of it")]
pub(super) async fn begin(
    a: &Attempt<'_>,
    session: &mut ServerSession,
    x: &mut Exchange,
    upstream: &mut HttpSession,
    state: &mut State,
    passing: &mut Passing,
    head: ResponseHeader,
    prefix: Option<Bytes>,
    is_head: bool,
) -> Option<Outcome> {
    state.heard = Instant::now();
    state.event_stream = is_event_stream(&head);
    passing.observer = a.observer(&head);
    if !state.event_stream {
        a.answered(Class::Head, head.status);
    }
    if state.event_stream && passing.observer.is_some() {
        passing.gate = Some(Gate::default());
        if a.route.resume && !head.headers.contains_key(header::CONTENT_LENGTH) {
            passing.transcript = Some(Transcript::default());
        }
    }
    if passing.gate.is_some() && state.limits.first_token.is_some() && a.move_on.retry {
        passing.waiting = Some(Waiting { head, parts: BytesMut::new() });
    } else {
        if pass_head(a, session, x, head, is_head).await.is_err() {
            return Some(Outcome::ClientGone);
        }
        state.head_passed = true;
    }
    if let Some(prefix) = prefix
        && pass_part(a, session, x, state, passing, prefix).await.is_err()
    {
        return Some(Outcome::ClientGone);
    }
    if upstream.response_done() {
        return Some(finish(a, session, x, upstream, state, passing).await);
    }
    None
}

pub(super) fn is_event_stream(head: &ResponseHeader) -> bool {
    head.headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|v| v.as_bytes().get(..17).is_some_and(|start| start.eq_ignore_ascii_case(b"text/event-stream")))
}

async fn pass_head(
    a: &Attempt<'_>,
    session: &mut ServerSession,
    x: &mut Exchange,
    head: ResponseHeader,
    is_head: bool,
) -> pingora::Result<()> {
    x.outcome.status = head.status.as_u16();
    x.outcome.served_by = ServedBy::Backend(a.backend.name.clone());
    x.outcome.endpoint = Some(a.endpoint.address.clone());
    let has_body = !(is_head || head.status == StatusCode::NO_CONTENT || head.status == StatusCode::NOT_MODIFIED);
    let is_http11 = session.req_header().version == Version::HTTP_11;
    session.set_write_timeout(Some(a.backend.idle_timeout));
    let mut head = head;
    if a.backend.load_reports {
        // It was asked for by us, not by the caller.
        head.remove_header(&orca::REPORT);
    }
    let mut out = outgoing_response(head, x, is_http11, has_body);
    if x.outcome.spilled.is_some()
        && let Ok(name) = header::HeaderValue::from_str(&a.backend.name)
    {
        let _ = out.insert_header(SERVED_BY.clone(), name);
    }
    let limit = x.deadline(a.route).min(Instant::now() + a.backend.idle_timeout);
    client_write(limit, session.write_response_header(out)).await
}

/// A write to the client. Pingora bounds none of a head, and each of a body alone: what takes longer than the request may
/// is given up, as if the client had left.
pub async fn client_write(limit: Instant, write: impl Future<Output = pingora::Result<()>>) -> pingora::Result<()> {
    timeout_at(limit, write).await.unwrap_or_else(|_| pingora::Error::err(ErrorType::WriteTimedout))
}

/// Early hints without what speaks of the server's connection (RFC 8297; RFC 9110, 7.6.1).
pub(super) fn early_hints(head: &ResponseHeader) -> ResponseHeader {
    let mut hints = head.clone();
    for name in
        [header::CONNECTION, header::UPGRADE, header::TRANSFER_ENCODING, header::TRAILER, header::CONTENT_LENGTH]
    {
        hints.remove_header(&name);
    }
    hints
}

pub(super) async fn pass_part(
    a: &Attempt<'_>,
    session: &mut ServerSession,
    x: &mut Exchange,
    state: &mut State,
    passing: &mut Passing,
    part: Bytes,
) -> pingora::Result<()> {
    if let Some(observer) = &mut passing.observer {
        observer.feed(&part, std::time::Instant::now());
        note_usage(x, observer.observation());
        if !state.content_seen
            && let Some(first) = observer.observation().first_content
        {
            state.content_seen = true;
            if state.event_stream {
                a.answered(Class::FirstToken, StatusCode::OK);
            }
            x.outcome.first_token = Some(first.saturating_duration_since(x.started));
        }
    }
    let mut part = match &mut passing.gate {
        Some(gate) => gate.pass(part),
        None => part,
    };
    if let Some(transcript) = &mut passing.transcript {
        transcript.feed(&part);
    }
    if let Some(waiting) = &mut passing.waiting {
        waiting.parts.extend_from_slice(&part);
        if !state.content_seen && waiting.parts.len() <= MAX_WAITING {
            return Ok(());
        }
        part = release(a, session, x, state, passing).await?;
    }
    if part.is_empty() {
        return Ok(());
    }
    x.outcome.bytes_out = x.outcome.bytes_out.saturating_add(u64::try_from(part.len()).unwrap_or(0));
    client_write(state.limits.deadline, session.write_response_body(part, false)).await
}

/// What is known of the usage so far, also of an answer that is broken off.
fn note_usage(x: &mut Exchange, seen: &Observation) {
    x.outcome.content_events = seen.content_events;
    if let Some(usage) = &seen.usage {
        x.outcome.prompt_tokens = Some(usage.prompt_tokens);
        x.outcome.completion_tokens = Some(usage.completion_tokens);
        x.outcome.cached_tokens = usage.cached_tokens;
    }
}

/// What is known of an answer that has ended.
pub(super) fn note_answer(x: &mut Exchange, seen: &Observation) {
    x.outcome.model_answered.clone_from(&seen.model);
    x.outcome.finish_reason.clone_from(&seen.finish_reason);
    x.outcome.response_id.clone_from(&seen.id);
    note_usage(x, seen);
}

/// Lets the head go that waited, and gives what came after it.
async fn release(
    a: &Attempt<'_>,
    session: &mut ServerSession,
    x: &mut Exchange,
    state: &mut State,
    passing: &mut Passing,
) -> pingora::Result<Bytes> {
    let Some(waiting) = passing.waiting.take() else { return Ok(Bytes::new()) };
    pass_head(a, session, x, waiting.head, false).await?;
    state.head_passed = true;
    Ok(waiting.parts.freeze())
}

pub(super) async fn finish(
    a: &Attempt<'_>,
    session: &mut ServerSession,
    x: &mut Exchange,
    upstream: &mut HttpSession,
    state: &mut State,
    passing: &mut Passing,
) -> Outcome {
    let Ok(mut last) = release(a, session, x, state, passing).await else { return Outcome::ClientGone };
    if let Some(rest) = passing.gate.as_mut().map(Gate::rest).filter(|rest| !rest.is_empty()) {
        last = [last, rest].concat().into();
    }
    if let Some(observer) = &mut passing.observer {
        note_answer(x, observer.finish());
    }
    x.outcome.bytes_out = x.outcome.bytes_out.saturating_add(u64::try_from(last.len()).unwrap_or(0));
    let trailers = trailers(upstream).await.filter(|_| session.is_http2());
    if trailers.as_ref().is_some_and(|trailers| !has_room_for(trailers, a.backend.max_header_bytes)) {
        let message = "the trailers of the backend's answer are longer than its `limits.maxHeaderBytes`";
        return break_off(session, x, state.event_stream, "upstream_header_too_large", message).await;
    }
    let write = async {
        match trailers {
            Some(trailers) => {
                session.write_response_body(last, false).await?;
                session.write_response_trailers(trailers).await
            }
            None => session.write_response_body(last, true).await,
        }
    };
    match client_write(state.limits.deadline, write).await {
        Ok(()) => Outcome::Answered,
        Err(_) => Outcome::ClientGone,
    }
}

/// Trailers of an answer, such as gRPC's status. Only HTTP/2 sessions give them.
async fn trailers(upstream: &mut HttpSession) -> Option<http::HeaderMap> {
    let HttpSession::H2(upstream) = upstream else { return None };
    tokio::time::timeout(TRAILERS, upstream.read_trailers()).await.ok()?.ok()?
}

/// An answer whose head is out has ended early: it is continued where that is possible, else broken off.
pub(super) async fn died(
    session: &mut ServerSession,
    x: &mut Exchange,
    state: &State,
    passing: &Passing,
    (code, message): (&'static str, &'static str),
) -> Outcome {
    match passing.transcript.as_ref().and_then(Transcript::to_continue) {
        Some((text, tokens)) => Outcome::Died(Box::new(Died { text, tokens, code, message })),
        None => break_off(session, x, state.event_stream, code, message).await,
    }
}

/// Ends an answer whose head is out: with an error event where the API has one, else by closing the connection, so that
/// nobody takes half an answer for a whole one.
pub async fn break_off(
    session: &mut ServerSession,
    x: &mut Exchange,
    event_stream: bool,
    code: &'static str,
    message: &'static str,
) -> Outcome {
    x.outcome.broken = true;
    x.outcome.error_code = Some(code);
    session.set_keepalive(None);
    if event_stream {
        let refusal = Refusal::new(StatusCode::BAD_GATEWAY, ErrorKind::Upstream, code, message);
        if let Some(event) = crate::protocol::error_event(&refusal, x.api) {
            // A client that reads no more must not hold the server's place for it.
            let _ = client_write(Instant::now() + LAST_WORD, session.write_response_body(event, true)).await;
        }
    }
    Outcome::Broken
}
