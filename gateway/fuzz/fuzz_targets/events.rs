//! Any bytes as an answer of a server: what is observed of it, and the events that it is split into, do not depend on where it
//! is cut (the first byte says where), and the events together are the answer.
#![no_main]

use std::time::Instant;

use http::{HeaderValue, header};
use libfuzzer_sys::fuzz_target;
use spillway::protocol::OPENAI;
use spillway_filter::{EventSplitter, Fields};

/// Facts of an answer that comes in parts of `size` bytes, and its events.
fn read(kind: &'static str, answer: &[u8], size: usize) -> (String, Vec<(Vec<u8>, bool)>) {
    let headers = Fields::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(kind))]);
    let mut observer = OPENAI.observe(&headers).expect("the type is known");
    let (mut splitter, mut events) = (EventSplitter::default(), Vec::new());
    let now = Instant::now();
    for part in answer.chunks(size) {
        observer.feed(part, now);
        splitter.feed(part, |event| events.push((event.bytes.to_vec(), event.is_whole)));
    }
    let mut seen = observer.finish().clone();
    seen.first_content = None;
    (format!("{seen:?}"), events)
}

fuzz_target!(|input: &[u8]| {
    let [size, answer @ ..] = input else { return };
    let size = usize::from(*size).max(1);
    for kind in ["text/event-stream", "application/json", "application/x-ndjson"] {
        let (whole, events) = read(kind, answer, usize::MAX);
        let (parts, in_parts) = read(kind, answer, size);
        assert_eq!(whole, parts, "{kind}");
        let bytes = |events: &[(Vec<u8>, bool)]| events.iter().flat_map(|(bytes, _)| bytes.clone()).collect::<Vec<u8>>();
        assert_eq!(bytes(&events), bytes(&in_parts));
    }
});
