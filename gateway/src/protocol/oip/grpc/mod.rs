//! The Open Inference Protocol over gRPC: `inference.GRPCInferenceService`.

mod answer;
pub(super) mod request;
pub(super) mod wire;

use std::ops::Range;

use bytes::Bytes;
use http::{HeaderValue, Method};
use spillway_filter::{Fields, Refusal};

pub use wire::FRAME;

use super::error;
use super::infer::{AnswerPlan, InferRequest};
use super::metadata::{ModelFacts, SERVER};
use crate::coding::Coding;
use crate::protocol::chat::Encoded;
use crate::protocol::dialect::Dialect;
use crate::protocol::inference::{AnswerName, InferenceCall, NamedModel};
use crate::protocol::operation::{Known, ModelPlace, Operation};
use crate::protocol::translate::{MostKept, Unreadable};

/// Path of the service, with the slash before its methods.
const SERVICE: &str = "/inference.GRPCInferenceService/";

/// Dialect of the service.
pub(in crate::protocol) struct OipGrpc;

/// Call of a method; `None` for a method of another service.
fn call(path: &str) -> Option<InferenceCall> {
    Some(match path.strip_prefix(SERVICE)? {
        "ServerLive" => InferenceCall::ServerLive,
        "ServerReady" => InferenceCall::ServerReady,
        "ServerMetadata" => InferenceCall::ServerMetadata,
        "ModelReady" => InferenceCall::ModelReady,
        "ModelMetadata" => InferenceCall::ModelMetadata,
        "ModelInfer" => InferenceCall::Infer,
        "ModelStreamInfer" => InferenceCall::StreamInfer,
        // Of Triton's further calls about models, these two name one in the same field.
        "ModelConfig" | "ModelStatistics" => InferenceCall::OtherOfModel,
        _ => InferenceCall::OtherOfServer,
    })
}

/// Path of the method of a call that other transports have as well; `None` for any other.
pub(super) fn method(call: InferenceCall) -> Option<String> {
    let name = match call {
        InferenceCall::ServerLive => "ServerLive",
        InferenceCall::ServerReady => "ServerReady",
        InferenceCall::ServerMetadata => "ServerMetadata",
        InferenceCall::ModelReady => "ModelReady",
        InferenceCall::ModelMetadata => "ModelMetadata",
        InferenceCall::Infer => "ModelInfer",
        InferenceCall::StreamInfer | InferenceCall::OtherOfModel | InferenceCall::OtherOfServer => return None,
    };
    Some([SERVICE, name].concat())
}

impl Dialect for OipGrpc {
    fn name(&self) -> &'static str {
        "oip-grpc"
    }

    fn operation(&self, method: &Method, path: &str) -> Option<Known> {
        let call = if method == Method::POST { call(path)? } else { return None };
        Some(Known { operation: Operation::Inference(call), is_own_path: true, must_be_json: false })
    }

    fn model_place(&self) -> ModelPlace {
        ModelPlace::Message
    }

    fn model_in_message(&self, body: &[u8]) -> Result<Option<NamedModel>, Refusal> {
        request::model(body)
    }

    fn rename_in_message(&self, body: &[u8], at: &Range<usize>, name: &str) -> Option<(Range<usize>, Vec<u8>)> {
        request::renamed(body, at, name)
    }

    fn rename_in_answer(&self, operation: Operation, beginning: &[u8], from: &str, to: &str) -> AnswerName {
        match operation {
            Operation::Inference(InferenceCall::Infer | InferenceCall::ModelMetadata) => {
                request::rename_answer(beginning, from, to)
            }
            _ => AnswerName::Absent,
        }
    }

    fn full_statuses(&self) -> &'static [u16] {
        &[429, 503]
    }

    /// Refusal of a request that is no gRPC call; those get a gRPC status.
    fn error(&self, refusal: &Refusal, _request_id: &str) -> (HeaderValue, Bytes) {
        error(refusal)
    }
}

/// Reads a `ModelInferRequest`.
///
/// # Errors
/// Refuses messages that are not of the protocol's form, and lengths that do not agree.
pub fn read_infer(body: &[u8]) -> Result<InferRequest, Refusal> {
    request::infer(body)
}

/// True for a body that is one message in a coding.
pub fn is_compressed(body: &[u8]) -> bool {
    wire::frame(body) == wire::Frame::Compressed
}

/// Length of the frame with a compressed message by which a body begins; `None` where it begins with none, or that is not known yet.
pub fn compressed_frame(beginning: &[u8]) -> Option<usize> {
    let ([1, length @ ..], _) = beginning.split_first_chunk::<FRAME>()? else { return None };
    Some(usize::try_from(u32::from_be_bytes(*length)).ok()?.saturating_add(FRAME))
}

/// Body with the one message of a body in a coding, decoded to `most` bytes at most; `None` for a body without one. Servers compress
/// answers that nobody asked them to.
///
/// # Errors
/// The message is not in the coding that the head names, or is longer.
pub fn decoded(body: &[u8], headers: &Fields, most: MostKept) -> Result<Option<Bytes>, Unreadable> {
    let coding = Coding::of_messages(headers);
    if !is_compressed(body) || coding == Coding::Identity {
        return Ok(None);
    }
    let message = coding.decode(body.get(FRAME..).unwrap_or_default(), most.0)?;
    Ok(Some(wire::framed_parts(&[&message])))
}

/// Reads the version of the model that a call asks for; empty for the newest.
///
/// # Errors
/// Refuses a body that is not one message.
pub fn read_version(body: &[u8]) -> Result<String, Refusal> {
    request::version(body)
}

/// Writes the `ModelInferResponse` of the model `model`.
pub fn write_infer(plan: &AnswerPlan, model: &str, encoded: &Encoded) -> Bytes {
    answer::infer(plan, model, encoded)
}

/// Writes the answer to a call for whether something is live or ready.
pub fn write_state(holds: bool) -> Bytes {
    answer::state(holds)
}

/// Writes the metadata of the gateway.
pub fn write_server() -> Bytes {
    answer::server(&SERVER)
}

/// Writes the metadata of a model.
pub fn write_model(facts: &ModelFacts<'_>) -> Bytes {
    answer::model(facts)
}

#[cfg(test)]
mod tests;
