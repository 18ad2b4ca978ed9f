//! Connection of HTTP/1 to a server, with a bound on the bytes read of an answer's header: Pingora's reader alone would hold
//! 1 MiB of a header that does not end.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use pingora::protocols::http::client::HttpSession;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest,
    UniqueID, UniqueIDType, raw_connect::ProxyDigest, tls::SslDigest,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// Value of [`Metered::left`] without a bound.
const UNBOUNDED: u64 = u64::MAX;

/// Error of reading an answer whose header, with the early answers before it, exceeds the bound.
#[derive(Debug, thiserror::Error)]
#[error("the header of the answer is longer than the backend's `limits.maxHeaderBytes`")]
struct HeaderTooLong;

/// Connection to a server that can bound the bytes read.
#[derive(Debug)]
pub(super) struct Metered {
    stream: Stream,
    /// Bytes that may still be read.
    left: AtomicU64,
}

impl Metered {
    pub(super) fn new(stream: Stream) -> Self {
        Self { stream, left: AtomicU64::new(UNBOUNDED) }
    }
}

/// Bounds the bytes that are read of the session's connection from now on; `None` lifts the bound.
pub fn bound(session: &HttpSession, bytes: Option<u64>) {
    let HttpSession::H1(session) = session else { return };
    if let Some(metered) = session.stream().as_ref().as_any().downcast_ref::<Metered>() {
        metered.left.store(bytes.unwrap_or(UNBOUNDED), Ordering::Relaxed);
    }
}

/// True if an error means that a header of HTTP/1 exceeded the bound on its bytes, or on its fields.
pub(super) fn is_over(error: &pingora::Error) -> bool {
    let cause = error.root_cause();
    let io = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    io.is_some_and(|io| io.is::<HeaderTooLong>())
        || matches!(cause.downcast_ref::<httparse::Error>(), Some(httparse::Error::TooManyHeaders))
}

impl AsyncRead for Metered {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, left } = self.get_mut();
        let may = *left.get_mut();
        if may == UNBOUNDED {
            return Pin::new(stream).poll_read(cx, buf);
        }
        if may == 0 {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, HeaderTooLong)));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut AsyncReadExt::take(stream, may)).poll_read(cx, buf))?;
        let read = u64::try_from(buf.filled().len().saturating_sub(before)).unwrap_or(may);
        *left.get_mut() = may.saturating_sub(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[async_trait]
impl Shutdown for Metered {
    async fn shutdown(&mut self) {
        self.stream.shutdown().await;
    }
}

impl UniqueID for Metered {
    fn id(&self) -> UniqueIDType {
        self.stream.id()
    }
}

impl Ssl for Metered {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.stream.get_ssl_digest()
    }
    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.stream.selected_alpn_proto()
    }
}

#[async_trait]
impl Peek for Metered {
    async fn try_peek(&mut self, buf: &mut [u8]) -> io::Result<bool> {
        self.stream.try_peek(buf).await
    }
}

impl GetTimingDigest for Metered {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.stream.get_timing_digest()
    }
    fn get_read_pending_time(&self) -> Duration {
        self.stream.get_read_pending_time()
    }
    fn get_write_pending_time(&self) -> Duration {
        self.stream.get_write_pending_time()
    }
}

impl GetProxyDigest for Metered {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.stream.get_proxy_digest()
    }
}

impl GetSocketDigest for Metered {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.stream.get_socket_digest()
    }
}
