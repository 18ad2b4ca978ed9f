//! The first half of an attempt by itself: a held request goes out, the head of its answer comes back. It touches no
//! client, so that several can run beside each other; dropping one closes its connection.

use std::ops::Range;

use bytes::Bytes;
use http::StatusCode;
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::client::HttpSession;
use tokio::time::{Instant, timeout_at};

use super::attempt::{Attempt, Failure, Limits, Outcome, TimeLimit, failure_of_head, not_connected};
use super::bounds::Bounds;
use super::masking::Shown;
use super::outgoing::{GIVEN_ALREADY, Outgoing, Sent, send};
use super::passing::is_event_stream;
use super::verdict::{Verdict, judge};
use crate::balancing::Class;
use crate::connect;
use crate::exchange::Exchange;

/// An answer whose head has come and will be passed on.
pub struct Opened {
    pub(super) upstream: HttpSession,
    /// Its head.
    pub head: ResponseHeader,
    /// What was read of its body already.
    pub(super) prefix: Option<Bytes>,
    pub(super) sent: Option<Sent>,
    /// Credentials of the gateway's that its server was shown.
    pub(super) shown: Shown,
    pub(super) limits: Limits,
}

/// A request that is ready to go to an endpoint.
pub struct Ready {
    out: Outgoing,
    limits: Limits,
}

impl Ready {
    /// Prepares it. `None` when its body is not held and so cannot be sent twice.
    pub fn new(a: &Attempt<'_>, session: &mut ServerSession, x: &Exchange) -> Option<Self> {
        let out = Outgoing::new(a, session, x);
        out.body.is_some().then(|| Self { out, limits: Limits::begin(a, x) })
    }

    /// The same with another body, for the rest of an answer.
    pub fn with_body(
        a: &Attempt<'_>,
        session: &mut ServerSession,
        x: &Exchange,
        body: Bytes,
        model_at: Option<Range<usize>>,
    ) -> Self {
        Self { out: Outgoing::with_body(a, session, x, Some(body), model_at), limits: Limits::begin(a, x) }
    }

    /// The same for a copy that nobody waits for: without the caller's credentials, and its time is its own.
    pub fn copy(a: &Attempt<'_>, session: &mut ServerSession, x: &Exchange) -> Option<Self> {
        let out = Outgoing::copy(a, session, x);
        let end = Instant::now() + a.route.request_timeout;
        out.body.is_some().then(|| Self { out, limits: Limits { deadline: end, attempt: end, first_token: None } })
    }
}

/// Sends it and waits for the head of an answer that is to be passed on. Any other end is an error.
pub async fn open(a: &Attempt<'_>, ready: Ready) -> Result<Opened, Outcome> {
    let Ready { mut out, limits } = ready;
    let overdue = |now: Instant, otherwise: TimeLimit| {
        Outcome::Failed(if now >= limits.deadline {
            Failure::Deadline
        } else if now >= limits.attempt {
            Failure::Timeout(TimeLimit::BackendRequest)
        } else {
            Failure::Timeout(otherwise)
        })
    };
    let connected = timeout_at(limits.attempt, a.connector.get(&a.endpoint.peer)).await;
    let (mut upstream, reused) = match connected {
        Ok(Ok(connected)) => connected,
        Ok(Err(e)) => return Err(not_connected(a, &e)),
        Err(_) => return Err(overdue(Instant::now(), TimeLimit::Connect)),
    };
    let (callers_account, shown) = (out.callers_account, std::mem::take(&mut out.shown));
    let sent = match timeout_at(limits.attempt, send(a, &mut upstream, out)).await {
        Ok(sent) => sent?,
        Err(_) => return Err(overdue(Instant::now(), TimeLimit::BackendRequest)),
    };
    let (within, otherwise) = match sent {
        Some(Sent::Stalled) => (GIVEN_ALREADY, TimeLimit::Idle),
        _ => (a.backend.first_byte_timeout, TimeLimit::FirstByte),
    };
    let until = limits.attempt.min(Instant::now() + within);
    connect::bound(&upstream, Some(a.backend.max_header_bytes));
    let mut bounds = Bounds::new(a.backend.max_header_bytes);
    loop {
        match timeout_at(until, upstream.read_response_header()).await {
            Err(_) => return Err(overdue(Instant::now(), otherwise)),
            Ok(Err(e)) => return Err(Outcome::Failed(failure_of_head(&e, reused))),
            Ok(Ok(())) => {}
        }
        let Some(head) = upstream.response_header().cloned() else { continue };
        // Early answers are not passed on: which of several attempts they belong to would not be known.
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Outcome::Failed(Failure::Protocol("101 without an upgrade".to_owned())));
        }
        bounds.count(&head).map_err(Outcome::Failed)?;
        if head.status.is_informational() {
            continue;
        }
        connect::bound(&upstream, None);
        a.read_load(&head);
        return match judge(a, callers_account, &mut upstream, &head).await {
            Verdict::Pass(prefix) => Ok(Opened { upstream, head, prefix, sent, shown, limits }),
            Verdict::MoveOn(outcome) => Err(outcome),
        };
    }
}

/// Gives an answer up that nobody wants.
pub async fn abandon(a: &Attempt<'_>, opened: Opened) {
    super::attempt::shut(a, opened.upstream).await;
}

/// Reads an answer that nobody wants to its end, so that its connection can be used again. False when it broke.
pub async fn drain(a: &Attempt<'_>, opened: Opened) -> bool {
    // As where an answer is passed on: the head of a stream says nothing yet.
    if !is_event_stream(&opened.head) && opened.head.status.is_success() {
        a.answered(Class::Head, opened.head.status);
    }
    let mut upstream = opened.upstream;
    while let Ok(Some(_)) = upstream.read_response_body().await {}
    let whole = upstream.response_done();
    super::attempt::end(a, upstream, opened.sent, whole).await;
    whole
}
