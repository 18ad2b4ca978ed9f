//! What goes to an endpoint: the head that it gets, the body where it is held, and the sending of both. Whoever may not
//! see the caller's credentials does not get them.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use http::header;
use pingora::ErrorType;
use pingora::http::RequestHeader;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::client::HttpSession;

use super::attempt::{Attempt, Outcome, failure};
use super::headers::{Outbound, Recipient, outgoing_request, to_http2};
use super::masking::Shown;
use super::pieces::Pieces;
use crate::exchange::{Exchange, RequestBody};

/// What goes to an endpoint.
pub(super) struct Outgoing {
    pub(super) request: Box<RequestHeader>,
    /// `None` for a body that streams through.
    pub(super) body: Option<Pieces>,
    /// The caller's own credentials go along.
    pub(super) callers_account: bool,
    /// Credentials of the gateway's that go along.
    pub(super) shown: Shown,
    /// The caller understands trailers.
    takes_trailers: bool,
}

impl Outgoing {
    pub(super) fn new(a: &Attempt<'_>, session: &mut ServerSession, x: &Exchange) -> Self {
        let (body, model_at) = held(session, x);
        Self::with_body(a, session, x, body, model_at)
    }

    /// The same for a copy: what is for the route's own backends is not for one that watches.
    pub(super) fn copy(a: &Attempt<'_>, session: &mut ServerSession, x: &Exchange) -> Self {
        let (body, model_at) = held(session, x);
        Self::build(a, session, x, body, model_at, Recipient::Other)
    }

    /// The same with this body, in which the model gets the name that the backend knows; its value stands at `model_at`.
    pub(super) fn with_body(
        a: &Attempt<'_>,
        session: &ServerSession,
        x: &Exchange,
        body: Option<Bytes>,
        model_at: Option<Range<usize>>,
    ) -> Self {
        let recipient = if x.outcome.spilled.is_some() { Recipient::Other } else { Recipient::Own };
        Self::build(a, session, x, body, model_at, recipient)
    }

    fn build(
        a: &Attempt<'_>,
        session: &ServerSession,
        x: &Exchange,
        body: Option<Bytes>,
        model_at: Option<Range<usize>>,
        recipient: Recipient,
    ) -> Self {
        let renamed = |body: Bytes| match (&a.backend.upstream_model, model_at) {
            (Some(model), Some(at)) => Pieces::with(&body, at, model),
            _ => body.into(),
        };
        let body = body.map(renamed);
        let length = body.as_ref().map(|body| u64::try_from(body.len()).unwrap_or(u64::MAX));
        let Outbound { head: request, callers_account, shown } =
            outgoing_request(a, session.req_header(), x, recipient, length);
        let te = session.get_header(header::TE);
        let takes_trailers = te.is_some_and(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
        Self { request, body, callers_account, shown, takes_trailers }
    }
}

/// The body, where it is held or empty, and where the value of its `model` stands; `None` for one that streams through.
fn held(session: &mut ServerSession, x: &Exchange) -> (Option<Bytes>, Option<Range<usize>>) {
    let body = match &x.body {
        RequestBody::Held(held) => Some(held.bytes.clone()),
        RequestBody::Unread if session.is_body_empty() => Some(Bytes::new()),
        RequestBody::Unread => None,
    };
    (body, x.asked.as_ref().and_then(|asked| asked.model_at.clone()))
}

/// How the sending of a request has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// All of it was written.
    Whole,
    /// The server takes no more of it. It may have answered before it had read all (413, 429) and closed.
    Closed,
    /// It reads no more: only an answer that it has given already counts.
    Stalled,
}

/// Bytes of a held body that are written at a time; each part may take as long as a server may be silent.
const PART: usize = 64 << 10;

/// How long an answer may still take to be read that a server must have given before it stopped reading.
pub(super) const GIVEN_ALREADY: Duration = Duration::from_secs(1);

/// Sends the head of a request, and its body where it is held; `None` where the body is still to come.
pub(super) async fn send(
    a: &Attempt<'_>,
    upstream: &mut HttpSession,
    mut out: Outgoing,
) -> Result<Option<Sent>, Outcome> {
    if matches!(upstream, HttpSession::H2(_)) {
        to_http2(&mut out.request, out.takes_trailers, a.endpoint.url.https);
    }
    if let Err(e) = within(a, upstream.write_request_header(out.request)).await {
        return Err(Outcome::Failed(failure(&e)));
    }
    let Some(mut rest) = out.body else { return Ok(None) };
    while let Some(part) = rest.next(PART) {
        let is_last = rest.len() == 0;
        if let Some(sent) = not_taken(within(a, upstream.write_request_body(part, is_last)).await) {
            return Ok(Some(sent));
        }
    }
    Ok(Some(end_body(a, upstream).await))
}

/// Sends a part of a body that streams through. Says how the sending has ended, if it has.
pub(super) async fn send_part(a: &Attempt<'_>, upstream: &mut HttpSession, part: Bytes) -> Option<Sent> {
    // An empty part is no end: written in chunks it would be one, and a second one would follow it.
    if part.is_empty() {
        return None;
    }
    not_taken(within(a, upstream.write_request_body(part, false)).await)
}

/// Ends a body.
pub(super) async fn end_body(a: &Attempt<'_>, upstream: &mut HttpSession) -> Sent {
    not_taken(within(a, upstream.finish_request_body()).await).unwrap_or(Sent::Whole)
}

/// One write to a server, which may not take longer than it may be silent. (Pingora bounds writes, and not what it holds
/// back and flushes.)
async fn within<T>(a: &Attempt<'_>, write: impl Future<Output = pingora::Result<T>>) -> pingora::Result<T> {
    match tokio::time::timeout(a.backend.idle_timeout, write).await {
        Ok(written) => written,
        Err(_) => pingora::Error::err(ErrorType::WriteTimedout),
    }
}

/// What it means that a part of a body could not be written.
fn not_taken<T>(written: pingora::Result<T>) -> Option<Sent> {
    let e = written.err()?;
    tracing::debug!(event = "request_body_not_taken", error = %e);
    Some(if *e.etype() == ErrorType::WriteTimedout { Sent::Stalled } else { Sent::Closed })
}
