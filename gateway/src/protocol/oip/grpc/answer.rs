//! Messages that the gateway sends to callers (KServe, `open_inference_grpc.proto`), each in its frame.

use bytes::Bytes;
use prost::Message;

use crate::protocol::chat::Encoded;
use crate::protocol::oip::infer::{AnswerPlan, OutputTensor, VERSION};
use crate::protocol::oip::metadata::{ModelFacts, ServerFacts, Tensor};
use crate::protocol::oip::tensor::DataType;

/// `ServerLiveResponse`, `ServerReadyResponse` and `ModelReadyResponse`, which have one form.
#[derive(Clone, PartialEq, prost::Message)]
struct State {
    #[prost(bool, tag = "1")]
    holds: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ServerMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
    #[prost(string, repeated, tag = "3")]
    extensions: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ModelMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, repeated, tag = "2")]
    versions: Vec<String>,
    #[prost(string, tag = "3")]
    platform: String,
    #[prost(message, repeated, tag = "4")]
    inputs: Vec<TensorMetadata>,
    #[prost(message, repeated, tag = "5")]
    outputs: Vec<TensorMetadata>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TensorMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    datatype: String,
    #[prost(int64, repeated, tag = "3")]
    shape: Vec<i64>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ModelInferResponse {
    #[prost(string, tag = "1")]
    model_name: String,
    #[prost(string, tag = "2")]
    model_version: String,
    #[prost(string, tag = "3")]
    id: String,
    #[prost(message, repeated, tag = "5")]
    outputs: Vec<InferOutputTensor>,
    #[prost(bytes = "bytes", repeated, tag = "6")]
    raw_output_contents: Vec<Bytes>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct InferOutputTensor {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    datatype: String,
    #[prost(int64, repeated, tag = "3")]
    shape: Vec<i64>,
    #[prost(message, optional, tag = "5")]
    contents: Option<InferTensorContents>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct InferTensorContents {
    #[prost(bool, repeated, tag = "1")]
    bool_contents: Vec<bool>,
    #[prost(float, repeated, tag = "6")]
    fp32_contents: Vec<f32>,
}

/// Message in its frame.
fn framed(message: &impl Message) -> Bytes {
    super::wire::framed_parts(&[&message.encode_to_vec()])
}

/// Writes whether a server is live, or it or a model ready.
pub(super) fn state(holds: bool) -> Bytes {
    framed(&State { holds })
}

/// Writes the metadata of the server.
pub(super) fn server(facts: &ServerFacts) -> Bytes {
    let extensions = facts.extensions.iter().map(|name| (*name).to_owned()).collect();
    framed(&ServerMetadata { name: facts.name.to_owned(), version: facts.version.to_owned(), extensions })
}

/// Writes the metadata of a model.
pub(super) fn model(facts: &ModelFacts<'_>) -> Bytes {
    let tensors = |tensors: Vec<Tensor>| {
        let tensor = |tensor: Tensor| TensorMetadata {
            name: tensor.name.to_owned(),
            datatype: tensor.datatype.as_str().to_owned(),
            shape: tensor.shape,
        };
        tensors.into_iter().map(tensor).collect()
    };
    framed(&ModelMetadata {
        name: facts.name.to_owned(),
        versions: vec![VERSION.to_owned()],
        platform: facts.platform.to_owned(),
        inputs: tensors(facts.inputs()),
        outputs: tensors(facts.outputs()),
    })
}

/// Writes the answer of the model `model`. As servers do, it is raw where the call was.
pub(super) fn infer(plan: &AnswerPlan, model: &str, encoded: &Encoded) -> Bytes {
    let mut raw = Vec::new();
    let output = |tensor: OutputTensor<'_>| {
        let datatype = tensor.output.datatype();
        let contents = if tensor.is_binary {
            raw.push(tensor.bytes().into());
            None
        } else if datatype == DataType::Bool {
            Some(InferTensorContents { bool_contents: tensor.flags(), ..InferTensorContents::default() })
        } else {
            Some(InferTensorContents { fp32_contents: tensor.floats(), ..InferTensorContents::default() })
        };
        let shape = tensor.shape.iter().map(|length| i64::try_from(*length).unwrap_or(i64::MAX)).collect();
        let (name, datatype) = (tensor.output.name().to_owned(), datatype.as_str().to_owned());
        InferOutputTensor { name, datatype, shape, contents }
    };
    let outputs = plan.tensors(encoded).into_iter().map(output).collect();
    framed(&ModelInferResponse {
        model_name: model.to_owned(),
        model_version: VERSION.to_owned(),
        id: plan.id.clone().unwrap_or_default(),
        outputs,
        raw_output_contents: raw,
    })
}
