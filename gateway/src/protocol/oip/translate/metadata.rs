//! Metadata of servers and models, and their states, between the two transports.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use spillway_filter::Refusal;

use super::message::{MOST_DIMENSIONS, MOST_TENSORS};
use crate::protocol::inference::InferenceCall;
use crate::protocol::oip::grpc::request::{bytes, malformed, text, too_many};
use crate::protocol::oip::grpc::wire::framed_parts;
use crate::protocol::oip::grpc::wire::{Field, Value, fields, varint};
use crate::protocol::oip::values::Few;
use crate::protocol::oip::{grpc, metadata};

/// Most extensions of a server, or versions of a model.
const MOST_NAMES: usize = 256;

/// `ServerMetadataResponse`.
#[derive(Clone, PartialEq, prost::Message, Serialize)]
pub(super) struct Server {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
    #[prost(string, repeated, tag = "3")]
    extensions: Vec<String>,
}

/// `ModelMetadataResponse`.
#[derive(Clone, PartialEq, prost::Message, Serialize)]
pub(super) struct Model {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, repeated, tag = "2")]
    versions: Vec<String>,
    #[prost(string, tag = "3")]
    platform: String,
    #[prost(message, repeated, tag = "4")]
    inputs: Vec<Tensor>,
    #[prost(message, repeated, tag = "5")]
    outputs: Vec<Tensor>,
}

/// `TensorMetadata`; `-1` in its shape stands for any length.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
struct Tensor {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    datatype: String,
    #[prost(int64, repeated, tag = "3")]
    #[serde(deserialize_with = "dimensions_of_json")]
    shape: Vec<i64>,
}

fn dimensions_of_json<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<i64>, D::Error> {
    Few::<i64, MOST_DIMENSIONS>::deserialize(from).map(|Few(shape)| shape)
}

#[derive(Deserialize)]
struct JsonServer {
    name: String,
    #[serde(default)]
    version: Option<String>,
    #[serde(default)]
    extensions: Option<Few<String, MOST_NAMES>>,
}

#[derive(Deserialize)]
struct JsonModel {
    name: String,
    #[serde(default)]
    versions: Option<Few<String, MOST_NAMES>>,
    #[serde(default)]
    platform: Option<String>,
    #[serde(default)]
    inputs: Option<Few<Tensor, MOST_TENSORS>>,
    #[serde(default)]
    outputs: Option<Few<Tensor, MOST_TENSORS>>,
}

/// State of a server or a model, by the name that the protocol has for it.
#[derive(Default, Deserialize)]
struct JsonState {
    #[serde(default)]
    live: Option<bool>,
    #[serde(default)]
    ready: Option<bool>,
}

fn list<T, const MOST: usize>(few: Option<Few<T, MOST>>) -> Vec<T> {
    few.map(|Few(list)| list).unwrap_or_default()
}

/// Message in its frame.
pub(super) fn framed(message: &impl prost::Message) -> Bytes {
    framed_parts(&[&message.encode_to_vec()])
}

/// Reads the metadata of a server from JSON; `None` where it is none.
pub(super) fn server_of_json(body: &[u8]) -> Option<Server> {
    let JsonServer { name, version, extensions } = serde_json::from_slice(body).ok()?;
    Some(Server { name, version: version.unwrap_or_default(), extensions: list(extensions) })
}

/// Reads the metadata of a model from JSON; `None` where it is none.
pub(super) fn model_of_json(body: &[u8]) -> Option<Model> {
    let JsonModel { name, versions, platform, inputs, outputs } = serde_json::from_slice(body).ok()?;
    let (inputs, outputs) = (list(inputs), list(outputs));
    Some(Model { name, versions: list(versions), platform: platform.unwrap_or_default(), inputs, outputs })
}

/// State that an answer with a good status tells; true where it tells none, as the answers of some servers are empty.
pub(super) fn state_of_json(body: &[u8]) -> bool {
    let JsonState { live, ready } = serde_json::from_slice(body).unwrap_or_default();
    live.or(ready).unwrap_or(true)
}

/// Reads the metadata of a server from its message.
pub(super) fn server_of_message(message: &[u8]) -> Result<Server, Refusal> {
    let mut read = Server::default();
    for field in fields(message) {
        let Field { number, value, .. } = field?;
        match number {
            1 => read.name = text(value)?.to_owned(),
            2 => read.version = text(value)?.to_owned(),
            3 => add(text(value)?.to_owned(), &mut read.extensions, MOST_NAMES)?,
            _ => {}
        }
    }
    Ok(read)
}

/// Reads the metadata of a model from its message.
pub(super) fn model_of_message(message: &[u8]) -> Result<Model, Refusal> {
    let mut read = Model::default();
    for field in fields(message) {
        let Field { number, value, .. } = field?;
        match number {
            1 => read.name = text(value)?.to_owned(),
            2 => add(text(value)?.to_owned(), &mut read.versions, MOST_NAMES)?,
            3 => read.platform = text(value)?.to_owned(),
            4 => add(tensor(bytes(value)?)?, &mut read.inputs, MOST_TENSORS)?,
            5 => add(tensor(bytes(value)?)?, &mut read.outputs, MOST_TENSORS)?,
            _ => {}
        }
    }
    Ok(read)
}

fn add<T>(entry: T, to: &mut Vec<T>, most: usize) -> Result<(), Refusal> {
    if to.len() == most {
        return Err(too_many("entries in a list", most));
    }
    to.push(entry);
    Ok(())
}

fn tensor(message: &[u8]) -> Result<Tensor, Refusal> {
    let mut read = Tensor::default();
    for field in fields(message) {
        let Field { number, value, .. } = field?;
        match (number, value) {
            (1, value) => read.name = text(value)?.to_owned(),
            (2, value) => read.datatype = text(value)?.to_owned(),
            (3, Value::Varint(dimension)) => add(dimension.cast_signed(), &mut read.shape, MOST_DIMENSIONS)?,
            (3, Value::Bytes(mut packed)) => {
                while !packed.is_empty() {
                    let (dimension, rest) = varint(packed).ok_or_else(malformed)?;
                    add(dimension.cast_signed(), &mut read.shape, MOST_DIMENSIONS)?;
                    packed = rest;
                }
            }
            _ => {}
        }
    }
    Ok(read)
}

/// State in its message, which holds nothing where it is false.
pub(super) fn state_of_message(message: &[u8]) -> Result<bool, Refusal> {
    let mut holds = false;
    for field in fields(message) {
        let Field { number, value, .. } = field?;
        if let (1, Value::Varint(value)) = (number, value) {
            holds = value != 0;
        }
    }
    Ok(holds)
}

/// Writes a state as the answer to a call over HTTP.
pub(super) fn state_to_json(call: InferenceCall, model: &str, holds: bool) -> Bytes {
    match call {
        InferenceCall::ServerLive => metadata::live(holds),
        InferenceCall::ServerReady => metadata::ready(holds),
        _ => metadata::model_ready(model, holds),
    }
}

/// Writes a state as the answer to a call over gRPC.
pub(super) fn state_to_message(holds: bool) -> Bytes {
    grpc::write_state(holds)
}
