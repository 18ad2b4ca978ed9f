//! Client connection, with or without TLS, for Pingora's sessions. Buffers are small: Pingora's own stream has a read
//! buffer of 64 KiB, too much for ten thousand idle clients.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest, UniqueID,
    UniqueIDType, raw_connect::ProxyDigest,
};
use prometheus_client::metrics::counter::Counter;
use std::task::ready;
use tokio::io::{AsyncBufRead, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, BufWriter, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tokio_rustls::server::TlsStream;

use crate::framing::{Framer, Violation};
use crate::telemetry::{ListenerMetrics, MalformedReason};

/// Read buffer, bytes: holds most request heads. Bytes behind a request wait here and in the kernel.
const READ_BUFFER: usize = 4 << 10;
/// Write buffer, bytes: joins a head and a short body, or the parts of a chunk, to one packet.
const WRITE_BUFFER: usize = 4 << 10;

/// Time to flush and end the stream of a client that may not be reading, seconds.
const GOODBYE: Duration = Duration::from_secs(1);

/// Time for a client to read the answer to a request that it still sends, seconds. Closing a connection with unread
/// bytes resets it, and the reset may overtake the answer (RFC 9112, 9.6).
const LINGER: Duration = Duration::from_secs(2);

/// Byte stream of a connection.
#[derive(Debug)]
pub(super) enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Calls the same method of either transport.
macro_rules! either {
    ($transport:expr, $stream:ident => $call:expr) => {
        match $transport {
            Transport::Plain($stream) => $call,
            Transport::Tls($stream) => $call,
        }
    };
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self.get_mut(), stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        either!(self.get_mut(), stream => Pin::new(stream).poll_write(cx, buf))
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self.get_mut(), stream => Pin::new(stream).poll_flush(cx))
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self.get_mut(), stream => Pin::new(stream).poll_shutdown(cx))
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self.get_mut(), stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }
    fn is_write_vectored(&self) -> bool {
        either!(self, stream => stream.is_write_vectored())
    }
}

/// Transport whose writes fail if the client reads nothing for too long.
#[derive(Debug)]
struct WriteBounded {
    transport: Transport,
    timeout: Duration,
    timeouts: Counter,
    /// Timer that runs while a write waits for the client.
    waits: Option<Pin<Box<Sleep>>>,
    /// True while the connection is being closed, which has a time limit of its own.
    is_closing: bool,
}

impl WriteBounded {
    fn judge<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() || self.is_closing {
            self.waits = None;
            return polled;
        }
        let timeout = self.timeout;
        let waits = self.waits.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        std::task::ready!(waits.as_mut().poll(cx));
        self.timeouts.inc();
        self.waits = None;
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for WriteBounded {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().transport).poll_read(cx, buf)
    }
}

impl AsyncWrite for WriteBounded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.transport).poll_write(cx, buf);
        self.judge(cx, polled)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.transport).poll_flush(cx);
        self.judge(cx, polled)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.transport).poll_shutdown(cx);
        self.judge(cx, polled)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.transport).poll_write_vectored(cx, bufs);
        self.judge(cx, polled)
    }
    fn is_write_vectored(&self) -> bool {
        self.transport.is_write_vectored()
    }
}

/// Client connection.
pub(super) struct ClientSocket {
    stream: BufReader<BufWriter<WriteBounded>>,
    id: UniqueIDType,
    /// Checks the framing of an HTTP/1 connection.
    framing: Option<Framing>,
    closing: Option<Closing>,
}

/// Progress of the end of a connection, with the time that each part of it may take.
enum Closing {
    /// Flushes the written bytes and ends the stream.
    Goodbye(Pin<Box<Sleep>>),
    /// Reads and drops bytes that the client still sends. A system that gets bytes for a closed socket answers with a
    /// reset, and a client that gets a reset drops the answer that it has not read yet (RFC 9112, 9.6).
    Linger(Pin<Box<Sleep>>),
    Done,
}

struct Framing {
    framer: Framer,
    metrics: Arc<ListenerMetrics>,
}

impl std::fmt::Debug for ClientSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientSocket").field("id", &self.id).finish_non_exhaustive()
    }
}

impl ClientSocket {
    /// Makes a connection whose client must read some of the written bytes within `timeout`; `timeouts` counts clients
    /// that do not.
    pub(super) fn new(transport: Transport, timeout: Duration, timeouts: Counter) -> Self {
        use std::os::fd::AsRawFd;
        let id = match &transport {
            Transport::Plain(stream) => stream.as_raw_fd(),
            Transport::Tls(stream) => stream.get_ref().0.as_raw_fd(),
        };
        let bounded = WriteBounded { transport, timeout, timeouts, waits: None, is_closing: false };
        let stream = BufReader::with_capacity(READ_BUFFER, BufWriter::with_capacity(WRITE_BUFFER, bounded));
        Self { stream, id, framing: None, closing: None }
    }

    /// Reads HTTP/1 requests strictly from now on. Heads and trailers may have `most` bytes each. A read never goes
    /// beyond the end of a request: the bytes behind it are read with the next one.
    pub(super) fn framed(mut self, most: u64, metrics: Arc<ListenerMetrics>) -> Self {
        self.framing = Some(Framing { framer: Framer::new(most), metrics });
        self
    }

    /// True if the client is in the middle of a request, or has sent more than was read.
    fn is_sending(&self) -> bool {
        let is_in_request = |framing: &Framing| framing.framer.is_in_body() || framing.framer.violation().is_some();
        !self.stream.buffer().is_empty() || self.framing.as_ref().is_some_and(is_in_request)
    }

    /// Sends what was written before a read waits. Pingora leaves parts of an answer with a length in the buffer; while their
    /// server pauses, the session reads to see whether the client leaves.
    fn poll_flush_waiting(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.stream.get_ref().buffer().is_empty() {
            ready!(Pin::new(self.stream.get_mut()).poll_flush(cx))?;
        }
        Poll::Pending
    }
}

impl AsyncRead for ClientSocket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match this.poll_read_framed(cx, buf) {
            Poll::Pending => this.poll_flush_waiting(cx),
            ready => ready,
        }
    }
}

impl ClientSocket {
    fn poll_read_framed(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, framing, .. } = self;
        let Some(Framing { framer, metrics }) = framing else { return Pin::new(stream).poll_read(cx, buf) };
        let opaque = framer.opaque();
        if opaque > 0 {
            let before = buf.filled().len();
            ready!(Pin::new(&mut AsyncReadExt::take(stream, opaque)).poll_read(cx, buf))?;
            let read = buf.filled().len().saturating_sub(before);
            framer.skip(u64::try_from(read).unwrap_or(opaque));
            return Poll::Ready(Ok(()));
        }
        if let Some(violation) = framer.violation() {
            return Poll::Ready(Err(violation.into()));
        }
        let here = ready!(Pin::new(&mut *stream).poll_fill_buf(cx))?;
        let here = here.get(..buf.remaining()).unwrap_or(here);
        if here.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let scanned = framer.scan(here);
        if let Some(violation) = framer.violation() {
            metrics.malformed(reason(violation));
        }
        let read = scanned?;
        buf.put_slice(here.get(..read).unwrap_or_default());
        Pin::new(stream).consume(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(self.stream.get_mut()).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.stream.get_mut()).poll_flush(cx)
    }
    /// Pingora's sessions close a connection by this and not by [`Shutdown`].
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            match &mut this.closing {
                None => {
                    this.stream.get_mut().get_mut().is_closing = true;
                    this.closing = Some(Closing::Goodbye(Box::pin(tokio::time::sleep(GOODBYE))));
                }
                Some(Closing::Goodbye(time)) => {
                    let shut = Pin::new(this.stream.get_mut()).poll_shutdown(cx);
                    if shut.is_pending() {
                        ready!(time.as_mut().poll(cx));
                    }
                    let lingers = matches!(shut, Poll::Ready(Ok(()))) && this.framing.is_some() && this.is_sending();
                    this.closing = Some(if lingers {
                        Closing::Linger(Box::pin(tokio::time::sleep(LINGER)))
                    } else {
                        Closing::Done
                    });
                }
                Some(Closing::Linger(time)) => {
                    let length = match Pin::new(&mut this.stream).poll_fill_buf(cx) {
                        Poll::Ready(Ok(part)) => part.len(),
                        Poll::Ready(Err(_)) => 0,
                        Poll::Pending => {
                            ready!(time.as_mut().poll(cx));
                            0
                        }
                    };
                    if length == 0 || time.as_mut().poll(cx).is_ready() {
                        this.closing = Some(Closing::Done);
                    } else {
                        Pin::new(&mut this.stream).consume(length);
                    }
                }
                Some(Closing::Done) => return Poll::Ready(Ok(())),
            }
        }
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(self.stream.get_mut()).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.get_ref().is_write_vectored()
    }
}

#[async_trait]
impl Shutdown for ClientSocket {
    async fn shutdown(&mut self) {
        let _ = AsyncWriteExt::shutdown(self).await;
    }
}

impl UniqueID for ClientSocket {
    fn id(&self) -> UniqueIDType {
        self.id
    }
}

impl Ssl for ClientSocket {}

#[async_trait]
impl Peek for ClientSocket {}

impl GetTimingDigest for ClientSocket {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
    fn get_read_pending_time(&self) -> Duration {
        Duration::ZERO
    }
    fn get_write_pending_time(&self) -> Duration {
        Duration::ZERO
    }
}

impl GetProxyDigest for ClientSocket {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for ClientSocket {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        None
    }
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
    use bytes::Bytes;
    use pingora::protocols::http::ServerSession;
    use proptest::prelude::*;
    use tokio::net::TcpListener;

    use super::*;
    use crate::exchange::violation_of;

    #[tokio::test]
    async fn a_client_that_still_sends_gets_its_answer_and_no_reset() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let metrics = crate::telemetry::Metrics::new().listener("l");
        let socket = ClientSocket::new(Transport::Plain(server), Duration::from_secs(5), Counter::default());
        let mut socket = socket.framed(1024, metrics);
        client.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n").await.unwrap();
        let mut head = [0; 256];
        assert!(socket.read(&mut head).await.unwrap() > 0);
        let answer = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n";
        socket.write_all(answer).await.unwrap();
        // As Pingora's sessions do it.
        let closing = tokio::spawn(async move { AsyncWriteExt::shutdown(&mut socket).await });
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            client.write_all(&[b'x'; 1000]).await.unwrap();
        }
        let mut read = Vec::new();
        client.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, answer);
        drop(client);
        closing.await.unwrap().unwrap();
    }

    /// Requests that a session reads from a connection, by target and body, and the violation that ended it.
    async fn served(bytes: Vec<u8>, sizes: Vec<usize>) -> (Vec<(String, Bytes)>, Option<Violation>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        client.set_nodelay(true).unwrap();
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
        let metrics = crate::telemetry::Metrics::new().listener("l");
        let socket = ClientSocket::new(Transport::Plain(server), Duration::from_secs(5), Counter::default());
        let socket = socket.framed(1024, metrics);
        let mut session = ServerSession::new_http1(Box::new(socket));
        let mut requests = Vec::new();
        let violation = loop {
            session.set_pipelining_enabled(true);
            match session.read_request().await {
                Ok(true) => {}
                Ok(false) => break None,
                Err(e) => {
                    let is_refused = *e.etype() == pingora::ErrorType::InvalidHTTPHeader;
                    assert!(!is_refused || violation_of(&e).is_none());
                    break violation_of(&e);
                }
            }
            let target = String::from_utf8_lossy(session.req_header().raw_path()).into_owned();
            let mut body = Vec::new();
            let failed = loop {
                match session.read_request_body().await {
                    Ok(Some(part)) => body.extend_from_slice(&part),
                    Ok(None) => break None,
                    Err(e) => break Some(violation_of(&e)),
                }
            };
            if let Some(violation) = failed {
                break violation;
            }
            requests.push((target, body.into()));
            session.set_keepalive(Some(1));
            let head = pingora::http::ResponseHeader::build(204, None).unwrap();
            if session.write_response_header(Box::new(head)).await.is_err() {
                break None;
            }
            let Ok(Some(reusable)) = session.finish().await else { return (requests, None) };
            let (stream, early) = reusable.into_parts();
            assert!(early.is_none(), "a read went beyond the end of a request");
            session = ServerSession::new_http1(stream);
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
