//! Reads bytes with a `Framer` in parts, as a socket hands them over. The tests of this folder and the fuzz target
//! `framing` include this file; `Framer` and `Violation` come from whichever includes it.

use super::{Framer, Violation};

/// Result of reading the bytes of one connection.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ReadConnection {
    /// Messages that were handed on whole.
    pub(super) messages: Vec<Vec<u8>>,
    /// Bytes of the last message that were handed on, where it is not whole.
    pub(super) rest: Vec<u8>,
    /// Violation with which reading ended, also one that only the next read would return.
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
        let opaque = framer.opaque();
        let taken = if opaque > 0 {
            let taken = part.len().min(usize::try_from(opaque).unwrap_or(usize::MAX));
            framer.skip(taken as u64);
            taken
        } else {
            match framer.scan(part) {
                Ok(taken) => taken,
                Err(violation) => {
                    assert_eq!(framer.scan(part), Err(violation), "a violation lasts");
                    break;
                }
            }
        };
        assert!(taken > 0 && taken <= part.len());
        read.rest.extend_from_slice(&part[..taken]);
        left = &left[taken..];
        if framer.is_between() {
            read.messages.push(std::mem::take(&mut read.rest));
        }
    }
    read.violation = framer.violation();
    read
}
