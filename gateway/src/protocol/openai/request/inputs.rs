//! Reader of inputs to embed or continue: texts or tokens of the model, one or a list. Counts bound the memory.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::values::{Probe, SkipVisitor};

/// Text, tokens, or a list of either.
#[derive(Debug, PartialEq)]
pub(in crate::protocol) enum TextOrTokens {
    Nothing,
    Text(String),
    Tokens(Vec<u32>),
    /// List of texts or tokens. Of more than [`Self::MOST`] entries one more is kept, so that the reader of the request sees
    /// the excess.
    Many(Vec<TextOrTokens>),
    Wrong,
}

impl TextOrTokens {
    /// Most texts in one request, as many as OpenAI accepts.
    pub(in crate::protocol) const MOST: usize = 2048;
    /// Most tokens in one text: longer than any context.
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
                while let Some(entry) = list.next_element::<InputEntry>()? {
                    match entry {
                        InputEntry::Token(token) if tokens.len() < TextOrTokens::MOST_TOKENS => tokens.push(token),
                        InputEntry::Text(text) if many.len() <= TextOrTokens::MOST => {
                            many.push(TextOrTokens::Text(text))
                        }
                        InputEntry::Tokens(list) if many.len() <= TextOrTokens::MOST => {
                            many.push(TextOrTokens::Tokens(list));
                        }
                        InputEntry::Text(_) | InputEntry::Tokens(_) => {}
                        InputEntry::Token(_) | InputEntry::Wrong => wrong = true,
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

/// Entry of a list of inputs.
enum InputEntry {
    Text(String),
    Token(u32),
    Tokens(Vec<u32>),
    Wrong,
}

impl<'de> Deserialize<'de> for InputEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = InputEntry;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }
            fn visit_unit<E>(self) -> Result<InputEntry, E> {
                Ok(InputEntry::Wrong)
            }
            fn visit_bool<E>(self, _: bool) -> Result<InputEntry, E> {
                Ok(InputEntry::Wrong)
            }
            fn visit_u64<E>(self, token: u64) -> Result<InputEntry, E> {
                Ok(u32::try_from(token).map_or(InputEntry::Wrong, InputEntry::Token))
            }
            fn visit_i64<E>(self, _: i64) -> Result<InputEntry, E> {
                Ok(InputEntry::Wrong)
            }
            fn visit_f64<E>(self, _: f64) -> Result<InputEntry, E> {
                Ok(InputEntry::Wrong)
            }
            fn visit_str<E>(self, text: &str) -> Result<InputEntry, E> {
                Ok(InputEntry::Text(text.to_owned()))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<InputEntry, A::Error> {
                SkipVisitor.visit_map(map)?;
                Ok(InputEntry::Wrong)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<InputEntry, A::Error> {
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
                Ok(if wrong { InputEntry::Wrong } else { InputEntry::Tokens(tokens) })
            }
        }
        deserializer.deserialize_any(Entries)
    }
}
