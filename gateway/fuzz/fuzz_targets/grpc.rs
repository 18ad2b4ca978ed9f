//! Any bytes as `grpc-timeout`, and any text as the message of an error. A time is read as plain arithmetic reads it, and is
//! never written longer than it is. A message is printable ASCII within its bound and decodes to the beginning of its text.
#![no_main]

use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use libfuzzer_sys::fuzz_target;
use spillway::protocol::{GRPC, GRPC_STATUS, GRPC_TIMEOUT, is_grpc, read_timeout, render, write_timeout};
use spillway_filter::{ErrorKind, Fields, Refusal};

/// Bytes that `grpc-message` may have.
const MOST: usize = 2 << 10;

fn fields(name: &HeaderName, values: &[&[u8]]) -> Option<Fields> {
    values.iter().map(|value| Some((name.clone(), HeaderValue::from_bytes(value).ok()?))).collect()
}

/// Nanoseconds of a value of the protocol's form: 1 to 8 digits and a unit.
fn nanoseconds(value: &[u8]) -> Option<u128> {
    let (unit, digits) = value.split_last()?;
    if !(1..=8).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u128 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    let second = 1_000_000_000;
    let each = match unit {
        b'H' => 3600 * second,
        b'M' => 60 * second,
        b'S' => second,
        b'm' => 1_000_000,
        b'u' => 1_000,
        b'n' => 1,
        _ => return None,
    };
    Some(number * each)
}

fn timeouts(value: &[u8]) {
    let Some(headers) = fields(&GRPC_TIMEOUT, &[value]) else { return };
    match (read_timeout(&headers), nanoseconds(value)) {
        (Ok(Some(time)), Some(expected)) => {
            assert_eq!(time.as_nanos(), expected);
            let written = write_timeout(time);
            let again = nanoseconds(written.as_bytes()).expect("a written time has the protocol's form");
            assert!(again <= expected && again >= expected - expected / 1000, "{value:?}");
        }
        (Err(refusal), None) => assert_eq!(refusal.code, "invalid_grpc_timeout"),
        (read, expected) => panic!("{value:?}: {read:?}, expected {expected:?}"),
    }
    assert!(read_timeout(&fields(&GRPC_TIMEOUT, &[value, value]).unwrap_or_default()).is_err(), "written twice");
}

/// Percent-decoded text, as clients of gRPC decode it.
fn decoded(message: &[u8]) -> Vec<u8> {
    let (mut text, mut rest) = (Vec::new(), message);
    while let [first, after @ ..] = rest {
        rest = after;
        let [high, low, further @ ..] = after else {
            text.push(*first);
            continue;
        };
        let digits = [*high, *low];
        let digits = std::str::from_utf8(&digits).ok().filter(|_| *first == b'%');
        text.push(digits.map_or(*first, |digits| {
            rest = further;
            u8::from_str_radix(digits, 16).expect("a percent sign begins an escape")
        }));
    }
    text
}

fn messages(text: &str) {
    let refusal = Refusal::new(StatusCode::BAD_GATEWAY, ErrorKind::Upstream, "x", text.to_owned());
    let rendered = render(&refusal, GRPC, "id");
    let value = |name: &str| rendered.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_bytes());
    let message = value("grpc-message").expect("an error has a message");
    assert!(message.len() <= MOST && message.iter().all(|byte| matches!(byte, b' '..=b'~')));
    let decoded = decoded(message);
    assert!(text.as_bytes().starts_with(&decoded), "{text:?}");
    // Nothing is cut that would have fitted: a character takes 12 bytes at most.
    assert!(decoded.len() == text.len() || message.len() > MOST - 12, "{text:?}");
    let status = value(GRPC_STATUS.as_str()).expect("an error has a status");
    assert!(status.iter().all(u8::is_ascii_digit));
}

fuzz_target!(|input: &[u8]| {
    timeouts(input);
    timeouts(&input[..input.len().min(9)]);
    messages(&String::from_utf8_lossy(input));
    if let Some(headers) = fields(&header::CONTENT_TYPE, &[input]) {
        let is_call = is_grpc(&Method::POST, &headers);
        assert!(!is_call || input[..16].eq_ignore_ascii_case(b"application/grpc"));
        assert!(!is_call || !input[16..].starts_with(b"-web"));
    }
    let nanos = input.iter().take(12).fold(0u128, |all, byte| all << 8 | u128::from(*byte));
    let time = Duration::new((nanos >> 32).try_into().unwrap_or(u64::MAX), (nanos % 1_000_000_000) as u32);
    assert!(nanoseconds(write_timeout(time).as_bytes()).is_some_and(|written| written <= time.as_nanos()));
});
