//! Usage of an event stream that the gateway asked for and the caller did not: the edit of the request, and the removal of
//! the chunk that answers it. That chunk comes behind the text, has the usage and no choice, and many clients would fail on
//! its empty list of choices.

use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::outcome::Attempt;
use crate::exchange::Exchange;
use crate::protocol::BodyEdit;

/// Edit by which the request of an exchange asks for the usage of its stream; `None` where the caller asks itself, or the
/// backend is not asked.
pub(super) fn edit<'e>(attempt: &'e Attempt<'_>, exchange: &'e Exchange) -> Option<&'e BodyEdit> {
    let mut edit = exchange.asked.as_ref()?.usage_edit.as_ref()?;
    if let Some(cut) = &attempt.cut {
        edit = cut.usage_edit.as_ref()?;
    }
    (attempt.backend.stream_usage && attempt.translation.is_none()).then_some(edit)
}

/// Chunk of a stream, as far as it decides.
#[derive(Deserialize)]
struct Chunk {
    choices: Vec<IgnoredAny>,
    usage: Option<IgnoredAny>,
    error: Option<IgnoredAny>,
}

/// Removes the events that hold nothing but the usage from whole events of a stream. A piece of an event passes.
pub(super) fn hide(events: Bytes) -> Bytes {
    // The usage has its own event, so most parts have no word of it.
    if memchr::memmem::find(&events, b"\"usage\"").is_none() {
        return events;
    }
    let (mut rest, mut kept) = (&events[..], None::<BytesMut>);
    while !rest.is_empty() {
        let (event, more) = rest.split_at(end_of_event(rest));
        let before = events.len() - rest.len();
        if is_usage(event) {
            kept.get_or_insert_with(|| events.get(..before).unwrap_or_default().into());
        } else if let Some(kept) = &mut kept {
            kept.extend_from_slice(event);
        }
        rest = more;
    }
    kept.map_or(events, BytesMut::freeze)
}

/// Length of the first event with the empty line that ends it; of all bytes where none ends (WHATWG HTML, 9.2.5: lines end
/// with LF, CR LF or CR).
fn end_of_event(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(more) = memchr::memchr2(b'\n', b'\r', bytes.get(at..).unwrap_or_default()) {
        let is_empty = more == 0;
        at += more + 1;
        if bytes.get(at - 1) == Some(&b'\r') && bytes.get(at) == Some(&b'\n') {
            at += 1;
        }
        if is_empty {
            return at;
        }
    }
    bytes.len()
}

/// True for an event whose data is a chunk with usage and without a choice.
fn is_usage(event: &[u8]) -> bool {
    if !has_no_choices(event) {
        return false;
    }
    let mut data = event.split(|byte| matches!(byte, b'\n' | b'\r')).filter_map(|line| line.strip_prefix(b"data:"));
    let (Some(chunk), None) = (data.next(), data.next()) else { return false };
    let chunk = serde_json::from_slice::<Chunk>(chunk);
    chunk.is_ok_and(|chunk| chunk.choices.is_empty() && chunk.usage.is_some() && chunk.error.is_none())
}

/// True if an empty list of choices may be in an event. Some servers write `"usage": null` into every chunk, and not each of
/// them is to be parsed.
fn has_no_choices(event: &[u8]) -> bool {
    const NAME: &[u8] = b"\"choices\"";
    memchr::memmem::find_iter(event, NAME).any(|at| {
        let mut behind =
            event.get(at + NAME.len()..).unwrap_or_default().iter().filter(|byte| !byte.is_ascii_whitespace());
        (behind.next(), behind.next(), behind.next()) == (Some(&b':'), Some(&b'['), Some(&b']'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hidden(events: &str) -> String {
        String::from_utf8(hide(Bytes::copy_from_slice(events.as_bytes())).to_vec()).unwrap()
    }

    #[test]
    fn only_the_chunk_that_has_nothing_but_usage_is_hidden() {
        let text = "data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}],\"usage\":null}\n\n";
        let last = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}],\"usage\":{\"total_tokens\":3}}\n\n";
        let done = "data: [DONE]\n\n";
        for usage in [
            "data: {\"choices\":[],\"usage\":{\"total_tokens\":3}}\n\n",
            "data:{ \"usage\" : {\"total_tokens\":3}, \"choices\" : [ ] }\r\n\r\n",
            "id: 7\rdata: {\"id\":\"c\",\"choices\":[],\"usage\":{},\"timings\":{\"prompt_n\":1}}\r\r",
        ] {
            assert_eq!(hidden(&[text, usage, done].concat()), [text, done].concat());
            assert_eq!(hidden(&[usage, usage, text].concat()), text);
            assert_eq!(hidden(usage), "");
        }
        for shown in [
            text,
            last,
            "data: {\"choices\":[],\"usage\":null}\n\n",
            "data: {\"choices\":[],\"prompt_filter_results\":[],\"note\":\"usage\"}\n\n",
            "data: {\"choices\":[],\"usage\":{},\"error\":{\"message\":\"x\"}}\n\n",
            "data: {\"choices\":[{\"delta\":{\"content\":\"\\\"choices\\\":[],\\\"usage\\\":{}\"}}],\"usage\":{}}\n\n",
            "data: {\"choices\":[{\"choices\":[]}],\"usage\":{}}\n\n",
            "data: {\"choices\":[],\"choices\":[1],\"usage\":{}}\n\n",
            ": \"usage\" \"choices\":[]\n",
            "event: x\ndata: {\"usage\":{}}\n\n",
            "data: {\"choices\":[],\"usage\":{\"total",
        ] {
            assert_eq!(hidden(shown), shown);
        }
    }

    #[test]
    fn a_part_without_usage_is_not_copied() {
        let part = Bytes::from_static(b"data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\n");
        assert_eq!(hide(part.clone()).as_ptr(), part.as_ptr());
        let null = Bytes::from_static(b"data: {\"choices\":[{}],\"usage\":null}\n\n");
        assert_eq!(hide(null.clone()).as_ptr(), null.as_ptr());
    }
}
