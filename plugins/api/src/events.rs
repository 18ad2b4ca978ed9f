//! Events of an event stream (WHATWG HTML, 9.2), or lines of JSON in lines (NDJSON): parts of any size go in, whole events come
//! out. Holds one event at most, of bounded length.

use std::borrow::Cow;

use bytes::Bytes;
use http::HeaderValue;

/// Longest event that is held until it is whole, in bytes: room for a large chunk of a model's answer.
pub const MAX_EVENT: usize = 256 << 10;

/// Media types of JSON in lines, of which there is no registered one.
pub const JSON_LINES: [&str; 3] = ["application/x-ndjson", "application/ndjson", "application/jsonl"];

/// An event as the client gets it, with its empty line; or a line of JSON, with its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResponseEvent<'a> {
    /// Bytes of the event.
    pub bytes: &'a [u8],
    /// False for a piece of an event that is longer than [`MAX_EVENT`], which comes in pieces.
    pub is_whole: bool,
    /// True for a line of JSON in lines, such as Ollama's API streams.
    pub is_line: bool,
}

impl<'a> ResponseEvent<'a> {
    /// Returns the value of `data`, its lines joined by line feeds, or the line without its end; `None` for an event without
    /// one.
    pub fn data(&self) -> Option<Cow<'a, [u8]>> {
        if self.is_line {
            return Some(Cow::Borrowed(self.bytes.trim_ascii_end()));
        }
        let mut lines = self.values(b"data");
        let first = lines.next()?;
        let Some(second) = lines.next() else { return Some(Cow::Borrowed(first)) };
        let mut joined = [first, b"\n", second].concat();
        for line in lines {
            joined.push(b'\n');
            joined.extend_from_slice(line);
        }
        Some(Cow::Owned(joined))
    }

    /// Returns the value of `event`, the name of the event; `None` for a line, which has none.
    pub fn name(&self) -> Option<&'a [u8]> {
        if self.is_line { None } else { self.values(b"event").last() }
    }

    /// The event with another value of `data`; its other fields stay.
    pub fn with_data(&self, data: &[u8]) -> Bytes {
        let mut out = Vec::with_capacity(self.bytes.len() + data.len());
        if self.is_line {
            out.extend_from_slice(data);
            out.push(b'\n');
            return out.into();
        }
        let mut is_written = false;
        for line in self.bytes.split(|byte| matches!(byte, b'\n' | b'\r')).filter(|line| !line.is_empty()) {
            if !line.starts_with(b"data:") && line != b"data" {
                out.extend_from_slice(line);
                out.push(b'\n');
            } else if !std::mem::replace(&mut is_written, true) {
                for part in data.split(|byte| *byte == b'\n') {
                    out.extend_from_slice(b"data: ");
                    out.extend_from_slice(part);
                    out.push(b'\n');
                }
            }
        }
        out.push(b'\n');
        out.into()
    }

    fn values(&self, field: &'static [u8]) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let lines = self.bytes.split(|byte| matches!(byte, b'\n' | b'\r'));
        lines.filter_map(move |line| {
            let value = line.strip_prefix(field)?.strip_prefix(b":")?;
            Some(value.strip_prefix(b" ").unwrap_or(value))
        })
    }
}

/// Splits an event stream into its events. What is left at the end of a stream is no event.
#[derive(Debug)]
pub struct EventSplitter {
    /// Beginning of the event that is not whole yet.
    held: Vec<u8>,
    is_line_start: bool,
    /// A line feed that follows belongs to the end of the line before.
    is_after_cr: bool,
    /// Pieces of the current event were given already.
    is_in_pieces: bool,
    /// Each line is an event.
    splits_lines: bool,
}

impl Default for EventSplitter {
    fn default() -> Self {
        Self { held: Vec::new(), is_line_start: true, is_after_cr: false, is_in_pieces: false, splits_lines: false }
    }
}

impl EventSplitter {
    /// Splitter of an answer with this `Content-Type`; `None` for one that is no stream.
    pub fn of(content_type: Option<&HeaderValue>) -> Option<Self> {
        let kind = content_type?.as_bytes();
        let begins_as =
            |name: &str| kind.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name.as_bytes()));
        if begins_as("text/event-stream") {
            Some(Self::default())
        } else if JSON_LINES.iter().any(|name| begins_as(name)) {
            Some(Self::of_lines())
        } else {
            None
        }
    }

    /// Splits JSON in lines, each of which is an event.
    pub fn of_lines() -> Self {
        Self { splits_lines: true, ..Self::default() }
    }

    /// Takes a part of the stream and calls `emit` with each event that ends in it.
    pub fn feed(&mut self, part: &[u8], mut emit: impl FnMut(&ResponseEvent<'_>)) {
        let mut from = 0;
        for (at, &byte) in part.iter().enumerate() {
            if std::mem::take(&mut self.is_after_cr) && byte == b'\n' {
                if self.held.is_empty() && !self.is_in_pieces && from == at {
                    from = at + 1;
                }
                continue;
            }
            if !matches!(byte, b'\n' | b'\r') {
                self.is_line_start = false;
                continue;
            }
            if self.splits_lines {
                if byte == b'\r' {
                    continue;
                }
            } else {
                self.is_after_cr = byte == b'\r';
                if !std::mem::replace(&mut self.is_line_start, true) {
                    continue;
                }
            }
            self.end(part.get(from..=at).unwrap_or_default(), &mut emit);
            from = at + 1;
        }
        self.held.extend_from_slice(part.get(from..).unwrap_or_default());
        if self.held.len() > MAX_EVENT {
            self.is_in_pieces = true;
            emit(&ResponseEvent { bytes: &self.held, is_whole: false, is_line: self.splits_lines });
            self.held.clear();
        }
    }

    fn end(&mut self, last: &[u8], emit: &mut impl FnMut(&ResponseEvent<'_>)) {
        let (is_whole, is_line) = (!std::mem::take(&mut self.is_in_pieces), self.splits_lines);
        // Empty lines between events are none.
        let is_event =
            |bytes: &[u8]| !is_whole || if is_line { !bytes.trim_ascii().is_empty() } else { bytes.len() > 1 };
        if self.held.is_empty() {
            if is_event(last) {
                emit(&ResponseEvent { bytes: last, is_whole, is_line });
            }
            return;
        }
        self.held.extend_from_slice(last);
        if is_event(&self.held) {
            emit(&ResponseEvent { bytes: &self.held, is_whole, is_line });
        }
        self.held.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(stream: &[u8], size: usize) -> Vec<(Vec<u8>, bool)> {
        let (mut splitter, mut events) = (EventSplitter::default(), Vec::new());
        for part in stream.chunks(size) {
            splitter.feed(part, |event| events.push((event.bytes.to_vec(), event.is_whole)));
        }
        events
    }

    #[test]
    fn events_are_whole_however_the_stream_is_cut_and_its_lines_end() {
        let stream = b"data: 1\n\nevent: a\r\ndata: 2\r\ndata: 3\r\n\r\n\r\n: note\r\rdata:4\n\ndata: cut off";
        let data = |events: &[(Vec<u8>, bool)]| -> Vec<Option<Vec<u8>>> {
            let event = |(bytes, is_whole): &(Vec<u8>, bool)| {
                ResponseEvent { bytes, is_whole: *is_whole, is_line: false }.data().map(Cow::into_owned)
            };
            events.iter().map(event).collect()
        };
        let expected = [Some(b"1".to_vec()), Some(b"2\n3".to_vec()), None, Some(b"4".to_vec())];
        for size in 1..=stream.len() {
            let events = split(stream, size);
            assert_eq!(data(&events), expected, "parts of {size} bytes");
            assert!(events.iter().all(|(_, is_whole)| *is_whole));
            let (bytes, is_whole) = &events[1];
            let event = ResponseEvent { bytes, is_whole: *is_whole, is_line: false };
            assert_eq!(event.name(), Some(&b"a"[..]));
        }
    }

    #[test]
    fn an_event_keeps_its_other_fields_with_other_data() {
        let event = |bytes, is_line| ResponseEvent { bytes, is_whole: true, is_line };
        for (bytes, is_line, data, expected) in [
            (&b"data: 1\n\n"[..], false, &b"2"[..], &b"data: 2\n\n"[..]),
            (
                b"id: 7\r\ndata: 1\r\ndata: 3\r\nevent: a\r\n\r\n",
                false,
                b"2\n4",
                b"id: 7\ndata: 2\ndata: 4\nevent: a\n\n",
            ),
            (b": note\n\n", false, b"2", b": note\n\n"),
            (b"{}\r\n", true, b"[]", b"[]\n"),
        ] {
            assert_eq!(event(bytes, is_line).with_data(data), expected);
        }
    }

    #[test]
    fn lines_are_events_however_they_are_cut_and_end() {
        let stream = b"{\"event\":1}\n{\"a\":\r2}\r\n\n \r\n{\"done\":true}\n{\"cut";
        for size in 1..=stream.len() {
            let (mut splitter, mut lines) = (EventSplitter::of_lines(), Vec::new());
            for part in stream.chunks(size) {
                splitter.feed(part, |event| {
                    assert!(event.is_whole && event.is_line && event.name().is_none());
                    lines.push(String::from_utf8(event.data().unwrap().into_owned()).unwrap());
                });
            }
            assert_eq!(lines, ["{\"event\":1}", "{\"a\":\r2}", "{\"done\":true}"], "parts of {size} bytes");
        }
        let (mut splitter, mut pieces) = (EventSplitter::of_lines(), Vec::new());
        for part in [vec![b'x'; 3 * MAX_EVENT], b"\n{}\n".to_vec()].concat().chunks(16 << 10) {
            splitter.feed(part, |event| pieces.push((event.bytes.len(), event.is_whole)));
        }
        assert_eq!(pieces.pop(), Some((3, true)));
        assert!(
            pieces.len() > 1 && pieces.iter().all(|(length, is_whole)| *length <= MAX_EVENT + (16 << 10) && !is_whole)
        );
    }

    #[test]
    fn an_event_that_is_too_long_comes_in_pieces() {
        let long = [b"data: ".to_vec(), vec![b'x'; 2 * MAX_EVENT], b"\n\ndata: next\n\n".to_vec()].concat();
        let events = split(&long, 16 << 10);
        assert!(events.iter().all(|(bytes, _)| bytes.len() <= MAX_EVENT + (16 << 10)), "what is held is bounded");
        let (last, pieces) = events.split_last().unwrap();
        assert_eq!(*last, (b"data: next\n\n".to_vec(), true));
        assert!(pieces.len() > 1 && pieces.iter().all(|(_, is_whole)| !is_whole));
        assert_eq!(pieces.iter().map(|(bytes, _)| bytes.len()).sum::<usize>(), long.len() - last.0.len());
    }
}
