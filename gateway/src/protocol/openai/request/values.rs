//! Values of a body, reduced while they are read to what a decision needs. Memory is bounded: strings are borrowed from
//! the body, of lists and objects only the first few entries are kept, of what is deeper nothing.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// Entries of a list or object that are kept: one more than any field with a meaning may have.
pub(super) const KEPT: usize = 5;

/// A string, borrowed from the body where it holds no escapes. (A plain `Cow` in an `Option` or a list is always copied.)
pub(super) struct Text<'a>(pub(super) Cow<'a, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

/// A value, as far as anything looks at it.
#[derive(Debug, PartialEq)]
pub(super) enum Probe<'a> {
    Null,
    Bool(bool),
    Unsigned(u64),
    /// Below zero.
    Negative(i64),
    Float(f64),
    Text(Cow<'a, str>),
    /// A list: how long it is, and its first entries.
    List(usize, Vec<Flat<'a>>),
    /// An object: how many fields it has, and the first of them.
    Object(usize, Vec<(Cow<'a, str>, Flat<'a>)>),
}

/// A value inside a list or an object.
#[derive(Debug, PartialEq)]
pub(super) enum Flat<'a> {
    Null,
    Bool(bool),
    Text(Cow<'a, str>),
    /// A number, a list, an object: nothing looks at those in there.
    Other,
}

impl<'a> Probe<'a> {
    pub(super) fn number(&self) -> Option<f64> {
        #[allow(clippy::cast_precision_loss, reason = "compared with small numbers only")]
        match self {
            Self::Unsigned(n) => Some(*n as f64),
            Self::Negative(n) => Some(*n as f64),
            Self::Float(n) => Some(*n),
            _ => None,
        }
    }

    /// The field `name` of an object; `None` also when not all fields were kept.
    pub(super) fn field(&self, name: &str) -> Option<&Flat<'a>> {
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
        while let Some(Text(key)) = object.next_key()? {
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

/// A value that is read and forgotten. Unlike serde's `IgnoredAny` it counts nesting against the parser's limit and
/// refuses text that is not UTF-8, so that no server behind us is handed what we did not read.
pub(super) struct Skip;

impl<'de> Deserialize<'de> for Skip {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SkipVisitor)
    }
}

pub(super) struct SkipVisitor;

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

/// A text, tokens, or a list of such.
#[derive(Debug, PartialEq)]
pub(super) enum TextOrTokens {
    Nothing,
    Text(String),
    Tokens(Vec<u32>),
    /// Several; of more than [`Self::MOST`] one more is kept.
    Many(Vec<TextOrTokens>),
    Wrong,
}

impl TextOrTokens {
    /// Texts of one request, as many as OpenAI takes.
    pub(super) const MOST: usize = 2048;
    /// Tokens of one text: longer than any context.
    const MOST_TOKENS: usize = 1 << 20;
}

impl<'de> Deserialize<'de> for TextOrTokens {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Inputs;
        impl<'de> Visitor<'de> for Inputs {
            type Value = TextOrTokens;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }
            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(TextOrTokens::Nothing)
            }
            fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
                Ok(TextOrTokens::Wrong)
            }
            fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
                Ok(TextOrTokens::Wrong)
            }
            fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
                Ok(TextOrTokens::Wrong)
            }
            fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
                Ok(TextOrTokens::Wrong)
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(TextOrTokens::Text(text.to_owned()))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                SkipVisitor.visit_map(map)?;
                Ok(TextOrTokens::Wrong)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let (mut tokens, mut many, mut wrong) = (Vec::new(), Vec::new(), false);
                while let Some(entry) = list.next_element::<Entry>()? {
                    match entry {
                        Entry::Token(token) if tokens.len() < TextOrTokens::MOST_TOKENS => tokens.push(token),
                        Entry::Text(text) if many.len() <= TextOrTokens::MOST => many.push(TextOrTokens::Text(text)),
                        Entry::Tokens(list) if many.len() <= TextOrTokens::MOST => {
                            many.push(TextOrTokens::Tokens(list));
                        }
                        Entry::Text(_) | Entry::Tokens(_) => {}
                        Entry::Token(_) | Entry::Wrong => wrong = true,
                    }
                }
                Ok(match (wrong, tokens.is_empty(), many.is_empty()) {
                    (true, ..) | (_, false, false) => TextOrTokens::Wrong,
                    (_, false, true) => TextOrTokens::Tokens(tokens),
                    _ => TextOrTokens::Many(many),
                })
            }
        }
        deserializer.deserialize_any(Inputs)
    }
}

/// An entry of such a list.
enum Entry {
    Text(String),
    Token(u32),
    Tokens(Vec<u32>),
    Wrong,
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Entry;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }
            fn visit_unit<E>(self) -> Result<Entry, E> {
                Ok(Entry::Wrong)
            }
            fn visit_bool<E>(self, _: bool) -> Result<Entry, E> {
                Ok(Entry::Wrong)
            }
            fn visit_u64<E>(self, token: u64) -> Result<Entry, E> {
                Ok(u32::try_from(token).map_or(Entry::Wrong, Entry::Token))
            }
            fn visit_i64<E>(self, _: i64) -> Result<Entry, E> {
                Ok(Entry::Wrong)
            }
            fn visit_f64<E>(self, _: f64) -> Result<Entry, E> {
                Ok(Entry::Wrong)
            }
            fn visit_str<E>(self, text: &str) -> Result<Entry, E> {
                Ok(Entry::Text(text.to_owned()))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Entry, A::Error> {
                SkipVisitor.visit_map(map)?;
                Ok(Entry::Wrong)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Entry, A::Error> {
                let (mut tokens, mut wrong) = (Vec::new(), false);
                while let Some(token) = list.next_element::<Probe<'de>>()? {
                    match token {
                        Probe::Unsigned(token) if tokens.len() < TextOrTokens::MOST_TOKENS => {
                            match u32::try_from(token) {
                                Ok(token) => tokens.push(token),
                                Err(_) => wrong = true,
                            }
                        }
                        _ => wrong = true,
                    }
                }
                Ok(if wrong { Entry::Wrong } else { Entry::Tokens(tokens) })
            }
        }
        deserializer.deserialize_any(Entries)
    }
}

/// `logit_bias`: what is added to the logits of tokens, by their numbers.
#[derive(Debug, PartialEq)]
pub(super) enum Biases {
    None,
    Some(Vec<(u32, f32)>),
    TooMany,
    /// No object, a key that is no token, a value that is no number of -100 to 100.
    Wrong,
}

impl Biases {
    /// Tokens in one request; vLLM and OpenAI take as many.
    pub(super) const MOST: usize = 1024;
    /// OpenAI's bounds of a bias.
    const BOUND: f64 = 100.0;
}

impl<'de> Deserialize<'de> for Biases {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(BiasesVisitor)
    }
}

struct BiasesVisitor;

impl<'de> Visitor<'de> for BiasesVisitor {
    type Value = Biases;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_unit<E>(self) -> Result<Biases, E> {
        Ok(Biases::None)
    }
    fn visit_bool<E>(self, _: bool) -> Result<Biases, E> {
        Ok(Biases::Wrong)
    }
    fn visit_u64<E>(self, _: u64) -> Result<Biases, E> {
        Ok(Biases::Wrong)
    }
    fn visit_i64<E>(self, _: i64) -> Result<Biases, E> {
        Ok(Biases::Wrong)
    }
    fn visit_f64<E>(self, _: f64) -> Result<Biases, E> {
        Ok(Biases::Wrong)
    }
    fn visit_str<E>(self, _: &str) -> Result<Biases, E> {
        Ok(Biases::Wrong)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Biases, A::Error> {
        SkipVisitor.visit_seq(list)?;
        Ok(Biases::Wrong)
    }
    #[allow(clippy::cast_possible_truncation, reason = "the range is checked; sampling is done in f32")]
    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Biases, A::Error> {
        let mut biases = Vec::new();
        let (mut wrong, mut many) = (false, false);
        while let Some(Text(token)) = object.next_key()? {
            let bias = object.next_value::<Probe<'de>>()?;
            let bias = bias.number().filter(|bias| bias.abs() <= Biases::BOUND);
            match (token.parse::<u32>(), bias) {
                (Ok(token), Some(bias)) if biases.len() < Biases::MOST => biases.push((token, bias as f32)),
                (Ok(_), Some(_)) => many = true,
                _ => wrong = true,
            }
        }
        Ok(match (wrong, many) {
            (true, _) => Biases::Wrong,
            (_, true) => Biases::TooMany,
            _ => Biases::Some(biases),
        })
    }
}

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
