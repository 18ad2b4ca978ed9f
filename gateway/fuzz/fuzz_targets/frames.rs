//! Any bytes as frames of WebSocket: they are followed or refused the same wherever they are cut (the first byte says where, and
//! which side sends them), and their boundaries are those that a plain reading of RFC 6455, 5.2, finds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spillway::tunnel::{Frames, Side};

/// Length of the frame at the beginning of `bytes`; `None` where it is not there in full.
fn frame(bytes: &[u8]) -> Option<usize> {
    let second = *bytes.get(1)?;
    let mask = if second & 0x80 == 0 { 0 } else { 4 };
    let (length, at) = match second & 0x7f {
        126 => (u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)), 4),
        127 => (u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?), 10),
        length => (u64::from(length), 2),
    };
    let end = usize::try_from(length).ok()?.checked_add(at + mask)?;
    (end <= bytes.len()).then_some(end)
}

fuzz_target!(|input: &[u8]| {
    let [size, bytes @ ..] = input else { return };
    let side = if size & 1 == 0 { Side::Client } else { Side::Server };
    let size = usize::from(*size).max(1);
    let (mut whole, mut parts) = (Frames::new(side), Frames::new(side));
    let followed = whole.follow(bytes);
    assert_eq!(followed, bytes.chunks(size).try_for_each(|part| parts.follow(part)));
    if followed.is_err() {
        return;
    }
    assert_eq!((whole.is_between(), whole.has_closed()), (parts.is_between(), parts.has_closed()));
    let (mut rest, mut has_closed) = (bytes, false);
    while let Some(end) = frame(rest) {
        has_closed |= rest[0] & 0x0f == 8;
        rest = &rest[end..];
    }
    assert_eq!((whole.is_between(), whole.has_closed()), (rest.is_empty(), has_closed));
});
