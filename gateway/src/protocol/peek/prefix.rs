//! Beginning of a prompt, by which requests that can share a server's KV cache are recognised. Only as much of the body is
//! read as the prefix needs; a body that is no JSON has the prefix found before the fault.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Returns the first `most` bytes of the prompt's text, with the roles of messages between them.
pub fn prompt_prefix(body: &[u8], most: usize) -> Vec<u8> {
    let mut prefix = Prefix { bytes: Vec::with_capacity(most.min(1024)), most };
    // An error means that the prefix is full or that the body is no JSON; the prefix is good either way.
    let _ = serde_json::Deserializer::from_slice(body).deserialize_map(&mut prefix);
    prefix.bytes
}

struct Prefix {
    bytes: Vec<u8>,
    most: usize,
}

impl Prefix {
    /// Appends text; returns an error once the prefix is full, which ends the reading.
    fn push<E: serde::de::Error>(&mut self, text: &str) -> Result<(), E> {
        let room = self.most.saturating_sub(self.bytes.len());
        let part = text.as_bytes();
        self.bytes.extend_from_slice(part.get(..part.len().min(room)).unwrap_or_default());
        if self.bytes.len() >= self.most { Err(E::custom("enough")) } else { Ok(()) }
    }
}

impl<'de> Visitor<'de> for &mut Prefix {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            if matches!(&*key, "messages" | "prompt" | "input" | "instructions" | "system") {
                map.next_value_seed(PromptText(self))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

/// Reader that appends every text of a value to a prefix: strings, and the `role`, `content` and `text` of objects.
struct PromptText<'p>(&'p mut Prefix);

impl<'de> DeserializeSeed<'de> for PromptText<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for PromptText<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a prompt")
    }
    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        self.0.push(text)?;
        // Separates texts: "a" and "b" is not "ab".
        self.0.push("\0")
    }
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E: serde::de::Error>(self, token: u64) -> Result<(), E> {
        // A prompt may be given as tokens.
        self.0.push(&token.to_string())?;
        self.0.push("\0")
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(PromptText(self.0))?.is_some() {}
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            if matches!(&*key, "role" | "content" | "text") {
                map.next_value_seed(PromptText(self.0))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        if self.0.bytes.len() >= self.0.most { Err(<A::Error as serde::de::Error>::custom("enough")) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(body: &str, most: usize) -> String {
        String::from_utf8(prompt_prefix(body.as_bytes(), most)).unwrap()
    }

    #[test]
    fn it_is_the_beginning_of_what_the_model_reads() {
        let chat = r#"{"model":"m","messages":[{"role":"system","content":"You are"},{"role":"user","content":[{"type":"text","text":"Hi"}]}]}"#;
        assert_eq!(of(chat, 100), "system\0You are\0user\0Hi\0");
        assert_eq!(of(chat, 10), "system\0You");
        assert_eq!(of(r#"{"prompt":"abc","temperature":1}"#, 2), "ab");
        assert_eq!(of(r#"{"prompt":[1,2,3]}"#, 4), "1\x002\0");
        assert_eq!(of(r#"{"model":"m"}"#, 4), "");
        assert_eq!(of("no json", 4), "");
    }

    #[test]
    fn no_more_is_read_than_is_needed() {
        assert_eq!(of(r#"{"messages":[{"role":"user","content":"long enough"}],"rest": broken"#, 8), "user\0lon");
    }

    proptest::proptest! {
        #[test]
        fn any_body_has_a_bounded_prefix(body in "\\PC{0,200}", most in 1usize..64) {
            proptest::prop_assert!(prompt_prefix(body.as_bytes(), most).len() <= most);
        }
    }
}
