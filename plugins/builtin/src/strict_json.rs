//! JSON that every reader reads alike: an object that has a name twice is refused, since readers take one value or the other.

use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Value of a text.
///
/// # Errors
///
/// Mistake in the text, told without anything of it.
pub(crate) fn read(text: &[u8]) -> Result<Value, &'static str> {
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let value = Strict.deserialize(&mut deserializer).and_then(|value| deserializer.end().map(|()| value));
    value.map_err(|error| if error.to_string().starts_with(TWICE) { TWICE } else { "it is not JSON" })
}

const TWICE: &str = "it has a name twice in one object";

struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }
    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }
    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }
    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }
    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(Self)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            let value = map.next_value_seed(Self)?;
            if members.insert(name, value).is_some() {
                return Err(A::Error::custom(TWICE));
            }
        }
        Ok(Value::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_read_as_elsewhere_or_not_at_all() {
        for text in
            [r#"{"a":[1,-2,3.5,1e300,18446744073709551615,null,true,"é\u0041"],"b":{"a":{}}}"#, " 7 ", "\"x\"", "[]"]
        {
            assert_eq!(read(text.as_bytes()), Ok(serde_json::from_str(text).unwrap()), "{text}");
        }
        for (text, fault) in [
            (r#"{"a":1,"a":2}"#, TWICE),
            (r#"{"x":[{"a":1,"\u0061":1}]}"#, TWICE),
            ("", "it is not JSON"),
            ("{} {}", "it is not JSON"),
            ("{\"a\":", "it is not JSON"),
        ] {
            assert_eq!(read(text.as_bytes()), Err(fault), "{text}");
        }
        assert_eq!(read("[".repeat(1000).as_bytes()), Err("it is not JSON"));
        assert_eq!(read(b"\"\xff\""), Err("it is not JSON"));
    }
}
