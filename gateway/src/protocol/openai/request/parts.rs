//! How much a prompt holds, counted while it is read and forgotten: what limits of tokens reserve beforehand.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::values::{Skip, Text};

/// What a prompt is made of: the bytes of its text (strings, the `content` and `text` of objects, and four for a number,
/// which there is the id of a token), its images and its sounds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Parts {
    pub(super) text: u64,
    pub(super) images: u64,
    pub(super) sounds: u64,
}

impl Parts {
    fn text(bytes: u64) -> Self {
        Self { text: bytes, ..Self::default() }
    }

    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            text: self.text.saturating_add(other.text),
            images: self.images.saturating_add(other.images),
            sounds: self.sounds.saturating_add(other.sounds),
        }
    }
}

impl<'de> Deserialize<'de> for Parts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PartsVisitor)
    }
}

struct PartsVisitor;

/// What a token stands for where only its id is given.
const BYTES_PER_TOKEN: u64 = 4;

impl<'de> Visitor<'de> for PartsVisitor {
    type Value = Parts;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_unit<E>(self) -> Result<Parts, E> {
        Ok(Parts::default())
    }
    fn visit_bool<E>(self, _: bool) -> Result<Parts, E> {
        Ok(Parts::default())
    }
    fn visit_u64<E>(self, _: u64) -> Result<Parts, E> {
        Ok(Parts::text(BYTES_PER_TOKEN))
    }
    fn visit_i64<E>(self, _: i64) -> Result<Parts, E> {
        Ok(Parts::text(BYTES_PER_TOKEN))
    }
    fn visit_f64<E>(self, _: f64) -> Result<Parts, E> {
        Ok(Parts::text(BYTES_PER_TOKEN))
    }
    fn visit_str<E>(self, text: &str) -> Result<Parts, E> {
        Ok(Parts::text(u64::try_from(text.len()).unwrap_or(u64::MAX)))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Parts, A::Error> {
        let mut sum = Parts::default();
        while let Some(parts) = list.next_element::<Parts>()? {
            sum = sum.plus(parts);
        }
        Ok(sum)
    }
    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Parts, A::Error> {
        let mut sum = Parts::default();
        while let Some(Text(key)) = object.next_key()? {
            match &*key {
                "content" | "text" => {
                    sum = sum.plus(object.next_value()?);
                    continue;
                }
                "image_url" | "image" => sum.images = sum.images.saturating_add(1),
                "input_audio" | "audio" => sum.sounds = sum.sounds.saturating_add(1),
                _ => {}
            }
            object.next_value::<Skip>()?;
        }
        Ok(sum)
    }
}
