//! One attempt at an endpoint: what it needs, what it may come to, its time limits, and the connection that it runs over.
//!
//! Nothing is sent to the client before it is certain that the answer will be passed on, so that every failure up to then
//! can be tried elsewhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::StatusCode;
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::client::HttpSession;
use pingora::{ErrorType, RetryType};
use spillway_filter::Refusal;
use tokio::time::Instant;

use super::bounds::HEADER;
use super::converse::{State, converse};
use super::headers::Via;
use super::open::Opened;
use super::outgoing::Sent;
use crate::balancing::{Class, Endpoint, orca};
use crate::clock::now_millis;
use crate::connect::{self, Connector};
use crate::downstream::Downstream;
use crate::exchange::{Exchange, Place};
use crate::framing::Violation;
use crate::protocol::{Observe, Said};
use crate::telemetry::Span;
use crate::topology::{Backend, Route};

/// Code of an answer that was cut because the gateway ended.
pub const SHUTTING_DOWN: &str = "shutting_down";
/// Message for the client.
pub const STOPPING: &str = "the gateway is being stopped, and the time for what still ran is over; try again";

/// Milliseconds between two log lines about servers whose TLS fails.
const TELL_EVERY: u64 = 1_000;

/// How long an endpoint is left alone that may have no further connection, where its slots did not tell it: a server of
/// HTTP/2 that takes fewer requests on a connection than we ask for.
const WITHOUT_CONNECTION: Duration = Duration::from_millis(100);

/// How long a connection that is given up may take to end in order.
const GOODBYE: Duration = Duration::from_millis(100);

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
    /// The client left, or took too long, after the server's answer was read whole.
    Unread,
    /// The client sent no more of its request's body for too long; nothing was sent to it.
    ClientSlow,
    /// The body of the client's request breaks the framing of HTTP/1; nothing was sent to it.
    Malformed(Violation),
    /// A filter refused a part of the request's body; nothing was sent to the client.
    Refused(Box<Refusal>),
}

/// An event stream that ended early.
#[derive(Debug)]
pub struct Died {
    /// Text so far.
    pub said: Said,
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
    Timeout(TimeLimit),
    /// The time of the whole request is over.
    Deadline,
    /// An answer with a status that is to be tried elsewhere.
    Status(u16),
    /// The answer was no HTTP, or the request could not be written.
    Protocol(String),
    /// More than `backends[].limits` allow; the text is what was too large.
    TooLarge(&'static str),
}

/// A limit on the time of an attempt, by the name that it has in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeLimit {
    /// `backends[].timeouts.connect`.
    Connect,
    /// `backends[].timeouts.firstByte`.
    FirstByte,
    /// `routes[].timeouts.firstToken`.
    FirstToken,
    /// `backends[].timeouts.idle`.
    Idle,
    /// `routes[].timeouts.backendRequest`.
    BackendRequest,
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
    pub endpoint: Arc<Endpoint>,
    /// Requests in flight at it, with this one.
    pub in_flight: u32,
    /// When the attempt began, as [`now_millis`] reads it.
    pub began: u64,
    /// The same, to measure by.
    pub started: std::time::Instant,
    /// Connections.
    pub connector: &'a Connector,
    /// State that all answers to clients share.
    pub downstream: &'a Arc<Downstream>,
    /// How this process signs.
    pub via: &'a Via,
    /// Which answers may be kept from the client.
    pub move_on: MoveOn,
    /// Span whose context goes to the endpoint; one that records nothing where the attempt has none of its own.
    pub span: Span,
}

/// Runs one attempt.
pub async fn run(a: &Attempt<'_>, session: &mut ServerSession, x: &mut Exchange) -> Outcome {
    let limits = Limits::begin(a, x);
    let (deadline, attempt_deadline) = (limits.deadline, limits.attempt);
    let (upstream, reused) = tokio::select! {
        biased;
        connected = a.connector.get(&a.endpoint.peer) => match connected {
            Ok(connected) => connected,
            Err(e) => return not_connected(a, &e),
        },
        () = tokio::time::sleep_until(attempt_deadline) => {
            return Outcome::Failed(if attempt_deadline == deadline { Failure::Deadline } else { Failure::Timeout(TimeLimit::BackendRequest) });
        }
    };
    let mut state = State::new(limits);
    let mut upstream = Some(upstream);
    let outcome = converse(a, session, x, &mut upstream, reused, &mut state, None).await;
    if let Some(upstream) = upstream {
        end(a, upstream, state.sent, matches!(outcome, Outcome::Answered)).await;
    }
    outcome
}

/// Passes an answer on that was opened before.
pub async fn relay(a: &Attempt<'_>, session: &mut ServerSession, x: &mut Exchange, opened: Opened) -> Outcome {
    let Opened { upstream, head, prefix, sent, shown, limits } = opened;
    let mut state = State::new(limits);
    (state.sent, state.shown) = (sent, shown);
    let mut upstream = Some(upstream);
    let outcome = converse(a, session, x, &mut upstream, false, &mut state, Some((head, prefix))).await;
    if let Some(upstream) = upstream {
        end(a, upstream, state.sent, matches!(outcome, Outcome::Answered)).await;
    }
    outcome
}

/// The conversation is over. Only a connection that carried all of a request, and all of its answer, can serve another: what
/// is missing of a body would be taken from the next request (RFC 9112, 9.3).
pub(super) async fn end(a: &Attempt<'_>, mut upstream: HttpSession, sent: Option<Sent>, is_whole: bool) {
    if is_whole && sent == Some(Sent::Whole) && upstream.response_done() {
        a.connector.release(upstream, &a.endpoint.peer).await;
    } else {
        shut(a, upstream).await;
    }
}

/// Gives the connection and the slot of an attempt back before its client has taken the answer, which was read whole or
/// will not go on.
pub(super) async fn let_go(
    a: &Attempt<'_>,
    upstream: &mut Option<HttpSession>,
    place: &mut Option<Place>,
    answered_in: &mut Option<Duration>,
    sent: Option<Sent>,
    is_whole: bool,
) {
    answered_in.get_or_insert_with(|| a.started.elapsed());
    // A slot is free when its connection is gone, not earlier.
    let place = place.take();
    if let Some(upstream) = upstream.take() {
        end(a, upstream, sent, is_whole).await;
    }
    drop(place);
}

/// Code and message of an answer that was cut by its server.
pub(super) const CUT: (&str, &str) = ("upstream_reset", "the backend ended the answer early");
/// Of one that did not go on in time.
pub(super) const TOO_SLOW: (&str, &str) = ("timeout", "the backend did not continue the answer in time");

/// What an answer is cut for, code and message, when the time of the whole request is over and its server was last heard at
/// `heard`: one that spoke until the end may have had a client that reads slowly, and is not to blame.
pub(super) fn overran(a: &Attempt<'_>, heard: Instant) -> (&'static str, &'static str) {
    if heard.elapsed() < a.backend.idle_timeout / 2 {
        (REQUEST_TIMEOUT, "the time for this request was over before its answer was (`timeouts.request` of its route)")
    } else {
        TOO_SLOW
    }
}

/// Ends a conversation before its time. Of HTTP/2 that is one stream; its connection goes back to the others.
pub(super) async fn shut(a: &Attempt<'_>, mut upstream: HttpSession) {
    // A goodbye waits behind what the server has not read yet. What it does not take of it is dropped.
    let _ = tokio::time::timeout(GOODBYE, upstream.shutdown()).await;
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

pub(super) fn not_connected(a: &Attempt<'_>, e: &pingora::Error) -> Outcome {
    if *e.etype() == connect::NO_CONNECTION {
        return Outcome::Full(Some(WITHOUT_CONNECTION));
    }
    static TOLD: AtomicU64 = AtomicU64::new(0);
    if matches!(e.etype(), ErrorType::TLSHandshakeFailure | ErrorType::InvalidCert | ErrorType::TLSHandshakeTimedout)
        && now_millis().saturating_sub(TOLD.load(Ordering::Relaxed)) >= TELL_EVERY
    {
        TOLD.store(now_millis(), Ordering::Relaxed);
        // A wrong certificate does not go away by itself: somebody must see why, but not for every request.
        tracing::warn!(event = "upstream_tls_failed", backend = %a.backend.name, endpoint = %a.endpoint.url, error = %e);
    }
    Outcome::Failed(Failure::Connect(e.etype().as_str().to_owned()))
}

impl Attempt<'_> {
    /// The endpoint has begun to answer well.
    pub(super) fn answered(&self, class: Class, status: StatusCode) {
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

    pub(super) fn observer(&self, head: &ResponseHeader) -> Option<Box<dyn Observe>> {
        if !head.status.is_success() {
            return None;
        }
        self.backend.dialect?.observe(&head.headers)
    }
}

pub(super) fn failure(e: &pingora::Error) -> Failure {
    let text = e.etype().as_str().to_owned();
    match e.etype() {
        ErrorType::ReadTimedout | ErrorType::WriteTimedout => Failure::Timeout(TimeLimit::Idle),
        ErrorType::ReadError | ErrorType::WriteError | ErrorType::ConnectionClosed | ErrorType::H2Error => {
            Failure::Reset(text)
        }
        _ => Failure::Protocol(text),
    }
}

/// A connection from the pool that closes before it answers was most likely closed by the server while idle: the
/// request was never looked at, which is what a failed connect means too.
pub(super) fn failure_of_head(e: &pingora::Error, reused: bool) -> Failure {
    if connect::is_over(e) {
        return Failure::TooLarge(HEADER);
    }
    match failure(e) {
        Failure::Reset(text) if reused && matches!(e.retry, RetryType::ReusedOnly) => Failure::Stale(text),
        // HTTP/2 says so itself: the stream was refused, or the connection was ending (RFC 9113, 8.7).
        Failure::Reset(text) if matches!(e.retry, RetryType::Decided(true)) => Failure::Stale(text),
        other => other,
    }
}
