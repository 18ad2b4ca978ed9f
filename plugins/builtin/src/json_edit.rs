//! Edits of JSON by JSON Pointer (RFC 6901) in its text. What no edit touches keeps its bytes: the order of members, the digits
//! of numbers, the escapes of strings. Each edit is one pass over the text, and holds no value of it.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// Most names in a pointer: a missing one is created with all its parents.
const MAX_DEPTH: usize = 32;

/// Pointer to a value below the whole text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pointer {
    /// Names on the way, without escapes; at least one.
    names: Vec<String>,
}

impl Pointer {
    /// Reads a pointer.
    ///
    /// # Errors
    ///
    /// The mistake and what is expected.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let Some(rest) = text.strip_prefix('/') else {
            return Err(format!(
                "found `{text}`; expected a JSON Pointer that begins with `/`, such as `/temperature`"
            ));
        };
        let mut names = Vec::new();
        for part in rest.split('/') {
            let mut escapes = part.split('~').skip(1);
            if escapes.any(|escape| !escape.starts_with(['0', '1'])) {
                return Err(format!(
                    "found `~` in `{text}`; expected `~0` for a tilde and `~1` for a slash (RFC 6901)"
                ));
            }
            names.push(part.replace("~1", "/").replace("~0", "~"));
        }
        if names.len() > MAX_DEPTH {
            return Err(format!("found {} names in `{text}`; expected at most {MAX_DEPTH}", names.len()));
        }
        Ok(Self { names })
    }

    /// First name on the way.
    pub(crate) fn first(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }

    /// True if the pointer has one name.
    pub(crate) fn is_of_top(&self) -> bool {
        self.names.len() == 1
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.names.iter().try_for_each(|name| write!(f, "/{}", name.replace('~', "~0").replace('/', "~1")))
    }
}

/// Reason for which a text cannot be edited.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EditError {
    /// The text is no JSON.
    #[error("it is not JSON")]
    NotJson,
    /// A value on the way has no members.
    #[error("it has {found} where `{pointer}` expects an object or a list")]
    NoContainer {
        /// Pointer of the edit.
        pointer: String,
        /// Kind of the value.
        found: &'static str,
    },
    /// A list has no element of this number.
    #[error("the list on the way of `{pointer}` has {length} elements")]
    NoElement {
        /// Pointer of the edit.
        pointer: String,
        /// Elements of the list.
        length: usize,
    },
    /// An object on the way has a name twice, or in other letters, so that readers may take one or the other.
    #[error("the name `{0}` stands twice in one object, or in other letters")]
    Twice(String),
}

/// Place of a pointer in a text.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// Range of the value; of the whole member or element with the comma that goes with it.
    Found { value: Range<usize>, whole: Range<usize> },
    /// The object or list at `at`, the position for a further entry, has none; `names` are left of the pointer. An entry before
    /// it needs a comma.
    Missing { at: usize, is_list: bool, is_empty: bool, left: usize },
}

/// Value at a pointer; `None` where there is none.
pub(crate) fn get<'t>(text: &'t str, pointer: &Pointer) -> Result<Option<&'t str>, EditError> {
    match locate(text, pointer)? {
        Place::Found { value, .. } => Ok(text.get(value)),
        Place::Missing { .. } => Ok(None),
    }
}

/// Puts `value`, a JSON text, at a pointer, in place of what is there. Creates the objects that are missing on the way. In a
/// list `-` is a further element at its end.
pub(crate) fn set(text: &str, pointer: &Pointer, value: &str) -> Result<String, EditError> {
    match locate(text, pointer)? {
        Place::Found { value: at, .. } => Ok(splice(text, at, value)),
        Place::Missing { at, is_list, is_empty, left } => {
            let names = pointer.names.get(pointer.names.len() - left..).unwrap_or_default();
            let mut entry = String::with_capacity(value.len() + 32);
            if !is_empty {
                entry.push(',');
            }
            for (n, name) in names.iter().enumerate() {
                if n > 0 {
                    entry.push('{');
                }
                if n > 0 || !is_list {
                    entry.push_str(&quoted(name));
                    entry.push(':');
                }
            }
            entry.push_str(value);
            entry.extend(std::iter::repeat_n('}', names.len().saturating_sub(1)));
            Ok(splice(text, at..at, &entry))
        }
    }
}

/// Puts `value` before the first element of the list at a pointer. The list must be there.
pub(crate) fn push_front(text: &str, pointer: &Pointer, value: &str) -> Result<Option<String>, EditError> {
    let Place::Found { value: at, .. } = locate(text, pointer)? else { return Ok(None) };
    let list = text.get(at.clone()).unwrap_or_default();
    let Some(inside) = list.strip_prefix('[') else { return Ok(None) };
    let comma = if inside.trim_start_matches(is_blank).starts_with(']') { "" } else { "," };
    Ok(Some(splice(text, at.start + 1..at.start + 1, &[value, comma].concat())))
}

/// Removes the value at a pointer with its name; `None` where there is none.
pub(crate) fn remove(text: &str, pointer: &Pointer) -> Result<Option<String>, EditError> {
    match locate(text, pointer) {
        Ok(Place::Found { whole, .. }) => Ok(Some(splice(text, whole, ""))),
        // What is not there need not be removed.
        Ok(Place::Missing { .. }) | Err(EditError::NoContainer { .. } | EditError::NoElement { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// String of JSON.
pub(crate) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r')
}

fn splice(text: &str, at: Range<usize>, with: &str) -> String {
    let before = text.get(..at.start).unwrap_or_default();
    let behind = text.get(at.end..).unwrap_or_default();
    [before, with, behind].concat()
}

fn locate(text: &str, pointer: &Pointer) -> Result<Place, EditError> {
    // The whole text is read once, so that what follows its value is no JSON.
    let whole: &RawValue = serde_json::from_str(text).map_err(|_| EditError::NotJson)?;
    let (mut value, mut place) = (offset(text, whole.get()), None);
    for (n, name) in pointer.names.iter().enumerate() {
        let inner = text.get(value.clone()).unwrap_or_default();
        let left = pointer.names.len() - n;
        let entries = match inner.as_bytes().first() {
            Some(b'{') => scan_object(inner, name)?,
            Some(b'[') => scan_list(inner, name, pointer)?,
            Some(b'"') => return Err(no_container(pointer, "a string")),
            Some(b't' | b'f') => return Err(no_container(pointer, "true or false")),
            Some(b'n') => return Err(no_container(pointer, "null")),
            _ => return Err(no_container(pointer, "a number")),
        };
        let base = value.start;
        match entries {
            Entries { found: Some(found), before, .. } => {
                let inside = found.start + base..found.end + base;
                let whole = member(text, base + before.unwrap_or(1), inside.end, before.is_some());
                place = Some(whole);
                value = inside;
            }
            Entries { end, before, is_list, .. } => {
                return Ok(Place::Missing { at: base + end, is_list, is_empty: before.is_none(), left });
            }
        }
    }
    Ok(Place::Found { whole: place.unwrap_or_else(|| value.clone()), value })
}

/// Range to remove with an entry whose value ends at `end`: from the end of the entry before, or with the comma behind it.
fn member(text: &str, from: usize, end: usize, has_before: bool) -> Range<usize> {
    let rest = text.get(end..).unwrap_or_default();
    let blanks = rest.len() - rest.trim_start_matches(is_blank).len();
    if !has_before && rest.trim_start_matches(is_blank).starts_with(',') { from..end + blanks + 1 } else { from..end }
}

fn no_container(pointer: &Pointer, found: &'static str) -> EditError {
    EditError::NoContainer { pointer: pointer.to_string(), found }
}

/// Range of a part of a text.
fn offset(text: &str, part: &str) -> Range<usize> {
    let start = (part.as_ptr() as usize).saturating_sub(text.as_ptr() as usize);
    start..start + part.len()
}

/// Result of a scan of an object or list, as positions in its text.
struct Entries {
    /// Value of the entry.
    found: Option<Range<usize>>,
    /// End of the entry before it; of the last one where it was not found.
    before: Option<usize>,
    /// Position behind the last entry.
    end: usize,
    is_list: bool,
}

fn scan_object(text: &str, name: &str) -> Result<Entries, EditError> {
    struct Object<'n, 't> {
        text: &'t str,
        name: &'n str,
    }
    impl<'de> Visitor<'de> for Object<'_, 'de> {
        type Value = Result<Entries, EditError>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut entries = Entries { found: None, before: None, end: 1, is_list: false };
            while let Some(key) = map.next_key_seed(Key)? {
                let value: &'de RawValue = map.next_value()?;
                let range = offset(self.text, value.get());
                if key != self.name && folded(&key).eq(folded(self.name)) {
                    // Servers that read names in any letters would take one or the other.
                    while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                    return Ok(Err(EditError::Twice(self.name.to_owned())));
                }
                if key == self.name {
                    if entries.found.is_some() {
                        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                        return Ok(Err(EditError::Twice(self.name.to_owned())));
                    }
                    entries.found = Some(range.clone());
                } else if entries.found.is_none() {
                    entries.before = Some(range.end);
                }
                entries.end = range.end;
            }
            Ok(Ok(entries))
        }
    }
    let mut reader = serde_json::Deserializer::from_str(text);
    reader.deserialize_map(Object { text, name }).map_err(|_| EditError::NotJson)?
}

/// Letters of a name as servers fold it that compare names so (Go's `encoding/json`): small ones of ASCII, also for the two others that
/// fold to them.
pub(crate) fn folded(name: &str) -> impl Iterator<Item = char> {
    name.chars().map(|c| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        c => c.to_ascii_lowercase(),
    })
}

/// Name of a member, borrowed where it has no escapes.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Cow<'de, str>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Cow<'de, str>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }
            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Cow::Borrowed(text))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Cow::Owned(text.to_owned()))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

fn scan_list(text: &str, name: &str, pointer: &Pointer) -> Result<Entries, EditError> {
    struct List<'t> {
        text: &'t str,
        wanted: Option<usize>,
    }
    impl<'de> Visitor<'de> for List<'de> {
        type Value = (Entries, usize);
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let (mut entries, mut length) = (Entries { found: None, before: None, end: 1, is_list: true }, 0);
            while let Some(value) = list.next_element::<&'de RawValue>()? {
                let range = offset(self.text, value.get());
                if self.wanted == Some(length) {
                    entries.found = Some(range.clone());
                } else if entries.found.is_none() {
                    entries.before = Some(range.end);
                }
                (entries.end, length) = (range.end, length + 1);
            }
            Ok((entries, length))
        }
    }
    // RFC 6901, 4: digits without leading zeros.
    let is_number = name.bytes().all(|b| b.is_ascii_digit()) && (name.len() == 1 || !name.starts_with('0'));
    let wanted = if is_number { name.parse().ok() } else { None };
    let mut reader = serde_json::Deserializer::from_str(text);
    let (entries, length) = reader.deserialize_seq(List { text, wanted }).map_err(|_| EditError::NotJson)?;
    if entries.found.is_none() && name != "-" && wanted != Some(length) {
        return Err(EditError::NoElement { pointer: pointer.to_string(), length });
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pointer(text: &str) -> Pointer {
        Pointer::parse(text).unwrap()
    }

    #[test]
    fn a_value_is_set_where_the_pointer_says_and_all_else_keeps_its_bytes() {
        for (text, at, value, expected) in [
            (r#"{"a":1.50,"b":"é"}"#, "/a", "2", r#"{"a":2,"b":"é"}"#),
            (r#"{ "a" : 1 }"#, "/b", "[]", r#"{ "a" : 1,"b":[] }"#),
            ("{}", "/a", "1", r#"{"a":1}"#),
            ("{ \n}", "/a", "1", "{\"a\":1 \n}"),
            ("{}", "/a/b/c", "1", r#"{"a":{"b":{"c":1}}}"#),
            (r#"{"a":{"x":0}}"#, "/a/b/c", "1", r#"{"a":{"x":0,"b":{"c":1}}}"#),
            (r#"{"a":[1,2]}"#, "/a/0", "9", r#"{"a":[9,2]}"#),
            (r#"{"a":[1,2]}"#, "/a/2", "9", r#"{"a":[1,2,9]}"#),
            (r#"{"a":[]}"#, "/a/-", "9", r#"{"a":[9]}"#),
            (r#"{"a":[{}]}"#, "/a/0/b", "9", r#"{"a":[{"b":9}]}"#),
            (r#"{"a":[1]}"#, "/a/-/b", "9", r#"{"a":[1,{"b":9}]}"#),
            (r#"{"a\/b":1,"m~n":2}"#, "/a~1b", "3", r#"{"a\/b":3,"m~n":2}"#),
            (r#"{"m~n":2}"#, "/m~0n", "3", r#"{"m~n":3}"#),
            (r#"{"":2}"#, "/", "3", r#"{"":3}"#),
            (r#"{"n":12345678901234567890123,"a":1}"#, "/a", "2", r#"{"n":12345678901234567890123,"a":2}"#),
        ] {
            assert_eq!(set(text, &pointer(at), value).unwrap(), expected, "{text} {at}");
        }
    }

    #[test]
    fn a_removed_value_takes_its_name_and_one_comma_with_it() {
        for (text, at, expected) in [
            (r#"{"a":1,"b":2,"c":3}"#, "/a", Some(r#"{"b":2,"c":3}"#)),
            (r#"{"a":1,"b":2,"c":3}"#, "/b", Some(r#"{"a":1,"c":3}"#)),
            (r#"{"a":1,"b":2,"c":3}"#, "/c", Some(r#"{"a":1,"b":2}"#)),
            (r#"{ "a" : 1 , "b" : 2 }"#, "/a", Some(r#"{ "b" : 2 }"#)),
            (r#"{ "a" : 1 , "b" : 2 }"#, "/b", Some(r#"{ "a" : 1 }"#)),
            (r#"{ "a" : 1 }"#, "/a", Some("{ }")),
            ("[1,[2],3]", "/1", Some("[1,3]")),
            ("[1]", "/0", Some("[]")),
            (r#"{"a":{"b":{"c":1}}}"#, "/a/b/c", Some(r#"{"a":{"b":{}}}"#)),
            (r#"{"a":1}"#, "/b", None),
            (r#"{"a":1}"#, "/a/b", None),
            ("[1]", "/7", None),
        ] {
            assert_eq!(remove(text, &pointer(at)).unwrap().as_deref(), expected, "{text} {at}");
        }
    }

    #[test]
    fn what_cannot_be_edited_is_told() {
        assert_eq!(set("{", &pointer("/a"), "1"), Err(EditError::NotJson));
        assert_eq!(set("{} {}", &pointer("/a"), "1"), Err(EditError::NotJson));
        assert_eq!(set("", &pointer("/a"), "1"), Err(EditError::NotJson));
        let twice = Err(EditError::Twice("a".to_owned()));
        assert_eq!(set(r#"{"a":1,"b":2,"\u0061":3}"#, &pointer("/a"), "1"), twice);
        assert_eq!(set(r#"{"A":1}"#, &pointer("/a"), "1"), twice);
        assert!(set("{\"ma\u{17f}k\":1}", &pointer("/mask"), "1").is_err());
        assert_eq!(
            set(r#"{"a":"x"}"#, &pointer("/a/b"), "1").unwrap_err().to_string(),
            "it has a string where `/a/b` expects an object or a list"
        );
        assert_eq!(
            set(r#"{"a":[]}"#, &pointer("/a/01"), "1").unwrap_err().to_string(),
            "the list on the way of `/a/01` has 0 elements"
        );
        for wrong in ["", "a", "a/b", "/~", "/~2", "/a~"] {
            assert!(Pointer::parse(wrong).is_err(), "{wrong}");
        }
        assert_eq!(
            Pointer::parse(&"/a".repeat(33)).unwrap_err().split(';').next(),
            Some(&*format!("found 33 names in `{}`", "/a".repeat(33)))
        );
    }

    #[test]
    fn an_element_goes_to_the_front() {
        let front = |text: &str| push_front(text, &pointer("/a"), "0").unwrap();
        assert_eq!(front(r#"{"a":[1]}"#).as_deref(), Some(r#"{"a":[0,1]}"#));
        assert_eq!(front(r#"{"a":[ ]}"#).as_deref(), Some(r#"{"a":[0 ]}"#));
        assert_eq!(front(r#"{"a":{}}"#), None);
        assert_eq!(front("{}"), None);
    }

    #[test]
    fn an_edit_does_what_it_does_to_the_value() {
        // Texts with all kinds of values, nested and spaced in many ways.
        let names = ["a", "b", "c/d", "e~f", ""];
        let values = ["1", "-2.50e+3", "\"x\\u0041\\\"\"", "null", "[]", "{}", "[1, 2 ,3]", "{\"a\":{\"b\":[{}]}}"];
        let mut seed = 7u64;
        let mut next = |most: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(seed >> 33).unwrap() % most
        };
        for _ in 0..2_000 {
            let blank = [" ", "", "\n\t"][next(3)];
            let mut members: Vec<String> = Vec::new();
            let mut left: Vec<&str> = names.to_vec();
            for _ in 0..next(5) {
                let name = left.remove(next(left.len()));
                members.push(format!("{blank}{}{blank}:{blank}{}{blank}", quoted(name), values[next(values.len())]));
            }
            let text =
                format!("{blank}{{{}}}{blank}", if members.is_empty() { blank.to_owned() } else { members.join(",") });
            let name = names[next(names.len())];
            let at = pointer(&format!("/{}", name.replace('~', "~0").replace('/', "~1")));
            let before: serde_json::Value = serde_json::from_str(&text).unwrap();
            let after: serde_json::Value = serde_json::from_str(&set(&text, &at, "[7]").unwrap()).unwrap();
            let mut expected = before.clone();
            expected[name] = serde_json::json!([7]);
            assert_eq!(after, expected, "{text} {at}");
            let removed = remove(&text, &at).unwrap();
            let mut expected = before.clone();
            let was = expected.as_object_mut().unwrap().shift_remove(name);
            assert_eq!(removed.is_some(), was.is_some(), "{text} {at}");
            if let Some(removed) = removed {
                assert_eq!(serde_json::from_str::<serde_json::Value>(&removed).unwrap(), expected, "{text} {at}");
            }
        }
    }
}
