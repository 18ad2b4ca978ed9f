//! Reads facts of a server's answer (usage, model, finish reason, time of the first content) while it passes, without
//! changing or holding it. Event streams and plain JSON are both read byte by byte: an answer of any length is observed in
//! the same small, fixed memory, and the result does not depend on where the answer was cut.

mod lines;
mod scan;
#[cfg(test)]
mod tests;

use std::time::Instant;

use http::HeaderValue;

use crate::protocol::chat::Observation;
use crate::protocol::dialect::Observe;
use lines::{Lines, StreamPart};
use scan::Scanner;

/// Reader of one answer.
#[derive(Debug)]
pub(super) struct Observer {
    /// Framing of an event stream; `None` for plain JSON.
    lines: Option<Lines>,
    scanner: Scanner,
    seen: Observation,
}

impl Observer {
    /// Reader of an answer with these headers; `None` for content that is not JSON or an event stream, or is encoded.
    pub(super) fn for_response(
        content_type: Option<&HeaderValue>,
        content_encoding: Option<&HeaderValue>,
    ) -> Option<Self> {
        if content_encoding.is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
            return None;
        }
        let kind = content_type?.to_str().ok()?.split(';').next()?.trim();
        let is_json = || {
            let suffix = kind.len().checked_sub(5).and_then(|at| kind.get(at..));
            kind.eq_ignore_ascii_case("application/json") || suffix.is_some_and(|end| end.eq_ignore_ascii_case("+json"))
        };
        let lines = if kind.eq_ignore_ascii_case("text/event-stream") {
            Some(Lines::default())
        } else if is_json() {
            None
        } else {
            return None;
        };
        Some(Self { lines, scanner: Scanner::default(), seen: Observation::default() })
    }
}

impl Observe for Observer {
    fn observation(&self) -> &Observation {
        &self.seen
    }

    fn feed(&mut self, part: &[u8], now: Instant) {
        let (scanner, seen) = (&mut self.scanner, &mut self.seen);
        let Some(lines) = &mut self.lines else {
            if !part.is_empty() {
                seen.first_content.get_or_insert(now);
            }
            scanner.feed(part, seen);
            seen.is_whole = scanner.is_complete;
            return;
        };
        lines.feed(part, |what| match what {
            StreamPart::Data(data) => {
                let had_content = scanner.has_content;
                scanner.feed(data, seen);
                if scanner.has_content && !had_content {
                    seen.first_content.get_or_insert(now);
                    seen.content_events = seen.content_events.saturating_add(1);
                }
            }
            StreamPart::End { is_done } => {
                seen.is_whole |= is_done;
                scanner.reset();
            }
        });
    }

    fn finish(&mut self) -> &Observation {
        if let Some(lines) = &mut self.lines {
            self.seen.is_whole |= lines.is_done();
        }
        &self.seen
    }
}
