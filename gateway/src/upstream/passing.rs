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
use tokio::time::{Instant, sleep_until, timeout_at};

use super::attempt::{Attempt, Died, Outcome, SHUTTING_DOWN, let_go, shut};
use super::bounds::has_room_for;
use super::converse::{Next, State, server_due};
use super::encoded::{Coding, MAX_ENCODED, opened, without_coding};
use super::events::Gate;
use super::headers::{outgoing_response, outgoing_trailers, remove_hop_by_hop};
use super::masking::Mask;
use crate::balancing::{Class, orca};
use crate::downstream::{Beside, SLICE, Unread, WriteLimits, deliver, slice};
use crate::exchange::{self, Exchange, Place, ServedBy};
use crate::protocol::{Observation, Observe, Transcribe};

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
    pub(super) observer: Option<Box<dyn Observe>>,
    /// For event streams.
    gate: Option<Gate>,
    /// For errors of a server that knows a credential of the gateway.
    mask: Option<Mask>,
    pub(super) transcript: Option<Box<dyn Transcribe>>,
    /// Coding of an error that must be read whole before it can be masked.
    sealed: Option<Coding>,
    /// The head of an event stream that waits for its first content: until then another endpoint can answer instead. Or
    /// that of an error that is sealed.
    waiting: Option<Waiting>,
    /// Bytes that the server has written and the client has not taken.
    unread: Unread,
    /// Trailers, where they were read before the client had taken the body.
    trailers: Option<Option<http::HeaderMap>>,
}

impl Passing {
    /// True of a stream that ended in order but in the middle of what it says, and can be continued.
    pub(super) fn is_cut_short(&self) -> bool {
        self.observer.as_ref().is_some_and(|observer| !observer.observation().is_whole)
            && self.transcript.as_ref().is_some_and(|transcript| transcript.to_continue().is_some())
    }
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
    upstream: &mut Option<HttpSession>,
    state: &mut State,
    passing: &mut Passing,
    head: ResponseHeader,
    prefix: Option<Bytes>,
    is_head: bool,
) -> Option<Outcome> {
    state.heard = Instant::now();
    state.event_stream = is_event_stream(&head);
    passing.observer = a.observer(&head);
    let mut head = head;
    let is_error = head.status.is_client_error() || head.status.is_server_error();
    if is_error && !state.shown.is_empty() {
        match Coding::of(&head.headers) {
            Coding::Identity => passing.mask = state.shown.mask(),
            // Its head is that of the body which another method would get.
            _ if is_head => without_coding(&mut head),
            coding => passing.sealed = Some(coding),
        }
    }
    if !state.event_stream {
        a.answered(Class::Head, head.status);
    }
    if state.event_stream && passing.observer.is_some() {
        passing.gate = Some(Gate::default());
        if a.route.resume && !head.headers.contains_key(header::CONTENT_LENGTH) {
            passing.transcript = a.backend.dialect.and_then(|dialect| dialect.transcribe());
        }
    }
    if passing.sealed.is_some() || (passing.gate.is_some() && state.limits.first_token.is_some() && a.move_on.retry) {
        passing.waiting = Some(Waiting { head, parts: BytesMut::new() });
        if passing.sealed == Some(Coding::Unknown) {
            // Nothing of it can be passed on.
            leave(a, upstream, state).await;
        } else if let Some(prefix) = prefix
            && pass_part(a, session, x, upstream, state, passing, prefix).await.is_err()
        {
            return Some(state.client_gone());
        }
    } else {
        // Looked at first: more may be read while the client is slow to take the head.
        let prefix = prefix.map(|prefix| observe(a, &mut x.outcome, x.started, state, passing, prefix));
        if pass_head(a, session, x, upstream, state, passing, head, is_head).await.is_err()
            || pass(a, session, x, upstream, state, passing, prefix.unwrap_or_default()).await.is_err()
        {
            return Some(state.client_gone());
        }
    }
    if state.came.is_none() && upstream.as_mut().is_some_and(HttpSession::response_done) {
        return Some(finish(a, session, x, upstream, state, passing).await);
    }
    None
}

/// Reads no more of an answer, as if it had ended.
async fn leave(a: &Attempt<'_>, upstream: &mut Option<HttpSession>, state: &mut State) {
    if let Some(server) = upstream.take() {
        shut(a, server).await;
    }
    state.came = Some(Next::AnswerEnd);
}

pub(super) fn is_event_stream(head: &ResponseHeader) -> bool {
    head.headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|v| v.as_bytes().get(..17).is_some_and(|start| start.eq_ignore_ascii_case(b"text/event-stream")))
}

#[allow(clippy::too_many_arguments, reason = "the two halves of a conversation share all of it")]
async fn pass_head(
    a: &Attempt<'_>,
    session: &mut ServerSession,
    x: &mut Exchange,
    upstream: &mut Option<HttpSession>,
    state: &mut State,
    passing: &mut Passing,
    head: ResponseHeader,
    is_head: bool,
) -> pingora::Result<()> {
    x.outcome.status = head.status.as_u16();
    x.outcome.served_by = ServedBy::Backend(a.backend.name.clone());
    x.outcome.endpoint = Some(a.endpoint.address.clone());
    let has_body = !(is_head || head.status == StatusCode::NO_CONTENT || head.status == StatusCode::NOT_MODIFIED);
    let is_http11 = session.req_header().version == Version::HTTP_11;
    let mut head = head;
    remove_hop_by_hop(&mut head);
    if a.backend.load_reports {
        // It was asked for by us, not by the caller.
        head.remove_header(&orca::REPORT);
    }
    state.shown.strip(&mut head);
    let mut out = outgoing_response(head, x, is_http11, has_body);
    if x.outcome.spilled.is_some()
        && let Ok(name) = header::HeaderValue::from_str(&a.backend.name)
    {
        let _ = out.insert_header(SERVED_BY.clone(), name);
    }
    state.head_passed = true;
    let limits = write_limits(a, x, state);
    deliver(session.write_response_header(out), limits, &mut ServerSide::new(a, x, upstream, state, passing)).await
}

fn write_limits<'a>(a: &Attempt<'a>, x: &Exchange, state: &State) -> WriteLimits<'a> {
    WriteLimits { timeout: x.write_timeout, deadline: state.limits.deadline, downstream: a.downstream }
}

/// The server's side of a conversation while its client does not take what is written to it: the answer is read on as far
/// as there is memory for it, and the server is let go of at its end.
struct ServerSide<'l, 'a> {
    a: &'l Attempt<'a>,
    outcome: &'l mut exchange::Outcome,
    place: &'l mut Option<Place>,
    started: std::time::Instant,
    /// Bytes of one answer that may wait.
    most: u64,
    upstream: &'l mut Option<HttpSession>,
    state: &'l mut State,
    passing: &'l mut Passing,
}

impl<'l, 'a> ServerSide<'l, 'a> {
    fn new(
        a: &'l Attempt<'a>,
        x: &'l mut Exchange,
        upstream: &'l mut Option<HttpSession>,
        state: &'l mut State,
        passing: &'l mut Passing,
    ) -> Self {
        let most = x.snapshot.buffered_answers_per_request;
        let (outcome, place, started) = (&mut x.outcome, &mut x.place, x.started);
        Self { a, outcome, place, started, most, upstream, state, passing }
    }
}

impl Beside for ServerSide<'_, '_> {
    async fn take_in(&mut self) {
        let Self { a, outcome, place, started, most, upstream, state, passing } = self;
        if state.is_over || state.came.is_some() {
            if upstream.is_some() || place.is_some() {
                let_go(a, upstream, place, &mut outcome.answered_in, state.sent, state.is_over).await;
            }
            return std::future::pending().await;
        }
        let Some(server) = upstream.as_mut() else { return std::future::pending().await };
        if !passing.unread.has_room() {
            state.is_paused = true;
            return std::future::pending().await;
        }
        if std::mem::take(&mut state.is_paused) {
            // The time that the client took to read is not the server's.
            state.heard = Instant::now();
        }
        let read = tokio::select! {
            biased;
            () = sleep_until(server_due(a, state)) => {
                state.came = Some(Next::Silent);
                return;
            }
            read = server.read_response_body() => read,
        };
        match read {
            Ok(Some(part)) => {
                state.heard = Instant::now();
                let part = observe(a, outcome, *started, state, passing, part);
                passing.unread.push(&part, a.downstream, *most);
            }
            Ok(None) => {
                passing.trailers = Some(trailers(server).await);
                state.is_over = !passing.is_cut_short();
                state.came = Some(Next::AnswerEnd);
                if let Some(observer) = &mut passing.observer {
                    note_answer(outcome, observer.finish());
                }
            }
            Err(e) => state.came = Some(Next::UpstreamFailed(e)),
        }
    }
}

/// A write to the client. Pingora bounds none of a head, and each of a body alone: what takes longer than the request may
/// is given up, as if the client had left.
pub async fn client_write(limit: Instant, write: impl Future<Output = pingora::Result<()>>) -> pingora::Result<()> {
    timeout_at(limit, write).await.unwrap_or_else(|_| pingora::Error::err(ErrorType::WriteTimedout))
}

/// Reads what a part of an answer says, and gives what may be passed on of it.
fn observe(
    a: &Attempt<'_>,
    outcome: &mut exchange::Outcome,
    started: std::time::Instant,
    state: &mut State,
    passing: &mut Passing,
    part: Bytes,
) -> Bytes {
    outcome.bytes_answered = outcome.bytes_answered.saturating_add(u64::try_from(part.len()).unwrap_or(0));
    if let Some(observer) = &mut passing.observer {
        observer.feed(&part, std::time::Instant::now());
        note_usage(outcome, observer.observation());
        if !state.content_seen
            && let Some(first) = observer.observation().first_content
        {
            state.content_seen = true;
            if state.event_stream {
                a.answered(Class::FirstToken, StatusCode::OK);
            }
            outcome.first_token = Some(first.saturating_duration_since(started));
        }
    }
    let mut part = match &mut passing.gate {
        Some(gate) => gate.pass(part),
        None => part,
    };
    if let Some(mask) = &mut passing.mask {
        part = mask.pass(part);
    }
    if let Some(transcript) = &mut passing.transcript {
        transcript.feed(&part);
    }
    part
}

pub(super) async fn pass_part(
    a: &Attempt<'_>,
    session: &mut ServerSession,
    x: &mut Exchange,
    upstream: &mut Option<HttpSession>,
    state: &mut State,
    passing: &mut Passing,
    part: Bytes,
) -> pingora::Result<()> {
    let mut part = observe(a, &mut x.outcome, x.started, state, passing, part);
    if let Some(waiting) = &mut passing.waiting {
        waiting.parts.extend_from_slice(&part);
        if passing.sealed.is_some() {
            if waiting.parts.len() > MAX_ENCODED {
                leave(a, upstream, state).await;
            }
            return Ok(());
        }
        if !state.content_seen && waiting.parts.len() <= MAX_WAITING {
            return Ok(());
        }
        part = release(a, session, x, upstream, state, passing).await?;
    }
    pass(a, session, x, upstream, state, passing, part).await
}

/// Writes a part to the client, then what the server has said meanwhile where the client was slow to take it.
async fn pass(
    a: &Attempt<'_>,
    session: &mut ServerSession,
    x: &mut Exchange,
    upstream: &mut Option<HttpSession>,
    state: &mut State,
    passing: &mut Passing,
    mut part: Bytes,
) -> pingora::Result<()> {
    let limits = write_limits(a, x, state);
    loop {
        while let Some(next) = slice(&mut part) {
            x.pass(&next);
            let write = session.write_response_body(next, false);
            deliver(write, limits, &mut ServerSide::new(a, x, upstream, state, passing)).await?;
        }
        match passing.unread.take_slice() {
            Some(more) => part = more,
            None => return Ok(()),
        }
    }
}

/// What is known of the usage so far, also of an answer that is broken off.
fn note_usage(outcome: &mut exchange::Outcome, seen: &Observation) {
    outcome.content_events = seen.content_events;
    if let Some(usage) = &seen.usage {
        outcome.prompt_tokens = Some(usage.prompt_tokens);
        outcome.completion_tokens = Some(usage.completion_tokens);
        outcome.cached_tokens = usage.cached_tokens;
    }
}

/// What is known of an answer that has ended.
pub(super) fn note_answer(outcome: &mut exchange::Outcome, seen: &Observation) {
    outcome.model_answered.clone_from(&seen.model);
    outcome.finish_reason.clone_from(&seen.finish_reason);
    outcome.response_id.clone_from(&seen.id);
    note_usage(outcome, seen);
}

/// Lets the head go that waited, and gives what came after it.
async fn release(
    a: &Attempt<'_>,
    session: &mut ServerSession,
    x: &mut Exchange,
    upstream: &mut Option<HttpSession>,
    state: &mut State,
    passing: &mut Passing,
) -> pingora::Result<Bytes> {
    let Some(Waiting { mut head, parts }) = passing.waiting.take() else { return Ok(Bytes::new()) };
    let body = match passing.sealed.take() {
        Some(coding) => opened(coding, &parts, &state.shown, &mut head, x),
        None => parts.freeze(),
    };
    pass_head(a, session, x, upstream, state, passing, head, false).await?;
    Ok(body)
}

pub(super) async fn finish(
    a: &Attempt<'_>,
    session: &mut ServerSession,
    x: &mut Exchange,
    upstream: &mut Option<HttpSession>,
    state: &mut State,
    passing: &mut Passing,
) -> Outcome {
    let trailers = match (passing.trailers.take(), &mut *upstream) {
        (Some(read), _) => read,
        (None, Some(server)) => trailers(server).await,
        (None, None) => None,
    };
    let mut trailers = trailers.filter(|_| session.is_http2());
    if let Some(trailers) = &mut trailers {
        state.shown.strip_trailers(trailers);
    }
    // The server has no part in what follows.
    state.is_over = true;
    let Ok(mut last) = release(a, session, x, upstream, state, passing).await else { return state.client_gone() };
    if let Some(rest) = passing.gate.as_mut().map(Gate::rest).filter(|rest| !rest.is_empty()) {
        last = [last, rest].concat().into();
    }
    if let Some(rest) = passing.mask.as_mut().map(Mask::rest).filter(|rest| !rest.is_empty()) {
        last = [last, rest].concat().into();
    }
    if let Some(observer) = &mut passing.observer {
        note_answer(&mut x.outcome, observer.finish());
    }
    let before = last.split_to(last.len().saturating_sub(SLICE));
    if pass(a, session, x, upstream, state, passing, before).await.is_err() {
        return state.client_gone();
    }
    if trailers.as_ref().is_some_and(|trailers| !has_room_for(trailers, a.backend.max_header_bytes)) {
        let message = "the trailers of the backend's answer are longer than its `limits.maxHeaderBytes`";
        return break_off(session, x, state.event_stream, "upstream_header_too_large", message).await;
    }
    x.pass(&last);
    let write = async {
        match trailers {
            Some(trailers) => {
                session.write_response_body(last, false).await?;
                session.write_response_trailers(trailers).await
            }
            None => session.write_response_body(last, true).await,
        }
    };
    let limits = write_limits(a, x, state);
    match deliver(write, limits, &mut ServerSide::new(a, x, upstream, state, passing)).await {
        Ok(()) => Outcome::Answered,
        Err(_) => state.client_gone(),
    }
}

/// Trailers of an answer, such as gRPC's status. Only HTTP/2 sessions give them.
async fn trailers(upstream: &mut HttpSession) -> Option<http::HeaderMap> {
    let HttpSession::H2(upstream) = upstream else { return None };
    let trailers = tokio::time::timeout(TRAILERS, upstream.read_trailers()).await.ok()?.ok()??;
    Some(outgoing_trailers(trailers))
}

/// An answer whose head is out has ended early: it is continued where that is possible, else broken off.
pub(super) async fn died(
    session: &mut ServerSession,
    x: &mut Exchange,
    state: &State,
    passing: &Passing,
    (code, message): (&'static str, &'static str),
) -> Outcome {
    match passing.transcript.as_ref().and_then(|transcript| transcript.to_continue()) {
        Some(said) => Outcome::Died(Box::new(Died { said, code, message })),
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
        let (status, kind) = match code {
            SHUTTING_DOWN => (StatusCode::SERVICE_UNAVAILABLE, ErrorKind::Overloaded),
            _ => (StatusCode::BAD_GATEWAY, ErrorKind::Upstream),
        };
        let refusal = Refusal::new(status, kind, code, message);
        if let Some(event) = x.dialect.error_event(&refusal) {
            x.observers.response_body(&event);
            // A client that reads no more must not hold the server's place for it.
            let _ = client_write(Instant::now() + LAST_WORD, session.write_response_body(event, true)).await;
        }
    }
    Outcome::Broken
}
