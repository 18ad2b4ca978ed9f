//! The request as it goes to an endpoint: head, body where that is held, and the sending of both. Only backends that may see
//! the caller's credentials get them.

use std::borrow::Cow;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use http::header::{HeaderMap, HeaderValue};
use http::uri::PathAndQuery;
use pingora::ErrorType;
use smallvec::SmallVec;

use super::headers::{Outbound, OutgoingBody, Recipient, outgoing_request, to_http1, to_http2};
use super::masking::SentCredentials;
use super::model_name;
use super::outcome::{Attempt, AttemptOutcome, Failure, failure};
use super::pieces::{Edit, MOST_EDITS, Pieces};
use super::trailers::of_request;
use super::translation::Translation;
use super::usage_chunk;
use crate::clock;
use crate::coding::DIGESTS;
use crate::connect::{self, Follows, UpstreamSession};
use crate::downstream::ClientSession;
use crate::exchange::{Exchange, Naming, RequestBody};
use crate::message::RequestHead;
use crate::protocol::BodyEdit;
use crate::protocol::oip::{INFERENCE_HEADER_CONTENT_LENGTH, segment_of};

/// A request for an endpoint.
pub(super) struct Outgoing {
    pub(super) request: Box<RequestHead>,
    /// `None` for a body that streams through.
    pub(super) body: Option<Pieces>,
    /// Trailers behind a body that is held.
    trailers: HeaderMap,
    /// True if the request carries credentials of the caller's own account at the server.
    pub(super) callers_account: bool,
    /// Credentials of the gateway's in the request.
    pub(super) shown: SentCredentials,
    /// `Host` for the server.
    pub(super) host: Option<HeaderValue>,
    /// True if the caller accepts trailers.
    takes_trailers: bool,
}

impl Outgoing {
    pub(super) fn new(attempt: &Attempt<'_>, session: &ClientSession, exchange: &Exchange) -> Self {
        Self::as_it_came(attempt, session, exchange, recipient_of(exchange))
    }

    /// Request for a copy, without the credentials that are for the route's own backends.
    pub(super) fn copy(attempt: &Attempt<'_>, session: &ClientSession, exchange: &Exchange) -> Self {
        Self::as_it_came(attempt, session, exchange, Recipient::Copy)
    }

    /// Request with the body and trailers of the client.
    fn as_it_came(attempt: &Attempt<'_>, session: &ClientSession, exchange: &Exchange, recipient: Recipient) -> Self {
        let passed = |trailers: &HeaderMap| of_request(trailers, attempt, session, exchange);
        let (body, trailers) = match &exchange.body {
            RequestBody::Held(held) => (Some(held.bytes.clone()), held.trailers.as_deref().map(passed)),
            body if body.is_at_hand(session) => (Some(Bytes::new()), session.trailers().as_ref().map(passed)),
            RequestBody::Unread => (None, None),
        };
        let mut model_at = exchange.asked.as_ref().and_then(|asked| asked.model_at.clone());
        let (mut body, mut trailers) = (body, trailers);
        if let Some(cut) = &attempt.cut {
            model_at = model_at.and(cut.model_at.clone());
            // Trailers describe the bytes that came.
            (body, trailers) = (Some(cut.body.clone()), None);
        }
        let edits = BodyEdits { model_at, usage: usage_chunk::edit(attempt, exchange) };
        Self::build(attempt, session, exchange, body, trailers.unwrap_or_default(), edits, recipient)
    }

    /// Request with this body, in which the model at `model_at` gets the name that the backend knows.
    pub(super) fn with_body(
        attempt: &Attempt<'_>,
        session: &ClientSession,
        exchange: &Exchange,
        body: Option<Bytes>,
        model_at: Option<Range<usize>>,
    ) -> Self {
        let edits = BodyEdits { model_at, usage: None };
        Self::build(attempt, session, exchange, body, HeaderMap::new(), edits, recipient_of(exchange))
    }

    fn build(
        attempt: &Attempt<'_>,
        session: &ClientSession,
        exchange: &Exchange,
        body: Option<Bytes>,
        trailers: HeaderMap,
        edits: BodyEdits<'_>,
        recipient: Recipient,
    ) -> Self {
        if let Some(translation) = &attempt.translation {
            return Self::translated(attempt, session, exchange, translation, recipient);
        }
        let backend = attempt.backend;
        let naming = exchange.asked.as_ref().map(|asked| asked.naming).unwrap_or_default();
        let (body, is_edited) = match body {
            Some(body) => {
                let edits = edits.of(&body, naming, attempt, exchange);
                (Some(Pieces::edited(&body, &edits)), !edits.is_empty())
            }
            None => (None, false),
        };
        // They describe the bytes that came.
        let trailers = if is_edited { HeaderMap::new() } else { trailers };
        let length = body.as_ref().map(|body| u64::try_from(body.len()).unwrap_or(u64::MAX));
        let framed = match length {
            Some(length) if trailers.is_empty() => OutgoingBody::Length(length),
            Some(_) => OutgoingBody::WithTrailers,
            None => OutgoingBody::AsItComes,
        };
        let Outbound { head: mut request, callers_account, shown, host } =
            outgoing_request(attempt, session.req_header(), exchange, recipient, framed);
        for name in DIGESTS.iter().filter(|_| is_edited || attempt.cut.is_some()) {
            request.remove_header(name);
        }
        if let Some(length) = attempt.cut.as_ref().and_then(|cut| cut.json_length) {
            let _ = request.insert_header(&INFERENCE_HEADER_CONTENT_LENGTH, HeaderValue::from(length));
        }
        if naming == Naming::Path
            && let Some(model) = model_name::at_server(backend, exchange)
        {
            rename_in_path(&mut request, model, exchange);
        }
        Self { request, body, trailers, callers_account, shown, host, takes_trailers: session.asks_for_trailers() }
    }
}

impl Outgoing {
    /// Request whose body was written for a server of another API.
    fn translated(
        attempt: &Attempt<'_>,
        session: &ClientSession,
        exchange: &Exchange,
        translation: &Translation,
        recipient: Recipient,
    ) -> Self {
        let body = Pieces::from(translation.body().clone());
        let framed = OutgoingBody::Length(u64::try_from(body.len()).unwrap_or(u64::MAX));
        let Outbound { head: mut request, callers_account, shown, host } =
            outgoing_request(attempt, session.req_header(), exchange, recipient, framed);
        for name in &DIGESTS {
            request.remove_header(name);
        }
        // Answers of gRPC end with trailers, and a server may refuse a call that does not say that it reads them. Those of other
        // calls reach no caller.
        let takes_trailers = match translation {
            Translation::Conversation(_) => session.asks_for_trailers(),
            Translation::Call(_) => translation.is_to_grpc(),
        };
        Self { request, body: Some(body), trailers: HeaderMap::new(), callers_account, shown, host, takes_trailers }
    }
}

/// Parts of a held body that may be edited.
struct BodyEdits<'e> {
    /// Place of the model's name.
    model_at: Option<Range<usize>>,
    /// Edit that asks for the usage of the stream.
    usage: Option<&'e BodyEdit>,
}

impl<'e> BodyEdits<'e> {
    /// Edits of a body in the order of their ranges: the model gets the name that the backend knows.
    fn of(
        self,
        body: &Bytes,
        naming: Naming,
        attempt: &Attempt<'e>,
        exchange: &'e Exchange,
    ) -> SmallVec<[Edit<'e>; MOST_EDITS]> {
        let renamed = self.model_at.and_then(|at| renamed(body, at, naming, attempt, exchange));
        let usage = self.usage.map(|edit| (edit.at.clone(), Cow::Borrowed(edit.text.as_bytes())));
        let mut edits: SmallVec<[Edit<'e>; MOST_EDITS]> = renamed.into_iter().chain(usage).collect();
        edits.sort_unstable_by_key(|(at, _)| at.start);
        edits
    }
}

/// Edit by which the model gets the name that the backend knows; `None` where it has that name.
fn renamed<'b>(
    body: &[u8],
    at: Range<usize>,
    naming: Naming,
    attempt: &Attempt<'b>,
    exchange: &'b Exchange,
) -> Option<Edit<'b>> {
    let name = || model_name::at_server(attempt.backend, exchange);
    match naming {
        Naming::Json => {
            model_name::json_at_server(attempt.backend, exchange).map(|model| (at, Cow::Borrowed(model.as_bytes())))
        }
        Naming::Form => name().map(|model| (at, Cow::Borrowed(model.as_bytes()))),
        Naming::Message => {
            let (range, bytes) = exchange.resolved.api.rename_in_message(body, &at, name()?)?;
            Some((range, Cow::Owned(bytes)))
        }
        Naming::Path => None,
    }
}

/// Puts the name that the backend knows into the path, as the filters have left it.
fn rename_in_path(request: &mut RequestHead, model: &str, exchange: &Exchange) {
    let Some(target) = request.uri.path_and_query().map(PathAndQuery::as_str) else { return };
    let end = target.find('?').unwrap_or(target.len());
    let Some(at) = target.get(..end).and_then(|path| exchange.resolved.api.model_in_path(path)) else { return };
    let (Some(before), Some(after)) = (target.get(..at.start), target.get(at.end..)) else { return };
    let renamed = [before, &segment_of(model), after].concat();
    if let Ok(target) = renamed.parse::<Uri>() {
        request.set_uri(target);
    }
}

/// Recipient of the requests of an exchange: one that spills goes to another backend than its route's own.
fn recipient_of(exchange: &Exchange) -> Recipient {
    if exchange.outcome.spilled.is_some() { Recipient::Other } else { Recipient::Own }
}

/// End of the sending of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// The whole request was written.
    Whole,
    /// The server closed its side. It may have answered before it had read all (413, 429).
    Closed,
    /// The server reads no more: only an answer that it has written already counts.
    Stalled,
}

/// Bytes of a held body that are written at a time. Each part may take as long as a server may be silent.
const PART: usize = 64 << 10;

/// Time to read an answer that a server must have written before it stopped reading.
pub(super) const GIVEN_ALREADY: Duration = Duration::from_secs(1);

/// Sends the head of a request, and its body where that is held; `None` where the body follows.
pub(super) async fn send(
    attempt: &Attempt<'_>,
    upstream: &mut UpstreamSession,
    mut out: Outgoing,
) -> Result<Option<Sent>, AttemptOutcome> {
    if upstream.is_http2() {
        to_http2(&mut out.request, out.takes_trailers, &attempt.endpoint.url);
    } else {
        to_http1(&mut out.request, out.takes_trailers);
    }
    let ends_with_trailers = !out.trailers.is_empty();
    let follows = match &out.body {
        None => Follows::Later,
        Some(body) if body.len() == 0 && !ends_with_trailers => Follows::Nothing,
        Some(_) => Follows::Now,
    };
    if let Err(e) = within(attempt, upstream.write_head(out.request, follows)).await {
        let is_unsent = upstream.is_http2() && connect::is_unsent(&e);
        return Err(AttemptOutcome::Failed(if is_unsent {
            Failure::Unprocessed { error: e.etype().as_str().to_owned(), is_first: false }
        } else {
            failure(&e)
        }));
    }
    let Some(mut rest) = out.body else { return Ok(None) };
    while let Some(part) = rest.next(PART) {
        let is_last = rest.len() == 0 && !ends_with_trailers;
        if let Some(sent) = not_taken(within(attempt, upstream.write_part(part, is_last)).await) {
            return Ok(Some(sent));
        }
    }
    Ok(Some(end_body(attempt, upstream, out.trailers).await))
}

/// Sends a part of a body that streams through. Returns the end of the sending, if it has ended.
pub(super) async fn send_part(attempt: &Attempt<'_>, upstream: &mut UpstreamSession, part: Bytes) -> Option<Sent> {
    // An empty part is no end: written in chunks it would be one, and a second one would follow it.
    if part.is_empty() {
        return None;
    }
    not_taken(within(attempt, upstream.write_part(part, false)).await)
}

/// Ends a body, with its trailers.
pub(super) async fn end_body(attempt: &Attempt<'_>, upstream: &mut UpstreamSession, trailers: HeaderMap) -> Sent {
    not_taken(within(attempt, upstream.end_body(trailers)).await).unwrap_or(Sent::Whole)
}

/// Bounds a write by the time for which a server may be silent.
async fn within<T>(attempt: &Attempt<'_>, write: impl Future<Output = pingora::Result<T>>) -> pingora::Result<T> {
    match clock::within(attempt.backend.send_timeout, write).await {
        Ok(written) => written,
        Err(_) => pingora::Error::err(ErrorType::WriteTimedout),
    }
}

/// End of the sending, where a part of a body could not be written.
fn not_taken<T>(written: pingora::Result<T>) -> Option<Sent> {
    let e = written.err()?;
    tracing::debug!(event = "request_body_not_taken", error = %e);
    Some(if *e.etype() == ErrorType::WriteTimedout { Sent::Stalled } else { Sent::Closed })
}
