//! Strings of a JSON text, read and replaced where they stand. Names of members are strings too: servers show some of them to
//! models. All other bytes stay.

use std::borrow::Cow;

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::json_edit::quoted;

/// Member of a request or answer that names the model. It is left as it is: routes and limits have read it.
const MODEL: &str = "model";

/// Most texts of JSON within strings of each other.
const MAX_NESTED: usize = 3;

/// True for a text that is one value of JSON.
pub(super) fn is_json(text: &str) -> bool {
    serde_json::from_str::<IgnoredAny>(text).is_ok()
}

/// Calls `change` with each string of a text of JSON but the name of the model, and returns the text with what it gives in their
/// places; `None` where it gives nothing.
///
/// # Errors
///
/// The error of `change`, which ends the reading.
pub(super) fn change_strings<E>(
    text: &str,
    mut change: impl FnMut(&str) -> Result<Option<String>, E>,
) -> Result<Option<String>, E> {
    change_nested(text, &mut change, MAX_NESTED)
}

/// As [`change_strings`], with so many texts of JSON within strings. Arguments and results of tools are such texts: what stands
/// in them has escapes of its own.
fn change_nested<E>(
    text: &str,
    change: &mut dyn FnMut(&str) -> Result<Option<String>, E>,
    nested: usize,
) -> Result<Option<String>, E> {
    let bytes = text.as_bytes();
    let (mut out, mut copied) = (None::<String>, 0);
    let (mut at, mut depth, mut is_model) = (0, 0_usize, false);
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            b',' => is_model = false,
            b'"' => {
                let end = string_end(bytes, at);
                let raw = text.get(at..end).unwrap_or_default();
                let inner = decoded(raw);
                let is_name = text.get(end..).unwrap_or_default().trim_start().starts_with(':');
                if is_name && depth == 1 && nested == MAX_NESTED {
                    is_model = inner == MODEL;
                }
                // The name of the member itself has nothing to find.
                let is_nested = nested > 0 && inner.trim_start().starts_with(['{', '[']) && is_json(&inner);
                let changed = match (is_model, is_nested) {
                    (true, _) => None,
                    (false, true) => change_nested(&inner, change, nested - 1)?,
                    (false, false) => change(&inner)?,
                };
                if let Some(changed) = changed {
                    let out = out.get_or_insert_with(|| String::with_capacity(text.len()));
                    out.push_str(text.get(copied..at).unwrap_or_default());
                    out.push_str(&quoted(&changed));
                    copied = end;
                }
                at = end;
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    Ok(out.map(|mut out| {
        out.push_str(text.get(copied..).unwrap_or_default());
        out
    }))
}

/// Calls `read` with each string of a text of JSON that is a value, and the name of the member that has it; elements of a list
/// have its name with `[]` behind. A name with blanks is read as a value. Texts of JSON within strings are read as [`change_strings`] does.
pub(super) fn each_value(text: &str, read: &mut dyn FnMut(&str, &str)) {
    each_nested(text, read, MAX_NESTED);
}

/// Longest name that `each_value` tells, in bytes: longer ones are none of an API, and lists of many objects repeat theirs.
const MAX_NAME: usize = 64;

/// Name of a member as it is told: empty where it is longer than any of an API.
fn told(name: Cow<'_, str>) -> Cow<'_, str> {
    if name.len() <= MAX_NAME { name } else { Cow::Borrowed("") }
}

fn each_nested(text: &str, read: &mut dyn FnMut(&str, &str), nested: usize) {
    let bytes = text.as_bytes();
    // What stands within a string was written by a person or a model: it has no marks of an API, whatever its members are called.
    let is_outer = nested == MAX_NESTED;
    // Names of the lists and objects around, and the name of the member that is read.
    let (mut around, mut name) = (Vec::new(), Cow::Borrowed(""));
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'{' => around.push(name.clone()),
            b'[' => {
                let elements = told(Cow::Owned(format!("{name}[]")));
                around.push(std::mem::replace(&mut name, elements));
            }
            b'}' | b']' => name = around.pop().unwrap_or_default(),
            b'"' => {
                let end = string_end(bytes, at);
                let inner = decoded(text.get(at..end).unwrap_or_default());
                if text.get(end..).unwrap_or_default().trim_start().starts_with(':') {
                    if !is_outer || inner.contains(char::is_whitespace) || inner.len() > MAX_NAME {
                        // No name of an API: a text, such as one in the schema of a tool.
                        read("", &inner);
                    }
                    name = told(inner);
                } else if nested > 0 && inner.trim_start().starts_with(['{', '[']) && is_json(&inner) {
                    each_nested(&inner, read, nested - 1);
                } else {
                    read(if is_outer { &name } else { "" }, &inner);
                }
                at = end;
                continue;
            }
            _ => {}
        }
        at += 1;
    }
}

/// Calls `read` with the name and the text of each member of an object; of none in any other text.
pub(super) fn each_member(text: &[u8], read: impl FnMut(&str, &str)) {
    struct Members<F>(F);
    impl<'de, F: FnMut(&str, &str)> Visitor<'de> for Members<F> {
        type Value = ();
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
            while let Some((name, value)) = map.next_entry::<String, &'de RawValue>()? {
                (self.0)(&name, value.get());
            }
            Ok(())
        }
    }
    let _ = serde_json::Deserializer::from_slice(text).deserialize_map(Members(read));
}

/// Position behind the string that begins at `start`.
fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// Text of a string. Half of a surrogate pair, which is no character, is read as U+FFFD.
fn decoded(raw: &str) -> Cow<'_, str> {
    let inner = raw.get(1..raw.len().saturating_sub(1)).unwrap_or_default();
    if !inner.contains('\\') {
        return Cow::Borrowed(inner);
    }
    if let Ok(text) = serde_json::from_str::<String>(raw) {
        return Cow::Owned(text);
    }
    let (mut units, mut rest) = (Vec::with_capacity(inner.len()), inner);
    while let Some(c) = rest.chars().next() {
        let (unit, length) = match (c, rest.as_bytes().get(1)) {
            ('\\', Some(b'u')) => {
                let code = rest.get(2..6).and_then(|digits| u16::from_str_radix(digits, 16).ok());
                (code.unwrap_or(0xFFFD), if code.is_some() { 6 } else { 2 })
            }
            ('\\', Some(escaped)) => {
                let plain = match escaped {
                    b'n' => b'\n',
                    b't' => b'\t',
                    b'r' => b'\r',
                    b'b' => 8,
                    b'f' => 12,
                    other => *other,
                };
                (u16::from(plain), 2)
            }
            _ => {
                units.extend_from_slice(c.encode_utf16(&mut [0; 2]));
                rest = rest.get(c.len_utf8()..).unwrap_or_default();
                continue;
            }
        };
        units.push(unit);
        rest = rest.get(length..).unwrap_or_default();
    }
    Cow::Owned(String::from_utf16_lossy(&units))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn without_x(text: &str) -> Option<String> {
        let change = |text: &str| Ok::<_, ()>(text.contains('x').then(|| text.replace('x', "?")));
        change_strings(text, change).unwrap()
    }

    #[test]
    fn strings_are_changed_where_they_stand() {
        for (text, expected) in [
            (r#"{"a":"x","b":[1.50,"y"]}"#, Some(r#"{"a":"?","b":[1.50,"y"]}"#)),
            (r#"{ "x" : { "y" : "\u0078\n" } }"#, Some(r#"{ "?" : { "y" : "?\n" } }"#)),
            (r#"{"a":"\"x\\","b":"x"}"#, Some(r#"{"a":"\"?\\","b":"?"}"#)),
            (r#"["\ud800 \u0078\n\"x"]"#, Some("[\"\u{fffd} ?\\n\\\"?\"]")),
            (r#"{"model":"x","messages":[{"model":"x"}]}"#, Some(r#"{"model":"x","messages":[{"model":"?"}]}"#)),
            (r#"{"model":{"y":"x"},"a":"x"}"#, Some(r#"{"model":{"y":"x"},"a":"?"}"#)),
            (r#""x""#, Some(r#""?""#)),
            (r#"{"a":"é","n":12345678901234567890}"#, None),
            (r#"{"arguments":"{\"a\":\"\\nx\"}"}"#, Some(r#"{"arguments":"{\"a\":\"\\n?\"}"}"#)),
            (r#"{"a":"{\"model\":\"x\"}"}"#, Some(r#"{"a":"{\"model\":\"?\"}"}"#)),
            ("7", None),
        ] {
            assert_eq!(without_x(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_cut_text_ends_the_reading() {
        for text in ["\"", "{\"a", "{\"a\\", "", "{\"a\":\"x"] {
            let _ = without_x(text);
        }
    }
}
