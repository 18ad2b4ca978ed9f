//! Pieces of HTTP/1 on the wire that both sides of the gateway share: reading in parts, and the writing of fields and chunks
//! (RFC 9112).

use bytes::{Buf, Bytes, BytesMut};
use http::Version;
use http::header::{self, HeaderMap};

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
pub fn size_of_fields(fields: &HeaderMap) -> usize {
    fields.iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len()).sum()
}

/// Writes fields, without the line behind the last.
pub fn append_fields(fields: &HeaderMap, out: &mut BytesMut) {
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
    out.extend_from_slice(format!("{length:x}\r\n").as_bytes());
}

/// True if the sender of a message of this version wants its connection kept (RFC 9112, 9.3).
pub fn keeps_connection(version: Version, headers: &HeaderMap) -> bool {
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
