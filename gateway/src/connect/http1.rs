//! Conversations of HTTP/1.1 with a server (RFC 9112), one after the other on a connection. The head of an answer is parsed
//! once, and its values and the parts of its body are slices of the bytes that were read.
//!
//! A read that is dropped loses nothing: bytes stay in the buffer until they are understood.

use std::io;
use std::mem::MaybeUninit;

use bytes::{Buf, Bytes};
use http::header::{self, HeaderMap};
use http::{Method, StatusCode, Version};
use pingora::ErrorType::{ConnectionClosed, InvalidHTTPHeader, ReadError, WriteError};
use pingora::{Error, ErrorType, OrErr, RetryType};
use spillway_filter::Fields;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::handshake::MAX_FIELDS;
use super::transport::Transport;
use super::tunnel::ServerTunnel;
use crate::message::{RequestHead, ResponseHead};
use crate::wire::{
    ReadBuffer, append_chunk_line, append_fields, append_last_chunk, field_name, field_value, keeps_connection,
    parse_fields, size_of_fields, trailers_of,
};

/// Error of an answer whose head, with the early answers before it, exceeds the bound on its bytes or fields.
const HEAD_TOO_LONG: ErrorType = ErrorType::new("HeadTooLong");

/// Bytes of a body up to which head and body are copied together, to go out as one write.
const JOINED: usize = 8 << 10;
/// Most bytes of the line that begins a chunk.
const MAX_CHUNK_LINE: usize = 4 << 10;
/// Most bytes of trailers.
const MAX_TRAILERS: usize = 64 << 10;

/// Framing of the request that is being sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sending {
    /// Bytes that the announced length still has.
    Length(u64),
    Chunked,
    /// The request has ended.
    Done,
}

/// Part of the answer that comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    Head,
    /// A body, before so many further bytes.
    Length(u64),
    /// The line that begins a chunk.
    ChunkLine,
    /// The data of a chunk, before so many further bytes.
    Chunk(u64),
    /// The line break behind the data of a chunk.
    ChunkEnd,
    Trailers,
    /// A body that ends with the connection.
    UntilClose,
    Done,
}

/// A conversation.
pub struct Http1Session {
    transport: Transport,
    read: ReadBuffer,
    /// Bytes of the request that wait to be written.
    unsent: Vec<u8>,
    sending: Sending,
    reading: Reading,
    /// Bytes that heads of the answer may still have.
    head_left: u64,
    is_head_request: bool,
    head: Option<ResponseHead>,
    /// True once a head was read: the server has seen the request.
    has_answered: bool,
    trailers: Option<HeaderMap>,
    /// True if the connection can carry another conversation after this one.
    can_reuse: bool,
}

impl Http1Session {
    /// Begins a conversation on a connection that carries no other.
    pub(super) fn new(transport: Transport) -> Self {
        Self {
            transport,
            read: ReadBuffer::new(),
            unsent: Vec::new(),
            sending: Sending::Done,
            reading: Reading::Head,
            head_left: u64::MAX,
            is_head_request: false,
            head: None,
            has_answered: false,
            trailers: None,
            can_reuse: false,
        }
    }

    /// Bounds the bytes of the answer's head, and of the early answers before it, together.
    pub(super) fn bound_head(&mut self, most: u64) {
        self.head_left = most;
    }

    /// Writes the head of a request. Where `body_follows` at once, the head waits for its first part.
    pub(super) async fn write_head(&mut self, head: &RequestHead, body_follows: bool) -> pingora::Result<()> {
        self.is_head_request = head.method == Method::HEAD;
        self.sending = sending(&head.headers);
        write_request_head(head, &mut self.unsent)?;
        if body_follows { Ok(()) } else { self.flush().await }
    }

    /// Writes a part of the body. The last one goes out with [`Self::end_body`].
    pub(super) async fn write_part(&mut self, part: Bytes, is_last: bool) -> pingora::Result<()> {
        if part.is_empty() {
            return Ok(());
        }
        let length = u64::try_from(part.len()).unwrap_or(u64::MAX);
        match &mut self.sending {
            Sending::Done => return Error::e_explain(WriteError, "a part of a body behind its end"),
            Sending::Length(left) => match left.checked_sub(length) {
                Some(rest) => *left = rest,
                None => return Error::e_explain(WriteError, "a body longer than its Content-Length"),
            },
            Sending::Chunked => append_chunk_line(length, &mut self.unsent),
        }
        if part.len() <= JOINED {
            self.unsent.extend_from_slice(&part);
        } else {
            self.flush_before(&part).await?;
        }
        if self.sending == Sending::Chunked {
            self.unsent.extend_from_slice(b"\r\n");
        }
        if is_last { Ok(()) } else { self.flush().await }
    }

    /// Ends the body. Trailers follow one in chunks; another has none.
    pub(super) async fn end_body(&mut self, trailers: &HeaderMap) -> pingora::Result<()> {
        match self.sending {
            Sending::Chunked => append_last_chunk(trailers, &mut self.unsent),
            Sending::Length(0) | Sending::Done => {}
            Sending::Length(_) => return Error::e_explain(WriteError, "a body shorter than its Content-Length"),
        }
        self.sending = Sending::Done;
        self.flush().await
    }

    /// Writes what waits, and then `part`. A write that is dropped leaves the connection in an unknown state; it is then
    /// closed by its owner, since the request has not ended.
    async fn flush_before(&mut self, part: &[u8]) -> pingora::Result<()> {
        self.transport.write_all(&self.unsent).await.or_err(WriteError, "a part of a request")?;
        self.unsent.clear();
        self.transport.write_all(part).await.or_err(WriteError, "a part of a request")
    }

    async fn flush(&mut self) -> pingora::Result<()> {
        if !self.unsent.is_empty() {
            self.transport.write_all(&self.unsent).await.or_err(WriteError, "a part of a request")?;
            self.unsent.clear();
        }
        self.transport.flush().await.or_err(WriteError, "the end of a part of a request")
    }

    /// Reads the next head: that of an early answer (1xx), or of the answer.
    pub(super) async fn read_head(&mut self) -> pingora::Result<()> {
        loop {
            if let Some(length) = self.parse_head()? {
                self.head_left = self.head_left.saturating_sub(length);
                self.has_answered = true;
                return Ok(());
            }
            // A connection that was closed while it was idle has nothing of an answer.
            let may_be_stale = !self.has_answered && self.read.bytes.is_empty();
            if u64::try_from(self.read.bytes.len()).unwrap_or(u64::MAX) > self.head_left {
                return Error::e_explain(HEAD_TOO_LONG, "the head of an answer exceeds its bound");
            }
            match self.read_more().await {
                Ok(0) => {
                    let what = format!("no answer after {} bytes of its head", self.read.bytes.len());
                    let mut e = Error::explain(ConnectionClosed, what);
                    if may_be_stale {
                        e.retry = RetryType::ReusedOnly;
                    }
                    return Err(e);
                }
                Ok(_) => {}
                Err(e) => {
                    let is_of_system = e.raw_os_error().is_some();
                    let mut e = Error::because(ReadError, "the head of an answer", e);
                    if is_of_system && may_be_stale {
                        e.retry = RetryType::ReusedOnly;
                    }
                    return Err(e);
                }
            }
        }
    }

    /// Parses a head at the beginning of the buffer. Returns its length, or `None` if it is not there in full.
    fn parse_head(&mut self) -> pingora::Result<Option<u64>> {
        if self.read.bytes.is_empty() {
            return Ok(None);
        }
        let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
        let mut parsed = httparse::Response::new(&mut []);
        let mut parser = httparse::ParserConfig::default();
        parser.allow_spaces_after_header_name_in_responses(true);
        parser.allow_obsolete_multiline_headers_in_responses(true);
        let length = match parser.parse_response_with_uninit_headers(&mut parsed, &self.read.bytes, &mut fields) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(httparse::Error::TooManyHeaders) => {
                return Error::e_explain(HEAD_TOO_LONG, "the head of an answer has too many fields");
            }
            Err(e) => return Error::e_because(InvalidHTTPHeader, "the head of an answer", e),
        };
        if u64::try_from(length).unwrap_or(u64::MAX) > self.head_left {
            return Error::e_explain(HEAD_TOO_LONG, "the head of an answer exceeds its bound");
        }
        let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
        let status = status.ok_or_else(|| Error::explain(InvalidHTTPHeader, "an answer without a status"))?;
        let version = if parsed.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
        let reason = parsed.reason.filter(|reason| status.canonical_reason() != Some(*reason)).map(str::to_owned);
        let base = self.read.bytes.as_ptr().addr();
        // Places of the fields, so that their values can share the bytes of the buffer.
        let place = |text: &[u8]| (text.as_ptr().addr() - base, text.len());
        let mut places: smallvec::SmallVec<[_; 24]> = smallvec::SmallVec::new();
        for field in parsed.headers.iter() {
            places.push((place(field.name.as_bytes()), place(field.value)));
        }
        let bytes = self.read.bytes.split_to(length).freeze();
        let mut headers = Fields::with_capacity(places.len() + 4);
        for &((name_at, name), (at, long)) in &places {
            let name = field_name(bytes.get(name_at..name_at + name).unwrap_or_default())?;
            headers.append(name, field_value(bytes.slice(at..at + long))?);
        }
        self.settle(status, version, &mut headers)?;
        self.head = Some(ResponseHead::read(status, version, headers, reason.as_deref()));
        Ok(Some(u64::try_from(length).unwrap_or(u64::MAX)))
    }

    /// Decides where the body of an answer ends (RFC 9112, 6.3), and whether the connection can be reused after it.
    fn settle(&mut self, status: StatusCode, version: Version, headers: &mut Fields) -> pingora::Result<()> {
        if status.is_informational() {
            return Ok(());
        }
        let has_coding = headers.contains_key(header::TRANSFER_ENCODING);
        // A coding under HTTP/1.0 may have come through a server that does not know it (RFC 9112, 6.1).
        let is_odd = has_coding && version != Version::HTTP_11;
        self.can_reuse = keeps_connection(version, headers) && !is_odd;
        if has_coding {
            headers.remove(header::CONTENT_LENGTH);
        }
        let length = content_length(headers)?;
        self.reading = if self.is_head_request || matches!(status.as_u16(), 204 | 304) {
            Reading::Done
        } else if has_coding && is_chunked(headers) {
            Reading::ChunkLine
        } else if let Some(length) = length.filter(|_| !has_coding) {
            if length == 0 { Reading::Done } else { Reading::Length(length) }
        } else {
            Reading::UntilClose
        };
        self.can_reuse &= self.reading != Reading::UntilClose;
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
        loop {
            match self.reading {
                Reading::Done => return Ok(None),
                Reading::Head => return Error::e_explain(ReadError, "a body before its head"),
                Reading::Length(left) | Reading::Chunk(left) if !self.read.bytes.is_empty() => {
                    let here = usize::try_from(left).unwrap_or(usize::MAX).min(self.read.bytes.len());
                    let left = left - u64::try_from(here).unwrap_or(left);
                    self.reading = match (self.reading, left) {
                        (Reading::Chunk(_), 0) => Reading::ChunkEnd,
                        (Reading::Chunk(_), left) => Reading::Chunk(left),
                        (_, 0) => Reading::Done,
                        (_, left) => Reading::Length(left),
                    };
                    return Ok(Some(self.read.take(here)));
                }
                Reading::UntilClose if !self.read.bytes.is_empty() => {
                    return Ok(Some(self.read.take(self.read.bytes.len())));
                }
                Reading::ChunkLine | Reading::ChunkEnd | Reading::Trailers => {
                    if self.parse_framing()? {
                        continue;
                    }
                }
                Reading::Length(_) | Reading::Chunk(_) | Reading::UntilClose => {}
            }
            match self.read_more().await.or_err(ReadError, "the body of an answer")? {
                0 if self.reading == Reading::UntilClose => self.reading = Reading::Done,
                0 => return Error::e_explain(ConnectionClosed, "the body of an answer is cut"),
                _ => {}
            }
        }
    }

    /// Parses the framing between the parts of a body in chunks (RFC 9112, 7.1). Returns false if it is not there in full.
    fn parse_framing(&mut self) -> pingora::Result<bool> {
        let invalid = |what: &'static str| Error::explain(InvalidHTTPHeader, what);
        match self.reading {
            Reading::ChunkEnd => {
                if self.read.bytes.len() < 2 {
                    return Ok(false);
                }
                if !self.read.bytes.starts_with(b"\r\n") {
                    return Err(invalid("the data of a chunk is longer or shorter than its size says"));
                }
                self.read.bytes.advance(2);
                self.reading = Reading::ChunkLine;
            }
            Reading::ChunkLine => match httparse::parse_chunk_size(&self.read.bytes) {
                // The parser takes a line without a size for the last chunk, and line feeds in extensions.
                Ok(httparse::Status::Complete((length, size)))
                    if self.read.bytes.first().is_some_and(u8::is_ascii_hexdigit)
                        && memchr::memchr(b'\n', &self.read.bytes) == length.checked_sub(1) =>
                {
                    self.read.bytes.advance(length);
                    self.reading = if size == 0 { Reading::Trailers } else { Reading::Chunk(size) };
                }
                Ok(httparse::Status::Partial) if self.read.bytes.len() <= MAX_CHUNK_LINE => return Ok(false),
                _ => return Err(invalid("the line of a chunk is not a hexadecimal size, or is too long")),
            },
            _ => {
                let read = parse_fields(&self.read.bytes, |length, fields| (length, trailers_of(fields)));
                match read {
                    Ok(Some((length, trailers))) => {
                        self.trailers = trailers?;
                        self.read.bytes.advance(length);
                        self.reading = Reading::Done;
                    }
                    Ok(None) if self.read.bytes.len() <= MAX_TRAILERS => return Ok(false),
                    _ => return Err(invalid("the trailers of an answer are no fields, or too long")),
                }
            }
        }
        Ok(true)
    }

    /// Reads what the server has sent, and returns the number of bytes.
    async fn read_more(&mut self) -> io::Result<usize> {
        let room = self.read.make_room(usize::MAX);
        let read = self.transport.read_buf(&mut self.read.bytes).await?;
        self.read.has_read(read, room);
        Ok(read)
    }

    /// Trailers, once the body was read to its end.
    pub(super) fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.trailers.take()
    }

    /// True once the answer was read to its end.
    pub(super) fn is_done(&self) -> bool {
        self.reading == Reading::Done
    }

    /// Closes the connection in order.
    pub(super) async fn shutdown(&mut self) {
        let _ = self.transport.shutdown().await;
    }

    /// Ends the connection with this conversation, once the head of its answer was read.
    pub(super) fn close_after(&mut self) {
        self.can_reuse = false;
    }

    /// Takes the connection over behind the head of a 101.
    pub(super) fn into_tunnel(mut self) -> ServerTunnel {
        ServerTunnel::new(self.read.bytes.split().freeze(), self.transport)
    }

    /// Connection for another conversation; `None` where this one has left something on it, or its server closes it.
    pub(super) fn into_reusable(self) -> Option<Transport> {
        let is_clean =
            self.is_done() && self.sending == Sending::Done && self.unsent.is_empty() && self.read.bytes.is_empty();
        (is_clean && self.can_reuse).then_some(self.transport)
    }
}

/// Framing that the head of a request announces.
fn sending(headers: &Fields) -> Sending {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        return Sending::Chunked;
    }
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    length.map_or(Sending::Done, Sending::Length)
}

/// True if `chunked` is the last transfer coding.
fn is_chunked(headers: &Fields) -> bool {
    let last = headers.get_all(header::TRANSFER_ENCODING).iter().next_back();
    let last = last.and_then(|value| value.as_bytes().rsplit(|byte| *byte == b',').next());
    last.is_some_and(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"chunked"))
}

/// Length of an answer. The same length said several times counts once (RFC 9110, 8.6).
fn content_length(headers: &Fields) -> pingora::Result<Option<u64>> {
    let mut found = None;
    for word in
        headers.get_all(header::CONTENT_LENGTH).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
    {
        let word = word.trim_ascii();
        let is_number = !word.is_empty() && word.iter().all(u8::is_ascii_digit);
        let length = std::str::from_utf8(word).ok().filter(|_| is_number).and_then(|word| word.parse::<u64>().ok());
        match (length, found) {
            (None, _) => return Error::e_explain(InvalidHTTPHeader, "a Content-Length that is no decimal number"),
            (Some(length), Some(before)) if length != before => {
                return Error::e_explain(InvalidHTTPHeader, "two lengths of one answer");
            }
            (length, _) => found = length,
        }
    }
    Ok(found)
}

/// Writes the head of a request.
fn write_request_head(head: &RequestHead, out: &mut Vec<u8>) -> pingora::Result<()> {
    let target = head.raw_path();
    if target.is_empty() || target.iter().any(|byte| *byte <= b' ' || *byte == 0x7f) {
        return Error::e_explain(InvalidHTTPHeader, "the target of a request has a space or control character");
    }
    out.reserve(head.method.as_str().len() + target.len() + size_of_fields(&head.headers) + 16);
    for part in [head.method.as_str().as_bytes(), b" ", target, b" HTTP/1.1\r\n"] {
        out.extend_from_slice(part);
    }
    append_fields(&head.headers, out);
    out.extend_from_slice(b"\r\n");
    Ok(())
}

/// True if an error means that a head exceeded the bound on its bytes, or on its fields.
pub(super) fn is_over(error: &Error) -> bool {
    *error.etype() == HEAD_TOO_LONG
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::connect::dial::{Connections, Dial};

    /// A conversation, and its server.
    async fn pair() -> (Http1Session, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connections = std::sync::Arc::new(Connections::default());
        let dial = Dial { connections, most: 1 };
        let (stream, open) = dial.open(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        server.set_nodelay(true).unwrap();
        (Http1Session::new(Transport::Plain { stream, _open: open }), server)
    }

    fn request(method: Method, fields: &[(&'static str, &'static str)]) -> RequestHead {
        let headers =
            fields.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        RequestHead::new(method, http::uri::PathAndQuery::from_static("/x?y"), headers.collect::<Fields>())
    }

    /// Answer to a request with this method, sent in parts of `size` bytes: status, body, trailers, and whether the connection
    /// can be reused.
    async fn read(
        method: Method,
        answer: &[u8],
        size: usize,
    ) -> pingora::Result<(u16, Vec<u8>, Option<HeaderMap>, bool)> {
        let (mut session, mut server) = pair().await;
        session.bound_head(1000);
        session.write_head(&request(method, &[]), false).await.unwrap();
        session.end_body(&HeaderMap::new()).await.unwrap();
        let answer = answer.to_vec();
        let sending = tokio::spawn(async move {
            for part in answer.chunks(size) {
                server.write_all(part).await.unwrap();
                tokio::task::yield_now().await;
            }
            // An answer without a length ends here; others have ended before.
            server.shutdown().await.unwrap();
            server
        });
        let head = loop {
            session.read_head().await?;
            let head = session.take_head().unwrap();
            if !head.status.is_informational() {
                break head;
            }
        };
        let mut body = Vec::new();
        while let Some(part) = session.read_part().await? {
            assert!(!part.is_empty());
            body.extend_from_slice(&part);
        }
        drop(sending.await);
        let trailers = session.take_trailers();
        Ok((head.status.as_u16(), body, trailers, session.into_reusable().is_some()))
    }

    #[tokio::test]
    async fn an_answer_ends_where_its_head_says_however_it_is_cut() {
        let chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1;x=y\r\nc\r\n0\r\n";
        let with_trailers = [&chunks[..], b"Grpc-Status: 0\r\n\r\n"].concat();
        for size in [1, 2, 3, 7, 1000] {
            for (answer, expected, keeps) in [
                (&b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"[..], &b"abc"[..], true),
                (b"HTTP/1.1 200 OK\r\ncontent-length: 3, 3\r\nContent-Length: 3\r\n\r\nabc", b"abc", true),
                (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"", true),
                (b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", b"", true),
                (
                    b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
                    b"x",
                    true,
                ),
                (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", b"until the end", false),
                (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: Close\r\n\r\nabc", b"abc", false),
                (b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc", b"abc", false),
                (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\nabc", b"abc", true),
                (&with_trailers, b"abc", true),
                (&[&chunks[..], b"\r\n"].concat(), b"abc", true),
                // A length beside chunks is none (RFC 9112, 6.3).
                (
                    b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
                    b"a",
                    true,
                ),
            ] {
                let (_, body, trailers, reusable) = read(Method::GET, answer, size).await.unwrap();
                let text = String::from_utf8_lossy(answer);
                assert_eq!((body.as_slice(), reusable), (expected, keeps), "{text} in parts of {size}");
                assert_eq!(trailers.is_some(), answer == with_trailers, "{text}");
            }
            let head = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n";
            assert_eq!(read(Method::HEAD, head, size).await.unwrap().1, b"");
        }
        let beyond = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab";
        assert!(!read(Method::GET, beyond, 1000).await.unwrap().3, "what is left over is no answer");
    }

    #[tokio::test]
    async fn an_answer_that_breaks_the_rules_is_an_error() {
        let long = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(1000));
        let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(2000));
        let early = "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n".repeat(50);
        let fields = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A:\r\n".repeat(257));
        for (answer, is_size) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc", false),
            ("HTTP/1.1 200 OK\r\nContent-Length: +3\r\n\r\nabc", false),
            ("HTTP/1.1 200 OK\r\nContent-Length: 3, \r\n\r\nabc", false),
            ("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabc", false),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n", false),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n\r\n\r\n", false),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n;x\r\n\r\n", false),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0;a=\"\n\"\r\n\r\n", false),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n", false),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n", false),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n11111111111111111\r\na\r\n", false),
            ("nonsense\r\n\r\n", false),
            ("HTTP/1.1 200 O", false),
            ("", false),
            (&long, true),
            (&endless, true),
            (&early, true),
            (&fields, true),
        ] {
            for size in [5, 5000] {
                let found = read(Method::GET, answer.as_bytes(), size).await;
                assert_eq!(found.as_ref().err().map(|e| is_over(e)), Some(is_size), "{answer:?}: {found:?}");
            }
        }
    }

    #[tokio::test]
    async fn only_a_connection_without_a_byte_of_an_answer_may_have_been_closed_before() {
        for (answer, may_be_stale) in [("", true), ("HTTP/1.1 20", false), ("HTTP/1.1 103 Early Hints\r\n\r\n", false)]
        {
            let (mut session, mut server) = pair().await;
            session.write_head(&request(Method::GET, &[]), false).await.unwrap();
            server.write_all(answer.as_bytes()).await.unwrap();
            server.shutdown().await.unwrap();
            let failed = loop {
                if let Err(e) = session.read_head().await {
                    break e;
                }
            };
            assert_eq!(matches!(failed.retry, RetryType::ReusedOnly), may_be_stale, "{answer:?}");
        }
    }

    #[tokio::test]
    async fn folded_lines_are_one_value_and_odd_reasons_stay() {
        let (mut session, mut server) = pair().await;
        session.write_head(&request(Method::GET, &[]), false).await.unwrap();
        server.write_all(b"HTTP/1.1 200 Fine\r\nA: b\r\n  c\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        session.read_head().await.unwrap();
        let head = session.take_head().unwrap();
        let words: Vec<&str> = head.headers["a"].to_str().unwrap().split_ascii_whitespace().collect();
        assert_eq!((head.reason(), words), ("Fine", vec!["b", "c"]));
    }

    #[tokio::test]
    async fn a_request_is_framed_as_its_head_says() {
        static LONG: [u8; JOINED + 1] = [b'x'; JOINED + 1];
        for (fields, parts, expected) in [
            (&[("content-length", "3")][..], &[&b"ab"[..], b"c"][..], "content-length: 3\r\n\r\nabc".to_owned()),
            (&[("transfer-encoding", "chunked")], &[b"ab", b"", b"c"], {
                "transfer-encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n".to_owned()
            }),
            (&[("transfer-encoding", "chunked")], &[], "transfer-encoding: chunked\r\n\r\n0\r\n\r\n".to_owned()),
            (&[("a", "b")], &[], "a: b\r\n\r\n".to_owned()),
            (&[("transfer-encoding", "chunked")], &[&LONG], {
                let body = String::from_utf8_lossy(&LONG);
                format!("transfer-encoding: chunked\r\n\r\n2001\r\n{body}\r\n0\r\n\r\n")
            }),
        ] {
            for follows in [true, false] {
                let (mut session, mut server) = pair().await;
                session.write_head(&request(Method::POST, fields), follows).await.unwrap();
                for (n, part) in parts.iter().enumerate() {
                    session.write_part(Bytes::from_static(part), follows && n + 1 == parts.len()).await.unwrap();
                }
                session.end_body(&HeaderMap::new()).await.unwrap();
                drop(session);
                let mut read = String::new();
                server.read_to_string(&mut read).await.unwrap();
                assert_eq!(read, format!("POST /x?y HTTP/1.1\r\n{expected}"));
            }
        }
        for parts in [&[&b"ab"[..]][..], &[b"abcd"]] {
            let (mut session, _server) = pair().await;
            session.write_head(&request(Method::POST, &[("content-length", "3")]), false).await.unwrap();
            let written = async {
                for part in parts {
                    session.write_part(Bytes::from_static(part), false).await?;
                }
                session.end_body(&HeaderMap::new()).await
            };
            assert!(written.await.is_err(), "{parts:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// Whatever bytes a server sends, in whatever parts, the reader ends without a panic.
        #[test]
        fn no_answer_makes_the_reader_panic(
            answer in proptest::collection::vec(prop_oneof![
                Just(b"HTTP/1.1 200 OK\r\n".to_vec()), Just(b"Content-Length: 4\r\n".to_vec()),
                Just(b"Transfer-Encoding: chunked\r\n".to_vec()), Just(b"\r\n".to_vec()), Just(b"4\r\nabcd\r\n".to_vec()),
                Just(b"0\r\n".to_vec()), proptest::collection::vec(any::<u8>(), 0..20),
            ], 0..8),
            size in 1usize..40,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let _ = runtime.block_on(read(Method::GET, &answer.concat(), size));
        }
    }
}
