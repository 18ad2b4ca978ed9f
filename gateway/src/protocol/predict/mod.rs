//! Requests for predictions in the conventions of TensorFlow Serving and TorchServe. They pass to servers as any request does;
//! known are the model in the path, for rules and its name at the server, and the form of errors.

mod path;
mod tensorflow;
mod torchserve;

pub use path::named_by_path;
pub(super) use tensorflow::{TensorFlow, is_verb};
pub(super) use torchserve::TorchServe;
