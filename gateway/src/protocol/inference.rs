//! Calls of the Open Inference Protocol, over HTTP and gRPC alike, and the places of model names in their messages.

use std::ops::Range;

/// Call that a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InferenceCall {
    /// Outputs of a model for inputs.
    Infer,
    /// Requests and answers of a model in both directions of one stream (Triton, gRPC only).
    StreamInfer,
    /// Inputs and outputs of a model.
    ModelMetadata,
    /// Readiness of a model.
    ModelReady,
    /// Liveness of the server.
    ServerLive,
    /// Readiness of the server.
    ServerReady,
    /// Name, version and extensions of the server.
    ServerMetadata,
    /// Further call of a server about one model, such as its statistics.
    OtherOfModel,
    /// Further call of a server about itself or all its models, such as its repository or shared memory.
    OtherOfServer,
}

impl InferenceCall {
    /// True for a call of the protocol that names no model.
    pub fn is_of_server(self) -> bool {
        matches!(self, Self::ServerLive | Self::ServerReady | Self::ServerMetadata)
    }

    /// True if the call names one model.
    pub fn names_model(self) -> bool {
        !self.is_of_server() && self != Self::OtherOfServer
    }
}

/// Model that the message of a call names.
#[derive(Debug, PartialEq, Eq)]
pub struct NamedModel {
    /// Name.
    pub name: String,
    /// Range of its field in the body.
    pub at: Range<usize>,
}

/// Place of a model's name in the beginning of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnswerName {
    /// The beginning is too short to tell.
    NotYet,
    /// The answer names another model, or none.
    Absent,
    /// Range to replace, and the bytes in its place.
    Replace(Range<usize>, Vec<u8>),
}
