//! End of the text of a JSON string that is short, as most names and values are. Longer ones are for `memchr`, whose call costs
//! as much as thirty bytes here.

const ONES: u64 = u64::MAX / 255;
const HIGH: u64 = ONES << 7;

/// Offset of the first quote or backslash, and with `CONTROLS` of the first control character, in the first `most` bytes or a few
/// more; `None` where they have none. Eight bytes are compared at a time.
#[inline]
pub(super) fn text_end<const CONTROLS: bool>(bytes: &[u8], most: usize) -> Option<usize> {
    let (words, rest) = bytes.as_chunks::<8>();
    for (n, word) in words.iter().take(most.div_ceil(8)).enumerate() {
        let found = ends_in::<CONTROLS>(u64::from_le_bytes(*word));
        if found != 0 {
            return usize::try_from(found.trailing_zeros() / 8).ok().map(|at| n * 8 + at);
        }
    }
    if words.len() * 8 >= most {
        return None;
    }
    let ends = |byte: &u8| matches!(byte, b'"' | b'\\') || (CONTROLS && *byte < 0x20);
    rest.iter().position(ends).map(|at| words.len() * 8 + at)
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
            bytes in proptest::collection::vec(prop_oneof![
                4 => proptest::sample::select(vec![b'a', b'!', b'#', b'[', b']', 0x20, 0x1f, 0x7f, 0x80, 0xa2, 0xdc, 0xff]),
                1 => any::<u8>(),
            ], 0..40),
            most in 0usize..40,
        ) {
            let by_byte = |controls: bool| {
                bytes.iter().position(|byte| matches!(byte, b'"' | b'\\') || (controls && *byte < 0x20))
            };
            for (found, expected) in [
                (text_end::<true>(&bytes, most), by_byte(true)),
                (text_end::<false>(&bytes, most), by_byte(false)),
            ] {
                match found {
                    Some(at) => prop_assert_eq!(Some(at), expected),
                    None => prop_assert!(expected.is_none_or(|at| at >= most)),
                }
            }
        }
    }
}
