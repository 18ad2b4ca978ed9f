//! Request of a client and its answer, over either version of HTTP.

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{StatusCode, Version};
use pingora::ErrorType::WriteError;
use pingora::OrErr;
use spillway_filter::FieldName;

use super::http1::Http1Session;
use super::http2::Http2Session;
use super::tunnel::ClientTunnel;
use crate::compressing::{Compressor, Offer, SLICE};
use crate::message::{RequestHead, ResponseHead};
use crate::timer::KeptTimer;

/// Request of a client, and its answer.
pub struct ClientSession {
    http: Http,
    /// Compression of the answer; `None` on routes that have none.
    compressing: Option<Box<Compressing>>,
}

enum Http {
    /// HTTP/1.1 or 1.0.
    Http1(Box<Http1Session>),
    /// HTTP/2.
    Http2(Box<Http2Session>),
}

impl Http {
    async fn write_body(&mut self, part: Bytes, ends: bool) -> pingora::Result<()> {
        match self {
            Self::Http1(session) => session.write_body(part, ends).await,
            Self::Http2(session) => session.write_body(part, ends).await,
        }
    }
}

/// Context of an error of an encoder.
const UNCOMPRESSED: &str = "a body that is compressed";

/// Compression of an answer.
enum Compressing {
    /// The head is not written yet.
    Offered(Offer),
    /// The body is compressed.
    Body(Compressor),
}

/// Calls the same method of either session.
macro_rules! either {
    ($session:expr, $either:ident => $call:expr) => {
        match $session.http {
            Http::Http1(ref $either) => $call,
            Http::Http2(ref $either) => $call,
        }
    };
    (mut $session:expr, $either:ident => $call:expr) => {
        match $session.http {
            Http::Http1(ref mut $either) => $call,
            Http::Http2(ref mut $either) => $call,
        }
    };
}

impl ClientSession {
    /// Requests of a connection of HTTP/1.1 or 1.0, one after the other.
    pub fn http1(session: Http1Session) -> Self {
        Self { http: Http::Http1(Box::new(session)), compressing: None }
    }

    /// Request of a stream of HTTP/2.
    pub fn http2(session: Http2Session) -> Self {
        Self { http: Http::Http2(Box::new(session)), compressing: None }
    }

    /// The session of HTTP/1.
    pub fn as_http1(&mut self) -> Option<&mut Http1Session> {
        match &mut self.http {
            Http::Http1(session) => Some(session),
            Http::Http2(_) => None,
        }
    }

    /// The session of HTTP/2.
    pub fn into_http2(self) -> Option<Http2Session> {
        match self.http {
            Http::Http1(_) => None,
            Http::Http2(session) => Some(*session),
        }
    }

    /// True over HTTP/2.
    pub fn is_http2(&self) -> bool {
        matches!(self.http, Http::Http2(_))
    }

    /// Sets how the answer to this request may be compressed; `None` leaves it as it is.
    pub fn offer_compression(&mut self, offer: Option<Offer>) {
        self.compressing = offer.map(|offer| Box::new(Compressing::Offered(offer)));
    }

    /// Head of the request.
    pub fn req_header(&self) -> &RequestHead {
        either!(self, session => session.head())
    }

    /// Head of the request, to be changed.
    pub fn req_header_mut(&mut self) -> &mut RequestHead {
        either!(mut self, session => session.head_mut())
    }

    /// First value of a header of the request.
    pub fn get_header(&self, name: impl FieldName) -> Option<&HeaderValue> {
        self.req_header().headers.get(name)
    }

    /// True if the request has no body.
    pub fn is_body_empty(&self) -> bool {
        either!(self, session => session.is_body_empty())
    }

    /// True once the body was read to its end.
    pub fn is_body_done(&self) -> bool {
        either!(self, session => session.is_body_done())
    }

    /// Bytes of the body that were read.
    pub fn body_bytes(&self) -> u64 {
        either!(self, session => session.body_bytes())
    }

    /// Reads the next part of the body; `None` at its end. Callers bound the time.
    pub async fn read_request_body(&mut self) -> pingora::Result<Option<Bytes>> {
        either!(mut self, session => session.read_body().await)
    }

    /// As [`Self::read_request_body`]; behind the end of the body, or with `no_body_expected`, waits until the client leaves,
    /// which is an error.
    pub async fn read_body_or_idle(&mut self, no_body_expected: bool) -> pingora::Result<Option<Bytes>> {
        if no_body_expected || self.is_body_done() {
            return Err(Box::new(either!(mut self, session => session.left().await)));
        }
        self.read_request_body().await
    }

    /// Trailers of a request whose body was read to its end; `None` where it has none.
    pub fn trailers(&self) -> Option<HeaderMap> {
        either!(self, session => session.trailers())
    }

    /// True if trailers of an answer reach the client: over HTTP/1.1 it must ask for them (RFC 9110, 6.5.1).
    pub fn takes_trailers(&self) -> bool {
        self.is_http2() || (self.req_header().version == Version::HTTP_11 && self.asks_for_trailers())
    }

    /// True if the client says that it accepts trailers (RFC 9110, 10.1.4).
    pub fn asks_for_trailers(&self) -> bool {
        let values = self.req_header().headers.get_all(header::TE).iter();
        let mut codings = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
        codings.any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    }

    /// Status of the answer, or of the last early one, once its head was written.
    pub fn response_written(&self) -> Option<StatusCode> {
        either!(self, session => session.written())
    }

    /// True once the head of the answer was written; early answers do not count.
    pub fn has_answered(&self) -> bool {
        self.response_written().is_some_and(|status| !status.is_informational())
    }

    /// Writes `100 Continue`, unless an answer has begun.
    pub async fn write_continue_response(&mut self) -> pingora::Result<()> {
        if self.response_written().is_some() {
            return Ok(());
        }
        self.write_response_header(Box::new(ResponseHead::new(StatusCode::CONTINUE, 0))).await
    }

    /// Writes the head of an answer, or of an early one.
    pub async fn write_response_header(&mut self, head: Box<ResponseHead>) -> pingora::Result<()> {
        self.write_head(head, false).await
    }

    /// Writes the head of an answer, which is the whole answer where it `ends`. Over HTTP/2 the frame of such a head ends the
    /// stream: clients of gRPC read a status only there, and not from a head that an empty frame of data follows.
    pub async fn write_head(&mut self, mut head: Box<ResponseHead>, ends: bool) -> pingora::Result<()> {
        if self.compressing.is_some() {
            self.begin_compression(&mut head, !ends);
        }
        match &mut self.http {
            Http::Http1(session) => {
                session.write_head(&head).await?;
                if ends { session.write_body(Bytes::new(), true).await } else { Ok(()) }
            }
            Http::Http2(session) => session.write_head(*head, ends),
        }
    }

    fn begin_compression(&mut self, head: &mut ResponseHead, has_body: bool) {
        if let Some(Compressing::Offered(offer)) = self.compressing.as_deref()
            && !head.status.is_informational()
        {
            let compressor = offer.begin(head, has_body);
            self.compressing = compressor.map(|compressor| Box::new(Compressing::Body(compressor)));
        }
    }

    /// Writes a part of the body, the last one where it `ends`.
    pub async fn write_response_body(&mut self, part: Bytes, ends: bool) -> pingora::Result<()> {
        if self.compressing.is_some() {
            return Box::pin(self.write_compressed(part, ends)).await;
        }
        self.http.write_body(part, ends).await
    }

    async fn write_compressed(&mut self, part: Bytes, ends: bool) -> pingora::Result<()> {
        let Self { http, compressing } = self;
        let Some(Compressing::Body(compressor)) = compressing.as_deref_mut() else {
            return http.write_body(part, ends).await;
        };
        for (n, slice) in part.chunks(SLICE).enumerate() {
            if n > 0 {
                tokio::task::yield_now().await;
            }
            let ready = compressor.feed(slice).or_err(WriteError, UNCOMPRESSED)?;
            if !ready.is_empty() {
                http.write_body(ready, false).await?;
            }
        }
        if ends {
            return self.end_compression(true).await;
        }
        let ready = compressor.flush().or_err(WriteError, UNCOMPRESSED)?;
        if ready.is_empty() { Ok(()) } else { http.write_body(ready, false).await }
    }

    /// Writes the rest of a body that is compressed, its last part where it `ends`.
    async fn end_compression(&mut self, ends: bool) -> pingora::Result<()> {
        let Some(Compressing::Body(compressor)) = self.compressing.take().map(|compressing| *compressing) else {
            return Ok(());
        };
        let rest = compressor.finish().or_err(WriteError, UNCOMPRESSED)?;
        self.http.write_body(rest, ends).await
    }

    /// Writes trailers, and so ends the answer. Over HTTP/1 only an answer in chunks has them.
    pub async fn write_response_trailers(&mut self, trailers: HeaderMap) -> pingora::Result<()> {
        if self.compressing.is_some() {
            Box::pin(self.end_compression(false)).await?;
        }
        match &mut self.http {
            Http::Http1(session) => session.write_trailers(&trailers).await,
            Http::Http2(session) => session.write_trailers(trailers),
        }
    }

    /// Answers an upgrade that a server has accepted: with its 101, or over HTTP/2 with 200 (RFC 8441, 5).
    pub async fn switch_protocols(&mut self, head: Box<ResponseHead>) -> pingora::Result<()> {
        match &mut self.http {
            Http::Http1(session) => session.write_head(&head).await,
            Http::Http2(session) => session.open_tunnel(*head),
        }
    }

    /// Byte stream behind the answer to an upgrade; `None` where there is none.
    pub fn tunnel(&mut self) -> Option<ClientTunnel<'_>> {
        match &mut self.http {
            Http::Http1(session) => Some(session.tunnel()),
            Http::Http2(session) => session.tunnel(),
        }
    }

    /// True for an extended CONNECT of HTTP/2, which asks for a tunnel and for nothing else (RFC 8441, 4).
    pub fn is_extended_connect(&self) -> bool {
        matches!(&self.http, Http::Http2(session) if session.is_extended_connect())
    }

    /// Lends the timer of the connection; over HTTP/2 a new one, since streams share the connection.
    pub fn lend_timer(&mut self) -> KeptTimer {
        match &mut self.http {
            Http::Http1(session) => session.lend_timer(),
            Http::Http2(_) => KeptTimer::default(),
        }
    }

    /// Takes the timer of the connection back.
    pub fn return_timer(&mut self, timer: KeptTimer) {
        if let Http::Http1(session) = &mut self.http {
            session.return_timer(timer);
        }
    }

    /// Closes the connection after this request. HTTP/2 has no such connection.
    pub fn close_after(&mut self) {
        if let Http::Http1(session) = &mut self.http {
            session.close_after();
        }
    }

    /// Ends the connection, or of HTTP/2 the stream.
    pub async fn shutdown(&mut self) {
        match &mut self.http {
            Http::Http1(session) => session.shutdown().await,
            Http::Http2(session) => session.shutdown(),
        }
    }
}
