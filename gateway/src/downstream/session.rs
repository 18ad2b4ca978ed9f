//! Request of a client and its answer, over either version of HTTP.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header::AsHeaderName};
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::HttpSession;

use super::http1::Http1Session;
use crate::message::{RequestHead, ResponseHead};

/// Request of a client, and its answer.
pub enum ClientSession {
    /// HTTP/1.1 or 1.0.
    Http1(Box<Http1Session>),
    /// HTTP/2, by Pingora.
    Http2(Box<Http2Session>),
}

/// Request over HTTP/2.
pub struct Http2Session {
    session: ServerSession,
    head: RequestHead,
}

impl Http2Session {
    /// Begins a request whose head is in the form of HTTP/1.1.
    pub fn new(session: HttpSession, head: RequestHead) -> Self {
        Self { session: ServerSession::new_http2(session), head }
    }

    /// Writes a head, which is the whole answer where it `ends`.
    pub(super) async fn write_head(&mut self, head: ResponseHead, ends: bool) -> pingora::Result<()> {
        let head = Box::new(ResponseHeader::from(head));
        match &mut self.session {
            ServerSession::H2(session) => session.write_response_header(head, ends),
            session => session.write_response_header(head).await,
        }
    }

    /// Ends the stream of a whole answer.
    pub async fn finish(self) {
        let _ = self.session.finish().await;
    }
}

impl ClientSession {
    /// True over HTTP/2.
    pub fn is_http2(&self) -> bool {
        matches!(self, Self::Http2(_))
    }

    /// Head of the request.
    pub fn req_header(&self) -> &RequestHead {
        match self {
            Self::Http1(session) => session.head(),
            Self::Http2(http2) => &http2.head,
        }
    }

    /// Head of the request, to be changed.
    pub fn req_header_mut(&mut self) -> &mut RequestHead {
        match self {
            Self::Http1(session) => session.head_mut(),
            Self::Http2(http2) => &mut http2.head,
        }
    }

    /// First value of a header of the request.
    pub fn get_header(&self, name: impl AsHeaderName) -> Option<&HeaderValue> {
        self.req_header().headers.get(name)
    }

    /// True if the request has no body.
    pub fn is_body_empty(&mut self) -> bool {
        match self {
            Self::Http1(session) => session.is_body_empty(),
            Self::Http2(http2) => http2.session.is_body_empty(),
        }
    }

    /// True once the body was read to its end.
    pub fn is_body_done(&mut self) -> bool {
        match self {
            Self::Http1(session) => session.is_body_done(),
            Self::Http2(http2) => http2.session.is_body_done(),
        }
    }

    /// Bytes of the body that were read.
    pub fn body_bytes(&self) -> u64 {
        match self {
            Self::Http1(session) => session.body_bytes(),
            Self::Http2(http2) => u64::try_from(http2.session.body_bytes_read()).unwrap_or(u64::MAX),
        }
    }

    /// Reads the next part of the body; `None` at its end. Callers bound the time.
    pub async fn read_request_body(&mut self) -> pingora::Result<Option<Bytes>> {
        match self {
            Self::Http1(session) => session.read_body().await,
            Self::Http2(http2) => http2.session.read_request_body().await,
        }
    }

    /// As [`Self::read_request_body`]; behind the end of the body, or with `no_body_expected`, waits until the client leaves,
    /// which is an error.
    pub async fn read_body_or_idle(&mut self, no_body_expected: bool) -> pingora::Result<Option<Bytes>> {
        match self {
            Self::Http1(session) if no_body_expected || session.is_body_done() => Err(Box::new(session.left().await)),
            Self::Http1(session) => session.read_body().await,
            Self::Http2(http2) => http2.session.read_body_or_idle(no_body_expected).await,
        }
    }

    /// Status of the answer, or of the last early one, once its head was written.
    pub fn response_written(&self) -> Option<StatusCode> {
        match self {
            Self::Http1(session) => session.written(),
            Self::Http2(http2) => http2.session.response_written().map(|head| head.status),
        }
    }

    /// Writes `100 Continue`, unless an answer has begun.
    pub async fn write_continue_response(&mut self) -> pingora::Result<()> {
        match self {
            Self::Http1(session) if session.written().is_some() => Ok(()),
            Self::Http1(session) => session.write_head(&ResponseHead::new(StatusCode::CONTINUE, 0)).await,
            Self::Http2(http2) => http2.session.write_continue_response().await,
        }
    }

    /// Writes the head of an answer, or of an early one.
    pub async fn write_response_header(&mut self, head: Box<ResponseHead>) -> pingora::Result<()> {
        match self {
            Self::Http1(session) => session.write_head(&head).await,
            Self::Http2(http2) => http2.write_head(*head, false).await,
        }
    }

    /// Writes a part of the body, the last one where it `ends`.
    pub async fn write_response_body(&mut self, part: Bytes, ends: bool) -> pingora::Result<()> {
        match self {
            Self::Http1(session) => session.write_body(part, ends).await,
            Self::Http2(http2) => http2.session.write_response_body(part, ends).await,
        }
    }

    /// Writes trailers, and so ends the answer. HTTP/1.1 has none here.
    pub async fn write_response_trailers(&mut self, trailers: HeaderMap) -> pingora::Result<()> {
        match self {
            Self::Http1(session) => session.write_body(Bytes::new(), true).await,
            Self::Http2(http2) => http2.session.write_response_trailers(trailers).await,
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
            Self::Http2(http2) => http2.session.shutdown().await,
        }
    }
}
