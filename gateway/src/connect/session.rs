//! Conversation with a server, over either version of HTTP.

use bytes::Bytes;
use http::HeaderMap;

use super::http1::Http1Session;
use super::http2::Http2Session;
use super::tunnel::ServerTunnel;
use crate::message::{RequestHead, ResponseHead};

/// Conversation with a server.
pub enum UpstreamSession {
    /// HTTP/1.1, or 1.0 of the server.
    Http1(Box<Http1Session>),
    /// HTTP/2.
    Http2(Box<Http2Session>),
}

/// Calls the same method of either session.
macro_rules! either {
    ($session:expr, $either:ident => $call:expr) => {
        match $session {
            UpstreamSession::Http1($either) => $call,
            UpstreamSession::Http2($either) => $call,
        }
    };
}

/// Body that follows the head of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follows {
    /// None.
    Nothing,
    /// A body that is at hand: head and first part may go out together.
    Now,
    /// A body that has yet to arrive.
    Later,
}

impl UpstreamSession {
    /// True over HTTP/2.
    pub fn is_http2(&self) -> bool {
        matches!(self, Self::Http2(_))
    }

    /// Bounds the bytes that are read of the answer's head, with the early answers before it. HTTP/2 has its own bound.
    pub fn bound_head(&mut self, most: u64) {
        if let Self::Http1(session) = self {
            session.bound_head(most);
        }
    }

    /// Writes the head of a request.
    pub async fn write_head(&mut self, head: Box<RequestHead>, body: Follows) -> pingora::Result<()> {
        match self {
            Self::Http1(session) => session.write_head(&head, body == Follows::Now).await,
            // The frame of the head ends a request without a body: some servers take an empty frame of data for one.
            Self::Http2(session) => session.write_head(*head, body == Follows::Nothing),
        }
    }

    /// Writes a part of the body. The last one is followed by [`Self::end_body`].
    pub async fn write_part(&mut self, part: Bytes, is_last: bool) -> pingora::Result<()> {
        either!(self, session => session.write_part(part, is_last).await)
    }

    /// Ends the body, with its trailers, or a request without a body.
    pub async fn end_body(&mut self, trailers: HeaderMap) -> pingora::Result<()> {
        match self {
            Self::Http1(session) => session.end_body(&trailers).await,
            Self::Http2(session) => session.end_body(trailers),
        }
    }

    /// Reads the next head: that of an early answer, or of the answer.
    pub async fn read_head(&mut self) -> pingora::Result<()> {
        either!(self, session => session.read_head().await)
    }

    /// Head that was read last.
    pub fn head(&self) -> Option<&ResponseHead> {
        either!(self, session => session.head())
    }

    /// Takes the head that was read last.
    pub fn take_head(&mut self) -> Option<ResponseHead> {
        either!(self, session => session.take_head())
    }

    /// Reads the next part of the body; `None` at its end.
    pub async fn read_part(&mut self) -> pingora::Result<Option<Bytes>> {
        either!(self, session => session.read_part().await)
    }

    /// Reads the trailers of an answer whose body was read to its end.
    pub async fn trailers(&mut self) -> Option<HeaderMap> {
        match self {
            Self::Http1(session) => session.take_trailers(),
            Self::Http2(session) => session.trailers().await,
        }
    }

    /// True once the answer was read to its end.
    pub fn is_done(&self) -> bool {
        either!(self, session => session.is_done())
    }

    /// Ends the connection with this conversation, whose head was read. HTTP/2 has no such connection.
    pub fn close_after(&mut self) {
        if let Self::Http1(session) = self {
            session.close_after();
        }
    }

    /// Takes the connection over behind the head of a 101; `None` over HTTP/2, which has no such answer.
    pub fn into_tunnel(self) -> Option<ServerTunnel> {
        match self {
            Self::Http1(session) => Some(session.into_tunnel()),
            Self::Http2(_) => None,
        }
    }

    /// Ends the conversation: of HTTP/2 that is one stream, of HTTP/1 the connection.
    pub async fn shutdown(&mut self) {
        match self {
            Self::Http1(session) => session.shutdown().await,
            Self::Http2(session) => session.shutdown(),
        }
    }
}
