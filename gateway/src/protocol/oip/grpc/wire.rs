//! Reader of protobuf's wire format (protobuf.dev, "Encoding") and of the frames of gRPC. Copies nothing and keeps nothing,
//! so that a message of many small fields costs no more memory than its bytes.

use bytes::Bytes;

/// Bytes before the message of a frame: whether it is compressed, and its length in four bytes, the highest first.
pub const FRAME: usize = 5;

/// Highest number of a field (protobuf.dev, "Assigning Field Numbers"). A key with more bits is no key to some readers, while
/// others drop those bits and read the field of a small number.
const MAX_FIELD: u64 = (1 << 29) - 1;

/// Message that is not in protobuf's wire format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::protocol::oip) struct Malformed;

/// Value of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::protocol::oip) enum Value<'m> {
    Varint(u64),
    Fixed64([u8; 8]),
    Bytes(&'m [u8]),
    Fixed32([u8; 4]),
}

/// Field of a message with its bytes' place in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::protocol::oip) struct Field<'m> {
    pub(in crate::protocol::oip) number: u32,
    pub(in crate::protocol::oip) value: Value<'m>,
    /// Offset of the first byte of the field in the message.
    pub(in crate::protocol::oip) from: usize,
    /// Offset behind its last byte.
    pub(in crate::protocol::oip) to: usize,
}

/// Fields of a message, in its order. Ends after the first that is malformed.
pub(in crate::protocol::oip) struct Fields<'m> {
    message: &'m [u8],
    rest: &'m [u8],
}

/// Iterates over the fields of a message.
pub(in crate::protocol::oip) fn fields(message: &[u8]) -> Fields<'_> {
    Fields { message, rest: message }
}

/// Reads a varint of at most ten bytes, and returns the rest.
pub(in crate::protocol::oip) fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0u64;
    for (n, byte) in bytes.iter().enumerate().take(10) {
        let bits = u64::from(byte & 0x7F);
        if n == 9 && bits > 1 {
            return None;
        }
        value |= bits << (7 * n);
        if byte & 0x80 == 0 {
            return Some((value, bytes.get(n + 1..)?));
        }
    }
    None
}

/// Appends a varint.
pub(in crate::protocol::oip) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

impl<'m> Fields<'m> {
    fn read(&mut self) -> Option<Field<'m>> {
        let from = self.message.len() - self.rest.len();
        let (key, rest) = varint(self.rest)?;
        let number = Some(key >> 3).filter(|number| (1..=MAX_FIELD).contains(number))?;
        let number = u32::try_from(number).ok()?;
        let (value, rest) = match key & 7 {
            0 => {
                let (value, rest) = varint(rest)?;
                (Value::Varint(value), rest)
            }
            1 => {
                let (value, rest) = rest.split_first_chunk()?;
                (Value::Fixed64(*value), rest)
            }
            2 => {
                let (length, rest) = varint(rest)?;
                let (value, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
                (Value::Bytes(value), rest)
            }
            5 => {
                let (value, rest) = rest.split_first_chunk()?;
                (Value::Fixed32(*value), rest)
            }
            // Groups are of no version of the protocol.
            _ => return None,
        };
        self.rest = rest;
        Some(Field { number, value, from, to: self.message.len() - rest.len() })
    }
}

impl<'m> Iterator for Fields<'m> {
    type Item = Result<Field<'m>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.read();
        if field.is_none() {
            self.rest = &[];
        }
        Some(field.ok_or(Malformed))
    }
}

/// Content of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::protocol::oip) enum Frame<'b> {
    /// A message as it is.
    Message(&'b [u8]),
    /// A message in a coding.
    Compressed,
    /// No message, several, or a part of one.
    Other,
}

/// Reads a body that holds one message.
pub(in crate::protocol::oip) fn frame(body: &[u8]) -> Frame<'_> {
    let Some(([flag, length @ ..], message)) = body.split_first_chunk::<FRAME>() else { return Frame::Other };
    if usize::try_from(u32::from_be_bytes(*length)) != Ok(message.len()) {
        return Frame::Other;
    }
    match flag {
        0 => Frame::Message(message),
        1 => Frame::Compressed,
        _ => Frame::Other,
    }
}

/// Puts a message, the parts of which follow each other, into its frame.
pub(in crate::protocol::oip) fn framed_parts(parts: &[&[u8]]) -> Bytes {
    let length = parts.iter().map(|part| part.len()).sum::<usize>();
    let mut out = Vec::with_capacity(FRAME + length);
    out.push(0);
    // Messages are made of bodies, whose limits are far below the 4 GiB of a frame.
    out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fields_are_read_with_their_places() {
        let message = [0x08, 0x96, 0x01, 0x12, 0x02, b'a', b'b', 0x19, 1, 0, 0, 0, 0, 0, 0, 0, 0x25, 2, 0, 0, 0];
        let read: Vec<_> = fields(&message).map(|field| field.unwrap()).collect();
        let expected = [
            (1, Value::Varint(150), 0, 3),
            (2, Value::Bytes(b"ab"), 3, 7),
            (3, Value::Fixed64([1, 0, 0, 0, 0, 0, 0, 0]), 7, 16),
            (4, Value::Fixed32([2, 0, 0, 0]), 16, 21),
        ];
        assert_eq!(read, expected.map(|(number, value, from, to)| Field { number, value, from, to }));
    }

    #[test]
    fn what_is_cut_or_has_no_meaning_is_malformed() {
        for message in [
            &[0x08][..],
            &[0x0A, 0x05, b'a'],
            &[0x0A, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01],
            &[0x08, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x02],
            &[0x0B, 0x0C],
            &[0x00, 0x01],
            &[0x09, 1, 2, 3],
            &[0x0D, 1, 2],
        ] {
            assert_eq!(fields(message).last(), Some(Err(Malformed)), "{message:?}");
        }
    }

    #[test]
    fn a_body_holds_one_message() {
        assert_eq!(frame(&[0, 0, 0, 0, 2, 8, 1]), Frame::Message(&[8, 1]));
        assert_eq!(frame(&[0, 0, 0, 0, 0]), Frame::Message(&[]));
        assert_eq!(frame(&[1, 0, 0, 0, 2, 8, 1]), Frame::Compressed);
        for body in [&[][..], &[0, 0, 0, 0], &[0, 0, 0, 0, 3, 8, 1], &[0, 0, 0, 0, 1, 8, 1], &[2, 0, 0, 0, 0]] {
            assert_eq!(frame(body), Frame::Other, "{body:?}");
        }
    }

    proptest! {
        #[test]
        fn a_varint_survives(value: u64) {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            prop_assert_eq!(varint(&out), Some((value, &[][..])));
        }

        #[test]
        fn fields_cover_the_message(message in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut end = 0;
            for field in fields(&message) {
                let Ok(field) = field else { return Ok(()) };
                prop_assert_eq!(field.from, end);
                prop_assert!(field.to > field.from);
                end = field.to;
            }
            prop_assert_eq!(end, message.len());
        }
    }
}
