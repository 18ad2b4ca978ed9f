//! Handshake of HTTP/2 with a server, and the meaning of its errors.

use std::time::Duration;

use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use pingora::ErrorType::{H2Error, HandshakeError};
use pingora::protocols::Stream;
use pingora::{Error, OrErr};

/// Most fields of a header or of trailers of a server.
pub const MAX_FIELDS: usize = 256;

/// Bytes that a server may send of one body before they are read: enough for 5 MB a second over a round trip of 100 ms. All
/// bodies of a connection may have as many each, so that one whose client does not read stops no other.
const WINDOW: u32 = 512 << 10;

/// Largest frame in bytes.
const FRAME: u32 = 64 << 10;

/// Bytes that HTTP/2 counts for a field beside its name and value (RFC 9113, 6.5.2).
const FIELD: u64 = 32;

/// Settings of HTTP/2 with an endpoint.
#[derive(Debug, Clone, Copy)]
pub(super) struct Http2 {
    /// Most requests at a time on one connection; the server may allow fewer.
    pub(super) streams: u32,
    /// Interval of the pings that find lost connections.
    pub(super) ping: Duration,
    /// The backend's `limits.maxHeaderBytes`.
    pub(super) max_header_bytes: u64,
}

impl Http2 {
    /// Bound on the fields of a header block, as HTTP/2 counts them: twice the size that an answer may have. So a header
    /// somewhat over that size is read and gets its own error, and trailers are not cut. The library drops trailers beyond
    /// the bound, resets the stream of a head beyond it, and closes the connection at four times the bound.
    fn list_size(self) -> u32 {
        let fields = u64::try_from(MAX_FIELDS).unwrap_or(u64::MAX).saturating_mul(FIELD);
        u32::try_from(self.max_header_bytes.saturating_add(fields).saturating_mul(2)).unwrap_or(u32::MAX)
    }
}

/// Begins HTTP/2 on a new connection, which its task must drive.
pub(super) async fn handshake(
    stream: Stream,
    http2: Http2,
) -> pingora::Result<(SendRequest<Bytes>, Connection<Stream, Bytes>)> {
    let (send, connection) = h2::client::Builder::new()
        .enable_push(false)
        .initial_max_send_streams(usize::try_from(http2.streams).unwrap_or(usize::MAX))
        // Streams that the server opens: none, because push is disabled above.
        .max_concurrent_streams(1)
        .max_frame_size(FRAME)
        .max_header_list_size(http2.list_size())
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW.saturating_mul(http2.streams))
        .handshake::<_, Bytes>(stream)
        .await
        .or_err(HandshakeError, "in the handshake of HTTP/2")?;
    if connection.max_concurrent_send_streams() == 0 {
        return Error::e_explain(H2Error, "the server accepts no requests");
    }
    Ok((send, connection))
}

/// True if an error means beyond doubt that a header exceeded the bound. A reset stream is no proof: the library resets it
/// for other faults of a head too.
pub(super) fn is_over(error: &Error) -> bool {
    let cause = error.root_cause().downcast_ref::<h2::Error>();
    cause.is_some_and(|cause| {
        let reasons = [Some(h2::Reason::ENHANCE_YOUR_CALM), Some(h2::Reason::COMPRESSION_ERROR)];
        cause.is_library() && cause.is_go_away() && reasons.contains(&cause.reason())
    })
}

/// True if an error says beyond doubt that the server of HTTP/2 did not look at the request: the stream was refused, or its
/// number is above the last one that the end of the connection names. The library reports the end of a connection only to
/// such streams; the others go on.
pub fn is_unprocessed(error: &Error) -> bool {
    let cause = error.root_cause().downcast_ref::<h2::Error>();
    cause.is_some_and(|cause| {
        let is_refused = cause.is_reset() && cause.reason() == Some(h2::Reason::REFUSED_STREAM);
        cause.is_remote() && (cause.is_go_away() || is_refused)
    })
}

/// True if an error of the sending of a header of HTTP/2 means that nothing was sent: the connection had ended.
pub fn is_unsent(error: &Error) -> bool {
    let cause = error.root_cause().downcast_ref::<h2::Error>();
    cause.is_some_and(|cause| cause.is_go_away() || cause.is_io())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_leaves_room_for_what_an_answer_may_have() {
        let size =
            |max_header_bytes| u64::from(Http2 { streams: 1, ping: Duration::ZERO, max_header_bytes }.list_size());
        for most in [1 << 10, 64 << 10, 1 << 20] {
            assert!(size(most) > most + 256 * FIELD && size(most) <= 2 * most + (16 << 10), "{most}");
        }
    }
}
