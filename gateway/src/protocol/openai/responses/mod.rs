//! OpenAI's Responses API: answered by built-in models, with a reader of requests and a writer of answers, and translated for
//! servers of other APIs. Shapes are those of the types of OpenAI's Python SDK, 3.57 (`openai/types/responses`).
//!
//! Nothing is stored here. A request that leaves `store` out is answered without being stored, which the answer says; one
//! that depends on a stored answer or conversation is refused by the name of its field.

mod answer;
mod items;
mod request;
mod shapes;
#[cfg(test)]
mod tests;
mod translate;

pub(super) use answer::Answer;
pub(super) use request::responses;
pub(super) use translate::{Responses, read_count, write_count};

use bytes::Bytes;
use serde::Serialize;
use spillway_filter::Refusal;

use super::error;

/// Refusal as an event of a stream whose last sequence number is not known. The clients of OpenAI raise an error for an event
/// with a member `error`; the other members are those of the event as documented.
pub(super) fn error_event(refusal: &Refusal) -> Bytes {
    shapes::error_event(refusal, error::kind(refusal), None)
}

/// Body of an answer with the number of tokens of an input.
pub(super) fn token_count(input_tokens: u64) -> Bytes {
    #[derive(Serialize)]
    struct Count {
        object: &'static str,
        input_tokens: u64,
    }
    crate::protocol::json(&Count { object: "response.input_tokens", input_tokens })
}
