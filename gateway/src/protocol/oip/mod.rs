//! The Open Inference Protocol, version 2 (KServe, Triton, MLServer): over HTTP here, over gRPC in [`grpc`]. Calls to servers
//! of the same transport pass as they are, with the model renamed, and are translated for others; built-in models that encode texts answer calls of both kinds.

mod answer;
pub mod grpc;
mod infer;
mod json;
mod metadata;
mod path;
mod renaming;
mod tensor;
#[cfg(test)]
mod tests;
mod translate;
mod values;

use std::ops::Range;

use bytes::Bytes;
use http::{HeaderValue, Method};
use serde::Serialize;
use spillway_filter::{Fields, Refusal};

use super::chat::Encoded;
use super::dialect::Dialect;
use super::inference::AnswerName;
use super::operation::{Known, ModelPlace, Operation};
pub(in crate::protocol) use translate::{GrpcToHttp, HttpToGrpc};

pub use answer::HttpAnswer;
pub use infer::{AnswerPlan, InferRequest, check_version};
pub use json::{INFERENCE_HEADER_CONTENT_LENGTH, json_length, length_field};
pub use metadata::ModelFacts;
pub use path::segment_of;
pub use translate::{TensorElements, TensorValues, read_values};

/// Dialect of the protocol over HTTP.
pub(super) struct Oip;

#[derive(Serialize)]
struct Failed<'a> {
    error: &'a str,
}

/// Content type and body of a refusal.
fn error(refusal: &Refusal) -> (HeaderValue, Bytes) {
    (HeaderValue::from_static("application/json"), error_body(&refusal.message))
}

/// Body of an error.
fn error_body(message: &str) -> Bytes {
    super::json(&Failed { error: message })
}

impl Dialect for Oip {
    fn name(&self) -> &'static str {
        "oip"
    }

    fn operation(&self, method: &Method, path: &str) -> Option<Known> {
        let operation = Operation::Inference(path::call(method, path)?);
        Some(Known { operation, is_own_path: true, must_be_json: false })
    }

    fn model_place(&self) -> ModelPlace {
        ModelPlace::Path
    }

    fn model_in_path(&self, path: &str) -> Option<Range<usize>> {
        path::model_at(path)
    }

    fn rename_in_answer(&self, operation: Operation, beginning: &[u8], from: &str, to: &str) -> AnswerName {
        match operation {
            Operation::Inference(call) if call.names_model() => renaming::in_json(call, beginning, from, to),
            _ => AnswerName::Absent,
        }
    }

    fn error(&self, refusal: &Refusal, _request_id: &str) -> (HeaderValue, Bytes) {
        error(refusal)
    }

    fn full_statuses(&self) -> &'static [u16] {
        &[429, 503]
    }
}

/// Version of the model that a path names.
pub fn version_in_path(path: &str) -> Option<&str> {
    path::target(path)?.version
}

/// Reads a call over HTTP.
///
/// # Errors
/// Refuses bodies that are not of the protocol's form, and lengths that do not agree.
pub fn read_infer(headers: &Fields, body: &[u8]) -> Result<InferRequest, Refusal> {
    json::read(headers, body)
}

/// Writes the answer of the model `model`.
pub fn write_infer(plan: &AnswerPlan, model: &str, encoded: &Encoded) -> HttpAnswer {
    answer::write(plan, model, encoded)
}

/// Writes whether the server is live.
pub fn write_live(live: bool) -> Bytes {
    metadata::live(live)
}

/// Writes whether the server is ready.
pub fn write_ready(ready: bool) -> Bytes {
    metadata::ready(ready)
}

/// Writes whether a model is ready.
pub fn write_model_ready(name: &str, ready: bool) -> Bytes {
    metadata::model_ready(name, ready)
}

/// Writes the metadata of the gateway.
pub fn write_server() -> Bytes {
    metadata::server(&metadata::SERVER)
}

/// Writes the metadata of a model.
pub fn write_model(facts: &ModelFacts<'_>) -> Bytes {
    metadata::model(facts)
}
