//! End of the text of a JSON string. Most names and values are short: their bytes are compared eight at a time. The rest of a
//! longer one is for `memchr`, whose call costs as much as thirty bytes here.

const ONES: u64 = u64::MAX / 255;
const HIGH: u64 = ONES << 7;

/// Bytes that are looked at before `memchr` is called; whole words.
const SHORT: usize = 32;

/// Bytes of a long text whose least one is found at once.
const BLOCK: usize = 2048;

/// True for a byte at which a text ends: a quote, a backslash, and with `CONTROLS` a control character.
const fn ends<const CONTROLS: bool>(byte: u8) -> bool {
    byte == b'"' || byte == b'\\' || (CONTROLS && byte < 0x20)
}

/// Number of bytes before the first quote or backslash, and with `CONTROLS` before the first control character; all of them where
/// there is none.
#[inline]
pub(super) fn text_end<const CONTROLS: bool>(bytes: &[u8]) -> usize {
    let (head, tail) = bytes.split_at_checked(SHORT).unwrap_or((bytes, b""));
    match end_in_short::<CONTROLS>(head) {
        Some(end) => end,
        None if tail.is_empty() => bytes.len(),
        None => head.len() + end_in_long::<CONTROLS>(tail),
    }
}

/// Offset of the end of a text in a few bytes, if it is in them.
#[inline]
fn end_in_short<const CONTROLS: bool>(bytes: &[u8]) -> Option<usize> {
    let (words, rest) = bytes.as_chunks::<8>();
    for (n, word) in words.iter().enumerate() {
        let found = ends_in::<CONTROLS>(u64::from_le_bytes(*word));
        if found != 0 {
            return usize::try_from(found.trailing_zeros() / 8).ok().map(|at| n * 8 + at);
        }
    }
    rest.iter().position(|byte| ends::<CONTROLS>(*byte)).map(|at| words.len() * 8 + at)
}

fn end_in_long<const CONTROLS: bool>(bytes: &[u8]) -> usize {
    let quoted = memchr::memchr2(b'"', b'\\', bytes).unwrap_or(bytes.len());
    if CONTROLS {
        let text = bytes.get(..quoted).unwrap_or(bytes);
        // Compared in blocks, which the compiler turns into vector instructions.
        for (n, block) in text.chunks(BLOCK).enumerate() {
            if block.iter().fold(u8::MAX, |least, byte| least.min(*byte)) < 0x20 {
                return n * BLOCK + block.iter().position(|byte| ends::<CONTROLS>(*byte)).unwrap_or(0);
            }
        }
    }
    quoted
}

/// The high bits of the bytes at which a text ends. The lowest of them is exact (S. E. Anderson, "Bit Twiddling Hacks", haszero and
/// hasless).
#[inline]
const fn ends_in<const CONTROLS: bool>(word: u64) -> u64 {
    let quotes = word ^ (ONES * b'"' as u64);
    let slashes = word ^ (ONES * b'\\' as u64);
    let mut found = quotes.wrapping_sub(ONES) & !quotes | slashes.wrapping_sub(ONES) & !slashes;
    if CONTROLS {
        found |= word.wrapping_sub(ONES * 0x20) & !word;
    }
    found & HIGH
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_text_ends_where_a_look_at_each_byte_ends_it(
            plain in prop_oneof![0usize..40, 200usize..600, 2000usize..2200],
            bytes in proptest::collection::vec(prop_oneof![
                4 => proptest::sample::select(vec![b'a', b'!', b'#', b'[', b']', 0x20, 0x1f, 0x7f, 0x80, 0xa2, 0xdc, 0xff]),
                1 => any::<u8>(),
            ], 0..40),
        ) {
            let bytes = [vec![b'x'; plain], bytes].concat();
            let by_byte = |controls: bool| {
                let ends = |byte: &u8| matches!(byte, b'"' | b'\\') || (controls && *byte < 0x20);
                bytes.iter().position(ends).unwrap_or(bytes.len())
            };
            prop_assert_eq!(text_end::<true>(&bytes), by_byte(true));
            prop_assert_eq!(text_end::<false>(&bytes), by_byte(false));
        }
    }
}
