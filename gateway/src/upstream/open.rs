//! The first half of an attempt by itself: sends a held request and reads the head of its answer. No client takes part, so
//! that several can run concurrently; dropping the future closes its connection.

use std::ops::Range;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use tokio::time::{Instant, timeout_at};

use super::bounds::Bounds;
use super::connection::{close, end, not_connected};
use super::events::stream_framing;
use super::headers::settle_framing;
use super::masking::SentCredentials;
use super::outcome::{Attempt, AttemptLimits, AttemptOutcome, Failure, TimeLimit, failure_of_head};
use super::outgoing::{GIVEN_ALREADY, Outgoing, Sent, send};
use super::verdict::{HeadVerdict, judge};
use crate::balancing::Class;
use crate::clock;
use crate::connect::UpstreamSession;
use crate::downstream::ClientSession;
use crate::exchange::Exchange;
use crate::message::ResponseHead;
use crate::protocol::{Observation, StreamFraming};

/// An answer whose head has arrived and will be passed on.
pub struct OpenedAnswer {
    pub(super) upstream: UpstreamSession,
    /// Head of the answer.
    pub head: ResponseHead,
    /// Begin of the body that was read already.
    pub(super) prefix: Option<Bytes>,
    pub(super) sent: Option<Sent>,
    /// True if the request carries the caller's own credentials for the server.
    pub(super) callers_account: bool,
    /// Credentials of the gateway's that the server was shown.
    pub(super) shown: SentCredentials,
    /// `Host` that the server got.
    pub(super) sent_host: Option<HeaderValue>,
    pub(super) limits: AttemptLimits,
}

/// A request that is ready to go to an endpoint.
pub struct Ready {
    out: Outgoing,
    limits: AttemptLimits,
}

impl Ready {
    /// Prepares the request. `None` if its body is not held and so cannot be sent twice.
    pub fn new(attempt: &Attempt<'_>, session: &mut ClientSession, exchange: &Exchange) -> Option<Self> {
        let out = Outgoing::new(attempt, session, exchange);
        out.body.is_some().then(|| Self { out, limits: AttemptLimits::begin(attempt, exchange) })
    }

    /// Prepares the request with another body, for the rest of an answer.
    pub fn with_body(
        attempt: &Attempt<'_>,
        session: &mut ClientSession,
        exchange: &Exchange,
        body: Bytes,
        model_at: Option<Range<usize>>,
    ) -> Self {
        Self {
            out: Outgoing::with_body(attempt, session, exchange, Some(body), model_at),
            limits: AttemptLimits::begin(attempt, exchange),
        }
    }

    /// Prepares a copy that no client waits for: without the caller's credentials, and with a time limit of its own.
    pub fn copy(attempt: &Attempt<'_>, session: &mut ClientSession, exchange: &Exchange) -> Option<Self> {
        let out = Outgoing::copy(attempt, session, exchange);
        let end = clock::now() + attempt.route.request_timeout;
        out.body.is_some().then(|| Self {
            out,
            limits: AttemptLimits { deadline: end, whose: TimeLimit::Request, attempt: end, first_token: None },
        })
    }
}

/// Sends the request and waits for the head of an answer that will be passed on. Every other end is an error.
pub async fn open(attempt: &Attempt<'_>, ready: Ready) -> Result<OpenedAnswer, AttemptOutcome> {
    let Ready { mut out, limits } = ready;
    let overdue = |now: Instant, otherwise: TimeLimit| {
        AttemptOutcome::Failed(if now >= limits.deadline {
            Failure::Deadline(limits.whose)
        } else if now >= limits.attempt {
            Failure::Timeout(TimeLimit::BackendRequest)
        } else {
            Failure::Timeout(otherwise)
        })
    };
    let connected = timeout_at(limits.attempt, attempt.connector.get(&attempt.endpoint.peer, attempt.alone)).await;
    let (mut upstream, reused) = match connected {
        Ok(Ok(connected)) => connected,
        Ok(Err(e)) => return Err(not_connected(attempt, &e)),
        Err(_) => return Err(overdue(clock::now(), TimeLimit::Connect)),
    };
    let (callers_account, shown, sent_host) = (out.callers_account, std::mem::take(&mut out.shown), out.host.take());
    let sent = match timeout_at(limits.attempt, send(attempt, &mut upstream, out)).await {
        Ok(sent) => sent?,
        Err(_) => return Err(overdue(clock::now(), TimeLimit::BackendRequest)),
    };
    let (within, otherwise) = match sent {
        Some(Sent::Stalled) => (GIVEN_ALREADY, TimeLimit::Idle),
        _ => (attempt.first_byte_timeout(), TimeLimit::FirstByte),
    };
    let sent_at = clock::now();
    let until = limits.attempt.min(sent_at + within);
    upstream.bound_head(attempt.backend.max_header_bytes);
    let mut bounds = Bounds::new(attempt.backend.max_header_bytes);
    loop {
        match timeout_at(until, upstream.read_head()).await {
            Err(_) => return Err(overdue(clock::now(), otherwise)),
            Ok(Err(e)) => return Err(AttemptOutcome::Failed(failure_of_head(&e, reused, sent_at))),
            Ok(Ok(())) => {}
        }
        let Some(mut head) = upstream.take_head() else { continue };
        // Early answers are not passed on: they may belong to an attempt that loses.
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(AttemptOutcome::Failed(Failure::Protocol("101 without an upgrade".to_owned())));
        }
        bounds.count(&head).map_err(AttemptOutcome::Failed)?;
        if head.status.is_informational() {
            continue;
        }
        if let Err(found) = settle_framing(&mut head) {
            return Err(AttemptOutcome::Failed(Failure::Protocol(found.to_owned())));
        }
        attempt.read_load(&head);
        return match judge(attempt, callers_account, true, &mut upstream, &head).await {
            HeadVerdict::Pass(prefix) => {
                Ok(OpenedAnswer { upstream, head, prefix, sent, callers_account, shown, sent_host, limits })
            }
            HeadVerdict::MoveOn(outcome) => Err(outcome),
        };
    }
}

/// Ends an answer that is not needed.
pub async fn abandon(attempt: &Attempt<'_>, opened: OpenedAnswer) {
    close(attempt, opened.upstream).await;
}

/// Answer that was read to its end for no client.
pub struct Drained {
    /// Status, or that of the error that it reports.
    pub status: u16,
    /// Facts read from it, where it is of an API of models.
    pub seen: Option<Observation>,
}

/// Reads an answer that goes to no client to its end, so that its connection can be reused, and shows its parts to `each`.
/// `None` if the answer broke.
pub async fn drain(attempt: &Attempt<'_>, opened: OpenedAnswer, mut each: impl FnMut(&[u8])) -> Option<Drained> {
    let took = clock::since(attempt.started);
    let mut observer = attempt.observer(&opened.head);
    let mut upstream = opened.upstream;
    while let Ok(Some(part)) = upstream.read_part().await {
        if let Some(observer) = &mut observer {
            observer.feed(&part, clock::instant());
        }
        each(&part);
    }
    let seen = observer.map(|mut observer| observer.finish().clone());
    let reported = seen.as_ref().and_then(|seen| attempt.reported(seen));
    // As where an answer is passed on: the head of a stream says nothing yet.
    let own = attempt.backend.dialect.map_or(StreamFraming::Events, |dialect| dialect.stream_framing());
    if stream_framing(&opened.head, own).is_none() && opened.head.status.is_success() && reported.is_none() {
        attempt.answered_in(Class::Head, opened.head.status, took);
    }
    let whole = upstream.is_done();
    end(attempt, upstream, opened.sent, whole).await;
    whole.then(|| Drained { status: reported.unwrap_or(opened.head.status.as_u16()), seen })
}
