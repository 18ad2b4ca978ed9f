//! The models inside and the exchanges they answer: loading and keeping them over reloads, turning a chat request into
//! work for the engine and its tokens into the caller's API shape. It never decides whether a request spills.
//! Its inputs are the models of a configuration and parsed requests.

mod answer;
mod encode;
mod memory;
mod pool;
mod stream;
#[cfg(test)]
mod tests;

pub use answer::{Begun, SpillError, Terms, answer, continue_answer, prompt_tokens};
pub use encode::{Encoded, encode};
pub use memory::{Held, ModelMemory, NoRoom};
pub(crate) use pool::options;
pub use pool::{LoadedModel, ModelError, Models};
pub use stream::{Events, Head, Report, SpillStream};
