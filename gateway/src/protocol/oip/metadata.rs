//! Metadata of the gateway and of its built-in models, as servers of the protocol report theirs.

use bytes::Bytes;
use serde::Serialize;

use super::infer::{Output, VERSION, inputs_of, outputs_of};
use super::tensor::DataType;
use crate::protocol::chat::Encode;
use crate::protocol::json;

/// Facts of the gateway as a server.
#[derive(Debug, Serialize)]
pub(super) struct ServerFacts {
    /// Name.
    pub(super) name: &'static str,
    /// Version of the program.
    pub(super) version: &'static str,
    /// Extensions of the protocol.
    pub(super) extensions: &'static [&'static str],
}

/// Facts of this gateway.
pub(super) const SERVER: ServerFacts =
    ServerFacts { name: "spillway", version: env!("CARGO_PKG_VERSION"), extensions: &["binary_tensor_data"] };

/// Facts of a built-in model.
#[derive(Debug, Clone, Copy)]
pub struct ModelFacts<'a> {
    /// Name.
    pub name: &'a str,
    /// Task, of the two that the protocol can ask for.
    pub what: Encode,
    /// Values of a vector.
    pub width: u32,
    /// Name of what runs the model.
    pub(super) platform: &'static str,
}

/// Tensor of a model; `-1` in its shape stands for any length.
#[derive(Debug, Serialize)]
pub(super) struct Tensor {
    pub(super) name: &'static str,
    #[serde(serialize_with = "as_text")]
    pub(super) datatype: DataType,
    pub(super) shape: Vec<i64>,
}

fn as_text<S: serde::Serializer>(datatype: &DataType, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(datatype.as_str())
}

impl<'a> ModelFacts<'a> {
    /// Facts of a model with vectors of `width` values; without a meaning where the model ranks.
    pub fn new(name: &'a str, what: Encode, width: u32) -> Self {
        Self { name, what, width, platform: "spillway" }
    }

    pub(super) fn inputs(&self) -> Vec<Tensor> {
        let tensor = |name: &&'static str| {
            let is_single = self.what == Encode::Rerank && inputs_of(self.what).first() == Some(name);
            Tensor { name, datatype: DataType::Bytes, shape: vec![if is_single { 1 } else { -1 }] }
        };
        inputs_of(self.what).iter().map(tensor).collect()
    }

    pub(super) fn outputs(&self) -> Vec<Tensor> {
        let tensor = |output: &Output| {
            let shape = match output {
                Output::Embedding => vec![-1, i64::from(self.width)],
                Output::Truncated | Output::Score => vec![-1],
            };
            Tensor { name: output.name(), datatype: output.datatype(), shape }
        };
        outputs_of(self.what).iter().map(tensor).collect()
    }
}

#[derive(Serialize)]
struct ModelMetadata<'a> {
    name: &'a str,
    versions: [&'static str; 1],
    platform: &'static str,
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
}

#[derive(Serialize)]
struct Live {
    live: bool,
}

#[derive(Serialize)]
struct Ready {
    ready: bool,
}

#[derive(Serialize)]
struct ModelReady<'a> {
    name: &'a str,
    ready: bool,
}

/// Writes the metadata of a model.
pub(super) fn model(facts: &ModelFacts<'_>) -> Bytes {
    json(&ModelMetadata {
        name: facts.name,
        versions: [VERSION],
        platform: facts.platform,
        inputs: facts.inputs(),
        outputs: facts.outputs(),
    })
}

/// Writes the metadata of the server.
pub(super) fn server(facts: &ServerFacts) -> Bytes {
    json(facts)
}

/// Writes that the server is live.
pub(super) fn live(live: bool) -> Bytes {
    json(&Live { live })
}

/// Writes whether the server is ready.
pub(super) fn ready(ready: bool) -> Bytes {
    json(&Ready { ready })
}

/// Writes whether a model is ready.
pub(super) fn model_ready(name: &str, ready: bool) -> Bytes {
    json(&ModelReady { name, ready })
}
