//! Client connection of HTTP/2. Buffers are small: ten thousand idle clients may hold one each.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, BufReader, BufWriter, ReadBuf};
use tokio::time::Sleep;

use crate::downstream::{GOODBYE, WriteBounded};

/// Read and write buffers, bytes.
const BUFFER: usize = 4 << 10;

/// Client connection.
#[derive(Debug)]
pub(super) struct ClientSocket {
    stream: BufReader<BufWriter<WriteBounded>>,
    /// Time that the end of the connection may take, once it has begun.
    closing: Option<Pin<Box<Sleep>>>,
}

impl ClientSocket {
    /// Makes a connection.
    pub(super) fn new(transport: WriteBounded) -> Self {
        let stream = BufReader::with_capacity(BUFFER, BufWriter::with_capacity(BUFFER, transport));
        Self { stream, closing: None }
    }
}

impl AsyncRead for ClientSocket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for ClientSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(self.stream.get_mut()).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.stream.get_mut()).poll_flush(cx)
    }
    /// Flushes the written bytes and ends the stream, in the time that a client has that may not be reading.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let closing = match &mut this.closing {
            Some(closing) => closing,
            None => {
                this.stream.get_mut().get_mut().begin_closing();
                this.closing.insert(Box::pin(tokio::time::sleep(GOODBYE)))
            }
        };
        if Pin::new(this.stream.get_mut()).poll_shutdown(cx).is_pending() {
            ready!(closing.as_mut().poll(cx));
        }
        Poll::Ready(Ok(()))
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
