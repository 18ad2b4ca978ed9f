//! Any bytes as a connection of HTTP/1, read in one piece and in parts (the first two bytes say how large): both read the
//! same, every message ends where httparse and plain arithmetic end it, and no bound is passed.
#![no_main]

#[allow(dead_code, reason = "the gateway uses all of it")]
#[path = "../../src/framing/mod.rs"]
mod framing;
#[path = "../../src/framing/tests/harness.rs"]
mod harness;

use framing::{Framer, MAX_FIELDS, Violation};
use libfuzzer_sys::fuzz_target;

/// Bytes of a head, and of trailers, that the reader allows.
const MOST: u64 = 256;

/// Where httparse and the length of the body end a message; `None` when it is not all here. A head that is refused there
/// (such as a target that is no UTF-8) is answered with 400, so it ends wherever the reader says.
fn reference(bytes: &[u8], refused: Option<usize>) -> Option<usize> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS as usize];
    let mut request = httparse::Request::new(&mut fields);
    let mut end = match request.parse(bytes) {
        Ok(httparse::Status::Complete(end)) => end,
        Ok(httparse::Status::Partial) => return None,
        Err(_) => return refused,
    };
    let empty_lines = bytes.chunks(2).take_while(|pair| pair == b"\r\n").count() * 2;
    assert!(end - empty_lines <= MOST as usize);
    let value = |name: &str| request.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name));
    if let Some(coding) = value("transfer-encoding") {
        assert!(coding.value.eq_ignore_ascii_case(b"chunked") && request.version == Some(1));
        loop {
            let Ok(httparse::Status::Complete((line, size))) = httparse::parse_chunk_size(&bytes[end..]) else {
                return None;
            };
            end += line;
            if size == 0 {
                break;
            }
            end = end.checked_add(usize::try_from(size).ok()?)?.checked_add(2)?;
            assert_eq!(bytes.get(end - 2..end)?, b"\r\n");
        }
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS as usize];
        match httparse::parse_headers(&bytes[end..], &mut fields) {
            Ok(httparse::Status::Complete((trailers, _))) => Some(end + trailers),
            _ => None,
        }
    } else if let Some(length) = value("content-length") {
        Some(end + std::str::from_utf8(length.value).unwrap().parse::<usize>().unwrap())
    } else {
        Some(end)
    }
}

fuzz_target!(|input: &[u8]| {
    let [first, second, bytes @ ..] = input else { return };
    let whole = harness::read(bytes, &[usize::MAX], MOST);
    let sizes = [usize::from(*first).max(1), usize::from(*second).max(1)];
    assert_eq!(whole, harness::read(bytes, &sizes, MOST));
    for (message, fields) in whole.messages.iter().zip(&whole.fields) {
        let mut parsed = [httparse::EMPTY_HEADER; MAX_FIELDS as usize];
        let mut request = httparse::Request::new(&mut parsed);
        if request.parse(message).is_ok() {
            let parsed = request.headers.iter().map(|field| (field.name.as_bytes(), field.value));
            assert!(fields.iter().map(|(name, value)| (name.as_slice(), value.as_slice())).eq(parsed));
        }
        assert_eq!(reference(message, Some(message.len())), Some(message.len()), "{}", message.escape_ascii());
    }
    if whole.violation.is_none() && !whole.rest.is_empty() {
        // The end of a message that has not come yet is not here.
        assert!(reference(&whole.rest, None).is_none_or(|end| end > whole.rest.len()));
    }
});
