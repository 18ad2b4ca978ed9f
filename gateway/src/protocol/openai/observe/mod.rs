//! Reads facts of a server's answer (usage, model, finish reason, time of the first content) while it passes, without
//! changing or holding it. Event streams, JSON in lines and plain JSON are read byte by byte: an answer of any length is
//! observed in the same small, fixed memory, and the result does not depend on where the answer was cut.

mod keys;
mod lines;
mod message_type;
mod scan;
mod socket;
#[cfg(test)]
mod tests;

use std::time::Instant;

use http::HeaderValue;
use spillway_filter::JSON_LINES;

use crate::protocol::chat::Observation;
use crate::protocol::dialect::Observe;
use lines::{Lines, StreamPart};
use scan::Scanner;
pub(super) use socket::SocketReader;

/// Framing of the values in an answer.
#[derive(Debug)]
enum AnswerFraming {
    /// A single JSON value.
    Json,
    /// An event stream.
    Events(Lines),
    /// JSON values, each in a line of its own.
    JsonLines,
}

/// Reader of one answer.
#[derive(Debug)]
pub(super) struct Observer {
    framing: AnswerFraming,
    scanner: Scanner,
    seen: Observation,
}

impl Observer {
    /// Reader of an answer of this type without a coding; `None` for content that is not JSON or an event stream.
    pub(super) fn for_response(content_type: Option<&HeaderValue>) -> Option<Self> {
        // Most servers write the type alone and in small letters.
        if content_type?.as_bytes() == b"application/json" {
            return Some(Self::of(AnswerFraming::Json));
        }
        let kind = content_type?.to_str().ok()?.split(';').next()?.trim();
        let is_json = || {
            let suffix = kind.len().checked_sub(5).and_then(|at| kind.get(at..));
            kind.eq_ignore_ascii_case("application/json") || suffix.is_some_and(|end| end.eq_ignore_ascii_case("+json"))
        };
        let framing = if kind.eq_ignore_ascii_case("text/event-stream") {
            AnswerFraming::Events(Lines::default())
        } else if is_json() {
            AnswerFraming::Json
        } else if JSON_LINES.iter().any(|lines| kind.eq_ignore_ascii_case(lines)) {
            AnswerFraming::JsonLines
        } else {
            return None;
        };
        Some(Self::of(framing))
    }

    fn of(framing: AnswerFraming) -> Self {
        Self { framing, scanner: Scanner::default(), seen: Observation::default() }
    }
}

impl Observe for Observer {
    fn observation(&self) -> &Observation {
        &self.seen
    }

    fn feed(&mut self, part: &[u8], now: Instant) {
        let (scanner, seen) = (&mut self.scanner, &mut self.seen);
        let feed = |scanner: &mut Scanner, seen: &mut Observation, data: &[u8]| {
            scanner.feed(data, seen);
            if scanner.has_content {
                seen.first_content.get_or_insert(now);
            }
        };
        match &mut self.framing {
            AnswerFraming::Json => {
                if !part.is_empty() {
                    seen.first_content.get_or_insert(now);
                }
                scanner.feed(part, seen);
                seen.is_whole = scanner.is_complete;
                seen.is_certain |= scanner.has_answer || scanner.is_complete;
                seen.has_failed = scanner.is_complete && !scanner.has_answer && seen.error.is_some();
            }
            AnswerFraming::Events(lines) => lines.feed(part, |what| match what {
                StreamPart::Data(data) => feed(scanner, seen, data),
                StreamPart::Comment => seen.is_certain = true,
                StreamPart::End { is_done } => {
                    seen.is_whole |= is_done;
                    seen.is_certain = true;
                    seen.has_failed = seen.error.is_some();
                    scanner.reset();
                }
            }),
            AnswerFraming::JsonLines => {
                for line in part.split_inclusive(|byte| *byte == b'\n') {
                    feed(scanner, seen, line);
                    if scanner.is_complete {
                        seen.is_certain = true;
                        seen.has_failed = seen.error.is_some();
                    }
                    if line.ends_with(b"\n") {
                        scanner.reset();
                    }
                }
            }
        }
    }

    fn finish(&mut self) -> &Observation {
        if let AnswerFraming::Events(lines) = &self.framing {
            self.seen.is_whole |= lines.is_done();
            self.seen.has_failed = self.seen.error.is_some();
        }
        self.seen.is_certain = true;
        &self.seen
    }
}
