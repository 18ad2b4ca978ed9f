//! Pieces of HTTP on the wire that both sides of the gateway share: reading in parts, the fields and chunks of HTTP/1
//! (RFC 9112), and the parts of a body on a stream of HTTP/2 (RFC 9113).

use std::future::poll_fn;

use bytes::{Buf, Bytes, BytesMut};
use h2::SendStream;
use http::Version;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use pingora::ErrorType::{InvalidHTTPHeader, WriteError};
use pingora::{Error, OrErr};
use spillway_filter::Fields;

use crate::framing::MAX_FIELDS;

/// Most bytes of one read.
const MOST: usize = 64 << 10;
/// Bytes of the first read of a body, and least of any: holds most heads, and short bodies with them.
const LEAST: usize = 4 << 10;

/// Bytes that were read and belong to no part yet. Reads grow while they fill the room that they are given.
#[derive(Debug)]
pub struct ReadBuffer {
    /// The bytes.
    pub bytes: BytesMut,
    /// Bytes of the next read.
    next: usize,
}

impl ReadBuffer {
    /// Empty buffer without memory.
    pub fn new() -> Self {
        Self { bytes: BytesMut::new(), next: LEAST }
    }

    /// Makes room for the next read of a body with `left` further bytes. Returns the bytes that fill it.
    pub fn make_room(&mut self, left: usize) -> usize {
        let room = self.next.min(left.max(LEAST));
        self.bytes.reserve(room);
        room
    }

    /// Takes note of a read of `read` bytes into a room of `room`.
    pub fn has_read(&mut self, read: usize, room: usize) {
        self.next = match read {
            _ if read >= room => (self.next * 2).min(MOST),
            _ if read < self.next / 4 => (self.next / 2).max(LEAST),
            _ => self.next,
        };
    }

    /// Takes bytes off the beginning. A few are copied: a part that waits for a slow peer must not keep the buffer.
    pub fn take(&mut self, count: usize) -> Bytes {
        if count >= self.next / 4 {
            return self.bytes.split_to(count).freeze();
        }
        let part = Bytes::copy_from_slice(self.bytes.get(..count).unwrap_or_default());
        self.bytes.advance(count);
        part
    }
}

impl Default for ReadBuffer {
    fn default() -> Self {
        Self::new()
    }
}

/// Bytes of fields as HTTP/1 writes them.
pub fn size_of_fields<'f>(fields: impl IntoIterator<Item = (&'f HeaderName, &'f HeaderValue)>) -> usize {
    fields.into_iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len()).sum()
}

/// Writes fields, without the line behind the last.
pub fn append_fields<'f>(fields: impl IntoIterator<Item = (&'f HeaderName, &'f HeaderValue)>, out: &mut BytesMut) {
    for (name, value) in fields {
        append_field(name.as_str().as_bytes(), value.as_bytes(), out);
    }
}

/// Writes one field.
pub fn append_field(name: &[u8], value: &[u8], out: &mut BytesMut) {
    for part in [name, b": ", value, b"\r\n"] {
        out.extend_from_slice(part);
    }
}

/// Writes the line that begins a chunk of `length` bytes.
pub fn append_chunk_line(length: u64, out: &mut BytesMut) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = (u64::BITS - length.leading_zeros()).div_ceil(4).max(1);
    for place in (0..digits).rev() {
        let digit = usize::try_from(length >> (place * 4) & 0xf).ok().and_then(|digit| DIGITS.get(digit));
        out.extend_from_slice(digit.map(std::slice::from_ref).unwrap_or_default());
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes the end of a body in chunks, with its trailers.
pub fn append_last_chunk(trailers: &HeaderMap, out: &mut BytesMut) {
    out.extend_from_slice(b"0\r\n");
    append_fields(trailers, out);
    out.extend_from_slice(b"\r\n");
}

/// Fields of most heads: room for all that a head may have is filled only where there are more.
const USUAL_FIELDS: usize = 32;

/// Parses a section of fields at the beginning of `bytes`, and gives its length and them to `read`; `None` where it is not there
/// in full. A section has 256 fields at most.
pub fn parse_fields<R>(
    bytes: &[u8],
    read: impl Fn(usize, &[httparse::Header<'_>]) -> R,
) -> Result<Option<R>, httparse::Error> {
    fn parse<R, const MOST: usize>(
        bytes: &[u8],
        read: &impl Fn(usize, &[httparse::Header<'_>]) -> R,
    ) -> Result<Option<R>, httparse::Error> {
        let mut fields = [httparse::EMPTY_HEADER; MOST];
        match httparse::parse_headers(bytes, &mut fields)? {
            httparse::Status::Complete((length, fields)) => Ok(Some(read(length, fields))),
            httparse::Status::Partial => Ok(None),
        }
    }
    match parse::<_, USUAL_FIELDS>(bytes, &read) {
        Err(httparse::Error::TooManyHeaders) => parse::<_, { MAX_FIELDS as usize }>(bytes, &read),
        parsed => parsed,
    }
}

/// Fields of a section of trailers that a parser has checked; `None` where there are none.
pub fn trailers_of(fields: &[httparse::Header<'_>]) -> pingora::Result<Option<HeaderMap>> {
    let mut trailers = HeaderMap::with_capacity(fields.len());
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes()).or_err(InvalidHTTPHeader, "the name of a trailer")?;
        trailers.append(name, field_value(Bytes::copy_from_slice(field.value))?);
    }
    Ok(Some(trailers).filter(|trailers| !trailers.is_empty()))
}

/// Value of a field, whose bytes a parser has checked.
pub fn field_value(bytes: Bytes) -> pingora::Result<HeaderValue> {
    // The parser leaves the line breaks of folded lines in a value (RFC 9112, 5.2).
    let bytes = if memchr::memchr2(b'\r', b'\n', &bytes).is_some() {
        bytes.iter().map(|byte| if matches!(byte, b'\r' | b'\n') { b' ' } else { *byte }).collect()
    } else {
        bytes
    };
    HeaderValue::from_maybe_shared(bytes).or_err(InvalidHTTPHeader, "the value of a field")
}

/// Removes the fields of one connection, which no message of HTTP/2 has (RFC 9113, 8.2.2).
pub fn remove_fields_of_connection(headers: &mut HeaderMap) {
    const NAMES: [HeaderName; 5] = [
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
    ];
    for name in &NAMES {
        headers.remove(name);
    }
}

/// Writes a part of a body on a stream of HTTP/2, the last one where it `ends`. Waits for room in the windows of the peer.
pub async fn send_part(stream: &mut SendStream<Bytes>, mut part: Bytes, ends: bool) -> pingora::Result<()> {
    while !part.is_empty() {
        stream.reserve_capacity(part.len());
        // The library tells of each growth once: one that a dropped write was told of is still there.
        let mut room = stream.capacity();
        if room == 0 {
            let grown = poll_fn(|cx| stream.poll_capacity(cx)).await;
            let grown =
                grown.ok_or_else(|| Error::explain(WriteError, "a part of a body behind the end of its stream"))?;
            room = grown.or_err(WriteError, "a part of a body")?;
        }
        let now = part.split_to(room.min(part.len()));
        let is_last = ends && part.is_empty();
        stream.send_data(now, is_last).or_err(WriteError, "a part of a body")?;
        if is_last {
            return Ok(());
        }
    }
    if ends { stream.send_data(Bytes::new(), true).or_err(WriteError, "the end of a body") } else { Ok(()) }
}

/// True if the sender of a message of this version wants its connection kept (RFC 9112, 9.3).
pub fn keeps_connection(version: Version, headers: &Fields) -> bool {
    let mut keeps = version == Version::HTTP_11;
    for value in headers.get_all(header::CONNECTION) {
        for option in value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            if option.eq_ignore_ascii_case(b"close") {
                return false;
            }
            keeps |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }
    keeps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_begins_with_its_length_in_hexadecimal_digits() {
        for length in [0, 1, 9, 10, 15, 16, 255, 256, 4096, 65_535, 1 << 32, u64::MAX] {
            let mut out = BytesMut::new();
            append_chunk_line(length, &mut out);
            assert_eq!(out, format!("{length:x}\r\n").as_bytes());
        }
    }

    #[test]
    fn reads_grow_while_they_are_filled_and_shrink_again() {
        let mut buffer = ReadBuffer::new();
        for expected in [4, 8, 16, 32, 64, 64] {
            let room = buffer.make_room(usize::MAX);
            assert_eq!(room, expected << 10);
            buffer.has_read(room, room);
        }
        assert_eq!(buffer.make_room(10), LEAST, "no more than is left");
        for expected in [32, 16, 8, 4, 4] {
            buffer.has_read(1, buffer.next);
            assert_eq!(buffer.make_room(usize::MAX), expected << 10);
        }
    }

    #[test]
    fn what_is_taken_is_what_came_first() {
        let mut buffer = ReadBuffer::new();
        buffer.bytes.extend_from_slice(&[7; 5000]);
        assert_eq!(
            (buffer.take(2000).len(), buffer.take(3).as_ref(), buffer.bytes.len()),
            (2000, &[7, 7, 7][..], 2997)
        );
    }
}
