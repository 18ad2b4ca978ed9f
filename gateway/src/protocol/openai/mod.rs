//! The OpenAI API: what a request asks for, how the model inside answers, what an upstream's answer tells in passing.

mod observe;
mod prefix;
mod request;
mod response;

pub use observe::{Observation, ObservedError, Observer, Usage};
pub use prefix::prompt_prefix;
pub use request::{ChatRequest, Message, Peek, model_not_found, peek};
pub use response::{Answer, ModelCard, model, models_list};
