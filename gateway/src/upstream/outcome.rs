//! An attempt at an endpoint and the ways in which it ends: outcome, failure, cut, and time limits.
//!
//! The client gets nothing before the answer is certain to be passed on. Every failure up to then can be tried elsewhere.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, StatusCode};
use pingora::{ErrorType, RetryType};
use spillway_filter::{ErrorKind, Refusal};
use tokio::time::Instant;

use super::decoding::DecodingObserver;
use super::dropping::Cut;
use super::translation::Translation;
use super::via::Via;
use crate::balancing::{Class, Endpoint, orca};
use crate::clock::{self, now_millis};
use crate::coding::Coding;
use crate::connect::{self, Connector};
use crate::downstream::Downstream;
use crate::exchange::Exchange;
use crate::framing::Violation;
use crate::message::ResponseHead;
use crate::protocol::{Observation, Observe, Said};
use crate::telemetry::Span;
use crate::topology::{Backend, Route};

/// End of an attempt.
#[derive(Debug)]
pub enum AttemptOutcome {
    /// The whole answer was passed on.
    Answered,
    /// The answer was cut after its head was sent; the client was informed as far as its API allows.
    Broken(CutReason),
    /// An event stream was cut that another server can continue; the client was not informed yet.
    Died(Box<Died>),
    /// Another attempt answered first.
    GivenUp,
    /// The endpoint is full, for as long as its answer says; nothing was sent to the client.
    Full(Option<Duration>),
    /// The attempt failed; nothing was sent to the client.
    Failed(Failure),
    /// The client left.
    ClientGone,
    /// The client left, or took too long, after the server's answer was read whole.
    Unread,
    /// The client paused for too long in the body of its request; nothing was sent to it.
    ClientSlow,
    /// The body of the client's request breaks the framing of HTTP/1; nothing was sent to it.
    Malformed(Violation),
    /// A part of the request's body was refused, by a filter or for its length, or no turn came to read a large answer; nothing
    /// was sent to the client.
    Refused(Box<Refusal>),
}

/// An event stream that ended early.
#[derive(Debug)]
pub struct Died {
    /// Text that the client has.
    pub said: Said,
    /// Reason of the early end.
    pub cut: CutReason,
}

/// Reason for which an answer is cut after its head was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CutReason {
    /// The server ended the answer early.
    UpstreamReset,
    /// The server was silent for too long.
    Silent,
    /// The server did not read the rest of the request in time.
    RequestNotRead,
    /// The time of the request was over while its server still wrote.
    RequestTimeout,
    /// The time that the caller gave the request was over.
    CallersTimeout,
    /// The trailers of the answer are over `backends[].limits.maxHeaderBytes`.
    TrailersTooLarge,
    /// A filter refused a part of the request's body.
    RefusedByFilter {
        /// Status of the refusal.
        status: StatusCode,
        /// Class of the refusal.
        kind: ErrorKind,
        /// Code of the refusal.
        code: &'static str,
    },
    /// The request's body is longer than its route accepts.
    RequestTooLarge,
    /// The answer cannot be translated into the API of its caller.
    Unreadable,
    /// The answer is too long to be translated.
    AnswerTooLarge,
    /// The gateway stops.
    ShuttingDown,
}

impl CutReason {
    /// Code of the error, for clients and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UpstreamReset => "upstream_reset",
            Self::Silent | Self::RequestNotRead => "timeout",
            Self::RequestTimeout | Self::CallersTimeout => "request_timeout",
            Self::TrailersTooLarge => "upstream_header_too_large",
            Self::RefusedByFilter { code, .. } => code,
            Self::RequestTooLarge => "request_too_large",
            Self::Unreadable => "upstream_answer_unreadable",
            Self::AnswerTooLarge => "upstream_answer_too_large",
            Self::ShuttingDown => "shutting_down",
        }
    }

    /// Status and class of the error, for the event that ends an event stream, and for trailers.
    pub fn class(self) -> (StatusCode, ErrorKind) {
        match self {
            Self::RefusedByFilter { status, kind, .. } => (status, kind),
            Self::RequestTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, ErrorKind::InvalidRequest),
            Self::ShuttingDown => (StatusCode::SERVICE_UNAVAILABLE, ErrorKind::Overloaded),
            Self::RequestTimeout | Self::CallersTimeout => (StatusCode::GATEWAY_TIMEOUT, ErrorKind::Timeout),
            _ => (StatusCode::BAD_GATEWAY, ErrorKind::Upstream),
        }
    }

    /// Time limit that was over, where it was one.
    pub fn limit(self) -> Option<TimeLimit> {
        match self {
            Self::Silent | Self::RequestNotRead => Some(TimeLimit::Idle),
            Self::RequestTimeout => Some(TimeLimit::Request),
            Self::CallersTimeout => Some(TimeLimit::Caller),
            _ => None,
        }
    }

    /// Message for the client.
    pub fn message(self) -> &'static str {
        match self {
            Self::UpstreamReset => "the backend ended the answer early",
            Self::Silent => "the backend did not continue the answer in time (`backends[].timeouts.idle`)",
            Self::RequestNotRead => "the backend did not take the request in time (`backends[].timeouts.idle`)",
            Self::RequestTimeout => {
                "the time for this request was over before its answer was (`timeouts.request` of its route)"
            }
            Self::CallersTimeout => {
                "the time that the caller gave this request was over before its answer was (`grpc-timeout`)"
            }
            Self::TrailersTooLarge => {
                "the trailers of the backend's answer are longer than its `limits.maxHeaderBytes`"
            }
            Self::RefusedByFilter { .. } => "a filter of the route refused the rest",
            Self::RequestTooLarge => "the body of the request is longer than its route accepts (`limits.maxBody`)",
            Self::Unreadable => {
                "the rest of the backend's answer is not in the form of its API, or says what the API of this caller cannot"
            }
            Self::AnswerTooLarge => "the backend's answer is longer than its `limits.maxTranslatedBytes`",
            Self::ShuttingDown => "the gateway is being stopped, and the time for what still ran is over; try again",
        }
    }
}

/// Reason for which an attempt failed before anything was sent to the client.
#[derive(Debug)]
pub enum Failure {
    /// No connection could be opened.
    Connect(String),
    /// The connection broke before the head of the answer.
    Reset(String),
    /// A connection from the pool was closed before it carried any byte of an answer.
    Stale(String),
    /// The server did not look at the request, and says so: its HTTP/2 connection was ending, or it refused the stream. Any
    /// request may be sent again (RFC 9113, 8.7).
    Unprocessed {
        /// Error of the connection.
        error: String,
        /// True if it was the first request of its connection: then the server is at fault.
        is_first: bool,
    },
    /// The head of the answer, or all of it, did not arrive in time.
    Timeout(TimeLimit),
    /// The time of the whole request is over, which this limit gave it.
    Deadline(TimeLimit),
    /// The route tries this status elsewhere.
    Status(u16),
    /// The body of an answer with a status of success is an error, which other servers would have sent with this status.
    Reported(u16),
    /// The answer was no HTTP, or the request could not be written.
    Protocol(String),
    /// The answer is over a bound of `backends[].limits`.
    TooLarge(Oversized),
}

impl Failure {
    /// Name for spans, metrics and logs.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Connect(_) => "connect_failure",
            Self::Reset(_) => "reset",
            Self::Stale(_) => "stale_connection",
            Self::Unprocessed { .. } => "unprocessed",
            Self::Timeout(_) => "timeout",
            Self::Deadline(_) => "deadline",
            Self::Status(_) => "status",
            Self::Reported(_) => "reported_error",
            Self::Protocol(_) => "protocol",
            Self::TooLarge(_) => "too_large",
        }
    }

    /// Time limit that was over, where it was one.
    pub fn limit(&self) -> Option<TimeLimit> {
        match self {
            Self::Timeout(limit) | Self::Deadline(limit) => Some(*limit),
            _ => None,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())?;
        match self {
            Self::Connect(text) | Self::Reset(text) | Self::Stale(text) | Self::Protocol(text) => write!(f, ": {text}"),
            Self::Unprocessed { error, .. } => write!(f, ": {error}"),
            Self::Timeout(limit) | Self::Deadline(limit) => write!(f, ": {}", limit.as_str()),
            Self::Status(status) | Self::Reported(status) => write!(f, ": {status}"),
            Self::TooLarge(part) => write!(f, ": {}", part.as_str()),
        }
    }
}

/// Part of an answer that is over its bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Oversized {
    /// The header, in bytes or in fields.
    Header,
    /// The number of early answers (1xx).
    EarlyAnswers,
}

impl Oversized {
    /// Name for messages, followed there by "of the backend".
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Header => "the header of the answer",
            Self::EarlyAnswers => "the number of early answers",
        }
    }
}

/// A limit on the time of an attempt, named as in the configuration or by the header that sets it.
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
    /// `routes[].timeouts.request`.
    Request,
    /// `grpc-timeout` of the caller.
    Caller,
}

impl TimeLimit {
    /// Path in the configuration, or name of the header.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "backends[].timeouts.connect",
            Self::FirstByte => "backends[].timeouts.firstByte",
            Self::FirstToken => "routes[].timeouts.firstToken",
            Self::Idle => "backends[].timeouts.idle",
            Self::BackendRequest => "routes[].timeouts.backendRequest",
            Self::Request => "routes[].timeouts.request",
            Self::Caller => "grpc-timeout",
        }
    }
}

/// Answers that are kept from the client because another target may do better.
#[derive(Debug, Clone, Copy)]
pub struct MoveOn {
    /// Answers that mean full.
    pub full: bool,
    /// Answers that the route retries.
    pub retry: bool,
}

/// An attempt at an endpoint: its inputs besides the exchange.
pub struct Attempt<'a> {
    /// The route.
    pub route: &'a Route,
    /// The backend.
    pub backend: &'a Backend,
    /// Index of the target of the route; `None` for a backend that is asked in place of its own, and for copies and probes.
    pub target: Option<usize>,
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// Requests in flight at the endpoint, this one included.
    pub in_flight: u32,
    /// Begin of the attempt, as [`now_millis`] reads it.
    pub began: u64,
    /// Begin of the attempt, to measure its time by.
    pub started: std::time::Instant,
    /// Connections to servers.
    pub connector: &'a Connector,
    /// State that all answers to clients share.
    pub downstream: &'a Arc<Downstream>,
    /// Name in `Via` of this process.
    pub via: &'a Via,
    /// Answers that are kept from the client.
    pub move_on: MoveOn,
    /// True if no other request may share its connection, which a server could end before it looks at this one.
    pub alone: bool,
    /// Translation for a server that speaks another API than the caller; `None` where bytes pass as they are.
    pub translation: Option<Arc<Translation>>,
    /// Body without the fields that the backend's servers do not get; `None` where it has none of them.
    pub cut: Option<Arc<Cut>>,
    /// Span whose context goes to the endpoint; records nothing where the attempt has no span.
    pub span: Span,
}

impl Attempt<'_> {
    /// Names of the fields of the request that the server did not get.
    pub(super) fn dropped(&self) -> Option<&HeaderValue> {
        match (&self.translation, &self.cut) {
            (Some(translation), _) => translation.dropped(),
            (None, cut) => cut.as_ref()?.dropped.as_ref(),
        }
    }

    /// Reports that the endpoint has begun to answer well.
    pub(super) fn answered(&self, class: Class, status: StatusCode) {
        self.answered_in(class, status, clock::since(self.started));
    }

    /// Reports that the endpoint began to answer well, `took` after the attempt began.
    pub(super) fn answered_in(&self, class: Class, status: StatusCode, took: Duration) {
        if status.is_server_error() {
            return;
        }
        let now = now_millis();
        self.endpoint.answered_in(class, took, self.in_flight, now);
        self.backend.balancer.good_sign(&self.endpoint, self.began, now);
    }

    /// Longest time from the end of the request to the head of the answer.
    pub(super) fn first_byte_timeout(&self) -> Duration {
        self.backend.first_byte_timeout.unwrap_or(self.route.request_timeout)
    }

    /// Longest time between two reads of the answer.
    pub(super) fn idle_timeout(&self) -> Duration {
        self.backend.idle_timeout.unwrap_or(self.route.request_timeout)
    }

    /// Reads the load that the server reports in the head of an answer.
    pub(super) fn read_load(&self, head: &ResponseHead) {
        if self.backend.load_reports
            && let Some(report) = orca::report(&head.headers)
        {
            self.endpoint.reported(&report, now_millis());
        }
    }

    /// True if the body of an answer is of a type that the backend's dialect reads, whatever its coding.
    pub(super) fn reads(&self, head: &ResponseHead) -> bool {
        head.status.is_success() && self.backend.dialect.is_some_and(|dialect| dialect.observe(&head.headers).is_some())
    }

    /// Observer for the body of a good answer, where the backend's dialect has one.
    pub(super) fn observer(&self, head: &ResponseHead) -> Option<Box<dyn Observe>> {
        if !head.status.is_success() {
            return None;
        }
        let (dialect, coding) = (self.backend.dialect?, Coding::of(&head.headers));
        if coding == Coding::Identity {
            return dialect.observe(&head.headers);
        }
        Some(Box::new(DecodingObserver::of(coding, dialect, head)?))
    }

    /// Status of the error that an answer reports in its body; `None` for an answer without one.
    pub(super) fn reported(&self, seen: &Observation) -> Option<u16> {
        let error = seen.error.as_ref().filter(|_| seen.has_failed)?;
        Some(self.backend.dialect?.error_status(error))
    }

    /// Reason to cut an answer when the time of its request is over and its server was last heard at `heard`. A server that
    /// wrote until the end is not to blame: its client may have read slowly. Nor is one whose caller gave it too little time.
    pub(super) fn cut_at_deadline(&self, limits: &AttemptLimits, heard: Instant) -> CutReason {
        if limits.whose == TimeLimit::Caller {
            return CutReason::CallersTimeout;
        }
        if clock::since(heard) < self.idle_timeout() / 2 { CutReason::RequestTimeout } else { CutReason::Silent }
    }
}

/// Ends of the time limits of an attempt.
#[derive(Debug, Clone, Copy)]
pub(super) struct AttemptLimits {
    /// End of the time for the whole request.
    pub(super) deadline: Instant,
    /// Limit that sets the deadline: the route's or the caller's.
    pub(super) whose: TimeLimit,
    /// End of the time for this attempt.
    pub(super) attempt: Instant,
    /// End of the time for the first content of an event stream.
    pub(super) first_token: Option<Instant>,
}

impl AttemptLimits {
    /// Limits of an attempt that begins now.
    pub(super) fn begin(attempt: &Attempt<'_>, exchange: &Exchange) -> Self {
        let route = attempt.route;
        let (now, deadline) = (clock::now(), exchange.deadline(route));
        // The first attempt counts from the arrival of the request; a further one could never keep that.
        let from = if exchange.outcome.attempts > 1 { now } else { Instant::from_std(exchange.started) };
        Self {
            deadline,
            whose: if exchange.is_callers_deadline(route) { TimeLimit::Caller } else { TimeLimit::Request },
            attempt: route.attempt_timeout.map_or(deadline, |t| deadline.min(now + t)),
            first_token: route.first_token_timeout.map(|limit| from + limit),
        }
    }
}

/// Time after which a connection that closes without an answer was no stale one: a server that had closed it while it idled
/// says so within a round trip. One that closes it later has seen the request, and may have worked on it.
const STALE_WITHIN: Duration = Duration::from_secs(2);

/// Failure of a read or write at a server.
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

/// Failure to read the head of an answer, of a request that was sent at `sent_at`. A pooled connection that closes at once was
/// most likely closed while idle: the server never saw the request, as after a failed connect.
pub(super) fn failure_of_head(e: &pingora::Error, reused: bool, sent_at: Instant) -> Failure {
    if connect::is_over(e) {
        return Failure::TooLarge(Oversized::Header);
    }
    if connect::is_unprocessed(e) {
        return Failure::Unprocessed { error: e.etype().as_str().to_owned(), is_first: !reused };
    }
    match failure(e) {
        Failure::Reset(text)
            if reused && matches!(e.retry, RetryType::ReusedOnly) && clock::since(sent_at) < STALE_WITHIN =>
        {
            Failure::Stale(text)
        }
        other => other,
    }
}
