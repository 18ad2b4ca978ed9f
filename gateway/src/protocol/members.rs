//! Objects of a body, member by member and unread: for readers of APIs in which the meaning of one member depends on others.
//! The values borrow from the body, so that an object costs a few words for each member.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use spillway_filter::Refusal;

use super::openai::request::object;
use super::openai::request::values::{BorrowedText, Probe, Skip, SkipVisitor};
use super::refusals::{duplicate, shown};

/// Most members of one object: far more than any API has. Each costs memory.
const MAX_MEMBERS: usize = 256;

/// Members of a JSON object in the order of the text. Those that are `null` count as absent.
#[derive(Debug, Default)]
pub(super) struct Members<'a> {
    list: Vec<(Cow<'a, str>, &'a RawValue)>,
    /// Name that appears twice.
    twice: Option<String>,
    has_too_many: bool,
}

impl<'a> Members<'a> {
    /// Reads a body that must be one JSON object. All of it is checked: what nests deeper than 128 levels, or is no UTF-8, is
    /// refused, and values that are read later need no such check.
    ///
    /// # Errors
    /// Refuses a body that is no object, has a member twice, or has too many members.
    pub(super) fn of_body(body: &'a [u8]) -> Result<Self, Refusal> {
        object(body, SkipVisitor)?;
        let members: Option<Self> = serde_json::from_slice(body).ok();
        let Some(members) = members else {
            return Err(Refusal::invalid("invalid_json", "The body must be a JSON object."));
        };
        if let Some(name) = &members.twice {
            return Err(duplicate(name));
        }
        if members.has_too_many {
            let message = format!("The body has more than {MAX_MEMBERS} members.");
            return Err(Refusal::invalid("object_above_max_properties", message));
        }
        Ok(members)
    }

    /// Reads a value of a body; `None` where it is no object, has a member twice, or has too many.
    pub(super) fn of(value: &'a RawValue) -> Option<Self> {
        let members: Self = serde_json::from_str(value.get()).ok()?;
        (members.twice.is_none() && !members.has_too_many).then_some(members)
    }

    /// Takes a member out.
    pub(super) fn take(&mut self, name: &str) -> Option<&'a RawValue> {
        let at = self.list.iter().position(|(member, _)| member == name)?;
        Some(self.list.swap_remove(at).1).filter(|value| value.get() != "null")
    }

    /// Takes a string out; `None` where the member is anything else.
    pub(super) fn take_text(&mut self, name: &str) -> Option<Cow<'a, str>> {
        self.take(name).and_then(text)
    }

    /// Names and values of the members that nobody took.
    pub(super) fn rest(self) -> impl Iterator<Item = (Cow<'a, str>, &'a RawValue)> {
        self.list.into_iter().filter(|(_, value)| value.get() != "null")
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MembersVisitor;
        impl<'de> Visitor<'de> for MembersVisitor {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Members::default();
                while let Some((BorrowedText(name), value)) = map.next_entry::<BorrowedText<'de>, &'de RawValue>()? {
                    if members.list.len() == MAX_MEMBERS {
                        members.has_too_many = true;
                    } else if members.list.iter().any(|(member, _)| *member == name) {
                        members.twice.get_or_insert_with(|| shown(&name));
                    } else {
                        members.list.push((name, value));
                    }
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(MembersVisitor)
    }
}

/// Entries of a list, unread. Of more than `most` only the fact that there are more is kept.
#[derive(Debug, Default)]
pub(super) struct Entries<'a> {
    pub(super) list: Vec<&'a RawValue>,
    pub(super) has_more: bool,
}

/// Reads at most `most` entries of a list; `None` where the value is no list.
pub(super) fn entries(value: &RawValue, most: usize) -> Option<Entries<'_>> {
    struct EntriesVisitor(usize);
    impl<'de> Visitor<'de> for EntriesVisitor {
        type Value = Entries<'de>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut entries = Entries::default();
            while entries.list.len() < self.0 {
                let Some(entry) = list.next_element::<&'de RawValue>()? else { return Ok(entries) };
                entries.list.push(entry);
            }
            while list.next_element::<Skip>()?.is_some() {
                entries.has_more = true;
            }
            Ok(entries)
        }
    }
    serde_json::Deserializer::from_str(value.get()).deserialize_seq(EntriesVisitor(most)).ok()
}

/// Reads a string; `None` for any other value.
pub(super) fn text(value: &RawValue) -> Option<Cow<'_, str>> {
    serde_json::from_str::<BorrowedText<'_>>(value.get()).ok().map(|BorrowedText(text)| text)
}

/// Reads a value as far as a decision needs it.
pub(super) fn probe(value: &RawValue) -> Probe<'_> {
    serde_json::from_str(value.get()).unwrap_or(Probe::Null)
}

/// Appends a value without the blanks between its tokens: a line break would end an event or a line.
pub(super) fn put_compact(out: &mut String, value: &RawValue) {
    let (mut is_text, mut is_escaped) = (false, false);
    out.extend(value.get().chars().filter(|c| {
        let keeps = is_text || !c.is_ascii_whitespace();
        if *c == '"' && !is_escaped {
            is_text = !is_text;
        }
        is_escaped = is_text && *c == '\\' && !is_escaped;
        keeps
    }));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn members_are_taken_by_name_and_null_is_absent() {
        let body = br#"{"a": "x\n", "b": null, "c": [1, {"d": 2}], "e": null}"#;
        let mut members = Members::of_body(body).unwrap();
        assert_eq!(members.take_text("a").unwrap(), "x\n");
        assert!(members.take("a").is_none() && members.take("b").is_none() && members.take("z").is_none());
        let rest: Vec<_> = members.rest().map(|(name, value)| (name.into_owned(), value.get())).collect();
        assert_eq!(rest, [("c".to_owned(), r#"[1, {"d": 2}]"#)]);
    }

    #[test]
    fn bodies_that_hide_something_are_refused() {
        let deep = format!("{{\"a\":{}1{}}}", "[".repeat(200), "]".repeat(200));
        let many = (0..300).map(|n| format!("\"m{n}\":1")).collect::<Vec<_>>().join(",");
        for (body, code) in [
            ("", "invalid_json"),
            ("[]", "invalid_json"),
            ("{} {}", "invalid_json"),
            (r#"{"a":1,"a":2}"#, "duplicate_parameter"),
            (r#"{"a":1,"\u0061":2}"#, "duplicate_parameter"),
            (&deep, "invalid_json"),
            (&format!("{{{many}}}"), "object_above_max_properties"),
        ] {
            assert_eq!(Members::of_body(body.as_bytes()).unwrap_err().code, code, "{body}");
        }
        assert_eq!(Members::of_body(b"{\"a\":\"\xff\"}").unwrap_err().code, "invalid_json");
    }

    #[test]
    fn lists_are_read_up_to_a_limit() {
        let raw: &RawValue = serde_json::from_str("[1, [2], 3]").unwrap();
        let two = entries(raw, 2).unwrap();
        assert_eq!((two.list.len(), two.list[1].get(), two.has_more), (2, "[2]", true));
        assert!(!entries(raw, 3).unwrap().has_more);
        assert!(entries(serde_json::from_str("{}").unwrap(), 3).is_none());
    }

    proptest! {
        #[test]
        fn a_compact_value_is_the_same_value(keys in proptest::collection::vec("[a\\\\\" \n\u{e9}]{0,6}", 0..6)) {
            let value = serde_json::json!({"list": keys, "n": 1.5, "inner": {"x": keys.concat()}});
            let pretty = serde_json::to_string_pretty(&value).unwrap();
            let mut out = String::new();
            put_compact(&mut out, serde_json::from_str(&pretty).unwrap());
            prop_assert_eq!(&out, &serde_json::to_string(&value).unwrap());
        }
    }
}
