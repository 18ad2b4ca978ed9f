//! What goes to an endpoint: the head that it gets, the body where it is held, and the sending of both. Whoever may not
//! see the caller's credentials does not get them.

use bytes::Bytes;
use http::header;
use pingora::http::RequestHeader;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::client::HttpSession;

use super::attempt::{Attempt, Outcome, failure};
use super::body::{RequestBody, with_model};
use super::headers::{CREDENTIALS, outgoing_request, to_http2};
use crate::exchange::Exchange;

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
            RequestBody::Held(held) => Some(held.bytes.clone()),
            RequestBody::Unread if session.is_body_empty() => Some(Bytes::new()),
            RequestBody::Unread => None,
        };
        Self::with_body(a, session, x, body)
    }

    /// The same with this body, in which the model gets the name that the backend knows.
    pub(super) fn with_body(a: &Attempt<'_>, session: &ServerSession, x: &Exchange, body: Option<Bytes>) -> Self {
        let renamed = |body: Bytes| match &a.backend.upstream_model {
            Some(model) => with_model(&body, model).unwrap_or(body),
            None => body,
        };
        let body = body.map(renamed);
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

pub(super) async fn end_body(upstream: &mut HttpSession) {
    if let Err(e) = upstream.finish_request_body().await {
        tracing::debug!(event = "request_body_not_finished", error = %e);
    }
}
