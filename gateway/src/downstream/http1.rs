//! Requests of HTTP/1.1 and 1.0 on a client's connection (RFC 9112), one after the other. [`Framer`] decides where each of
//! them ends, from every byte once; the fields are parsed after it. Values of fields and parts of bodies are slices of the
//! bytes that were read.
//!
//! Pipelined requests wait in the buffer. A read or write that is dropped loses nothing.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::header::{self, HeaderMap};
use http::uri::PathAndQuery;
use http::{Method, StatusCode, Version};
use pingora::ErrorType::{ConnectionClosed, InvalidHTTPHeader, ReadError, WriteError};
use pingora::http::RequestHeader;
use pingora::protocols::http::authority::validate_request_authority;
use pingora::{Error, OrErr};
use spillway_filter::Fields;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::transport::WriteBounded;
use super::tunnel::ClientTunnel;
use crate::clock;
use crate::framing::{FieldPlace, Framer, Violation};
use crate::message::{RequestHead, ResponseHead};
use crate::telemetry::{ListenerMetrics, MalformedReason};
use crate::timer::KeptTimer;
use crate::wire::{
    ReadBuffer, append_chunk_line, append_field, append_fields, append_last_chunk, field_name, field_value,
    keeps_connection, parse_fields, size_of_fields, trailers_of,
};

/// Bytes that are read at a time while a head is awaited. They are read onto the stack: an idle connection has no buffer.
const HEAD_READ: usize = 4 << 10;
/// Most bytes of later requests that are read while a request runs, to notice a client that leaves.
const PIPELINED: usize = 4 << 10;
/// Most bytes of memory for heads that an idle connection keeps.
const KEPT: usize = 512;
/// Bytes of a part of a body up to which it is copied behind what waits, to go out as one piece.
const JOINED: usize = 16 << 10;

/// Time to flush and end the stream of a client that may not be reading, seconds.
pub const GOODBYE: Duration = Duration::from_secs(1);

/// Time for a client to read the answer to a request that it still sends, seconds. Closing a connection with unread
/// bytes resets it, and the reset may overtake the answer (RFC 9112, 9.6).
const LINGER: Duration = Duration::from_secs(2);

/// Framing of the answer that is being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writing {
    /// No answer has begun.
    Head,
    /// A body, before so many further bytes.
    Length(u64),
    Chunked,
    UntilClose,
    Done,
}

/// Requests of a connection.
pub struct Http1Session {
    stream: WriteBounded,
    framer: Framer,
    metrics: Arc<ListenerMetrics>,
    /// Bytes that were read and belong to no part yet.
    read: ReadBuffer,
    /// Bytes of a head at the beginning of `read` that the framer has passed.
    scanned: usize,
    head: RequestHead,
    /// True if the request has no body.
    is_empty: bool,
    /// Bytes of the body that were read.
    body_bytes: u64,
    /// Trailers as they came, with the empty line behind them.
    trailers: Vec<u8>,
    /// Bytes that wait to be written behind the first `sent` of them, then `part`, then `end`.
    unsent: Vec<u8>,
    sent: usize,
    part: Bytes,
    end: &'static [u8],
    writing: Writing,
    /// Status of the answer, once its head was written.
    written: Option<StatusCode>,
    /// True if the connection may carry another request.
    keeps: bool,
    timer: KeptTimer,
}

impl Http1Session {
    /// Begins at the first byte of a connection. Heads and trailers may have `most` bytes each.
    pub fn new(stream: WriteBounded, most: u64, metrics: Arc<ListenerMetrics>) -> Self {
        Self {
            stream,
            framer: Framer::new(most),
            metrics,
            read: ReadBuffer::new(),
            scanned: 0,
            head: no_head(),
            is_empty: true,
            body_bytes: 0,
            trailers: Vec::new(),
            unsent: Vec::new(),
            sent: 0,
            part: Bytes::new(),
            end: b"",
            writing: Writing::Head,
            written: None,
            keeps: false,
            timer: KeptTimer::default(),
        }
    }

    /// Lends the timer of the connection.
    pub fn lend_timer(&mut self) -> KeptTimer {
        std::mem::take(&mut self.timer)
    }

    /// Takes the timer of the connection back.
    pub fn return_timer(&mut self, timer: KeptTimer) {
        self.timer = timer;
    }

    /// Reads the head of the next request. Returns false where the client has closed the connection instead.
    pub async fn read_request(&mut self) -> pingora::Result<bool> {
        if self.read.bytes.is_empty() {
            self.read.bytes = BytesMut::new();
        }
        if self.unsent.capacity() > KEPT && self.unsent.is_empty() {
            self.unsent = Vec::new();
        }
        (self.writing, self.written, self.keeps, self.body_bytes) = (Writing::Head, None, false, 0);
        self.trailers = Vec::new();
        // A refusal of the next head must not be framed by this one.
        self.head = no_head();
        loop {
            if let Some(new) = self.read.bytes.get(self.scanned..).filter(|new| !new.is_empty()) {
                let (passed, is_whole) = self.framer.scan_head(new).map_err(|violation| self.violated(violation))?;
                self.scanned += passed;
                if is_whole {
                    let head = self.read.bytes.split_to(std::mem::take(&mut self.scanned)).freeze();
                    self.is_empty = self.framer.is_between();
                    self.head = parse(head, self.framer.places())?;
                    self.keeps = keeps_connection(self.head.version, &self.head.headers);
                    return Ok(true);
                }
            }
            match self.fill_small().await {
                Ok(0) if self.read.bytes.iter().all(|byte| matches!(byte, b'\r' | b'\n')) => return Ok(false),
                Ok(0) => return Error::e_explain(ConnectionClosed, "a request is cut"),
                Ok(_) => {}
                Err(e) => return Error::e_because(ReadError, "the head of a request", e),
            }
        }
    }

    /// True if a part of the next request has come.
    pub fn has_begun(&self) -> bool {
        self.read.bytes.iter().any(|byte| !matches!(byte, b'\r' | b'\n'))
    }

    /// Error of a request that breaks the framing.
    fn violated(&self, violation: Violation) -> Box<Error> {
        self.metrics.malformed(reason(violation));
        Error::because(ReadError, "the framing of a request", io::Error::from(violation))
    }

    /// Head of the request.
    pub fn head(&self) -> &RequestHead {
        &self.head
    }

    /// Head of the request, to be changed.
    pub fn head_mut(&mut self) -> &mut RequestHead {
        &mut self.head
    }

    /// True if the request has no body.
    pub fn is_body_empty(&self) -> bool {
        self.is_empty
    }

    /// True once the body was read to its end.
    pub fn is_body_done(&self) -> bool {
        self.framer.is_between()
    }

    /// Reads the next part of the body; `None` at its end.
    pub async fn read_body(&mut self) -> pingora::Result<Option<Bytes>> {
        loop {
            if self.framer.is_between() {
                return Ok(None);
            }
            if !self.read.bytes.is_empty() {
                let opaque = usize::try_from(self.framer.opaque()).unwrap_or(usize::MAX);
                if opaque > 0 {
                    let part = self.read.take(opaque.min(self.read.bytes.len()));
                    let length = u64::try_from(part.len()).unwrap_or(u64::MAX);
                    self.body_bytes = self.body_bytes.saturating_add(length);
                    self.framer.skip(length);
                    return Ok(Some(part));
                }
                let in_trailers = self.framer.is_in_trailers();
                let passed =
                    self.framer.scan_framing(&self.read.bytes).map_err(|violation| self.violated(violation))?;
                let new = self.read.bytes.get(..passed).unwrap_or_default();
                // Most bodies have an empty line in place of trailers.
                if in_trailers && (new != b"\r\n" || !self.trailers.is_empty()) {
                    self.trailers.extend_from_slice(new);
                }
                self.read.bytes.advance(passed);
                continue;
            }
            match self.fill().await {
                Ok(0) => return Error::e_explain(ConnectionClosed, "the body of a request is cut"),
                Ok(_) => {}
                Err(e) => return Error::e_because(ReadError, "the body of a request", e),
            }
        }
    }

    /// Bytes of the body that were read.
    pub fn body_bytes(&self) -> u64 {
        self.body_bytes
    }

    /// Trailers of a request whose body was read to its end.
    pub fn trailers(&self) -> Option<HeaderMap> {
        if self.trailers.is_empty() || !self.framer.is_between() {
            return None;
        }
        parse_fields(&self.trailers, |_, fields| trailers_of(fields)).ok()??.ok()?
    }

    /// Waits until the client leaves: that is an error. Bytes of its next requests wait. Sends what was written before.
    pub async fn left(&mut self) -> pingora::Error {
        let left = loop {
            if self.read.bytes.len() >= PIPELINED {
                match self.flush().await {
                    Ok(()) => return std::future::pending().await,
                    Err(e) => break e,
                }
            }
            match self.fill_small().await {
                Ok(0) => break Error::explain(ConnectionClosed, "the client has closed the connection"),
                Ok(_) => {}
                Err(e) => break Error::because(ReadError, "the next request", e),
            }
        };
        *left
    }

    /// True if the connection may carry another request after this one.
    pub fn keeps(&self) -> bool {
        self.keeps
    }

    /// Closes the connection after this request.
    pub fn close_after(&mut self) {
        self.keeps = false;
    }

    /// Status of the answer, or of the last early one, once its head was written.
    pub fn written(&self) -> Option<StatusCode> {
        self.written
    }

    /// Writes the head of an answer, or of an early one (1xx). The head of an answer with a length waits for its body, which
    /// follows at once in most cases; [`Self::left`] sends it otherwise.
    pub async fn write_head(&mut self, head: &ResponseHead) -> pingora::Result<()> {
        if self.writing != Writing::Head {
            return Error::e_explain(WriteError, "a second head of one answer");
        }
        let is_early = head.status.is_informational();
        if !is_early {
            self.writing = self.framing(head);
            self.keeps &= self.writing != Writing::UntilClose;
        }
        self.written = Some(head.status);
        self.append_head(head, is_early);
        match self.writing {
            Writing::Length(_) => Ok(()),
            _ => self.flush().await,
        }
    }

    /// Framing of an answer (RFC 9112, 6.3).
    fn framing(&self, head: &ResponseHead) -> Writing {
        if self.head.method == Method::HEAD || matches!(head.status.as_u16(), 204 | 304) {
            return Writing::Done;
        }
        if head.headers.contains_key(header::TRANSFER_ENCODING) {
            return Writing::Chunked;
        }
        match head.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok()) {
            Some(0) => Writing::Done,
            Some(length) => Writing::Length(length),
            None => Writing::UntilClose,
        }
    }

    fn append_head(&mut self, head: &ResponseHead, is_early: bool) {
        let out = &mut self.unsent;
        out.reserve(size_of_fields(&head.headers) + 128);
        let reason = head.reason();
        for part in [b"HTTP/1.1 ", head.status.as_str().as_bytes(), b" ", reason.as_bytes(), b"\r\n"] {
            out.extend_from_slice(part);
        }
        append_fields(&head.headers, out);
        if !is_early {
            if !head.headers.contains_key(header::DATE) {
                append_field(b"date", clock::http_date().as_bytes(), out);
            }
            match (self.keeps, self.head.version) {
                (false, _) => append_field(b"connection", b"close", out),
                (true, Version::HTTP_10) => append_field(b"connection", b"keep-alive", out),
                (true, _) => {}
            }
        }
        out.extend_from_slice(b"\r\n");
    }

    /// Writes a part of the body, the last one where it `ends`.
    pub async fn write_body(&mut self, part: Bytes, ends: bool) -> pingora::Result<()> {
        // A write before this one may have been dropped.
        if !self.part.is_empty() || !self.end.is_empty() {
            self.flush().await?;
        }
        let length = u64::try_from(part.len()).unwrap_or(u64::MAX);
        match &mut self.writing {
            Writing::Head => return Error::e_explain(WriteError, "a body before its head"),
            Writing::Done if ends || part.is_empty() => return self.flush().await,
            Writing::Done => return Ok(()),
            Writing::Length(left) => match left.checked_sub(length) {
                Some(rest) => *left = rest,
                None => {
                    self.keeps = false;
                    return Error::e_explain(WriteError, "a body longer than its Content-Length");
                }
            },
            Writing::Chunked if length > 0 => {
                append_chunk_line(length, &mut self.unsent);
                self.end = if ends { b"\r\n0\r\n\r\n" } else { b"\r\n" };
            }
            Writing::Chunked => self.end = if ends { b"0\r\n\r\n" } else { b"" },
            Writing::UntilClose => {}
        }
        if part.len() <= JOINED {
            self.unsent.extend_from_slice(&part);
            self.unsent.extend_from_slice(std::mem::take(&mut self.end));
        } else {
            self.part = part;
        }
        if ends || self.writing == Writing::Length(0) {
            // Closed, so that the client sees that the rest is missing.
            self.keeps &= !matches!(self.writing, Writing::Length(1..));
            self.writing = Writing::Done;
        }
        self.flush().await
    }

    /// Writes trailers, and so ends the answer. One that is not in chunks ends without them.
    pub async fn write_trailers(&mut self, trailers: &HeaderMap) -> pingora::Result<()> {
        if self.writing != Writing::Chunked {
            return self.write_body(Bytes::new(), true).await;
        }
        // A write before this one may have been dropped.
        self.flush().await?;
        append_last_chunk(trailers, &mut self.unsent);
        self.writing = Writing::Done;
        self.flush().await
    }

    /// Ends an answer whose body was written in parts, and returns true if the connection can carry another request.
    pub async fn finish(&mut self) -> pingora::Result<bool> {
        match self.writing {
            Writing::Head | Writing::Length(_) => self.keeps = false,
            Writing::Chunked | Writing::UntilClose => self.write_body(Bytes::new(), true).await?,
            Writing::Done => {}
        }
        self.flush().await?;
        Ok(self.keeps)
    }

    /// Writes what waits.
    async fn flush(&mut self) -> pingora::Result<()> {
        poll_fn(|cx| self.poll_flush(cx)).await.or_err(WriteError, "an answer")
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !(self.unsent.is_empty() && self.part.is_empty() && self.end.is_empty()) {
            let unsent = self.unsent.get(self.sent..).unwrap_or_default();
            let written = if self.part.is_empty() && self.end.is_empty() {
                ready!(Pin::new(&mut self.stream).poll_write(cx, unsent))?
            } else {
                let pieces = [unsent, self.part.as_ref(), self.end].map(IoSlice::new);
                ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, &pieces))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_unsent = written.min(unsent.len());
            self.sent += of_unsent;
            if self.sent == self.unsent.len() {
                self.unsent.clear();
                self.sent = 0;
            }
            let of_part = (written - of_unsent).min(self.part.len());
            self.part.advance(of_part);
            self.end = self.end.get(written - of_unsent - of_part..).unwrap_or_default();
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Reads a part of a body.
    async fn fill(&mut self) -> io::Result<usize> {
        let left = usize::try_from(self.framer.opaque()).unwrap_or(usize::MAX);
        let room = self.read.make_room(left);
        let read = poll_fn(|cx| {
            let read = pin!(self.stream.read_buf(&mut self.read.bytes)).poll(cx);
            self.flush_while_waiting(cx, read)
        })
        .await?;
        self.read.has_read(read, room);
        Ok(read)
    }

    /// Reads a head, or what comes behind a request.
    async fn fill_small(&mut self) -> io::Result<usize> {
        poll_fn(|cx| {
            let mut bytes = [MaybeUninit::uninit(); HEAD_READ];
            let mut here = ReadBuf::uninit(&mut bytes);
            let read = Pin::new(&mut self.stream).poll_read(cx, &mut here).map_ok(|()| here.filled().len());
            self.read.bytes.extend_from_slice(here.filled());
            self.flush_while_waiting(cx, read)
        })
        .await
    }

    /// Sends what was written before while a read waits: a client may wait for the head of its answer before it sends on.
    fn flush_while_waiting(&mut self, cx: &mut Context<'_>, read: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if read.is_pending()
            && let Poll::Ready(Err(e)) = self.poll_flush(cx)
        {
            return Poll::Ready(Err(e));
        }
        read
    }

    /// Byte stream behind the head of a 101, and the bytes that the client has sent ahead of it, which are no request.
    pub fn tunnel(&mut self) -> ClientTunnel<'_> {
        self.scanned = 0;
        ClientTunnel::Http1 { early: self.read.bytes.split().freeze(), stream: &mut self.stream }
    }

    /// Ends the connection in order: sends what was written, and reads what a client still sends for a while, so that it gets
    /// its answer and no reset (RFC 9112, 9.6).
    pub async fn shutdown(&mut self) {
        self.stream.begin_closing();
        let goodbye = async {
            let is_flushed = self.flush().await.is_ok();
            self.stream.shutdown().await.is_ok() && is_flushed
        };
        let ended = tokio::time::timeout(GOODBYE, goodbye).await;
        // A client may send on behind an upgrade, whatever its server has said.
        let is_tunnel = self.written == Some(StatusCode::SWITCHING_PROTOCOLS);
        let is_sending =
            is_tunnel || !self.read.bytes.is_empty() || self.framer.is_in_body() || self.framer.violation().is_some();
        if ended == Ok(true) && is_sending {
            let linger = async {
                while matches!(self.fill_small().await, Ok(1..)) {
                    self.read.bytes.clear()
                }
            };
            let _ = tokio::time::timeout(LINGER, linger).await;
        }
    }
}

/// Head in place of one that was not read.
fn no_head() -> RequestHead {
    RequestHead::new(Method::GET, PathAndQuery::from_static("/"), Fields::default())
}

/// Parses a head whose grammar the framer has checked, and whose fields it has found.
fn parse(mut bytes: Bytes, fields: &[FieldPlace]) -> pingora::Result<RequestHead> {
    let headers = headers_of(&bytes, fields)?;
    // Empty lines before a request (RFC 9112, 2.2).
    let blank = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    bytes.advance(blank);
    let invalid = || Error::explain(InvalidHTTPHeader, "the request line");
    let line = memchr::memchr(b'\r', &bytes).and_then(|end| bytes.get(..end)).ok_or_else(invalid)?;
    let mut words = line.split(|byte| *byte == b' ');
    let (method, target) = (words.next().ok_or_else(invalid)?, words.next().ok_or_else(invalid)?);
    let version = if line.ends_with(b"1.1") { Version::HTTP_11 } else { Version::HTTP_10 };
    let target_at = method.len() + 1..method.len() + 1 + target.len();
    let method = Method::from_bytes(method).or_err(InvalidHTTPHeader, "the method")?;
    let target = bytes.slice(target_at);
    let is_path = target.starts_with(b"/") && !target.contains(&b'#');
    let mut head = match PathAndQuery::from_maybe_shared(target.clone()) {
        Ok(path) if is_path => {
            let mut hosts = headers.get_all(header::HOST).iter();
            if hosts.next().is_some_and(|host| host.as_bytes().contains(&b'@')) || hosts.next().is_some() {
                return Error::e_explain(InvalidHTTPHeader, "two hosts, or a host with a name of a user");
            }
            RequestHead::new(method, path, headers)
        }
        // Other forms, and paths that are no URI: their bytes are kept for the pipeline, which judges them.
        _ => other_form(method, &target, headers)?,
    };
    head.version = version;
    Ok(head)
}

/// Headers of a head, whose values share its bytes.
fn headers_of(bytes: &Bytes, fields: &[FieldPlace]) -> pingora::Result<Fields> {
    let mut headers = Fields::with_capacity(fields.len() + 4);
    for field in fields {
        let name = field_name(bytes.get(field.name()).unwrap_or_default())?;
        let value = field.value();
        let text = bytes.get(value.clone()).unwrap_or_default();
        let (blanks, text) = (text.len() - text.trim_ascii_start().len(), text.trim_ascii());
        let start = value.start + blanks;
        headers.append(name, field_value(bytes.slice(start..start + text.len()))?);
    }
    Ok(headers)
}

/// Head with a target of another form (RFC 9112, 3.2), whose authority must be that of `Host`.
fn other_form(method: Method, target: &[u8], headers: Fields) -> pingora::Result<RequestHead> {
    let mut judged = RequestHeader::build_no_case(method.clone(), target, Some(2))?;
    for host in headers.get_all(header::HOST) {
        judged.append_header(header::HOST, host.clone())?;
    }
    validate_request_authority(&judged)?;
    RequestHead::with_target(method, target, headers)
}

/// Violation of the framing that an error of a session carries.
pub fn violation_of(error: &Error) -> Option<Violation> {
    error.root_cause().downcast_ref::<io::Error>()?.get_ref()?.downcast_ref().copied()
}

/// Value of the metrics' label `reason`.
fn reason(violation: Violation) -> MalformedReason {
    match violation {
        Violation::TargetTooLong => MalformedReason::TargetTooLong,
        Violation::HeadTooLong => MalformedReason::HeaderTooLong,
        Violation::TooManyFields => MalformedReason::TooManyFields,
        Violation::RequestLine | Violation::Version => MalformedReason::RequestLine,
        Violation::Field => MalformedReason::Field,
        Violation::LineEnd => MalformedReason::LineEnd,
        Violation::Length | Violation::TwoLengths | Violation::Coding => MalformedReason::Length,
        Violation::UnknownCoding => MalformedReason::TransferCoding,
        Violation::ChunkLine | Violation::ChunkLineTooLong | Violation::ChunkEnd => MalformedReason::Chunk,
        Violation::Trailer | Violation::TrailersTooLong => MalformedReason::Trailers,
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use proptest::prelude::*;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::downstream::Transport;

    /// A client, and the session with it.
    async fn pair() -> (TcpStream, Http1Session) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.set_nodelay(true).unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let metrics = crate::telemetry::Metrics::new().listener("l");
        let stream = WriteBounded::new(Transport::Plain(server), Duration::from_secs(5), Counter::default());
        (client, Http1Session::new(stream, 1024, metrics))
    }

    fn answer(status: u16, fields: &[(&'static str, &'static str)]) -> ResponseHead {
        let mut head = ResponseHead::new(StatusCode::from_u16(status).unwrap(), 4);
        for (name, value) in fields {
            head.append_header(*name, *value).unwrap();
        }
        head
    }

    #[tokio::test]
    async fn a_client_that_still_sends_gets_its_answer_and_no_reset() {
        let (mut client, mut session) = pair().await;
        client.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n").await.unwrap();
        assert!(session.read_request().await.unwrap());
        session.close_after();
        session.write_head(&answer(413, &[("content-length", "0"), ("date", "now")])).await.unwrap();
        assert!(!session.finish().await.unwrap());
        let closing = tokio::spawn(async move { session.shutdown().await });
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            client.write_all(&[b'x'; 1000]).await.unwrap();
        }
        let mut read = String::new();
        client.read_to_string(&mut read).await.unwrap();
        let expected = "HTTP/1.1 413 Payload Too Large\r\ncontent-length: 0\r\ndate: now\r\nconnection: close\r\n\r\n";
        assert_eq!(read, expected);
        drop(client);
        closing.await.unwrap();
    }

    /// Bytes that a client gets for a request and an answer with these parts.
    async fn written(request: &str, head: ResponseHead, parts: &[&'static [u8]]) -> (String, bool) {
        let (mut client, mut session) = pair().await;
        client.write_all(request.as_bytes()).await.unwrap();
        assert!(session.read_request().await.unwrap());
        session.write_head(&head).await.unwrap();
        for (n, part) in parts.iter().enumerate() {
            session.write_body(Bytes::from_static(part), n + 1 == parts.len()).await.unwrap();
        }
        let keeps = session.finish().await.unwrap();
        drop(session);
        let mut read = String::new();
        client.read_to_string(&mut read).await.unwrap();
        (read, keeps)
    }

    #[tokio::test]
    async fn an_answer_is_framed_as_its_head_and_its_request_say() {
        let get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let date = ("date", "now");
        let (text, keeps) = written(get, answer(200, &[("content-length", "3"), date]), &[b"a", b"bc"]).await;
        assert_eq!((text.as_str(), keeps), ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\ndate: now\r\n\r\nabc", true));
        let chunked = || answer(200, &[("transfer-encoding", "chunked"), date]);
        let (text, keeps) = written(get, chunked(), &[b"a", b"", b"bc"]).await;
        assert!(text.ends_with("\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n") && keeps, "{text}");
        let (text, keeps) = written(get, chunked(), &[b"a", b""]).await;
        assert!(text.ends_with("\r\n\r\n1\r\na\r\n0\r\n\r\n") && keeps, "{text}");
        let (text, keeps) = written(get, chunked(), &[]).await;
        assert!(text.ends_with("\r\n\r\n0\r\n\r\n") && keeps, "ended by `finish`: {text}");
        static LONG: [u8; JOINED + 1] = [b'x'; JOINED + 1];
        let (text, keeps) = written(get, chunked(), &[&LONG, b"y"]).await;
        assert!(text.contains("4001\r\nxx") && text.ends_with("xx\r\n1\r\ny\r\n0\r\n\r\n") && keeps);
        let (text, keeps) = written(get, answer(200, &[date]), &[b"a", b"b"]).await;
        assert_eq!((text.as_str(), keeps), ("HTTP/1.1 200 OK\r\ndate: now\r\nconnection: close\r\n\r\nab", false));
        let (_, keeps) = written(get, answer(200, &[("content-length", "3")]), &[b"a"]).await;
        assert!(!keeps, "the rest is missing");
        let head = "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n";
        let (text, keeps) = written(head, answer(200, &[("content-length", "3"), date]), &[]).await;
        assert!(text.ends_with("content-length: 3\r\ndate: now\r\n\r\n") && keeps, "{text}");
        let old = "GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n";
        let (text, keeps) = written(old, answer(204, &[date]), &[]).await;
        assert!(text.ends_with("date: now\r\nconnection: keep-alive\r\n\r\n") && keeps, "{text}");
        for request in ["GET / HTTP/1.0\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nConnection: x, Close\r\n\r\n"] {
            let (text, keeps) = written(request, answer(204, &[date]), &[]).await;
            assert!(text.ends_with("connection: close\r\n\r\n") && !keeps, "{text}");
        }
        let (text, _) = written(get, answer(204, &[]), &[]).await;
        assert!(text.contains("\r\ndate: ") && text.contains(" GMT\r\n"), "{text}");
    }

    #[tokio::test]
    async fn a_head_is_sent_while_the_body_of_the_request_waits() {
        let (mut client, mut session) = pair().await;
        client.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n1").await.unwrap();
        assert!(session.read_request().await.unwrap());
        assert_eq!(session.read_body().await.unwrap().unwrap(), "1");
        session.write_head(&answer(200, &[("content-length", "3")])).await.unwrap();
        let client = async {
            let mut head = [0; 8];
            client.read_exact(&mut head).await.unwrap();
            client.write_all(b"2").await.unwrap();
            head
        };
        let (head, part) = tokio::join!(client, session.read_body());
        assert_eq!((&head, part.unwrap().unwrap().as_ref()), (b"HTTP/1.1", &b"2"[..]));
    }

    #[tokio::test]
    async fn a_refusal_of_a_head_is_not_framed_by_the_request_before() {
        let (mut client, mut session) = pair().await;
        client.write_all(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\nnonsense\r\n\r\n").await.unwrap();
        assert!(session.read_request().await.unwrap());
        session.write_head(&answer(204, &[])).await.unwrap();
        assert!(session.finish().await.unwrap());
        assert!(violation_of(&session.read_request().await.unwrap_err()).is_some());
        session.write_head(&answer(400, &[("content-length", "3")])).await.unwrap();
        session.write_body(Bytes::from_static(b"bad"), true).await.unwrap();
        assert!(!session.finish().await.unwrap());
        drop(session);
        let mut read = String::new();
        client.read_to_string(&mut read).await.unwrap();
        assert!(read.ends_with("\r\nconnection: close\r\n\r\nbad"), "{read}");
    }

    #[tokio::test]
    async fn a_client_that_leaves_is_noticed_and_one_that_pipelines_is_not_taken_for_it() {
        let (mut client, mut session) = pair().await;
        client.write_all(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        assert!(session.read_request().await.unwrap());
        session.write_head(&answer(200, &[("content-length", "5")])).await.unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(50), session.left()).await.is_err());
        let mut head = [0; 8];
        client.read_exact(&mut head).await.unwrap();
        assert_eq!(&head, b"HTTP/1.1", "the head was sent although its body waits");
        session.write_body(Bytes::from_static(b"hello"), true).await.unwrap();
        assert!(session.finish().await.unwrap());
        assert!(session.read_request().await.unwrap());
        assert_eq!(session.head().uri, "/2");
        drop(client);
        let _ = session.left().await;
    }

    /// Requests that a session reads from a connection, by target and body, and the violation that ended it.
    async fn served(bytes: Vec<u8>, sizes: Vec<usize>) -> (Vec<(String, Bytes)>, Option<Violation>) {
        let (mut client, mut session) = pair().await;
        let sending = tokio::spawn(async move {
            let mut rest = bytes.as_slice();
            for size in sizes.into_iter().cycle() {
                let (part, after) = rest.split_at(size.min(rest.len()));
                if part.is_empty() || client.write_all(part).await.is_err() {
                    break;
                }
                rest = after;
                tokio::task::yield_now().await;
            }
            let _ = client.shutdown().await;
            client
        });
        let mut requests = Vec::new();
        let violation = loop {
            match session.read_request().await {
                Ok(true) => {}
                Ok(false) => break None,
                Err(e) => {
                    let is_refused = *e.etype() == InvalidHTTPHeader;
                    assert!(!is_refused || violation_of(&e).is_none());
                    break violation_of(&e);
                }
            }
            let target = String::from_utf8_lossy(session.head().raw_path()).into_owned();
            let mut body = Vec::new();
            let failed = loop {
                match session.read_body().await {
                    Ok(Some(part)) => body.extend_from_slice(&part),
                    Ok(None) => break None,
                    Err(e) => break Some(violation_of(&e)),
                }
            };
            if let Some(violation) = failed {
                break violation;
            }
            requests.push((target, body.into()));
            let written = session.write_head(&answer(204, &[])).await;
            if written.is_err() || !matches!(session.finish().await, Ok(true)) {
                break None;
            }
        };
        drop(session);
        let _ = sending.await;
        (requests, violation)
    }

    fn message() -> impl Strategy<Value = (String, Vec<u8>, Vec<u8>)> {
        let body = proptest::collection::vec(any::<u8>(), 0..300);
        let target = proptest::sample::select(vec!["/", "/a?b=c", "/a\"b", "/x%20y"]);
        let extension = proptest::sample::select(vec!["", ";a", ";a=b", " ; a = \"b\\\"\""]);
        let trailers = proptest::sample::select(vec!["", "X: y\r\n", "Content-Length: 5\r\nX:\r\n"]);
        let sizes = proptest::collection::vec(1usize..90, 1..5);
        (target, body, 0..4u8, extension, trailers, sizes).prop_map(
            |(target, body, kind, extension, trailers, sizes)| {
                let (head, written) = match kind {
                    0 => (String::new(), Vec::new()),
                    1 => (format!("Content-Length: {}\r\n", body.len()), body.clone()),
                    _ => {
                        let (mut written, mut rest) = (Vec::new(), body.as_slice());
                        for size in sizes.into_iter().cycle() {
                            let (part, after) = rest.split_at(size.min(rest.len()));
                            written.extend_from_slice(format!("{:x}{extension}\r\n", part.len()).as_bytes());
                            if part.is_empty() {
                                break;
                            }
                            written.extend_from_slice(&[part, b"\r\n"].concat());
                            rest = after;
                        }
                        written.extend_from_slice(format!("{trailers}\r\n").as_bytes());
                        ("Transfer-Encoding: chunked\r\n".to_owned(), written)
                    }
                };
                let bytes = [format!("PUT {target} HTTP/1.1\r\nHost: a\r\n{head}\r\n").as_bytes(), &written].concat();
                (target.to_owned(), if kind == 0 { Vec::new() } else { body }, bytes)
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn a_session_reads_what_was_sent_and_a_message_ends_where_the_reader_ends_it(
            messages in proptest::collection::vec(message(), 1..5),
            sizes in proptest::collection::vec(1usize..700, 1..5),
            bad in proptest::option::of(proptest::sample::select(vec!["\n", "GET /\r\n", "GET / HTTP/1.1\nHost: a\n\n"])),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let mut bytes: Vec<u8> = messages.iter().flat_map(|(_, _, bytes)| bytes.clone()).collect();
            bytes.extend(bad.unwrap_or_default().as_bytes());
            let (served, violation) = runtime.block_on(served(bytes, sizes));
            let sent: Vec<_> = messages.into_iter().map(|(target, body, _)| (target, Bytes::from(body))).collect();
            prop_assert_eq!(served, sent);
            prop_assert_eq!(violation.is_some(), bad.is_some());
        }
    }
}
