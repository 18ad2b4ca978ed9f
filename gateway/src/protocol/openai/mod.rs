//! The OpenAI API: what a request asks for, how the model inside answers, what an upstream's answer tells in passing.

mod continuation;
mod encoded;
mod observe;
mod prefix;
mod request;
mod response;

pub use continuation::{Continuation, continuation};
pub use encoded::{embeddings, ranking};
pub use observe::{Observation, ObservedError, Observer, Usage};
pub use prefix::prompt_prefix;
pub use request::{
    ChatRequest, Encode, EncodeInput, EncodeRequest, Message, Peek, PromptInput, ResponseFormat, ToolChoice,
    form_model, is_form, is_utf8, looks_like_json, model_at, model_not_found, peek,
};
pub use response::{Answer, Call, ModelCard, Shape, Spent, WholeChoice, model, models_list};
