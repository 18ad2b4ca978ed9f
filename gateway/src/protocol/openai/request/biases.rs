//! Reader of the `logit_bias` of a request.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::values::{BorrowedText, Probe, SkipVisitor};

/// Value of `logit_bias`: numbers to add to the logits of tokens, by token id.
#[derive(Debug, PartialEq)]
pub(super) enum Biases {
    None,
    Some(Vec<(u32, f32)>),
    TooMany,
    /// Not an object, or with a key that is no token id or a value that is no number from -100 to 100.
    Wrong,
}

impl Biases {
    /// Most tokens in one request; vLLM and OpenAI accept as many.
    pub(super) const MOST: usize = 1024;
    /// Largest absolute value of a bias, as in OpenAI's API.
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
        while let Some(BorrowedText(token)) = object.next_key()? {
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
