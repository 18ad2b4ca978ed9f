//! Conversation with a server, over either version of HTTP.

use bytes::Bytes;
use http::HeaderMap;
use pingora::http::RequestHeader;
use pingora::protocols::http::client::HttpSession;

use super::http1::Http1Session;
use crate::message::{RequestHead, ResponseHead};

/// Conversation with a server.
pub enum UpstreamSession {
    /// HTTP/1.1, or 1.0 of the server.
    Http1(Box<Http1Session>),
    /// HTTP/2, by Pingora.
    Http2(Box<Http2Session>),
}

/// Conversation over HTTP/2.
pub struct Http2Session {
    pub(super) session: HttpSession,
    /// Head that was read last.
    head: Option<ResponseHead>,
}

impl Http2Session {
    pub(super) fn new(session: HttpSession) -> Self {
        Self { session, head: None }
    }
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
            Self::Http2(http2) => {
                let head = Box::new(RequestHeader::from(*head));
                match &mut http2.session {
                    HttpSession::H2(session) => session.write_request_header(head, body == Follows::Nothing),
                    session => session.write_request_header(head).await,
                }
            }
        }
    }

    /// Writes a part of the body. The last one is followed by [`Self::end_body`].
    pub async fn write_part(&mut self, part: Bytes, is_last: bool) -> pingora::Result<()> {
        match self {
            Self::Http1(session) => session.write_part(part, is_last).await,
            Self::Http2(http2) => http2.session.write_request_body(part, is_last).await,
        }
    }

    /// Ends the body, or a request without one.
    pub async fn end_body(&mut self) -> pingora::Result<()> {
        match self {
            Self::Http1(session) => session.end_body().await,
            Self::Http2(http2) => http2.session.finish_request_body().await,
        }
    }

    /// Reads the next head: that of an early answer, or of the answer.
    pub async fn read_head(&mut self) -> pingora::Result<()> {
        match self {
            Self::Http1(session) => session.read_head().await,
            Self::Http2(http2) => {
                http2.session.read_response_header().await?;
                let head = http2.session.response_header().map(|head| http::response::Parts::from(head.clone()));
                http2.head = head.map(ResponseHead::from);
                Ok(())
            }
        }
    }

    /// Head that was read last.
    pub fn head(&self) -> Option<&ResponseHead> {
        match self {
            Self::Http1(session) => session.head(),
            Self::Http2(http2) => http2.head.as_ref(),
        }
    }

    /// Takes the head that was read last.
    pub fn take_head(&mut self) -> Option<ResponseHead> {
        match self {
            Self::Http1(session) => session.take_head(),
            Self::Http2(http2) => http2.head.take(),
        }
    }

    /// Reads the next part of the body; `None` at its end.
    pub async fn read_part(&mut self) -> pingora::Result<Option<Bytes>> {
        match self {
            Self::Http1(session) => session.read_part().await,
            Self::Http2(http2) => http2.session.read_response_body().await,
        }
    }

    /// Reads the trailers of an answer whose body was read to its end.
    pub async fn trailers(&mut self) -> Option<HeaderMap> {
        match self {
            Self::Http1(session) => session.take_trailers(),
            Self::Http2(http2) => match &mut http2.session {
                HttpSession::H2(session) => session.read_trailers().await.ok()?,
                _ => None,
            },
        }
    }

    /// True once the answer was read to its end.
    pub fn is_done(&mut self) -> bool {
        match self {
            Self::Http1(session) => session.is_done(),
            Self::Http2(http2) => http2.session.response_done(),
        }
    }

    /// Ends the conversation: of HTTP/2 that is one stream, of HTTP/1 the connection.
    pub async fn shutdown(&mut self) {
        match self {
            Self::Http1(session) => session.shutdown().await,
            Self::Http2(http2) => http2.session.shutdown().await,
        }
    }
}
