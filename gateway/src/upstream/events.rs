//! Event streams on their way to the client, in whole events. A server that dies in the middle of an event leaves a part of
//! it. That part would spoil the next event, which reports the error or continues the answer.

use bytes::{Bytes, BytesMut};

/// Most bytes of an event that are held back until it is whole; a longer one passes as it arrives.
const MAX_EVENT: usize = 256 << 10;

/// Gate that holds back an event until it is whole.
#[derive(Debug, Default)]
pub(super) struct Gate {
    held: BytesMut,
}

impl Gate {
    /// Bytes that may go on, up to the end of the last whole event.
    pub(super) fn pass(&mut self, part: Bytes) -> Bytes {
        if self.held.is_empty() && part.ends_with(b"\n\n") {
            return part;
        }
        // The end of an event may be split between parts.
        let from = self.held.len().saturating_sub(3);
        self.held.extend_from_slice(&part);
        match end_of_events(self.held.get(from..).unwrap_or_default()) {
            Some(end) => self.held.split_to(from + end).freeze(),
            None if self.held.len() > MAX_EVENT => self.held.split().freeze(),
            None => Bytes::new(),
        }
    }

    /// Bytes that are left at a proper end.
    pub(super) fn rest(&mut self) -> Bytes {
        self.held.split().freeze()
    }
}

/// End of the last empty line (WHATWG HTML, 9.2.5: lines end with LF, CR LF or CR).
fn end_of_events(bytes: &[u8]) -> Option<usize> {
    [&b"\n\n"[..], b"\n\r\n", b"\r\r"]
        .iter()
        .filter_map(|end| memchr::memmem::rfind(bytes, end).map(|at| at + end.len()))
        .max()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_whole_events_pass() {
        let mut gate = Gate::default();
        let mut pass = |part: &'static str| String::from_utf8(gate.pass(part.into()).to_vec()).unwrap();
        assert_eq!(pass("data: 1\n\n"), "data: 1\n\n");
        assert_eq!(pass("data: 2\n"), "");
        assert_eq!(pass("\ndata: 3"), "data: 2\n\n");
        assert_eq!(pass("\r\n"), "");
        assert_eq!(pass("\r\ndata: 4\r\rdata: 5"), "data: 3\r\n\r\ndata: 4\r\r");
        assert_eq!(&gate.rest()[..], b"data: 5");
        let long = Bytes::from(vec![b'x'; MAX_EVENT + 1]);
        assert_eq!(gate.pass(long.clone()), long, "what is too long to be held is passed on");
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_changed(text in "[ab\\n\\r]{0,60}", cuts in proptest::collection::vec(1usize..9, 0..20)) {
            let (mut gate, mut out, mut rest) = (Gate::default(), Vec::new(), text.as_bytes());
            for cut in cuts {
                let (part, more) = rest.split_at(cut.min(rest.len()));
                rest = more;
                let passed = gate.pass(Bytes::copy_from_slice(part));
                let ends = passed.is_empty() || end_of_events(&passed) == Some(passed.len());
                prop_assert!(ends, "{passed:?}");
                out.extend_from_slice(&passed);
            }
            out.extend_from_slice(&gate.pass(Bytes::copy_from_slice(rest)));
            out.extend_from_slice(&gate.rest());
            prop_assert_eq!(out, text.as_bytes());
        }
    }
}
