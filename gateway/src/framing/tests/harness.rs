//! Reads bytes with a `Framer` in parts, as a socket hands them over. The tests of this folder and the fuzz target
//! `framing` include this file; `Framer` and `Violation` come from whichever includes it.

use super::{Framer, Violation};

/// Result of reading the bytes of one connection.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ReadConnection {
    /// Whole messages.
    pub(super) messages: Vec<Vec<u8>>,
    /// Fields of each head that was read whole: names and values.
    pub(super) fields: Vec<Vec<(Vec<u8>, Vec<u8>)>>,
    /// Bytes of the last message, where it is not whole; none behind a violation.
    pub(super) rest: Vec<u8>,
    /// Violation with which reading ended.
    pub(super) violation: Option<Violation>,
}

/// Reads `bytes` in parts of `sizes` bytes, over and over in that order. A head, and likewise trailers, may have `most`
/// bytes.
pub(super) fn read(bytes: &[u8], sizes: &[usize], most: u64) -> ReadConnection {
    let (mut framer, mut read) = (Framer::new(most), ReadConnection::default());
    let mut left = bytes;
    for size in sizes.iter().cycle() {
        let part = &left[..left.len().min(*size)];
        if part.is_empty() {
            break;
        }
        let (opaque, mut is_whole_head) = (framer.opaque(), false);
        let taken = if opaque > 0 {
            let taken = part.len().min(usize::try_from(opaque).unwrap_or(usize::MAX));
            framer.skip(taken as u64);
            taken
        } else {
            let mut scan = |framer: &mut Framer| match framer.is_in_body() {
                true => framer.scan_framing(part),
                false => framer.scan_head(part).map(|(taken, is_whole)| {
                    is_whole_head = is_whole;
                    taken
                }),
            };
            match scan(&mut framer) {
                Ok(taken) => taken,
                Err(violation) => {
                    assert_eq!(framer.scan_head(part), Err(violation), "a violation lasts");
                    assert_eq!(framer.scan_framing(part), Err(violation), "a violation lasts");
                    read.rest.clear();
                    break;
                }
            }
        };
        assert!(taken > 0 && taken <= part.len());
        read.rest.extend_from_slice(&part[..taken]);
        left = &left[taken..];
        if is_whole_head {
            let bytes = |range: std::ops::Range<usize>| read.rest[range].trim_ascii().to_vec();
            read.fields.push(framer.places().iter().map(|at| (bytes(at.name()), bytes(at.value()))).collect());
        }
        if framer.is_between() {
            read.messages.push(std::mem::take(&mut read.rest));
        }
    }
    read.violation = framer.violation();
    read
}
