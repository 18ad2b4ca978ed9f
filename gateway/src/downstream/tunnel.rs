//! Byte stream of a client behind an upgrade: the connection over HTTP/1.1, a stream over HTTP/2 (RFC 8441).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::transport::WriteBounded;

/// Byte stream of a client, behind the head of the answer that switched its protocol.
pub enum ClientTunnel<'s> {
    /// Connection of HTTP/1.1.
    Http1 {
        /// Bytes that the client sent ahead of the answer.
        early: Bytes,
        /// Connection.
        stream: &'s mut WriteBounded,
    },
    /// Stream of HTTP/2.
    Http2 {
        /// Rest of a frame that was read.
        early: Bytes,
        /// Side of the client.
        from: &'s mut RecvStream,
        /// Side of the server.
        to: &'s mut SendStream<Bytes>,
    },
}

impl AsyncRead for ClientTunnel<'_> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let early = match self.get_mut() {
            Self::Http1 { early, stream } if early.is_empty() => return Pin::new(&mut **stream).poll_read(cx, buf),
            Self::Http1 { early, .. } => early,
            Self::Http2 { early, from, .. } => {
                // Empty frames of data are no end.
                while early.is_empty() {
                    match ready!(from.poll_data(cx)) {
                        Some(Ok(part)) => {
                            let _ = from.flow_control().release_capacity(part.len());
                            *early = part;
                        }
                        Some(Err(e)) => return Poll::Ready(Err(io::Error::other(e))),
                        None => return Poll::Ready(Ok(())),
                    }
                }
                early
            }
        };
        let length = early.len().min(buf.remaining());
        buf.put_slice(early.get(..length).unwrap_or_default());
        early.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientTunnel<'_> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let to = match self.get_mut() {
            Self::Http1 { stream, .. } => return Pin::new(&mut **stream).poll_write(cx, buf),
            Self::Http2 { to, .. } => to,
        };
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        // Waits for the window of the client, as every answer does.
        to.reserve_capacity(buf.len());
        let room = loop {
            match to.capacity() {
                0 => match ready!(to.poll_capacity(cx)) {
                    Some(Ok(_)) => {}
                    Some(Err(e)) => return Poll::Ready(Err(io::Error::other(e))),
                    None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
                },
                room => break room.min(buf.len()),
            }
        };
        let part = Bytes::copy_from_slice(buf.get(..room).unwrap_or_default());
        to.send_data(part, false).map_err(io::Error::other)?;
        Poll::Ready(Ok(room))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Http1 { stream, .. } => Pin::new(&mut **stream).poll_flush(cx),
            // The task of the connection writes.
            Self::Http2 { .. } => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Http1 { stream, .. } => Pin::new(&mut **stream).poll_shutdown(cx),
            Self::Http2 { to, .. } => Poll::Ready(to.send_data(Bytes::new(), true).map_err(io::Error::other)),
        }
    }
}
