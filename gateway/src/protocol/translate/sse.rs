//! Event streams of APIs that send JSON in `data:` lines: the framing while it is read, and single events written.

use bytes::{BufMut, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use spillway_filter::{EventSplitter, ResponseEvent};

use super::Unreadable;

/// Reader of the events of one stream. Events longer than the splitter holds are an error: they could not be translated
/// without holding them.
#[derive(Debug, Default)]
pub(in crate::protocol) struct SseReader {
    splitter: EventSplitter,
    /// Bytes since the last whole event, for an event that no empty line closes.
    has_rest: bool,
}

impl SseReader {
    /// Reads a part and passes the data of each event to `event`, with its name; an event of comments alone has none.
    pub(in crate::protocol) fn feed(
        &mut self,
        part: &[u8],
        mut event: impl FnMut(SseEvent<'_>) -> Result<(), Unreadable>,
    ) -> Result<(), Unreadable> {
        let mut read = Ok(());
        self.splitter.feed(part, |raw| {
            if read.is_ok() {
                read = one(raw, &mut event);
            }
        });
        self.has_rest |= !part.is_empty();
        read
    }

    /// Reads the end of the stream, which also ends an event that no empty line closed.
    pub(in crate::protocol) fn finish(
        &mut self,
        event: impl FnMut(SseEvent<'_>) -> Result<(), Unreadable>,
    ) -> Result<(), Unreadable> {
        if std::mem::take(&mut self.has_rest) { self.feed(b"\n\n", event) } else { Ok(()) }
    }
}

/// Event of a stream.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::protocol) enum SseEvent<'e> {
    /// Data.
    Data(&'e [u8]),
    /// Comment, by which a server shows that it is at work.
    Comment,
}

fn one(
    raw: &ResponseEvent<'_>,
    event: &mut impl FnMut(SseEvent<'_>) -> Result<(), Unreadable>,
) -> Result<(), Unreadable> {
    if !raw.is_whole {
        return Err(Unreadable("an event of the backend's stream is longer than 256 KiB"));
    }
    match raw.data() {
        Some(data) => event(SseEvent::Data(data.trim_ascii())),
        None if raw.bytes.split(|byte| matches!(byte, b'\n' | b'\r')).any(|line| line.starts_with(b":")) => {
            event(SseEvent::Comment)
        }
        None => Ok(()),
    }
}

/// Reads the JSON of an event or an answer.
pub(in crate::protocol) fn read_json<T: DeserializeOwned>(data: &[u8]) -> Result<T, Unreadable> {
    serde_json::from_slice(data).map_err(|_| Unreadable("the backend's answer is not the JSON of its API"))
}

/// Appends an event, with a name where the API has those. `data` is made of strings, numbers and lists of them, whose
/// writing to memory does not fail.
pub(in crate::protocol) fn write_event(out: &mut BytesMut, name: Option<&str>, data: &impl Serialize) {
    if let Some(name) = name {
        out.put_slice(b"event: ");
        out.put_slice(name.as_bytes());
        out.put_slice(b"\n");
    }
    out.put_slice(b"data: ");
    let _ = serde_json::to_writer(out.writer(), data);
    out.put_slice(b"\n\n");
}
