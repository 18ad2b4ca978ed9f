//! Readers of requests for the built-in model. A body is read in one pass into bounded memory: nothing is built for a field
//! that is not used, however large it is, and a body that nests deeper than 128 levels is refused. Readers of other APIs
//! use its parts.

mod biases;
mod chat;
mod encode;
mod fields;
pub(in crate::protocol) mod findings;
pub(in crate::protocol) mod format;
pub(in crate::protocol) mod inputs;
mod messages;
#[cfg(test)]
mod tests;
pub(in crate::protocol) mod tools;
pub(in crate::protocol) mod values;

pub(super) use chat::{chat, completions};
pub(super) use encode::encode;

use serde::de::{Deserializer, Visitor};
use spillway_filter::Refusal;

/// Reads a body that must be one JSON object and nothing else. Every value in it passes through the visitor, so that invalid
/// JSON is refused wherever it is.
pub(in crate::protocol) fn object<'a, V: Visitor<'a>>(body: &'a [u8], visitor: V) -> Result<V::Value, Refusal> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let read = json.deserialize_map(visitor).and_then(|value| json.end().map(|()| value));
    read.map_err(|error| {
        if error.is_data() {
            // The library's message would repeat the value.
            return Refusal::invalid("invalid_json", "The body must be a JSON object.");
        }
        Refusal::invalid("invalid_json", format!("The body is not valid JSON: {error}."))
    })
}
