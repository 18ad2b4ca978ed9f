//! One attempt at an endpoint, from the connection to the last byte of the answer.
//!
//! Both directions run in one loop on one task: whatever comes next is handled, be it the head or a part of the
//! answer, a part of the client's body, the client leaving, or a time limit. Nothing is sent to the client before it is
//! certain that the answer will be passed on, so that every failure up to then can be tried elsewhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode, Version, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::client::HttpSession;
use pingora::{ErrorType, RetryType};
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};

use super::body::{RequestBody, expects_continue};
use super::events::{Gate, Transcript};
use super::headers::CREDENTIALS;
use super::headers::{Via, outgoing_request, outgoing_response, to_http2};
use super::open::Opened;
use super::{Connector, with_model};
use crate::balancing::{Class, Endpoint, now_millis, orca};
use crate::exchange::{Exchange, ServedBy};
use crate::protocol::openai::{Observation, Observer};
use crate::snapshot::{Backend, Route};
use spillway_filter::{ErrorKind, Refusal};

/// Says who answered in place of the route's own backends.
static SERVED_BY: header::HeaderName = header::HeaderName::from_static("x-spillway-served-by");

/// Early answers (1xx) of one attempt; a server that sends more is not answering.
const MAX_EARLY: u32 = 16;
/// Bytes of a refusing answer that are read to learn why it refuses.
const MAX_REFUSAL: usize = 16 << 10;

/// Time for trailers to follow the end of a body.
const TRAILERS: Duration = Duration::from_secs(5);
/// Most of an event stream that waits for its first content.
const MAX_WAITING: usize = 64 << 10;

/// Milliseconds between two log lines about servers whose TLS fails.
const TELL_EVERY: u64 = 1_000;

/// Code of an answer that was cut because the time of the request was over, while its server still spoke.
pub const REQUEST_TIMEOUT: &str = "request_timeout";

/// How an attempt ended.
#[derive(Debug)]
pub enum Outcome {
    /// The whole answer was passed on.
    Answered,
    /// The answer ended early after its head was sent; the client was told as far as its API can.
    Broken,
    /// The same of an event stream that can be continued; the client was told nothing yet.
    Died(Box<Died>),
    /// It was given up for another attempt that answered first.
    GivenUp,
    /// The endpoint said that it is full; nothing was sent to the client.
    Full(Option<Duration>),
    /// The attempt failed; nothing was sent to the client.
    Failed(Failure),
    /// The client left.
    ClientGone,
}

/// An event stream that ended early.
#[derive(Debug)]
pub struct Died {
    /// What it has said.
    pub text: String,
    /// About how many tokens that is.
    pub tokens: u32,
    /// Code of the error.
    pub code: &'static str,
    /// What happened.
    pub message: &'static str,
}

/// Why an attempt failed before anything was sent to the client.
#[derive(Debug)]
pub enum Failure {
    /// No connection could be opened.
    Connect(String),
    /// The connection broke before the head of the answer.
    Reset(String),
    /// A connection from the pool was closed before it carried any byte of an answer.
    Stale(String),
    /// The head of the answer, or all of it, did not come in time.
    Timeout(&'static str),
    /// The time of the whole request is over.
    Deadline,
    /// An answer with a status that is to be tried elsewhere.
    Status(u16),
    /// The answer was no HTTP, or the request could not be written.
    Protocol(String),
}

/// Which answers may be kept from the client because there is somewhere else to go.
#[derive(Debug, Clone, Copy)]
pub struct MoveOn {
    /// Those that mean full.
    pub full: bool,
    /// Those that the route retries.
    pub retry: bool,
}

/// What an attempt needs besides the exchange.
#[derive(Clone)]
pub struct Attempt<'a> {
    /// The route.
    pub route: &'a Route,
    /// The backend.
    pub backend: &'a Backend,
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// Requests in flight at it, with this one.
    pub in_flight: u32,
    /// When the attempt began, as [`now_millis`] reads it.
    pub began: u64,
    /// The same, to measure by.
    pub started: std::time::Instant,
    /// Connections.
    pub connector: &'a Connector,
    /// How this process signs.
    pub via: &'a Via,
    /// Which answers may be kept from the client.
    pub move_on: MoveOn,
}

/// Runs one attempt.
pub async fn run(a: &Attempt<'_>, session: &mut ServerSession, x: &mut Exchange) -> Outcome {
    let limits = Limits::begin(a, x);
    let (deadline, attempt_deadline) = (limits.deadline, limits.attempt);
    let (mut upstream, reused) = tokio::select! {
        biased;
        connected = a.connector.get(&a.endpoint.peer) => match connected {
            Ok(connected) => connected,
            Err(e) => return Outcome::Failed(not_connected(a, &e)),
        },
        () = tokio::time::sleep_until(attempt_deadline) => {
            return Outcome::Failed(if attempt_deadline == deadline { Failure::Deadline } else { Failure::Timeout("backendRequest") });
        }
    };
    let outcome = converse(a, session, x, &mut upstream, reused, limits, None).await;
    end(a, upstream, &outcome).await;
    outcome
}

/// Passes an answer on that was opened before.
pub async fn relay(a: &Attempt<'_>, session: &mut ServerSession, x: &mut Exchange, opened: Opened) -> Outcome {
    let Opened { mut upstream, head, prefix, limits } = opened;
    let outcome = converse(a, session, x, &mut upstream, false, limits, Some((head, prefix))).await;
    end(a, upstream, &outcome).await;
    outcome
}

async fn end(a: &Attempt<'_>, mut upstream: HttpSession, outcome: &Outcome) {
    match outcome {
        // Only a connection whose answer was read to its end can serve another request.
        Outcome::Answered if upstream.response_done() => a.connector.release(upstream, &a.endpoint.peer).await,
        _ => shut(a, upstream).await,
    }
}

/// Ends a conversation before its time. Of HTTP/2 that is one stream; its connection goes back to the others.
pub(super) async fn shut(a: &Attempt<'_>, mut upstream: HttpSession) {
    upstream.shutdown().await;
    if matches!(upstream, HttpSession::H2(_)) {
        a.connector.release(upstream, &a.endpoint.peer).await;
    }
}

/// When an attempt must have come how far.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// The whole request must be answered.
    pub(super) deadline: Instant,
    /// This attempt must be.
    pub(super) attempt: Instant,
    /// An event stream must have said something.
    pub(super) first_token: Option<Instant>,
}

impl Limits {
    pub(super) fn begin(a: &Attempt<'_>, x: &Exchange) -> Self {
        let (now, deadline) = (Instant::now(), x.deadline(a.route));
        // The first attempt counts from the arrival of the request; a further one could never keep that.
        let from = if x.outcome.attempts > 1 { now } else { Instant::from_std(x.started) };
        Self {
            deadline,
            attempt: a.route.attempt_timeout.map_or(deadline, |t| deadline.min(now + t)),
            first_token: a.route.first_token_timeout.map(|limit| from + limit),
        }
    }
}

/// What goes to an endpoint.
pub(super) struct Outgoing {
    pub(super) request: Box<RequestHeader>,
    /// `None` for a body that streams through.
    pub(super) body: Option<Bytes>,
    /// The caller's own credentials go along.
    pub(super) callers_account: bool,
    /// The caller understands trailers.
    takes_trailers: bool,
}

impl Outgoing {
    pub(super) fn new(a: &Attempt<'_>, session: &mut ServerSession, x: &Exchange) -> Self {
        let body = match &x.body {
            RequestBody::Held(held) => Some(match &a.backend.upstream_model {
                Some(model) => with_model(&held.bytes, model).unwrap_or_else(|| held.bytes.clone()),
                None => held.bytes.clone(),
            }),
            RequestBody::Unread if session.is_body_empty() => Some(Bytes::new()),
            RequestBody::Unread => None,
        };
        let length = body.as_ref().map(|body| u64::try_from(body.len()).unwrap_or(u64::MAX));
        let request = outgoing_request(session.req_header(), x, a.route, a.backend, a.via, length);
        let callers_account =
            a.backend.credentials.is_none() && CREDENTIALS.iter().any(|name| request.headers.contains_key(name));
        let te = session.get_header(header::TE);
        let takes_trailers = te.is_some_and(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
        let mut out = Self { request, body, callers_account, takes_trailers };
        if x.outcome.spilled.is_some() {
            out.without_credentials(a);
        }
        out
    }

    /// Takes the caller's credentials out: they are for the route's own backends, not for one that stands in or watches.
    pub(super) fn without_credentials(&mut self, a: &Attempt<'_>) {
        let keep = a.backend.credentials.is_some();
        for name in CREDENTIALS.iter().filter(|_| !keep).chain([&header::COOKIE]) {
            self.request.remove_header(name);
        }
        self.callers_account = false;
    }
}

pub(super) fn not_connected(a: &Attempt<'_>, e: &pingora::Error) -> Failure {
    static TOLD: AtomicU64 = AtomicU64::new(0);
    if matches!(e.etype(), ErrorType::TLSHandshakeFailure | ErrorType::InvalidCert | ErrorType::TLSHandshakeTimedout)
        && now_millis().saturating_sub(TOLD.load(Ordering::Relaxed)) >= TELL_EVERY
    {
        TOLD.store(now_millis(), Ordering::Relaxed);
        // A wrong certificate does not go away by itself: somebody must see why, but not for every request.
        tracing::warn!(event = "upstream_tls_failed", backend = %a.backend.name, endpoint = %a.endpoint.url, error = %e);
    }
    Failure::Connect(e.etype().as_str().to_owned())
}

/// What comes next of either side.
enum Next {
    Head,
    AnswerPart(Bytes),
    AnswerEnd,
    BodyPart(Bytes),
    BodyEnd,
    ClientGone,
    UpstreamFailed(Box<pingora::Error>),
    Time,
}

/// Where the conversation stands.
struct State {
    body_sent: bool,
    head_seen: bool,
    head_passed: bool,
    event_stream: bool,
    content_seen: bool,
    /// When the endpoint was last heard, or the request was sent.
    heard: Instant,
    limits: Limits,
}

impl State {
    fn new(limits: Limits) -> Self {
        Self {
            body_sent: false,
            head_seen: false,
            head_passed: false,
            event_stream: false,
            content_seen: false,
            heard: Instant::now(),
            limits,
        }
    }
}

/// What an answer passes on its way.
#[derive(Default)]
struct Passing {
    observer: Option<Observer>,
    /// For event streams.
    gate: Option<Gate>,
    transcript: Option<Transcript>,
    /// The head of an event stream that waits for its first content: until then another endpoint can answer instead.
    waiting: Option<Waiting>,
}

struct Waiting {
    head: ResponseHeader,
    /// What has come since.
    parts: BytesMut,
}

/// Sends the head of a request, and its body where it is held.
pub(super) async fn send(a: &Attempt<'_>, upstream: &mut HttpSession, mut out: Outgoing) -> Result<(), Outcome> {
    if matches!(upstream, HttpSession::H2(_)) {
        to_http2(&mut out.request, out.takes_trailers, a.endpoint.url.https);
    }
    upstream.set_write_timeout(Some(a.backend.idle_timeout));
    if let Err(e) = upstream.write_request_header(out.request).await {
        return Err(Outcome::Failed(failure(&e)));
    }
    let Some(body) = out.body else { return Ok(()) };
    if !body.is_empty()
        && let Err(e) = upstream.write_request_body(body, true).await
    {
        // A server may answer before it has read all (413, 429) and close: its answer counts, if it is there.
        tracing::debug!(event = "request_body_not_taken", error = %e);
    }
    end_body(upstream).await;
    Ok(())
}

/// An answer that will be passed on begins: its head and what was read of its body go to the client. An outcome means
/// that it has ended already.
#[allow(clippy::too_many_arguments, reason = "the two halves of a conversation share all of it")]
async fn begin(
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

async fn converse(
    a: &Attempt<'_>,
    session: &mut ServerSession,
    x: &mut Exchange,
    upstream: &mut HttpSession,
    reused: bool,
    limits: Limits,
    opened: Option<(ResponseHeader, Option<Bytes>)>,
) -> Outcome {
    let is_head = session.req_header().method == Method::HEAD;
    let mut passing = Passing::default();
    let mut callers_account = false;
    let mut state = State::new(limits);
    match opened {
        Some((head, prefix)) => {
            state.body_sent = true;
            state.head_seen = true;
            if let Some(outcome) = begin(a, session, x, upstream, &mut state, &mut passing, head, prefix, is_head).await
            {
                return outcome;
            }
        }
        None => {
            let out = Outgoing::new(a, session, x);
            callers_account = out.callers_account;
            state.body_sent = out.body.is_some();
            let whole = state.body_sent;
            let sent = tokio::select! {
                biased;
                sent = send(a, upstream, out) => sent,
                () = sleep_until(limits.attempt) => Err(Outcome::Failed(overdue(&state, Instant::now()))),
                // A connection with half a request on it is closed in either case.
                _ = session.read_body_or_idle(true), if whole => Err(Outcome::ClientGone),
            };
            if let Err(outcome) = sent {
                return outcome;
            }
            if !state.body_sent && expects_continue(session) && session.write_continue_response().await.is_err() {
                return Outcome::ClientGone;
            }
            state.heard = Instant::now();
        }
    }
    let mut timer = std::pin::pin!(sleep_until(wake_at(a, x, &state)));
    let mut early = 0;
    loop {
        match next(upstream, session, &state, x.body_pause, timer.as_mut()).await {
            Next::Head => {
                let Some(head) = upstream.response_header() else { continue };
                // `Upgrade` ends here, so that nobody has asked for another protocol.
                if head.status == StatusCode::SWITCHING_PROTOCOLS {
                    return Outcome::Failed(Failure::Protocol("101 without an upgrade".to_owned()));
                }
                if head.status.is_informational() {
                    early += 1;
                    if early > MAX_EARLY {
                        return Outcome::Failed(Failure::Protocol(
                            "more early answers than any server needs".to_owned(),
                        ));
                    }
                    // 100 was answered by us; what else there may be means nothing to HTTP/1.0.
                    if head.status == StatusCode::EARLY_HINTS && session.req_header().version != Version::HTTP_10 {
                        let hints = Box::new(early_hints(head));
                        if client_write(limits.deadline, session.write_response_header(hints)).await.is_err() {
                            return Outcome::ClientGone;
                        }
                    }
                    continue;
                }
                state.heard = Instant::now();
                state.head_seen = true;
                let head = head.clone();
                a.read_load(&head);
                let prefix = match judge(a, callers_account, upstream, &head).await {
                    Verdict::Pass(prefix) => prefix,
                    Verdict::MoveOn(outcome) => return outcome,
                };
                if let Some(outcome) =
                    begin(a, session, x, upstream, &mut state, &mut passing, head, prefix, is_head).await
                {
                    return outcome;
                }
                // The time for a head and that for a pause are two limits: the timer starts again.
                timer.as_mut().reset(wake_at(a, x, &state));
            }
            Next::AnswerPart(part) => {
                if pass_part(a, session, x, &mut state, &mut passing, part).await.is_err() {
                    return Outcome::ClientGone;
                }
                // The time that the client took to read is not the server's.
                state.heard = Instant::now();
            }
            Next::AnswerEnd => {
                // A stream that ends in order, but in the middle of what it says, has died as well.
                if state.head_passed
                    && passing.observer.as_ref().is_some_and(|observer| !observer.observation().is_whole)
                    && passing.transcript.as_ref().is_some_and(|transcript| transcript.to_continue().is_some())
                {
                    return died(session, x, &state, &passing, "upstream_reset", "the backend ended the answer early")
                        .await;
                }
                return finish(a, session, x, upstream, &mut state, &mut passing).await;
            }
            Next::BodyPart(part) => {
                // An empty part is no end: written in chunks it would be one, and a second one would follow it.
                let written =
                    async { if part.is_empty() { Ok(()) } else { upstream.write_request_body(part, false).await } };
                let Ok(written) = timeout_at(limits.attempt, written).await else {
                    if !state.head_passed {
                        return Outcome::Failed(overdue(&state, Instant::now()));
                    }
                    return break_off(
                        session,
                        x,
                        state.event_stream,
                        "timeout",
                        "the backend did not take the request in time",
                    )
                    .await;
                };
                if let Err(e) = written {
                    tracing::debug!(event = "request_body_not_taken", error = %e);
                    state.body_sent = true;
                } else if session.is_body_done() {
                    // The last part of HTTP/2 says that it is the last: no end follows it.
                    end_body(upstream).await;
                    state.body_sent = true;
                }
                state.heard = Instant::now();
            }
            Next::BodyEnd => {
                end_body(upstream).await;
                state.body_sent = true;
                state.heard = Instant::now();
            }
            Next::ClientGone => return Outcome::ClientGone,
            Next::UpstreamFailed(e) => {
                if !state.head_passed {
                    return Outcome::Failed(failure_of_head(&e, reused));
                }
                return died(session, x, &state, &passing, "upstream_reset", "the backend ended the answer early")
                    .await;
            }
            Next::Time => {
                let now = Instant::now();
                let due = wake_at(a, x, &state);
                if due > now {
                    timer.as_mut().reset(due);
                    continue;
                }
                // Who still owes a part of the request has let the time pass, not the server.
                if !state.body_sent && !state.head_passed {
                    return Outcome::ClientGone;
                }
                let failure = overdue(&state, now);
                if !state.head_passed {
                    return Outcome::Failed(failure);
                }
                let message = "the backend did not continue the answer in time";
                if now >= limits.deadline {
                    // A server that was heard until the end may have had a client that reads slowly.
                    let heard = now.saturating_duration_since(state.heard) < a.backend.idle_timeout / 2;
                    let code = if heard { REQUEST_TIMEOUT } else { "timeout" };
                    return break_off(session, x, state.event_stream, code, message).await;
                }
                return died(session, x, &state, &passing, "timeout", message).await;
            }
        }
    }
}

async fn end_body(upstream: &mut HttpSession) {
    if let Err(e) = upstream.finish_request_body().await {
        tracing::debug!(event = "request_body_not_finished", error = %e);
    }
}

/// Waits for what comes next. Every branch may be dropped and asked again: Pingora's readers keep what they have read.
async fn next(
    upstream: &mut HttpSession,
    session: &mut ServerSession,
    state: &State,
    body_pause: Duration,
    timer: std::pin::Pin<&mut Sleep>,
) -> Next {
    let answer = async {
        if state.head_seen {
            match upstream.read_response_body().await {
                Ok(Some(part)) => Next::AnswerPart(part),
                Ok(None) => Next::AnswerEnd,
                Err(e) => Next::UpstreamFailed(e),
            }
        } else {
            match upstream.read_response_header().await {
                Ok(()) => Next::Head,
                Err(e) => Next::UpstreamFailed(e),
            }
        }
    };
    let client = async {
        if state.body_sent {
            let _ = session.read_body_or_idle(true).await;
            return Next::ClientGone;
        }
        // A client that owes a part of its body and sends none is as good as gone. (HTTP/2 sessions have no such limit.)
        match tokio::time::timeout(body_pause, session.read_body_or_idle(false)).await {
            Ok(Ok(Some(part))) => Next::BodyPart(part),
            Ok(Ok(None)) => Next::BodyEnd,
            Ok(Err(_)) | Err(_) => Next::ClientGone,
        }
    };
    // The time first: a server that always has more to say must not keep it from being looked at.
    tokio::select! {
        biased;
        () = timer => Next::Time,
        next = answer => next,
        next = client => next,
    }
}

/// When the next limit is due, given where the conversation stands.
fn wake_at(a: &Attempt<'_>, x: &Exchange, state: &State) -> Instant {
    let limits = &state.limits;
    let mut due = limits.deadline;
    if state.head_seen {
        due = due.min(state.heard + a.backend.idle_timeout);
        if !state.event_stream {
            due = due.min(limits.attempt);
        }
    } else {
        due = due.min(state.heard + a.backend.first_byte_timeout).min(limits.attempt);
    }
    if let Some(limit) = limits.first_token
        && !state.content_seen
        && (state.event_stream || (!state.head_seen && x.asked.as_ref().is_some_and(|asked| asked.stream)))
    {
        due = due.min(limit);
    }
    due
}

fn overdue(state: &State, now: Instant) -> Failure {
    let limits = &state.limits;
    if now >= limits.deadline {
        Failure::Deadline
    } else if now >= limits.attempt && !state.event_stream {
        Failure::Timeout("backendRequest")
    } else if limits.first_token.is_some_and(|limit| now >= limit) {
        Failure::Timeout("firstToken")
    } else {
        Failure::Timeout("firstByte")
    }
}

impl Attempt<'_> {
    /// The endpoint has begun to answer well.
    fn answered(&self, class: Class, status: StatusCode) {
        if status.is_server_error() {
            return;
        }
        let now = now_millis();
        self.endpoint.answered_in(class, self.started.elapsed(), self.in_flight, now);
        self.backend.balancer.good_sign(&self.endpoint, self.began, now);
    }

    /// Reads what the server says of its load.
    pub(super) fn read_load(&self, head: &ResponseHeader) {
        if self.backend.load_reports
            && let Some(report) = orca::report(&head.headers)
        {
            self.endpoint.reported(&report, now_millis());
        }
    }

    fn observer(&self, head: &ResponseHeader) -> Option<Observer> {
        let is_model = self.backend.protocol == spillway_config::schema::BackendProtocol::Openai;
        if !is_model || !head.status.is_success() {
            return None;
        }
        Observer::for_response(head.headers.get(header::CONTENT_TYPE), head.headers.get(header::CONTENT_ENCODING))
    }
}

pub(super) enum Verdict {
    /// The answer goes to the client; what was read of its body already comes first.
    Pass(Option<Bytes>),
    MoveOn(Outcome),
}

/// Whether an answer goes to the client or the request goes elsewhere.
pub(super) async fn judge(
    a: &Attempt<'_>,
    callers_account: bool,
    upstream: &mut HttpSession,
    head: &ResponseHeader,
) -> Verdict {
    let status = head.status.as_u16();
    if a.move_on.full && a.backend.full_statuses.contains(&status) {
        // On the caller's own account upstream, "too many" speaks of the caller, not of the endpoint.
        if status == 429 {
            if callers_account {
                return Verdict::Pass(None);
            }
            let body = read_some(upstream).await;
            if says_quota_is_spent(head, &body) {
                return Verdict::Pass(Some(body));
            }
        }
        return Verdict::MoveOn(Outcome::Full(retry_after(head)));
    }
    if a.move_on.retry && a.route.retry.on_statuses.contains(&status) {
        return Verdict::MoveOn(Outcome::Failed(Failure::Status(status)));
    }
    Verdict::Pass(None)
}

async fn read_some(upstream: &mut HttpSession) -> Bytes {
    let mut body = bytes::BytesMut::new();
    let read = async {
        while body.len() < MAX_REFUSAL {
            match upstream.read_response_body().await {
                Ok(Some(part)) => body.extend_from_slice(&part),
                _ => break,
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), read).await;
    body.freeze()
}

/// A spent budget is not a full server: clients must not try again, and no other endpoint will do better.
fn says_quota_is_spent(head: &ResponseHeader, body: &[u8]) -> bool {
    const SPENT: &str = "insufficient_quota";
    let Some(mut observer) = Observer::for_response(head.headers.get(header::CONTENT_TYPE), None) else { return false };
    observer.feed(body, std::time::Instant::now());
    observer.finish().error.as_ref().is_some_and(|e| e.kind == SPENT || e.code.as_deref() == Some(SPENT))
}

fn retry_after(head: &ResponseHeader) -> Option<Duration> {
    let seconds = head.headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse::<f64>().ok()?;
    Duration::try_from_secs_f64(seconds.clamp(0.0, 86_400.0)).ok()
}

fn is_event_stream(head: &ResponseHeader) -> bool {
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
fn early_hints(head: &ResponseHeader) -> ResponseHeader {
    let mut hints = head.clone();
    for name in
        [header::CONNECTION, header::UPGRADE, header::TRANSFER_ENCODING, header::TRAILER, header::CONTENT_LENGTH]
    {
        hints.remove_header(&name);
    }
    hints
}

async fn pass_part(
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

async fn finish(
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
        let seen = observer.finish();
        x.outcome.model_answered.clone_from(&seen.model);
        x.outcome.finish_reason.clone_from(&seen.finish_reason);
        x.outcome.response_id.clone_from(&seen.id);
        note_usage(x, seen);
    }
    x.outcome.bytes_out = x.outcome.bytes_out.saturating_add(u64::try_from(last.len()).unwrap_or(0));
    let ended = match trailers(upstream).await.filter(|_| session.is_http2()) {
        Some(trailers) => match session.write_response_body(last, false).await {
            Ok(()) => session.write_response_trailers(trailers).await,
            Err(e) => Err(e),
        },
        None => session.write_response_body(last, true).await,
    };
    match ended {
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
async fn died(
    session: &mut ServerSession,
    x: &mut Exchange,
    state: &State,
    passing: &Passing,
    code: &'static str,
    message: &'static str,
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
            let _ = session.write_response_body(event, true).await;
        }
    }
    Outcome::Broken
}

pub(super) fn failure(e: &pingora::Error) -> Failure {
    let text = e.etype().as_str().to_owned();
    match e.etype() {
        ErrorType::ReadTimedout | ErrorType::WriteTimedout => Failure::Timeout("idle"),
        ErrorType::ReadError | ErrorType::WriteError | ErrorType::ConnectionClosed | ErrorType::H2Error => {
            Failure::Reset(text)
        }
        _ => Failure::Protocol(text),
    }
}

/// A connection from the pool that closes before it answers was most likely closed by the server while idle: the
/// request was never looked at, which is what a failed connect means too.
pub(super) fn failure_of_head(e: &pingora::Error, reused: bool) -> Failure {
    match failure(e) {
        Failure::Reset(text) if reused && matches!(e.retry, RetryType::ReusedOnly) => Failure::Stale(text),
        // HTTP/2 says so itself: the stream was refused, or the connection was ending (RFC 9113, 8.7).
        Failure::Reset(text) if matches!(e.retry, RetryType::Decided(true)) => Failure::Stale(text),
        other => other,
    }
}
