//! JSON lines in which the text of callers cannot act. serde_json escapes only control characters below U+0020. Terminals
//! also obey DEL and the controls of C1 (U+0080 to U+009F, ECMA-48). Some viewers end a line at U+2028 and U+2029 or turn
//! the order of characters (UAX #9). All of these are escaped, so that no caller can forge a line or the view of one.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::Serializer;
use serde_json::ser::Formatter;
use spillway_cel::Scalar;

/// Longest text of a caller or an upstream in a line, in bytes: longer paths and agents say no more and fill disks.
pub(super) const MAX_TEXT: usize = 1024;

/// Cuts `text` to the length that a line may hold, at a boundary of characters.
pub(super) fn clipped(text: &str) -> &str {
    text.get(..text.floor_char_boundary(MAX_TEXT)).unwrap_or_default()
}

/// Appends a value as one line of JSON, with its line break; false if it cannot be written, which leaves `out` as it was.
pub fn write_line(out: &mut Vec<u8>, value: &impl Serialize) -> bool {
    let before = out.len();
    if value.serialize(&mut Serializer::with_formatter(&mut *out, Escaping)).is_err() {
        out.truncate(before);
        return false;
    }
    out.push(b'\n');
    true
}

/// Line with an object of JSON, written field by field: most texts have nothing to escape, and keys never.
#[derive(Debug)]
pub(super) struct ObjectLine(Vec<u8>);

impl ObjectLine {
    /// Begins an object, with room for so many bytes.
    pub(super) fn with_capacity(bytes: usize) -> Self {
        let mut out = Vec::with_capacity(bytes);
        out.push(b'{');
        Self(out)
    }

    fn key(&mut self, key: &str) {
        for part in [if self.0.ends_with(b"{") { "\"" } else { ",\"" }, key, "\":"] {
            self.0.extend_from_slice(part.as_bytes());
        }
    }

    /// Adds a text.
    pub(super) fn text(&mut self, key: &str, text: &str) {
        self.key(key);
        // Without an early end, so that many bytes are compared at a time.
        let is_plain = text.bytes().fold(true, |is_plain, byte| is_plain & is_written_as_it_is(byte));
        if is_plain {
            for part in ["\"", text, "\""] {
                self.0.extend_from_slice(part.as_bytes());
            }
        } else if text.serialize(&mut Serializer::with_formatter(&mut self.0, Escaping)).is_err() {
            self.0.extend_from_slice(b"null");
        }
    }

    /// Adds a number, or true or false.
    pub(super) fn value(&mut self, key: &str, value: impl Serialize) {
        self.key(key);
        let before = self.0.len();
        if serde_json::to_writer(&mut self.0, &value).is_err() {
            self.0.truncate(before);
            self.0.extend_from_slice(b"null");
        }
    }

    /// Adds an object of texts, whose keys have nothing to escape.
    pub(super) fn object<'t>(&mut self, key: &str, texts: impl Iterator<Item = (&'t str, &'t str)>) {
        self.key(key);
        self.0.push(b'{');
        for (key, text) in texts {
            self.text(key, text);
        }
        self.0.push(b'}');
    }

    /// Adds an object of scalars, whose keys have nothing to escape.
    pub(super) fn scalars<'t>(&mut self, key: &str, values: impl Iterator<Item = (&'t str, &'t Scalar)>) {
        self.key(key);
        self.0.push(b'{');
        for (key, value) in values {
            match value {
                Scalar::Text(text) => self.text(key, text),
                Scalar::Int(n) => self.value(key, n),
                Scalar::Double(n) => self.value(key, n),
                Scalar::Bool(is) => self.value(key, is),
            }
        }
        self.0.push(b'}');
    }

    /// Ends the object and the line.
    pub(super) fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(b"}\n");
        self.0
    }
}

/// True for a byte of a text that needs no look: ASCII that JSON and terminals show as it is.
fn is_written_as_it_is(byte: u8) -> bool {
    (0x20..0x7f).contains(&byte) && byte != b'"' && byte != b'\\'
}

/// Compact JSON that escapes what could act on a terminal.
struct Escaping;

impl Formatter for Escaping {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, out: &mut W, fragment: &str) -> io::Result<()> {
        write_escaped(out, fragment)
    }
}

/// Writes a text in which characters that act on a terminal are escaped as `\uXXXX`. A line of JSON has them only inside
/// of strings, so that it reads back as it was.
pub(super) fn write_escaped<W: ?Sized + Write>(out: &mut W, text: &str) -> io::Result<()> {
    let mut rest = text;
    // Nearly every text is ASCII without DEL.
    if !text.bytes().all(|byte| byte < 0x7f) {
        while let Some((at, c)) = rest.char_indices().find(|(_, c)| acts(*c)) {
            let (plain, after) = rest.split_at_checked(at).unwrap_or((rest, ""));
            write!(out, "{plain}\\u{:04x}", u32::from(c))?;
            rest = after.get(c.len_utf8()..).unwrap_or_default();
        }
    }
    out.write_all(rest.as_bytes())
}

/// True for a character that acts instead of being shown. All of them are below U+10000, so that four digits escape them.
fn acts(c: char) -> bool {
    matches!(c, '\u{7f}'..='\u{9f}' | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_acts_on_a_terminal_is_escaped_and_reads_back_as_it_was() {
        for text in [
            "plain",
            "\u{9b}31mred\u{9b}0m",
            "a\u{7f}\u{8}b\u{85}c",
            "\u{202e}gpj.exe\u{2066}",
            "line\u{2028}line\u{2029}",
            "für \u{1f600} \u{a0}",
            "\u{9f}",
        ] {
            let mut line = Vec::new();
            assert!(write_line(&mut line, &serde_json::json!({"a": text})));
            let line = String::from_utf8(line).unwrap();
            assert!(!line.trim_end_matches('\n').chars().any(|c| c.is_control() || acts(c)), "{line:?}");
            let read: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert_eq!(read["a"], text);
        }
        let mut line = Vec::new();
        write_line(&mut line, &"für\u{9b}\u{1f600}");
        assert_eq!(String::from_utf8(line).unwrap(), "\"für\\u009b\u{1f600}\"\n");
    }
}
