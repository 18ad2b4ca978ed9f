//! Pieces of HTTP on the wire that both sides of the gateway share: reading in parts, the fields and chunks of HTTP/1
//! (RFC 9112), and the parts of a body on a stream of HTTP/2 (RFC 9113).

use std::future::poll_fn;
use std::sync::LazyLock;

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
pub fn append_fields<'f>(fields: impl IntoIterator<Item = (&'f HeaderName, &'f HeaderValue)>, out: &mut Vec<u8>) {
    for (name, value) in fields {
        append_field(name.as_str().as_bytes(), value.as_bytes(), out);
    }
}

/// Writes one field.
#[inline]
pub fn append_field(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Writes the line that begins a chunk of `length` bytes.
pub fn append_chunk_line(length: u64, out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = (u64::BITS - length.leading_zeros()).div_ceil(4).max(1);
    for place in (0..digits).rev() {
        let digit = usize::try_from(length >> (place * 4) & 0xf).ok().and_then(|digit| DIGITS.get(digit));
        out.extend_from_slice(digit.map(std::slice::from_ref).unwrap_or_default());
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes the end of a body in chunks, with its trailers.
pub fn append_last_chunk(trailers: &HeaderMap, out: &mut Vec<u8>) {
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
        trailers.append(field_name(field.name.as_bytes())?, field_value(Bytes::copy_from_slice(field.value))?);
    }
    Ok(Some(trailers).filter(|trailers| !trailers.is_empty()))
}

/// Names that most heads have. Read from a head, they need no look-up in the table of all names.
const USUAL_NAMES: [&str; 24] = [
    "accept",
    "accept-encoding",
    "accept-language",
    "authorization",
    "cache-control",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "cookie",
    "date",
    "etag",
    "host",
    "last-modified",
    "origin",
    "referer",
    "server",
    "te",
    "transfer-encoding",
    "user-agent",
    "vary",
    "via",
    "x-forwarded-for",
    "x-request-id",
];

/// Place of a name in the index of [`USUAL_NAMES`], by its length and its first and last letters in either case.
fn place(name: &[u8]) -> usize {
    let letter = |byte: Option<&u8>| byte.map_or(0, |byte| usize::from(*byte | 0x20));
    (name.len() + letter(name.first()) * 14 + letter(name.last()) * 23) % 64
}

/// True for a token that is this name in lower case, compared eight letters at a time. The bit that makes a letter small is set
/// in digits and `-` already, and makes none of them of another byte of a token.
fn is_spelled(token: &[u8], lower: &[u8]) -> bool {
    const SMALL: u64 = u64::MAX / 255 * 0x20;
    let ((words, rest), (of_lower, rest_of_lower)) = (token.as_chunks::<8>(), lower.as_chunks::<8>());
    let is_word = |(word, lower): (&[u8; 8], &[u8; 8])| u64::from_ne_bytes(*word) | SMALL == u64::from_ne_bytes(*lower);
    token.len() == lower.len()
        && words.iter().zip(of_lower).all(is_word)
        && rest.iter().zip(rest_of_lower).all(|(byte, lower)| byte | 0x20 == *lower)
}

/// Name of a field, whose bytes a parser has checked.
pub fn field_name(bytes: &[u8]) -> pingora::Result<HeaderName> {
    static INDEX: LazyLock<[Option<HeaderName>; 64]> = LazyLock::new(|| {
        let mut index = [const { None }; 64];
        for name in USUAL_NAMES {
            if let Some(slot) = index.get_mut(place(name.as_bytes())) {
                *slot = HeaderName::from_bytes(name.as_bytes()).ok();
            }
        }
        index
    });
    if let Some(Some(usual)) = INDEX.get(place(bytes))
        && is_spelled(bytes, usual.as_str().as_bytes())
    {
        return Ok(usual.clone());
    }
    HeaderName::from_bytes(bytes).or_err(InvalidHTTPHeader, "the name of a field")
}

/// Value of a field, whose bytes a parser has checked.
pub fn field_value(bytes: Bytes) -> pingora::Result<HeaderValue> {
    HeaderValue::from_maybe_shared(bytes.clone()).or_else(|_| {
        // The parser leaves the line breaks of folded lines in a value (RFC 9112, 5.2).
        let bytes: Bytes = bytes.iter().map(|byte| if matches!(byte, b'\r' | b'\n') { b' ' } else { *byte }).collect();
        HeaderValue::from_maybe_shared(bytes).or_err(InvalidHTTPHeader, "the value of a field")
    })
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
            let mut out = Vec::new();
            append_chunk_line(length, &mut out);
            assert_eq!(out, format!("{length:x}\r\n").as_bytes());
        }
    }

    #[test]
    fn a_usual_name_is_read_as_any_other_and_has_a_place_of_its_own() {
        let mut places: Vec<usize> = USUAL_NAMES.iter().map(|name| place(name.as_bytes())).collect();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), USUAL_NAMES.len(), "choose other factors in `place`");
        for name in USUAL_NAMES.into_iter().chain(["x-other", "cookip", "x-RequesT-iD"]) {
            for spelled in [name.to_owned(), name.to_uppercase()] {
                assert_eq!(field_name(spelled.as_bytes()).unwrap().as_str(), name.to_lowercase(), "{spelled}");
            }
        }
        assert!(field_name(b"a b").is_err() && field_name(b"").is_err());
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
