//! Byte stream of a connection with a client, whose writes fail if the client reads nothing for too long.

use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Sleep;
use tokio_rustls::server::TlsStream;

/// Byte stream of a connection.
#[derive(Debug)]
pub enum Transport {
    /// TCP.
    Plain(TcpStream),
    /// TLS.
    Tls(Box<TlsStream<TcpStream>>),
    /// Socket within the process, for requests of the gateway's own.
    Inside(UnixStream),
}

/// Calls the same method of either transport.
macro_rules! either {
    ($transport:expr, $stream:ident => $call:expr) => {
        match $transport {
            Transport::Plain($stream) => $call,
            Transport::Tls($stream) => $call,
            Transport::Inside($stream) => $call,
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
pub struct WriteBounded {
    transport: Transport,
    timeout: Duration,
    timeouts: Counter,
    /// Timer that runs while a write waits for the client.
    waits: Option<Pin<Box<Sleep>>>,
    /// True while the connection is being closed, which has a time limit of its own.
    is_closing: bool,
}

impl WriteBounded {
    /// Bounds the writes of a transport: its client must read some of the written bytes within `timeout`; `timeouts` counts
    /// clients that do not.
    pub fn new(transport: Transport, timeout: Duration, timeouts: Counter) -> Self {
        Self { transport, timeout, timeouts, waits: None, is_closing: false }
    }

    /// Moves the connection to the runtime that runs this code, whose thread then learns of its bytes. To be called between two
    /// reads and writes.
    ///
    /// # Errors
    /// The system refused a descriptor.
    pub fn move_here(&mut self) -> io::Result<()> {
        let stream = match &mut self.transport {
            Transport::Plain(stream) => stream,
            Transport::Tls(stream) => stream.get_mut().0,
            // It is used where it was made.
            Transport::Inside(_) => return Ok(()),
        };
        // The registration ends with its descriptor, which must be another one than that of the next.
        let again = std::net::TcpStream::from(stream.as_fd().try_clone_to_owned()?);
        *stream = TcpStream::from_std(again)?;
        Ok(())
    }

    /// Lifts the bound: the connection is being closed, which has a time limit of its own.
    pub fn begin_closing(&mut self) {
        self.is_closing = true;
    }

    fn judge<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() || self.is_closing {
            self.waits = None;
            return polled;
        }
        let timeout = self.timeout;
        let waits = self.waits.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        ready!(waits.as_mut().poll(cx));
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
