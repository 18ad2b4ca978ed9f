//! Normal form of URL paths (RFC 3986, 6.2.2), of requests and of the file alike, so that a route compares equal paths
//! in equal spelling. Pure functions over text.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Path that no server can read as a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Percent sign that two hexadecimal digits do not follow (RFC 3986, 2.1). IIS reads `%u002f` as a slash.
    #[error("a `%` in the path is not followed by two hexadecimal digits")]
    Percent,
    /// Segment `.` or `..`, plain or as `%2e`.
    #[error("the path has a segment `.` or `..`")]
    Dots,
    /// Backslash, which some servers read as a slash.
    #[error("the path has a backslash")]
    Backslash,
}

/// True for characters that mean themselves in a segment: unreserved, sub-delimiters but `;`, `:` and `@` (RFC 3986, 3.3).
fn is_plain(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"-._~!$&'()*+,=:@".contains(&b)
}

/// True if nothing in the path has a second spelling or a second reading: no escape, no parameter, no dot at an end of a
/// segment, no empty segment. Decides for nearly every request in one pass over the bytes.
pub fn has_one_reading(path: &str) -> bool {
    let mut before = 0;
    for b in path.bytes() {
        let sound = match b {
            b'/' => !matches!(before, b'/' | b'.'),
            b'.' => before != b'/',
            _ => is_plain(b),
        };
        if !sound {
            return false;
        }
        before = b;
    }
    before != b'.'
}

/// Rewrites a path into its normal form: unreserved characters decoded, all that a segment may not have encoded, hexadecimal
/// digits in capitals, slashes written once. Encoded slashes and backslashes keep their letters. Borrows where nothing
/// changes.
pub fn normal(path: &str) -> Result<Cow<'_, str>, PathError> {
    if has_one_reading(path) {
        return Ok(Cow::Borrowed(path));
    }
    let mut out = String::with_capacity(path.len().saturating_add(16));
    let mut bytes = path.bytes();
    while let Some(b) = bytes.next() {
        match b {
            b'/' if out.ends_with('/') => {}
            b'/' | b';' => out.push(char::from(b)),
            b'\\' => return Err(PathError::Backslash),
            b'%' => {
                let (Some(high), Some(low)) = (bytes.next(), bytes.next()) else { return Err(PathError::Percent) };
                let byte = hex(high, low).ok_or(PathError::Percent)?;
                if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                    out.push(char::from(byte));
                } else if matches!(byte, b'/' | b'\\') {
                    out.extend(['%', char::from(high), char::from(low)]);
                } else {
                    escape(&mut out, byte);
                }
            }
            b if is_plain(b) => out.push(char::from(b)),
            b => escape(&mut out, b),
        }
    }
    if out.split('/').any(|segment| matches!(segment, "." | "..")) {
        return Err(PathError::Dots);
    }
    Ok(if out == path { Cow::Borrowed(path) } else { Cow::Owned(out) })
}

/// Appends a byte as an escape.
pub fn escape(out: &mut String, byte: u8) {
    // A write to a `String` cannot fail.
    let _ = write!(out, "%{byte:02X}");
}

/// Value of two hexadecimal digits.
fn hex(high: u8, low: u8) -> Option<u8> {
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(high)? << 4 | digit(low)?)
}

/// Text by which paths in normal form are compared: the same, with the letters of encoded slashes in capitals too.
pub fn key(normal: &str) -> Cow<'_, str> {
    let lower = ["%2f", "%5c"];
    // Most paths have no escape at all.
    if !normal.contains('%') || !lower.iter().any(|escape| normal.contains(escape)) {
        return Cow::Borrowed(normal);
    }
    Cow::Owned(normal.replace("%2f", "%2F").replace("%5c", "%5C"))
}

/// Byte of a path in normal form, and whether it is written as an escape.
pub type PathByte = (u8, bool);

/// Bytes of a path, its escapes decoded once. A `%` that begins no escape is kept.
pub fn decoded(path: &str) -> Vec<PathByte> {
    let mut rest = path.as_bytes();
    let mut all = Vec::with_capacity(rest.len());
    while let [first, after @ ..] = rest {
        rest = after;
        let escaped = match (first, after) {
            (b'%', [high, low, further @ ..]) => hex(*high, *low).inspect(|_| rest = further),
            _ => None,
        };
        all.push(escaped.map_or((*first, false), |byte| (byte, true)));
    }
    all
}

/// Path as a server reads it that decodes encoded slashes and backslashes into slashes.
pub(crate) fn with_slashes(path: &str) -> Cow<'_, str> {
    let is_slash = |byte: &PathByte| matches!(byte, (b'/' | b'\\', true));
    let bytes = decoded(path);
    if !bytes.iter().any(is_slash) {
        return Cow::Borrowed(path);
    }
    let mut out = String::with_capacity(path.len());
    for byte in bytes {
        match byte {
            slash if is_slash(&slash) => out.push('/'),
            (byte, true) => escape(&mut out, byte),
            (byte, false) => out.push(char::from(byte)),
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_one_normal_form() {
        for (written, form) in [
            ("/v1/chat", "/v1/chat"),
            ("/%61dmin", "/admin"),
            ("//admin///x", "/admin/x"),
            ("/models/org%2Fname%2f", "/models/org%2Fname%2f"),
            ("/a..b/.c", "/a..b/.c"),
            ("/caf%c3%a9", "/caf%C3%A9"),
            ("/café |x", "/caf%C3%A9%20%7Cx"),
            ("/a;b=%3b", "/a;b=%3B"),
            ("/a:b@c+d%3a", "/a:b@c+d%3A"),
            ("/", "/"),
        ] {
            assert_eq!(normal(written).as_deref(), Ok(form), "{written}");
            assert_eq!(normal(form).as_deref(), Ok(form), "{form} stays");
        }
        for (written, error) in [
            ("/x/../admin", PathError::Dots),
            ("/x/%2e%2E/admin", PathError::Dots),
            ("/./x", PathError::Dots),
            ("/x/.%2e", PathError::Dots),
            ("/x\\..\\y", PathError::Backslash),
            ("/%", PathError::Percent),
            ("/%2", PathError::Percent),
            ("/%u002fadmin", PathError::Percent),
            ("/%%32%66", PathError::Percent),
            ("/%+2", PathError::Percent),
        ] {
            assert_eq!(normal(written), Err(error), "{written}");
        }
    }

    #[test]
    fn encoded_slashes_are_read_as_slashes() {
        assert_eq!(with_slashes("/a%2fb%5Cc%20d"), "/a/b/c%20d");
        assert_eq!(with_slashes("/a%20b"), "/a%20b");
    }
}
