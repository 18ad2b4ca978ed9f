//! Conversations of HTTP/2 with a server (RFC 9113), each on a stream of a connection that others share. The crate `h2` frames
//! the streams; the task of the connection drives them all.
//!
//! A read that is dropped loses nothing: what was read is returned at once.

use std::future::poll_fn;
use std::io::ErrorKind;
use std::pin::Pin;
use std::task::{Poll, ready};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Version};
use pingora::ErrorType::{H2Downgrade, H2Error, InvalidH2, ReadError, WriteError};
use pingora::{Error, OrErr, RetryType};

use super::shared::{Begun, Place};
use crate::message::{RequestHead, ResponseHead};
use crate::wire::{remove_fields_of_connection, send_part};

/// A conversation.
pub struct Http2Session {
    send: SendRequest<Bytes>,
    request: Option<SendStream<Bytes>>,
    /// Answer whose head was not read yet.
    awaited: Option<ResponseFuture>,
    /// Head that was read last.
    head: Option<ResponseHead>,
    /// True once a head was read, of an early answer too: the server has seen the request.
    has_answered: bool,
    answer: Option<RecvStream>,
    /// True once the end of the request was written.
    has_ended: bool,
    /// Place on its connection. Behind the parts of the stream, which end before it is free.
    _place: Place,
}

impl Http2Session {
    pub(super) fn new((send, place): Begun) -> Self {
        Self {
            send,
            request: None,
            awaited: None,
            head: None,
            has_answered: false,
            answer: None,
            has_ended: false,
            _place: place,
        }
    }

    /// Writes the head of a request, which is the whole request where it `ends`.
    pub(super) fn write_head(&mut self, head: RequestHead, ends: bool) -> pingora::Result<()> {
        let mut request = Request::new(());
        *request.method_mut() = head.method;
        *request.uri_mut() = head.uri;
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = head.headers.into();
        remove_fields_of_connection(request.headers_mut());
        let (awaited, body) = self.send.send_request(request, ends).or_err(H2Error, "the head of a request")?;
        (self.request, self.awaited, self.has_ended) = (Some(body), Some(awaited), ends);
        Ok(())
    }

    /// Writes a part of the body, the last one where it `ends`. Waits for room in the windows of the server.
    pub(super) async fn write_part(&mut self, part: Bytes, ends: bool) -> pingora::Result<()> {
        match &mut self.request {
            Some(request) if !self.has_ended => send_part(request, part, ends).await?,
            _ => return Error::e_explain(WriteError, "a part of a body without its head, or behind its end"),
        }
        self.has_ended = ends;
        Ok(())
    }

    /// Ends the body, with its trailers.
    pub(super) fn end_body(&mut self, trailers: HeaderMap) -> pingora::Result<()> {
        let Some(request) = self.request.as_mut().filter(|_| !self.has_ended) else { return Ok(()) };
        self.has_ended = true;
        if trailers.is_empty() {
            request.send_data(Bytes::new(), true).or_err(WriteError, "the end of a request")
        } else {
            request.send_trailers(trailers).or_err(WriteError, "the trailers of a request")
        }
    }

    /// Reads the next head: that of an early answer (1xx), or of the answer.
    pub(super) async fn read_head(&mut self) -> pingora::Result<()> {
        let Some(awaited) = &mut self.awaited else {
            return Error::e_explain(ReadError, "the head of an answer without a request, or a second one");
        };
        let read = poll_fn(|cx| {
            // The other poll would take an early answer for nothing.
            if let Some(early) = ready!(awaited.poll_informational(cx)) {
                return Poll::Ready(early.map(|early| (ResponseHead::from(early.into_parts().0), None)));
            }
            Pin::new(&mut *awaited).poll(cx).map_ok(|answer| {
                let (head, body) = answer.into_parts();
                (ResponseHead::from(head), Some(body))
            })
        });
        let (head, answer) = read.await.map_err(|e| of_head(e, self.has_answered))?;
        self.has_answered = true;
        self.head = Some(head);
        if answer.is_some() {
            (self.answer, self.awaited) = (answer, None);
        }
        Ok(())
    }

    /// Head that was read last.
    pub(super) fn head(&self) -> Option<&ResponseHead> {
        self.head.as_ref()
    }

    /// Takes the head that was read last.
    pub(super) fn take_head(&mut self) -> Option<ResponseHead> {
        self.head.take()
    }

    /// Reads the next part of the body; `None` at its end.
    pub(super) async fn read_part(&mut self) -> pingora::Result<Option<Bytes>> {
        let Some(answer) = &mut self.answer else {
            return Error::e_explain(ReadError, "a body before its head");
        };
        let Some(part) = answer.data().await else { return Ok(None) };
        let part = part.or_err(ReadError, "the body of an answer")?;
        let _ = answer.flow_control().release_capacity(part.len());
        Ok(Some(part))
    }

    /// Reads the trailers of an answer whose body was read to its end.
    pub(super) async fn trailers(&mut self) -> Option<HeaderMap> {
        self.answer.as_mut()?.trailers().await.ok()?
    }

    /// True once the answer was read to its end.
    pub(super) fn is_done(&self) -> bool {
        self.answer.as_ref().is_some_and(RecvStream::is_end_stream)
    }

    /// Resets the stream, unless both sides have ended it.
    pub(super) fn shutdown(&mut self) {
        let is_whole = self.has_ended && self.is_done();
        if let Some(request) = self.request.as_mut().filter(|_| !is_whole) {
            request.send_reset(Reason::CANCEL);
        }
    }
}

/// Error of reading a head, on a stream on which the server `has_answered` early or not.
fn of_head(e: h2::Error, has_answered: bool) -> Box<Error> {
    let what = "the head of an answer";
    if e.is_remote() && e.reason() == Some(Reason::HTTP_1_1_REQUIRED) {
        return Error::because(H2Downgrade, what, e);
    }
    if e.is_go_away() && e.is_library() && e.reason() == Some(Reason::PROTOCOL_ERROR) {
        return Error::because(InvalidH2, what, e);
    }
    let Some(io) = e.get_io() else { return Error::because(H2Error, what, e) };
    let is_of_system = io.raw_os_error().is_some()
        || matches!(io.kind(), ErrorKind::ConnectionReset | ErrorKind::TimedOut | ErrorKind::BrokenPipe);
    let mut e = Error::because(ReadError, what, e);
    if is_of_system && !has_answered {
        e.retry = RetryType::ReusedOnly;
    }
    e
}
