//! One attempt at an endpoint, from the connection to the last byte of the answer.
//!
//! Both directions run in one loop on one task: whatever comes next is handled, be it the head or a part of the
//! answer, a part of the client's body, the client leaving, or a time limit. Nothing is sent to the client before it is
//! certain that the answer will be passed on, so that every failure up to then can be tried elsewhere.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode, Version, header};
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::client::HttpSession;
use pingora::{ErrorType, RetryType};
use tokio::time::{Instant, Sleep, sleep_until};

use super::body::{RequestBody, expects_continue};
use super::headers::CREDENTIALS;
use super::headers::{Via, outgoing_request, outgoing_response};
use super::{Connector, with_model};
use crate::balancing::{Class, Endpoint, now_millis, orca};
use crate::exchange::{Exchange, ServedBy};
use crate::protocol::openai::Observer;
use crate::snapshot::{Backend, Route};
use spillway_filter::{ErrorKind, Refusal};

/// Bytes of a refusing answer that are read to learn why it refuses.
const MAX_REFUSAL: usize = 16 << 10;

/// How an attempt ended.
#[derive(Debug)]
pub enum Outcome {
    /// The whole answer was passed on.
    Answered,
    /// The answer ended early after its head was sent; the client was told as far as its API can.
    Broken,
    /// The endpoint said that it is full; nothing was sent to the client.
    Full(Option<Duration>),
    /// The attempt failed; nothing was sent to the client.
    Failed(Failure),
    /// The client left.
    ClientGone,
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
pub struct Attempt<'a> {
    /// The route.
    pub route: &'a Route,
    /// The backend.
    pub backend: &'a Backend,
    /// The endpoint.
    pub endpoint: &'a Endpoint,
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
    let deadline = x.deadline(a.route);
    let attempt_deadline = a.route.attempt_timeout.map_or(deadline, |t| deadline.min(Instant::now() + t));
    let (mut upstream, reused) = tokio::select! {
        biased;
        connected = a.connector.get(&a.endpoint.peer) => match connected {
            Ok(connected) => connected,
            Err(e) => return Outcome::Failed(Failure::Connect(e.etype().as_str().to_owned())),
        },
        () = tokio::time::sleep_until(attempt_deadline) => {
            return Outcome::Failed(if attempt_deadline == deadline { Failure::Deadline } else { Failure::Timeout("backendRequest") });
        }
    };
    let outcome = converse(a, session, x, &mut upstream, reused, deadline, attempt_deadline).await;
    match &outcome {
        // Only a connection whose answer was read to its end can serve another request.
        Outcome::Answered if upstream.response_done() => a.connector.release(upstream, &a.endpoint.peer).await,
        _ => upstream.shutdown().await,
    }
    outcome
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
}

async fn converse(
    a: &Attempt<'_>,
    session: &mut ServerSession,
    x: &mut Exchange,
    upstream: &mut HttpSession,
    reused: bool,
    deadline: Instant,
    attempt_deadline: Instant,
) -> Outcome {
    let held = match &x.body {
        RequestBody::Held(held) => Some(match &a.backend.upstream_model {
            Some(model) => with_model(&held.bytes, model).unwrap_or_else(|| held.bytes.clone()),
            None => held.bytes.clone(),
        }),
        RequestBody::Unread if session.is_body_empty() => Some(Bytes::new()),
        RequestBody::Unread => None,
    };
    let length = held.as_ref().map(|body| u64::try_from(body.len()).unwrap_or(u64::MAX));
    let request = outgoing_request(session.req_header(), x, a.route, a.backend, a.via, length);
    let is_head = request.method == Method::HEAD;
    let callers_account =
        a.backend.credentials.is_none() && CREDENTIALS.iter().any(|name| request.headers.contains_key(name));
    upstream.set_write_timeout(Some(a.backend.idle_timeout));
    if let Err(e) = upstream.write_request_header(request).await {
        return Outcome::Failed(failure(&e));
    }
    let mut state = State {
        body_sent: held.is_some(),
        head_seen: false,
        head_passed: false,
        event_stream: false,
        content_seen: false,
        heard: Instant::now(),
    };
    match held {
        Some(body) => {
            if !body.is_empty()
                && let Err(e) = upstream.write_request_body(body, true).await
            {
                // A server may answer before it has read all (413, 429) and close: its answer counts, if it is there.
                tracing::debug!(event = "request_body_not_taken", error = %e);
            }
            if let Err(e) = upstream.finish_request_body().await {
                tracing::debug!(event = "request_body_not_finished", error = %e);
            }
            state.heard = Instant::now();
        }
        None => {
            if expects_continue(session) && session.write_continue_response().await.is_err() {
                return Outcome::ClientGone;
            }
        }
    }

    let mut observer: Option<Observer> = None;
    let mut timer = std::pin::pin!(sleep_until(wake_at(a, x, &state, deadline, attempt_deadline)));
    loop {
        match next(upstream, session, &state, timer.as_mut()).await {
            Next::Head => {
                let Some(head) = upstream.response_header() else { continue };
                state.heard = Instant::now();
                if head.status.is_informational() {
                    // 101 cannot come: `Upgrade` ends here. 100 was answered by us.
                    if head.status != StatusCode::CONTINUE {
                        let early = Box::new(head.clone());
                        if session.write_response_header(early).await.is_err() {
                            return Outcome::ClientGone;
                        }
                    }
                    continue;
                }
                state.head_seen = true;
                let head = head.clone();
                a.read_load(&head);
                let prefix = match judge(a, callers_account, upstream, &head).await {
                    Verdict::Pass(prefix) => prefix,
                    Verdict::MoveOn(outcome) => return outcome,
                };
                state.event_stream = is_event_stream(&head);
                observer = a.observer(&head);
                if !state.event_stream {
                    a.answered(Class::Head, head.status);
                }
                if pass_head(a, session, x, head, is_head).await.is_err() {
                    return Outcome::ClientGone;
                }
                state.head_passed = true;
                if let Some(prefix) = prefix
                    && pass_part(session, x, &mut state, &mut observer, prefix).await.is_err()
                {
                    return Outcome::ClientGone;
                }
                if upstream.response_done() {
                    return finish(session, x, observer).await;
                }
                // The time for a head and that for a pause are two limits: the timer starts again.
                timer.as_mut().reset(wake_at(a, x, &state, deadline, attempt_deadline));
            }
            Next::AnswerPart(part) => {
                state.heard = Instant::now();
                let had_content = state.content_seen;
                let passed = pass_part(session, x, &mut state, &mut observer, part).await;
                if state.event_stream && state.content_seen && !had_content {
                    a.answered(Class::FirstToken, StatusCode::OK);
                }
                if passed.is_err() {
                    return Outcome::ClientGone;
                }
            }
            Next::AnswerEnd => return finish(session, x, observer).await,
            Next::BodyPart(part) => {
                if let Err(e) = upstream.write_request_body(part, false).await {
                    tracing::debug!(event = "request_body_not_taken", error = %e);
                    state.body_sent = true;
                }
                state.heard = Instant::now();
            }
            Next::BodyEnd => {
                if let Err(e) = upstream.finish_request_body().await {
                    tracing::debug!(event = "request_body_not_finished", error = %e);
                }
                state.body_sent = true;
                state.heard = Instant::now();
            }
            Next::ClientGone => return Outcome::ClientGone,
            Next::UpstreamFailed(e) => {
                if !state.head_passed {
                    return Outcome::Failed(failure_of_head(&e, reused));
                }
                return break_off(session, x, &state, "upstream_reset", "the backend ended the answer early").await;
            }
            Next::Time => {
                let now = Instant::now();
                let due = wake_at(a, x, &state, deadline, attempt_deadline);
                if due > now {
                    timer.as_mut().reset(due);
                    continue;
                }
                let failure = overdue(x, a, &state, now, deadline, attempt_deadline);
                if !state.head_passed {
                    return Outcome::Failed(failure);
                }
                return break_off(session, x, &state, "timeout", "the backend did not continue the answer in time")
                    .await;
            }
        }
    }
}

/// Waits for what comes next. Every branch may be dropped and asked again: Pingora's readers keep what they have read.
async fn next(
    upstream: &mut HttpSession,
    session: &mut ServerSession,
    state: &State,
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
        match session.read_body_or_idle(state.body_sent).await {
            Ok(Some(part)) => Next::BodyPart(part),
            Ok(None) => Next::BodyEnd,
            Err(_) => Next::ClientGone,
        }
    };
    tokio::select! {
        biased;
        next = answer => next,
        next = client => next,
        () = timer => Next::Time,
    }
}

/// When the next limit is due, given where the conversation stands.
fn wake_at(a: &Attempt<'_>, x: &Exchange, state: &State, deadline: Instant, attempt_deadline: Instant) -> Instant {
    let mut due = deadline;
    if state.head_seen {
        due = due.min(state.heard + a.backend.idle_timeout);
        if !state.event_stream {
            due = due.min(attempt_deadline);
        }
    } else {
        due = due.min(state.heard + a.backend.first_byte_timeout).min(attempt_deadline);
    }
    if let Some(limit) = a.route.first_token_timeout
        && !state.content_seen
        && (state.event_stream || (!state.head_seen && x.asked.as_ref().is_some_and(|asked| asked.stream)))
    {
        due = due.min(Instant::from_std(x.started + limit));
    }
    due
}

fn overdue(
    x: &Exchange,
    a: &Attempt<'_>,
    state: &State,
    now: Instant,
    deadline: Instant,
    attempt_deadline: Instant,
) -> Failure {
    if now >= deadline {
        Failure::Deadline
    } else if now >= attempt_deadline && !state.event_stream {
        Failure::Timeout("backendRequest")
    } else if a.route.first_token_timeout.is_some_and(|limit| now >= Instant::from_std(x.started + limit)) {
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
        self.backend.balancer.good_sign(self.endpoint, self.began, now);
    }

    /// Reads what the server says of its load.
    fn read_load(&self, head: &ResponseHeader) {
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

enum Verdict {
    /// The answer goes to the client; what was read of its body already comes first.
    Pass(Option<Bytes>),
    MoveOn(Outcome),
}

/// Whether an answer goes to the client or the request goes elsewhere.
async fn judge(a: &Attempt<'_>, callers_account: bool, upstream: &mut HttpSession, head: &ResponseHeader) -> Verdict {
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
    let out = outgoing_response(head, x, is_http11, has_body);
    session.write_response_header(out).await
}

async fn pass_part(
    session: &mut ServerSession,
    x: &mut Exchange,
    state: &mut State,
    observer: &mut Option<Observer>,
    part: Bytes,
) -> pingora::Result<()> {
    if let Some(observer) = observer {
        observer.feed(&part, std::time::Instant::now());
        if !state.content_seen
            && let Some(first) = observer.observation().first_content
        {
            state.content_seen = true;
            x.outcome.first_token = Some(first.saturating_duration_since(x.started));
        }
    }
    x.outcome.bytes_out = x.outcome.bytes_out.saturating_add(u64::try_from(part.len()).unwrap_or(0));
    session.write_response_body(part, false).await
}

async fn finish(session: &mut ServerSession, x: &mut Exchange, observer: Option<Observer>) -> Outcome {
    if let Some(mut observer) = observer {
        let seen = observer.finish();
        x.outcome.model_answered.clone_from(&seen.model);
        x.outcome.finish_reason.clone_from(&seen.finish_reason);
        x.outcome.response_id.clone_from(&seen.id);
        if let Some(usage) = &seen.usage {
            x.outcome.prompt_tokens = Some(usage.prompt_tokens);
            x.outcome.completion_tokens = Some(usage.completion_tokens);
        }
    }
    match session.write_response_body(Bytes::new(), true).await {
        Ok(()) => Outcome::Answered,
        Err(_) => Outcome::ClientGone,
    }
}

/// Ends an answer whose head is out: with an error event where the API has one, else by closing the connection, so that
/// nobody takes half an answer for a whole one.
async fn break_off(
    session: &mut ServerSession,
    x: &mut Exchange,
    state: &State,
    code: &'static str,
    message: &'static str,
) -> Outcome {
    x.outcome.broken = true;
    x.outcome.error_code = Some(code);
    session.set_keepalive(None);
    if state.event_stream {
        let refusal = Refusal::new(StatusCode::BAD_GATEWAY, ErrorKind::Upstream, code, message);
        if let Some(event) = crate::protocol::error_event(&refusal, x.api) {
            let _ = session.write_response_body(event, true).await;
        }
    }
    Outcome::Broken
}

fn failure(e: &pingora::Error) -> Failure {
    let text = e.etype().as_str().to_owned();
    match e.etype() {
        ErrorType::ReadTimedout | ErrorType::WriteTimedout => Failure::Timeout("idle"),
        ErrorType::ReadError | ErrorType::WriteError | ErrorType::ConnectionClosed => Failure::Reset(text),
        _ => Failure::Protocol(text),
    }
}

/// A connection from the pool that closes before it answers was most likely closed by the server while idle: the
/// request was never looked at, which is what a failed connect means too.
fn failure_of_head(e: &pingora::Error, reused: bool) -> Failure {
    match failure(e) {
        Failure::Reset(text) if reused && matches!(e.retry, RetryType::ReusedOnly) => Failure::Stale(text),
        other => other,
    }
}
