//! Request of a client and its answer, over either version of HTTP.

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{StatusCode, Version};
use spillway_filter::FieldName;

use super::http1::Http1Session;
use super::http2::Http2Session;
use super::tunnel::ClientTunnel;
use crate::message::{RequestHead, ResponseHead};
use crate::timer::KeptTimer;

/// Request of a client, and its answer.
pub enum ClientSession {
    /// HTTP/1.1 or 1.0.
    Http1(Box<Http1Session>),
    /// HTTP/2.
    Http2(Box<Http2Session>),
}

/// Calls the same method of either session.
macro_rules! either {
    ($session:expr, $either:ident => $call:expr) => {
        match $session {
            ClientSession::Http1($either) => $call,
            ClientSession::Http2($either) => $call,
        }
    };
}

impl ClientSession {
    /// True over HTTP/2.
    pub fn is_http2(&self) -> bool {
        matches!(self, Self::Http2(_))
    }

    /// Head of the request.
    pub fn req_header(&self) -> &RequestHead {
        either!(self, session => session.head())
    }

    /// Head of the request, to be changed.
    pub fn req_header_mut(&mut self) -> &mut RequestHead {
        either!(self, session => session.head_mut())
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
        either!(self, session => session.read_body().await)
    }

    /// As [`Self::read_request_body`]; behind the end of the body, or with `no_body_expected`, waits until the client leaves,
    /// which is an error.
    pub async fn read_body_or_idle(&mut self, no_body_expected: bool) -> pingora::Result<Option<Bytes>> {
        if no_body_expected || self.is_body_done() {
            return Err(Box::new(either!(self, session => session.left().await)));
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
        match self {
            Self::Http1(session) => session.write_head(&head).await,
            Self::Http2(session) => session.write_head(*head, false),
        }
    }

    /// Writes a part of the body, the last one where it `ends`.
    pub async fn write_response_body(&mut self, part: Bytes, ends: bool) -> pingora::Result<()> {
        either!(self, session => session.write_body(part, ends).await)
    }

    /// Writes trailers, and so ends the answer. Over HTTP/1 only an answer in chunks has them.
    pub async fn write_response_trailers(&mut self, trailers: HeaderMap) -> pingora::Result<()> {
        match self {
            Self::Http1(session) => session.write_trailers(&trailers).await,
            Self::Http2(session) => session.write_trailers(trailers),
        }
    }

    /// Answers an upgrade that a server has accepted: with its 101, or over HTTP/2 with 200 (RFC 8441, 5).
    pub async fn switch_protocols(&mut self, head: Box<ResponseHead>) -> pingora::Result<()> {
        match self {
            Self::Http1(session) => session.write_head(&head).await,
            Self::Http2(session) => session.open_tunnel(*head),
        }
    }

    /// Byte stream behind the answer to an upgrade; `None` where there is none.
    pub fn tunnel(&mut self) -> Option<ClientTunnel<'_>> {
        match self {
            Self::Http1(session) => Some(session.tunnel()),
            Self::Http2(session) => session.tunnel(),
        }
    }

    /// True for an extended CONNECT of HTTP/2, which asks for a tunnel and for nothing else (RFC 8441, 4).
    pub fn is_extended_connect(&self) -> bool {
        matches!(self, Self::Http2(session) if session.is_extended_connect())
    }

    /// Lends the timer of the connection; over HTTP/2 a new one, since streams share the connection.
    pub fn lend_timer(&mut self) -> KeptTimer {
        match self {
            Self::Http1(session) => session.lend_timer(),
            Self::Http2(_) => KeptTimer::default(),
        }
    }

    /// Takes the timer of the connection back.
    pub fn return_timer(&mut self, timer: KeptTimer) {
        if let Self::Http1(session) = self {
            session.return_timer(timer);
        }
    }

    /// Closes the connection after this request. HTTP/2 has no such connection.
    pub fn close_after(&mut self) {
        if let Self::Http1(session) = self {
            session.close_after();
        }
    }

    /// Ends the connection, or of HTTP/2 the stream.
    pub async fn shutdown(&mut self) {
        match self {
            Self::Http1(session) => session.shutdown().await,
            Self::Http2(session) => session.shutdown(),
        }
    }
}
