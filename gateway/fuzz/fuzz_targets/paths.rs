//! Any path, and a server that reads it by any mixture of known habits (the first bytes choose them): where all readings that
//! the gateway compares lead to the same rules, the server's reading leads to them too, or the path is refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spillway::routing::read_path;

/// Habits that are applied, one after the other; real servers have three or four.
const HABITS: usize = 4;

type Reader = fn(&[u8]) -> Vec<u8>;

/// Habits of servers that were seen in use. The list in `gateway/src/pipeline/target/readers.rs` says whose they are.
const READERS: [Reader; 9] = [
    <[u8]>::to_vec,
    percent,
    resolved,
    without_parameters,
    before_query,
    blanks_stripped,
    lenient_utf8,
    wide_escapes,
    windows,
];

/// Kind of rules of a resource, by the name under which a server knows it: a closed prefix, a model's operation, the rest.
fn rules_of(resource: &[u8]) -> u8 {
    let below = |prefix: &[u8]| resource.strip_prefix(prefix).is_some_and(|rest| matches!(rest, [] | [b'/', ..]));
    match resource {
        b"/v1/chat/completions" => 2,
        _ if below(b"/admin") => 1,
        _ => 0,
    }
}

fn digit(byte: Option<&u8>) -> Option<u8> {
    char::from(*byte?).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

fn percent(path: &[u8]) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), path);
    while let [first, after @ ..] = rest {
        let escaped = digit(after.first()).zip(digit(after.get(1))).filter(|_| *first == b'%');
        out.push(escaped.map_or(*first, |(high, low)| high << 4 | low));
        rest = if escaped.is_some() { &after[2..] } else { after };
    }
    out
}

/// Dot segments resolved, slashes merged; a slash at the end stays.
fn resolved(path: &[u8]) -> Vec<u8> {
    let mut segments: Vec<&[u8]> = Vec::new();
    for segment in path.split(|byte| *byte == b'/') {
        match segment {
            b"" | b"." => {}
            b".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    let end: &[u8] = if path.ends_with(b"/") && !segments.is_empty() { b"/" } else { b"" };
    [b"/", segments.join(&b'/').as_slice(), end].concat()
}

/// Path with each of its segments changed.
fn each(path: &[u8], change: impl Fn(&[u8]) -> &[u8]) -> Vec<u8> {
    path.split(|byte| *byte == b'/').map(change).collect::<Vec<_>>().join(&b'/')
}

fn until(path: &[u8], ends: impl Fn(u8) -> bool) -> &[u8] {
    path.split(|byte| ends(*byte)).next().unwrap_or_default()
}

fn without_parameters(path: &[u8]) -> Vec<u8> {
    each(path, |segment| until(segment, |byte| byte == b';'))
}

fn before_query(path: &[u8]) -> Vec<u8> {
    until(path, |byte| matches!(byte, b'?' | b'#')).to_vec()
}

fn blanks_stripped(path: &[u8]) -> Vec<u8> {
    each(path, <[u8]>::trim_ascii)
}

/// Overlong forms and wrong continuation bytes are taken, as old decoders did.
fn lenient_utf8(path: &[u8]) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), path);
    while let [first, ..] = rest {
        let (length, bits) = match first {
            0xC0..=0xDF => (2, first & 0x1F),
            0xE0..=0xEF => (3, first & 0x0F),
            0xF0..=0xF7 => (4, first & 0x07),
            _ => (1, *first),
        };
        let more = rest.get(1..length);
        let value =
            more.map(|more| more.iter().fold(u32::from(bits), |value, byte| value << 6 | u32::from(byte & 0x3F)));
        let ascii = value.and_then(|value| u8::try_from(value).ok()).filter(u8::is_ascii);
        out.push(ascii.unwrap_or(*first));
        rest = &rest[if ascii.is_some() { length } else { 1 }..];
    }
    out
}

/// `%uXXXX` of IIS.
fn wide_escapes(path: &[u8]) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), path);
    while let [first, after @ ..] = rest {
        let digits = after.get(1..5).filter(|_| *first == b'%' && matches!(after[0], b'u' | b'U'));
        let digits = digits.filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        let value = digits.and_then(|digits| u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        match value.and_then(char::from_u32) {
            Some(c) => {
                out.extend(c.to_string().bytes());
                rest = &after[5..];
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    out
}

/// Names as Windows opens them: backslashes separate, dots and blanks at the end do not count, a name ends at a null.
fn windows(path: &[u8]) -> Vec<u8> {
    let path: Vec<u8> =
        until(path, |byte| byte == 0).iter().map(|byte| if *byte == b'\\' { b'/' } else { *byte }).collect();
    each(&path, |segment| {
        let end = segment.iter().rposition(|byte| !matches!(byte, b'.' | b' ' | b'\t')).map_or(0, |last| last + 1);
        if matches!(segment, b"." | b"..") { segment } else { &segment[..end] }
    })
}

fuzz_target!(|input: (u16, &str)| {
    let (chosen, path) = input;
    // A target has no query here, and the parser of heads refuses blanks and controls.
    let is_target = |byte: u8| byte > b' ' && byte != 0x7F && !b"?#".contains(&byte);
    let path = format!("/{path}");
    if !path.bytes().all(is_target) {
        return;
    }
    let Ok((normal, spelling)) = read_path(&path) else { return };
    let (again, _) = read_path(&normal).expect("a normal form is a path");
    assert_eq!(again, normal, "a normal form is its own");
    if spelling.is_hidden() {
        return;
    }
    let rules = rules_of(normal.as_bytes());
    let mut readings = spelling.readings(&normal);
    if readings.any(|reading| rules_of(reading.as_bytes()) != rules) {
        // Refused by the pipeline: the readings have other rules.
        return;
    }
    let habits = (0..HABITS).map(|n| READERS[usize::from(chosen >> (4 * n) & 0xF) % READERS.len()]);
    let resource = habits.fold(normal.as_bytes().to_vec(), |path, read| read(&path));
    // A server knows its resources by names without empty or dot segments.
    for resource in [resolved(&resource), resource] {
        assert_eq!(
            rules_of(&resource),
            rules,
            "`{path}` is sent as `{normal}` and read as `{}`",
            resource.escape_ascii()
        );
    }
});
