//! Byte stream of a connection to a server that speaks HTTP/1.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use pingora::protocols::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::unconstrained;

use super::dial::Open;

/// Byte stream of a connection.
pub(super) enum Transport {
    /// TCP.
    Plain {
        stream: TcpStream,
        /// Count of the connection at its endpoint.
        _open: Open,
    },
    /// TLS, which Pingora has opened.
    Tls(Stream),
}

impl Transport {
    /// True if the server has neither closed the connection nor sent anything, as far as the system has told. The budget of the
    /// task must not hide it: a task may ask of many connections.
    pub(super) fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        match self {
            Self::Plain { stream, .. } => {
                stream.try_read(&mut byte).is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock)
            }
            Self::Tls(stream) => {
                let mut read = ReadBuf::new(&mut byte);
                let read = poll_fn(|cx| Pin::new(&mut *stream).poll_read(cx, &mut read));
                pin!(unconstrained(read)).poll(&mut Context::from_waker(Waker::noop())).is_pending()
            }
        }
    }
}

/// Calls the same method of either stream.
macro_rules! either {
    ($transport:expr, $stream:ident => $call:expr) => {
        match $transport.get_mut() {
            Transport::Plain { stream: $stream, .. } => $call,
            Transport::Tls($stream) => $call,
        }
    };
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_flush(cx))
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}
