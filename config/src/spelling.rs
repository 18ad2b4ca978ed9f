//! Second readings of a path: other paths that a server could read where the gateway reads this one. Most paths have none.
//! The file owns no state; its input is a path in normal form (`path`).
//!
//! Known readers: ASGI servers decode `%2F`; servlets cut `;parameters`; IIS reads backslashes as slashes, decodes twice and
//! accepts overlong UTF-8; Windows drops blanks and dots at the end of a name; code that parses a decoded path as a URL cuts
//! it at `?` and `#`.

use std::borrow::Cow;

use crate::path::{self, PathByte, PathError};

/// Kinds of second readings that a path has, as a set of bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spelling(u8);

/// Spellings that no honest client writes: control characters, invalid UTF-8 such as overlong forms, escapes that change when
/// decoded twice, and dots, blanks or empty segments behind a delimiter.
const HIDDEN: u8 = 1;
/// `%2F`.
const SLASH: u8 = 2;
/// `%5C`.
const BACKSLASH: u8 = 4;
/// `;`, as it is or as `%3B`.
const PARAMETER: u8 = 8;
/// `%3F` and `%23`.
const REPARSED: u8 = 16;
/// Dot at the end of a segment.
const TRAILING_DOT: u8 = 32;
/// Sub-delimiter, `:` or `@` as an escape.
const ESCAPED: u8 = 64;

/// Kinds that have readings of their own, in the order of their bits.
const READABLE: [u8; 6] = [SLASH, BACKSLASH, PARAMETER, REPARSED, TRAILING_DOT, ESCAPED];

/// Kinds that a path may combine. Each doubles the readings that are compared; honest paths have one or two.
const MAX_KINDS: u32 = 4;

/// Normalises a path and finds the kinds of second readings that it has.
pub fn read(path: &str) -> Result<(Cow<'_, str>, Spelling), PathError> {
    if path::has_one_reading(path) {
        return Ok((Cow::Borrowed(path), Spelling::default()));
    }
    let normal = path::normal(path)?;
    let spelling = Spelling::of(&normal);
    Ok((normal, spelling))
}

fn is_separator((byte, escaped): PathByte) -> bool {
    byte == b'/' || (byte == b'\\' && escaped)
}

impl Spelling {
    /// True if every server reads the path as the gateway does.
    pub fn is_one(self) -> bool {
        self.0 == 0
    }

    /// Kinds of readings of both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// True if every kind of reading is one of `other` as well.
    pub fn is_within(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }

    /// True if no server behind may get the path, whatever the configuration says.
    pub fn is_hidden(self) -> bool {
        self.0 & HIDDEN != 0
    }

    /// True if it has an encoded slash or backslash.
    pub fn has_slash(self) -> bool {
        self.0 & (SLASH | BACKSLASH) != 0
    }

    /// True if an expression over the path could be evaded. Escaped sub-delimiters are decoded for expressions; an encoded
    /// slash is not, and a server that decodes it reads other segments than the expression.
    pub fn evades_expressions(self) -> bool {
        self.0 & (SLASH | BACKSLASH | PARAMETER | REPARSED | TRAILING_DOT) != 0
    }

    fn of(normal: &str) -> Self {
        let bytes = path::decoded(normal);
        let mut kinds = 0;
        for byte in &bytes {
            kinds |= match byte {
                (b'/', true) => SLASH,
                (b'\\', true) => BACKSLASH,
                (b';', _) => PARAMETER,
                (b'?' | b'#', true) => REPARSED,
                (b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b'=' | b':' | b'@', true) => ESCAPED,
                _ => 0,
            };
        }
        let plain: Vec<u8> = bytes.iter().map(|(byte, _)| *byte).collect();
        let sound = std::str::from_utf8(&plain).is_ok_and(|text| !text.contains(char::is_control));
        if !sound || decodes_again(&plain) {
            kinds |= HIDDEN;
        }
        kinds |= segments(&bytes);
        if (kinds & !HIDDEN).count_ones() > MAX_KINDS {
            kinds |= HIDDEN;
        }
        Self(kinds)
    }

    /// Every other reading of a path with this spelling, in normal form.
    pub fn readings(self, normal: &str) -> impl Iterator<Item = String> + use<> {
        let bytes = path::decoded(normal);
        let present: Vec<u8> = READABLE.into_iter().filter(|kind| self.0 & kind != 0).collect();
        (1u32..1 << present.len().min(8)).map(move |set| {
            let kinds =
                present.iter().enumerate().filter(|(n, _)| set >> n & 1 == 1).fold(0, |all, (_, kind)| all | kind);
            reading(&bytes, kinds)
        })
    }
}

/// True if decoding a second time would change the path: `%2561`, `%25%36%31`, `%25u0061`.
fn decodes_again(decoded: &[u8]) -> bool {
    decoded.windows(3).any(|window| match window {
        [b'%', b'u' | b'U', digit] => digit.is_ascii_hexdigit(),
        [b'%', high, low] => high.is_ascii_hexdigit() && low.is_ascii_hexdigit(),
        _ => false,
    })
}

/// Kinds of second readings that the segments of a path have.
fn segments(bytes: &[PathByte]) -> u8 {
    let mut kinds = 0;
    let mut rest = bytes;
    // The path begins with a slash: the first segment is the one before it and has nothing.
    let mut opened_by: Option<PathByte> = None;
    loop {
        let end = rest.iter().position(|byte| is_separator(*byte));
        let (segment, after) = rest.split_at_checked(end.unwrap_or(rest.len())).unwrap_or((rest, &[]));
        let closed_by = after.first().copied();
        if let Some(opened_by) = opened_by {
            // An empty last segment is a slash at the end of the path, which every server sees.
            let is_inner = closed_by.is_some();
            if segment.is_empty() && is_inner && (opened_by.1 || closed_by.is_some_and(|(_, escaped)| escaped)) {
                kinds |= HIDDEN;
            }
            kinds |= one_segment(segment);
        }
        let [separator, further @ ..] = after else { return kinds };
        opened_by = Some(*separator);
        rest = further;
    }
}

fn one_segment(segment: &[PathByte]) -> u8 {
    let text: Vec<u8> = segment.iter().map(|(byte, _)| *byte).collect();
    let text = String::from_utf8_lossy(&text);
    let mut kinds = 0;
    // A server that cuts a segment at a delimiter reads the first part; blanks at the ends of parts get lost on Windows.
    for (n, part) in text.split([';', '?', '#']).enumerate() {
        // Windows drops blanks and dots at the end of a name, in any order.
        let name = part.trim_end_matches(|c: char| c == '.' || c.is_whitespace());
        let dropped = part.get(name.len()..).unwrap_or_default();
        let is_blank = part.starts_with(char::is_whitespace) || dropped.contains(char::is_whitespace);
        if is_blank || (n == 0 && name.is_empty() && !part.is_empty()) {
            kinds |= HIDDEN;
        }
        if part.ends_with('.') {
            kinds |= TRAILING_DOT;
        }
    }
    if text.starts_with(';') {
        kinds |= HIDDEN;
    }
    kinds
}

/// Path as read by a server with the habits `kinds`.
fn reading(bytes: &[PathByte], kinds: u8) -> String {
    let has = |kind: u8| kinds & kind != 0;
    let end = bytes.iter().position(|byte| has(REPARSED) && matches!(byte, (b'?' | b'#', true)));
    let whole = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default();
    let mut out = String::with_capacity(whole.len());
    let mut cut = false;
    for byte in whole {
        let separates = match byte {
            (b'/', escaped) => !escaped || has(SLASH),
            (b'\\', true) => has(BACKSLASH),
            _ => false,
        };
        if separates {
            cut = false;
            end_segment(&mut out, has(TRAILING_DOT));
            if !out.ends_with('/') {
                out.push('/');
            }
            continue;
        }
        cut |= has(PARAMETER) && byte.0 == b';';
        if cut {
            continue;
        }
        match byte {
            (byte, true) if has(ESCAPED) && byte.is_ascii_graphic() && !b"/\\?#;%\"<>^`{|}[]".contains(byte) => {
                out.push(char::from(*byte));
            }
            (byte, true) => path::escape(&mut out, *byte),
            (byte, false) => out.push(char::from(*byte)),
        }
    }
    end_segment(&mut out, has(TRAILING_DOT));
    out
}

fn end_segment(out: &mut String, drops_dots: bool) {
    while drops_dots && out.ends_with('.') {
        out.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readings(path: &str) -> Vec<String> {
        let (normal, spelling) = read(path).unwrap();
        assert!(!spelling.is_hidden(), "{path}");
        spelling.readings(&normal).collect()
    }

    #[test]
    fn every_mixture_of_habits_is_a_reading() {
        assert_eq!(readings("/a/b"), [""; 0]);
        assert_eq!(readings("/a;x/b"), ["/a/b"]);
        assert_eq!(readings("/a%2fb%5Cc"), ["/a/b%5Cc", "/a%2Fb/c", "/a/b/c"]);
        assert_eq!(readings("/a./b;c"), ["/a./b", "/a/b;c", "/a/b"]);
        assert_eq!(readings("/a%3Ab%3Fc"), ["/a%3Ab", "/a:b%3Fc", "/a:b"]);
        assert_eq!(readings("/a%2F"), ["/a/"]);
    }

    #[test]
    fn an_expression_sees_what_every_server_reads_or_is_evaded() {
        for (path, evades) in [
            ("/a/b", false),
            ("/a%3Ab", false),
            ("/caf%C3%A9", false),
            ("/a%2Fb", true),
            ("/a%2fb", true),
            ("/a%5Cb", true),
            ("/a%5cb", true),
            ("/a;b", true),
            ("/a%3Fb", true),
            ("/a.", true),
        ] {
            assert_eq!(read(path).unwrap().1.evades_expressions(), evades, "{path}");
        }
    }

    #[test]
    fn what_no_honest_client_writes_is_hidden() {
        for path in [
            "/a%00",
            "/a%0A",
            "/%7F",
            "/%C2%85",
            "/%C0%AF",
            "/%FF",
            "/%2561",
            "/%25%32%66",
            "/%25u0061",
            "/%2525",
            "/x/..;/y",
            "/x/.%20/y",
            "/;/y",
            "/x;/;a",
            "/%20a",
            "/a%20/b",
            "/a%20./b",
            "/a%09;b",
            "/a%2F",
            "/x/..%3F",
            "/x%2F..",
            "/x/%2Fy",
            "/x%2F%2Fy",
            "/%5C/y",
            "/.../y",
            "/a;b%3Fc%23.%2Fd%5Ce.",
        ] {
            let (_, spelling) = read(path).unwrap();
            assert_eq!(spelling.is_hidden(), path != "/a%2F", "{path}");
        }
        for path in ["/a%20b", "/100%25", "/50%25%20off", "/a;b=c", "/wiki/%3F", "/Inc.", "/caf%C3%A9", "/a%2F"] {
            assert!(!read(path).unwrap().1.is_hidden(), "{path}");
        }
    }
}
