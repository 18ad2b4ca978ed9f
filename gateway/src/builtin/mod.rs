//! Built-in models and the exchanges they answer: loading models, keeping them over reloads, turning a chat request into
//! work for the engine and its tokens into the caller's API. The decision whether a request spills is made elsewhere.
//! Inputs are the models of a configuration and parsed requests.

mod answer;
mod classify;
mod encode;
mod error;
mod files;
mod loading;
mod memory;
mod model;
mod pool;
mod prompt;
mod stream;
#[cfg(test)]
mod tests;

pub use answer::{Begun, Terms, answer, continue_answer};
pub use classify::FilterClassifier;
pub use encode::{FilterEmbedder, encode, idle_vector, is_idle, width};
pub use error::SpillError;
pub use loading::ModelError;
pub(crate) use loading::options;
pub use memory::{LoadedEngine, ModelMemory, NoRoom};
pub use model::LoadedModel;
pub use pool::Models;
pub use prompt::{count_tokens, prompt_tokens};
pub use stream::{Events, Excuse, Head, Report, SpillStream};
