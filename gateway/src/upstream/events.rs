//! Event streams, and streams of JSON lines, on their way to the client, in whole events or lines. A server that dies in the
//! middle of an event leaves a part of it. That part would spoil the next event, which reports the error or continues the
//! answer. Comments between events, by which servers keep a stream alive, pass line by line as they come.

use bytes::{Bytes, BytesMut};
use http::header;

use crate::message::ResponseHead;
use crate::protocol::StreamFraming;

/// Most bytes of an event that are held back until it is whole; a longer one passes as it arrives.
const MAX_EVENT: usize = 256 << 10;

/// Types of streams of JSON lines. Ollama sends the first.
const LINES: [&str; 3] = ["application/x-ndjson", "application/ndjson", "application/jsonl"];

/// True for an answer that is an event stream.
pub(super) fn is_event_stream(head: &ResponseHead) -> bool {
    head.headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|v| v.as_bytes().get(..17).is_some_and(|start| start.eq_ignore_ascii_case(b"text/event-stream")))
}

/// Framing of the stream of an answer, where a dialect frames its own streams so; `None` for an answer that is no stream.
pub(super) fn stream_framing(head: &ResponseHead, own: StreamFraming) -> Option<StreamFraming> {
    if is_event_stream(head) {
        return Some(StreamFraming::Events);
    }
    let kind = || head.headers.get(header::CONTENT_TYPE)?.to_str().ok()?.split(';').next();
    let is_lines = || kind().is_some_and(|kind| LINES.iter().any(|lines| kind.trim().eq_ignore_ascii_case(lines)));
    (own == StreamFraming::Lines && is_lines()).then_some(StreamFraming::Lines)
}

/// Gate that holds back an event, or a line, until it is whole.
#[derive(Debug)]
pub(super) struct Gate {
    framing: StreamFraming,
    held: BytesMut,
    /// True once a piece of an event that is too long to be held has gone on, until that event ends.
    is_in_pieces: bool,
}

impl Gate {
    pub(super) fn new(framing: StreamFraming) -> Self {
        Self { framing, held: BytesMut::new(), is_in_pieces: false }
    }

    /// Bytes that may go on, up to the end of the last whole event and the comments behind it.
    pub(super) fn pass(&mut self, part: Bytes) -> Bytes {
        match self.framing {
            StreamFraming::Events => self.pass_events(part),
            StreamFraming::Lines => self.pass_lines(part),
        }
    }

    /// Bytes that may go on, up to the end of the last line.
    fn pass_lines(&mut self, part: Bytes) -> Bytes {
        if self.held.is_empty() && part.ends_with(b"\n") {
            return part;
        }
        let end = memchr::memrchr(b'\n', &part).map(|at| self.held.len() + at + 1);
        self.held.extend_from_slice(&part);
        match end {
            Some(end) => self.held.split_to(end).freeze(),
            None if self.held.len() > MAX_EVENT => self.held.split().freeze(),
            None => Bytes::new(),
        }
    }

    fn pass_events(&mut self, part: Bytes) -> Bytes {
        if self.held.is_empty() && part.ends_with(b"\n\n") {
            self.is_in_pieces = false;
            return part;
        }
        // The end of an event may be split between parts.
        let from = self.held.len().saturating_sub(3);
        self.held.extend_from_slice(&part);
        let end = end_of_events(self.held.get(from..).unwrap_or_default()).map(|end| from + end);
        // Behind a piece of a longer event a line is no comment.
        let begins = end.or((!self.is_in_pieces).then_some(0));
        let passes = begins.map_or(0, |at| at + end_of_comments(self.held.get(at..).unwrap_or_default()));
        if end.is_some() {
            self.is_in_pieces = false;
        }
        if passes == 0 && self.held.len() > MAX_EVENT {
            self.is_in_pieces = true;
            return self.held.split().freeze();
        }
        self.held.split_to(passes).freeze()
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

/// True if a line of these bytes, which begin with a line, is a comment.
pub(super) fn has_comment(bytes: &[u8]) -> bool {
    bytes.starts_with(b":") || [&b"\n:"[..], b"\r:"].iter().any(|line| memchr::memmem::find(bytes, line).is_some())
}

/// End of the empty lines and whole comment lines at the beginning of bytes that begin between events.
fn end_of_comments(bytes: &[u8]) -> usize {
    let mut at = 0;
    loop {
        match bytes.get(at) {
            Some(b'\n' | b'\r') => at += 1,
            Some(b':') => {
                let rest = bytes.get(at..).unwrap_or_default();
                let Some(end) = memchr::memchr2(b'\n', b'\r', rest) else { return at };
                at += end + 1;
            }
            _ => return at,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_whole_events_pass() {
        let mut gate = Gate::new(StreamFraming::Events);
        let mut pass = |part: &'static str| String::from_utf8(gate.pass(part.into()).to_vec()).unwrap();
        assert_eq!(pass("data: 1\n\n"), "data: 1\n\n");
        assert_eq!(pass("data: 2\n"), "");
        assert_eq!(pass("\ndata: 3"), "data: 2\n\n");
        assert_eq!(pass("\r\n"), "");
        assert_eq!(pass("\r\ndata: 4\r\rdata: 5"), "data: 3\r\n\r\ndata: 4\r\r");
        assert_eq!(&gate.rest()[..], b"data: 5");
        let long = Bytes::from(vec![b'x'; MAX_EVENT + 1]);
        assert_eq!(gate.pass(long.clone()), long, "what is too long to be held is passed on");
        assert_eq!(gate.pass(Bytes::from_static(b": no comment\n")), "", "the event goes on");
        assert_eq!(gate.pass(Bytes::from_static(b"\n: one\n")), ": no comment\n\n: one\n");
    }

    #[test]
    fn comments_between_events_pass_line_by_line() {
        for (parts, passed) in [
            (&[": ping\n"][..], &[": ping\n"][..]),
            (&[":\r\n", ": a\r", "\n", ":\n\n"], &[":\r\n", ": a\r", "\n", ":\n\n"]),
            (&[": pi", "ng\n: an", "d\n"], &["", ": ping\n", ": and\n"]),
            (
                &["data: 1\n\n: ping\ndata", ": 2\n", ": inside\n", "\n"],
                &["data: 1\n\n: ping\n", "", "", "data: 2\n: inside\n\n"],
            ),
            (&["\n", "event: x\n", "\n"], &["\n", "", "event: x\n\n"]),
        ] {
            let mut gate = Gate::new(StreamFraming::Events);
            let out: Vec<_> = parts.iter().map(|part| gate.pass(Bytes::from_static(part.as_bytes()))).collect();
            assert_eq!(out, passed, "{parts:?}");
        }
    }

    #[test]
    fn only_whole_lines_pass() {
        let mut gate = Gate::new(StreamFraming::Lines);
        let mut pass = |part: &'static str| String::from_utf8(gate.pass(part.into()).to_vec()).unwrap();
        assert_eq!(pass("{1}\n"), "{1}\n");
        assert_eq!(pass("{2"), "");
        assert_eq!(pass("}\n{3}\n{"), "{2}\n{3}\n");
        assert_eq!(pass("4}\n"), "{4}\n");
        assert_eq!(pass("{5"), "");
        assert_eq!(&gate.rest()[..], b"{5");
        let long = Bytes::from(vec![b'x'; MAX_EVENT + 1]);
        assert_eq!(gate.pass(long.clone()), long, "what is too long to be held is passed on");
    }

    proptest! {
        #[test]
        fn lines_pass_whole_and_unchanged(text in "[ab\\n]{0,60}", cuts in proptest::collection::vec(1usize..9, 0..20)) {
            let (mut gate, mut out, mut rest) = (Gate::new(StreamFraming::Lines), Vec::new(), text.as_bytes());
            for cut in cuts {
                let (part, more) = rest.split_at(cut.min(rest.len()));
                rest = more;
                out.extend_from_slice(&gate.pass(Bytes::copy_from_slice(part)));
                prop_assert!(out.is_empty() || out.ends_with(b"\n"));
            }
            out.extend_from_slice(&gate.pass(Bytes::copy_from_slice(rest)));
            out.extend_from_slice(&gate.rest());
            prop_assert_eq!(out, text.as_bytes());
        }

        #[test]
        fn nothing_is_lost_or_changed(text in "[ab:\\n\\r]{0,60}", cuts in proptest::collection::vec(1usize..9, 0..20)) {
            let (mut gate, mut out, mut rest) = (Gate::new(StreamFraming::Events), Vec::new(), text.as_bytes());
            for cut in cuts {
                let (part, more) = rest.split_at(cut.min(rest.len()));
                rest = more;
                let passed = gate.pass(Bytes::copy_from_slice(part));
                out.extend_from_slice(&passed);
                let begun = end_of_events(&out).unwrap_or(0);
                let behind = &out[begun..];
                prop_assert_eq!(end_of_comments(behind), behind.len(), "{:?}", passed);
            }
            out.extend_from_slice(&gate.pass(Bytes::copy_from_slice(rest)));
            out.extend_from_slice(&gate.rest());
            prop_assert_eq!(out, text.as_bytes());
        }
    }
}
