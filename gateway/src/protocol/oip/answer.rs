//! Answers to `infer` over HTTP: JSON, with the binary data of its outputs behind it where the caller wants them so.

use bytes::Bytes;
use serde::Serialize;

use super::infer::{AnswerPlan, OutputTensor, VERSION};
use super::tensor::DataType;
use crate::protocol::chat::Encoded;
use crate::protocol::json;

#[derive(Serialize)]
struct JsonAnswer<'a> {
    model_name: &'a str,
    model_version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    outputs: Vec<AnswerOutput>,
}

#[derive(Serialize)]
struct AnswerOutput {
    name: &'static str,
    datatype: &'static str,
    shape: Vec<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<OutputSize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Values>,
}

#[derive(Serialize)]
struct OutputSize {
    binary_data_size: usize,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Values {
    Floats(Vec<f32>),
    Flags(Vec<bool>),
}

/// Answer to a call over HTTP.
#[derive(Debug)]
pub struct HttpAnswer {
    /// Body.
    pub body: Bytes,
    /// Length of its JSON in bytes; `None` where binary data do not follow.
    pub json_length: Option<usize>,
}

/// Writes the answer of the model `model`.
pub(super) fn write(plan: &AnswerPlan, model: &str, encoded: &Encoded) -> HttpAnswer {
    let mut binary = Vec::new();
    let mut output = |tensor: OutputTensor<'_>| {
        let datatype = tensor.output.datatype();
        let (data, parameters) = if tensor.is_binary {
            let bytes = tensor.bytes();
            binary.extend_from_slice(&bytes);
            (None, Some(OutputSize { binary_data_size: bytes.len() }))
        } else {
            let is_flags = datatype == DataType::Bool;
            (Some(if is_flags { Values::Flags(tensor.flags()) } else { Values::Floats(tensor.floats()) }), None)
        };
        AnswerOutput { name: tensor.output.name(), datatype: datatype.as_str(), shape: tensor.shape, parameters, data }
    };
    let tensors = plan.tensors(encoded);
    let is_binary = tensors.iter().any(|tensor| tensor.is_binary);
    let outputs = tensors.into_iter().map(&mut output).collect();
    let head = json(&JsonAnswer { model_name: model, model_version: VERSION, id: plan.id.as_deref(), outputs });
    if is_binary {
        HttpAnswer { json_length: Some(head.len()), body: [&head[..], &binary].concat().into() }
    } else {
        HttpAnswer { body: head, json_length: None }
    }
}
