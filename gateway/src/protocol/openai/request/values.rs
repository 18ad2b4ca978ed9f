//! Values of a body, reduced while they are read to the part that a decision needs. Memory is bounded: strings are borrowed
//! from the body, and of lists and objects only the first few entries are kept, without the values nested in those.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// Entries of a list or object that are kept: one more than any field of the API may have.
pub(in crate::protocol) const KEPT: usize = 5;

/// String, borrowed from the body where it has no escapes. (Serde always copies a plain `Cow` in an `Option` or a list.)
pub(in crate::protocol) struct BorrowedText<'a>(pub(in crate::protocol) Cow<'a, str>);

impl<'de> Deserialize<'de> for BorrowedText<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BorrowedTextVisitor;
        impl<'de> Visitor<'de> for BorrowedTextVisitor {
            type Value = BorrowedText<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(BorrowedText(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(BorrowedText(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(BorrowedTextVisitor)
    }
}

/// Value of a field, as far as a reader needs it.
#[derive(Debug, PartialEq)]
pub(in crate::protocol) enum Probe<'a> {
    Null,
    Bool(bool),
    Unsigned(u64),
    /// Below zero.
    Negative(i64),
    Float(f64),
    Text(Cow<'a, str>),
    /// List: its length, and its first entries.
    List(usize, Vec<Flat<'a>>),
    /// Object: its number of fields, and the first of them.
    Object(usize, Vec<(Cow<'a, str>, Flat<'a>)>),
}

/// A value inside a list or an object.
#[derive(Debug, PartialEq)]
pub(in crate::protocol) enum Flat<'a> {
    Null,
    Bool(bool),
    Text(Cow<'a, str>),
    /// Number, list or object, which no reader needs there.
    Other,
}

impl<'a> Probe<'a> {
    pub(in crate::protocol) fn number(&self) -> Option<f64> {
        #[allow(clippy::cast_precision_loss, reason = "compared with small numbers only")]
        match self {
            Self::Unsigned(n) => Some(*n as f64),
            Self::Negative(n) => Some(*n as f64),
            Self::Float(n) => Some(*n),
            _ => None,
        }
    }

    /// Field `name` of an object; `None` also when not all fields were kept.
    pub(in crate::protocol) fn field(&self, name: &str) -> Option<&Flat<'a>> {
        match self {
            Self::Object(len, fields) if *len == fields.len() => {
                fields.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value)
            }
            _ => None,
        }
    }
}

impl<'de> Deserialize<'de> for Probe<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ProbeVisitor)
    }
}

struct ProbeVisitor;

impl<'de> Visitor<'de> for ProbeVisitor {
    type Value = Probe<'de>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Probe::Null)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Probe::Bool(value))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        Ok(Probe::Unsigned(value))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(u64::try_from(value).map_or(Probe::Negative(value), Probe::Unsigned))
    }
    fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
        Ok(Probe::Float(value))
    }
    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Probe::Text(Cow::Borrowed(text)))
    }
    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Probe::Text(Cow::Owned(text.to_owned())))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let (mut len, mut kept) = (0usize, Vec::new());
        loop {
            if len < KEPT {
                match list.next_element::<Flat<'de>>()? {
                    Some(entry) => kept.push(entry),
                    None => break,
                }
            } else if list.next_element::<Skip>()?.is_none() {
                break;
            }
            len = len.saturating_add(1);
        }
        Ok(Probe::List(len, kept))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
        let (mut len, mut kept) = (0usize, Vec::new());
        while let Some(BorrowedText(key)) = object.next_key()? {
            if len < KEPT {
                kept.push((key, object.next_value::<Flat<'de>>()?));
            } else {
                object.next_value::<Skip>()?;
            }
            len = len.saturating_add(1);
        }
        Ok(Probe::Object(len, kept))
    }
}

impl<'de> Deserialize<'de> for Flat<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FlatVisitor)
    }
}

struct FlatVisitor;

impl<'de> Visitor<'de> for FlatVisitor {
    type Value = Flat<'de>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Flat::Null)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Flat::Bool(value))
    }
    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(Flat::Other)
    }
    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(Flat::Other)
    }
    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Flat::Other)
    }
    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Flat::Text(Cow::Borrowed(text)))
    }
    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Flat::Text(Cow::Owned(text.to_owned())))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
        SkipVisitor.visit_seq(list).map(|_| Flat::Other)
    }
    fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<Self::Value, A::Error> {
        SkipVisitor.visit_map(object).map(|_| Flat::Other)
    }
}

/// Value that is read and forgotten. Unlike serde's `IgnoredAny`, this counts nesting against the parser's limit and refuses
/// invalid UTF-8, so that no server gets bytes that the gateway did not read.
pub(in crate::protocol) struct Skip;

impl<'de> Deserialize<'de> for Skip {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SkipVisitor)
    }
}

pub(in crate::protocol) struct SkipVisitor;

impl<'de> Visitor<'de> for SkipVisitor {
    type Value = Skip;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_unit<E>(self) -> Result<Skip, E> {
        Ok(Skip)
    }
    fn visit_bool<E>(self, _: bool) -> Result<Skip, E> {
        Ok(Skip)
    }
    fn visit_u64<E>(self, _: u64) -> Result<Skip, E> {
        Ok(Skip)
    }
    fn visit_i64<E>(self, _: i64) -> Result<Skip, E> {
        Ok(Skip)
    }
    fn visit_f64<E>(self, _: f64) -> Result<Skip, E> {
        Ok(Skip)
    }
    fn visit_str<E>(self, _: &str) -> Result<Skip, E> {
        Ok(Skip)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Skip, A::Error> {
        while list.next_element::<Skip>()?.is_some() {}
        Ok(Skip)
    }
    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Skip, A::Error> {
        while object.next_entry::<Skip, Skip>()?.is_some() {}
        Ok(Skip)
    }
}
