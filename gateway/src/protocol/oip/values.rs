//! Values in the JSON of a call: lists of bounded length, parameters, and the elements of tensors. What is kept does not grow
//! beyond its bounds, however a caller writes it.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use spillway_filter::Refusal;

use super::tensor::MOST_TEXTS;
use crate::protocol::chat::Ignored;

/// Most parameters of a call, an input or an output.
const MOST_PARAMETERS: usize = 64;

const CLASSIFICATION: &str = "classification";
/// Begin of the names of the parameters that place a tensor in shared memory.
pub(super) const SHARED_MEMORY: &str = "shared_memory_";

/// List of at most `MOST` entries: small entries must not grow a body many times over.
pub(super) struct Few<T, const MOST: usize>(pub(super) Vec<T>);

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for Few<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List<T, const MOST: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for List<T, MOST> {
            type Value = Few<T, MOST>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MOST} entries")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = list.next_element()? {
                    if entries.len() == MOST {
                        return Err(Error::invalid_length(MOST + 1, &self));
                    }
                    entries.push(entry);
                }
                Ok(Few(entries))
            }
        }
        deserializer.deserialize_seq(List(PhantomData))
    }
}

/// Value of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parameter {
    Bool(bool),
    Unsigned(u64),
    Other,
}

impl<'de> Deserialize<'de> for Parameter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Scalar;
        impl Visitor<'_> for Scalar {
            type Value = Parameter;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a number, true or false")
            }
            fn visit_bool<E>(self, value: bool) -> Result<Parameter, E> {
                Ok(Parameter::Bool(value))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Parameter, E> {
                Ok(Parameter::Unsigned(value))
            }
            fn visit_i64<E>(self, _: i64) -> Result<Parameter, E> {
                Ok(Parameter::Other)
            }
            fn visit_f64<E>(self, _: f64) -> Result<Parameter, E> {
                Ok(Parameter::Other)
            }
            fn visit_str<E>(self, _: &str) -> Result<Parameter, E> {
                Ok(Parameter::Other)
            }
        }
        deserializer.deserialize_any(Scalar)
    }
}

/// Parameters by name, each once.
#[derive(Default)]
pub(super) struct Parameters(Vec<(String, Parameter)>);

impl<'de> Deserialize<'de> for Parameters {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Map;
        impl<'de> Visitor<'de> for Map {
            type Value = Parameters;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {MOST_PARAMETERS} parameters")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parameters, A::Error> {
                let mut all: Vec<(String, Parameter)> = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, Parameter>()? {
                    if all.iter().any(|(known, _)| *known == name) {
                        return Err(A::Error::custom(format_args!("duplicate parameter `{name}`")));
                    }
                    if all.len() == MOST_PARAMETERS {
                        return Err(Error::invalid_length(MOST_PARAMETERS + 1, &self));
                    }
                    all.push((name, value));
                }
                Ok(Parameters(all))
            }
        }
        deserializer.deserialize_map(Map)
    }
}

impl Parameters {
    /// Value of a parameter, which is no longer among those that are left.
    pub(super) fn take(&mut self, name: &str) -> Option<Parameter> {
        let at = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.swap_remove(at).1)
    }

    /// Value of a parameter that is true or false.
    pub(super) fn take_flag(&mut self, name: &'static str) -> Result<Option<bool>, Refusal> {
        match self.take(name) {
            None => Ok(None),
            Some(Parameter::Bool(value)) => Ok(Some(value)),
            Some(_) => Err(wrong_parameter(name, "must be true or false")),
        }
    }

    /// Refuses parameters that ask for another answer than the one that is given, and notes all others as ignored.
    pub(super) fn end(self, ignored: &mut Ignored) -> Result<(), Refusal> {
        for (name, _) in self.0 {
            check_parameter(&name)?;
            ignored.push(format!("parameters.{name}"));
        }
        Ok(())
    }
}

/// Refusal of a parameter.
pub(super) fn wrong_parameter(name: &str, what: &str) -> Refusal {
    Refusal::invalid("invalid_value", format!("The parameter `{name}` {what}.")).param(name.to_owned())
}

/// Refuses a parameter that changes where tensors are, or what an output holds.
pub(super) fn check_parameter(name: &str) -> Result<(), Refusal> {
    if name.starts_with(SHARED_MEMORY) {
        return Err(wrong_parameter(name, "is not accepted: the caller and a built-in model share no memory"));
    }
    if name == CLASSIFICATION {
        return Err(wrong_parameter(name, "is not accepted: the outputs of this model are no classes"));
    }
    Ok(())
}

/// Elements of `data`, nested or flat, row by row.
#[derive(Default)]
pub(super) struct Data {
    /// Texts, of which one more than is accepted is kept at most.
    pub(super) texts: Vec<String>,
    /// Elements, texts included.
    pub(super) count: usize,
    /// True if one of them is no text.
    pub(super) has_others: bool,
}

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut data = Self::default();
        Row { into: &mut data, is_outer: true }.deserialize(deserializer)?;
        Ok(data)
    }
}

/// Row of elements, or within one an element.
struct Row<'d> {
    into: &'d mut Data,
    is_outer: bool,
}

impl Row<'_> {
    fn other<E: Error>(self) -> Result<(), E> {
        if self.is_outer {
            return Err(E::custom("`data` must be a list"));
        }
        self.into.count += 1;
        self.into.has_others = true;
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Row<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Row<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of strings, numbers, true or false")
    }
    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        self.other()
    }
    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        self.other()
    }
    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        self.other()
    }
    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        self.other()
    }
    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        if self.is_outer {
            return self.other();
        }
        self.into.count += 1;
        // One more than is accepted shows the excess.
        if self.into.texts.len() <= MOST_TEXTS {
            self.into.texts.push(text.to_owned());
        }
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(Row { into: self.into, is_outer: false })?.is_some() {}
        Ok(())
    }
}
