//! Messages of gRPC (KServe, `open_inference_grpc.proto`): read without a copy of their tensors, and written in their frames.
//! Protobuf's own types write them; they read nothing, because a hostile message of many empty fields would grow many times over.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message as _;
use spillway_filter::Refusal;

use super::HTTP;
use super::contents::TypedContents;
use super::elements::{self, Fault};
use super::message::{
    BINARY, MOST_DIMENSIONS, MOST_PARAMETERS, MOST_TENSORS, Message, Parameter, Parameters, Tensor, Wanted,
};
use crate::protocol::oip::grpc::request::{bytes, dimensions, malformed, message, text, too_many};
use crate::protocol::oip::grpc::wire::{Field, Value, fields, framed_parts};
use crate::protocol::oip::tensor::{DataType, wrong};
use crate::protocol::oip::values::SHARED_MEMORY;
use crate::protocol::refusals::{duplicate, shown};
use crate::protocol::translate::Lossy;

/// `InferParameter`.
#[derive(Clone, PartialEq, prost::Message)]
struct InferParameter {
    #[prost(oneof = "Choice", tags = "1, 2, 3, 4, 5")]
    choice: Option<Choice>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Choice {
    #[prost(bool, tag = "1")]
    Bool(bool),
    #[prost(int64, tag = "2")]
    Int(i64),
    #[prost(string, tag = "3")]
    Text(String),
    #[prost(double, tag = "4")]
    Double(f64),
    #[prost(uint64, tag = "5")]
    Unsigned(u64),
}

/// `InferInputTensor` and `InferOutputTensor`, which have one form.
#[derive(Clone, PartialEq, prost::Message)]
struct WrittenTensor {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    datatype: String,
    #[prost(int64, repeated, tag = "3")]
    shape: Vec<i64>,
    #[prost(btree_map = "string, message", tag = "4")]
    parameters: BTreeMap<String, InferParameter>,
    #[prost(message, optional, tag = "5")]
    contents: Option<TypedContents>,
}

/// `InferRequestedOutputTensor`.
#[derive(Clone, PartialEq, prost::Message)]
struct WrittenOutput {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(btree_map = "string, message", tag = "2")]
    parameters: BTreeMap<String, InferParameter>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ModelInferRequest {
    #[prost(string, tag = "1")]
    model_name: String,
    #[prost(string, tag = "2")]
    model_version: String,
    #[prost(string, tag = "3")]
    id: String,
    #[prost(btree_map = "string, message", tag = "4")]
    parameters: BTreeMap<String, InferParameter>,
    #[prost(message, repeated, tag = "5")]
    inputs: Vec<WrittenTensor>,
    #[prost(message, repeated, tag = "6")]
    outputs: Vec<WrittenOutput>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ModelInferResponse {
    #[prost(string, tag = "1")]
    model_name: String,
    #[prost(string, tag = "2")]
    model_version: String,
    #[prost(string, tag = "3")]
    id: String,
    #[prost(btree_map = "string, message", tag = "4")]
    parameters: BTreeMap<String, InferParameter>,
    #[prost(message, repeated, tag = "5")]
    outputs: Vec<WrittenTensor>,
}

/// Request about a model: its name and version.
#[derive(Clone, PartialEq, prost::Message)]
struct ModelRequest {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
}

/// Field of the raw contents of a call, and of an answer.
const RAW_INPUTS: u32 = 7;
const RAW_OUTPUTS: u32 = 6;

/// Message with raw contents behind it: fields of a message may come in any order, and these are not copied twice.
fn framed(head: &impl prost::Message, field: u32, raw: &[&[u8]]) -> Bytes {
    let head = head.encode_to_vec();
    let keys: Vec<Vec<u8>> = raw
        .iter()
        .map(|contents| {
            let mut key = Vec::with_capacity(11);
            prost::encoding::encode_key(field, prost::encoding::WireType::LengthDelimited, &mut key);
            prost::encoding::encode_varint(u64::try_from(contents.len()).unwrap_or(u64::MAX), &mut key);
            key
        })
        .collect();
    let contents = keys.iter().zip(raw).flat_map(|(key, contents)| [&**key, *contents]);
    let parts: Vec<&[u8]> = std::iter::once(&*head).chain(contents).collect();
    framed_parts(&parts)
}

fn written_parameters(parameters: Parameters<'_>) -> BTreeMap<String, InferParameter> {
    let value = |parameter| match parameter {
        Parameter::Bool(value) => Choice::Bool(value),
        Parameter::Int(value) => Choice::Int(value),
        Parameter::Unsigned(value) => Choice::Unsigned(value),
        Parameter::Double(value) => Choice::Double(value),
        Parameter::Text(value) => Choice::Text(value.into_owned()),
    };
    let written =
        |(name, parameter): (Cow<'_, str>, _)| (name.into_owned(), InferParameter { choice: Some(value(parameter)) });
    parameters.into_iter().map(written).collect()
}

/// Writes the tensors of a message, with typed contents or with none. Returns their elements as well.
fn written_tensors<'m>(tensors: Vec<Tensor<'m>>, is_raw: bool) -> (Vec<WrittenTensor>, Vec<Cow<'m, [u8]>>) {
    let tensor = |Tensor { name, datatype, shape, parameters, data }: Tensor<'m>| {
        let contents = if is_raw { None } else { elements::to_typed(datatype, &data) };
        let written = WrittenTensor {
            name: name.into_owned(),
            datatype: datatype.as_str().to_owned(),
            shape,
            parameters: written_parameters(parameters),
            contents,
        };
        (written, data)
    };
    tensors.into_iter().map(tensor).unzip()
}

/// Writes a `ModelInferRequest` for a model and its version, with raw contents.
pub(super) fn write_request(call: Message<'_>, model: &str, version: &str) -> Bytes {
    let Message { id, parameters, tensors, wanted, .. } = call;
    let (inputs, raw) = written_tensors(tensors, true);
    let output = |output: Wanted<'_>| WrittenOutput {
        name: output.name.into_owned(),
        parameters: written_parameters(output.parameters),
    };
    let head = ModelInferRequest {
        model_name: model.to_owned(),
        model_version: version.to_owned(),
        id: id.into_owned(),
        parameters: written_parameters(parameters),
        inputs,
        outputs: wanted.into_iter().map(output).collect(),
    };
    let raw: Vec<&[u8]> = raw.iter().map(AsRef::as_ref).collect();
    framed(&head, RAW_INPUTS, &raw)
}

/// Writes a `ModelInferResponse` of the model `model`: raw where the call was, or where typed contents cannot hold an output.
pub(super) fn write_answer(answer: Message<'_>, model: &str, is_raw: bool) -> Bytes {
    let Message { version, id, parameters, tensors, .. } = answer;
    let is_raw = is_raw || tensors.iter().any(|tensor| elements::to_typed(tensor.datatype, &[]).is_none());
    let (outputs, raw) = written_tensors(tensors, is_raw);
    let head = ModelInferResponse {
        model_name: model.to_owned(),
        model_version: version.into_owned(),
        id: id.into_owned(),
        parameters: written_parameters(parameters),
        outputs,
    };
    let raw: Vec<&[u8]> = if is_raw { raw.iter().map(AsRef::as_ref).collect() } else { Vec::new() };
    framed(&head, RAW_OUTPUTS, &raw)
}

/// Writes a request about a model.
pub(super) fn write_model(name: &str, version: &str) -> Bytes {
    let message = ModelRequest { name: name.to_owned(), version: version.to_owned() }.encode_to_vec();
    framed_parts(&[&message])
}

/// Direction of a message, by which its fields differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Call,
    Answer,
}

/// Tensor as its message has it; the elements may be in raw contents.
struct ReadTensor<'m> {
    name: &'m str,
    datatype: &'m str,
    shape: Vec<i64>,
    parameters: Parameters<'m>,
    contents: Option<&'m [u8]>,
}

/// Reads a `ModelInferRequest`, and whether its contents are raw.
///
/// # Errors
/// Refuses messages that are not of the protocol's form, lengths that do not agree, and what HTTP cannot express.
pub(super) fn read_request<'m>(body: &'m [u8], lossy: &mut Lossy<'_>) -> Result<(Message<'m>, bool), Refusal> {
    let (call, is_raw) = read(message(body)?, Direction::Call, Some(lossy))?;
    let of_tensors = call.tensors.iter().map(|tensor| &tensor.parameters);
    let of_outputs = call.wanted.iter().map(|output| &output.parameters);
    for (name, value) in std::iter::once(&call.parameters).chain(of_tensors).chain(of_outputs).flatten() {
        let what = match value {
            _ if name.starts_with(SHARED_MEMORY) => "is not accepted: the caller and the server share no memory",
            _ if name.starts_with(BINARY) => "is not accepted: it frames tensors over HTTP",
            Parameter::Double(value) if !value.is_finite() => "is no number that JSON can express",
            _ => continue,
        };
        let message = format!("The parameter `{}` {what}.", shown(name));
        return Err(Refusal::invalid("invalid_value", message).param(shown(name)));
    }
    Ok((call, is_raw))
}

/// Reads a `ModelInferRequest` for its tensors: fields that are not known are left out.
///
/// # Errors
/// The message is not of the protocol's form, or lengths do not agree.
pub(super) fn read_call(message: &[u8]) -> Result<Message<'_>, Refusal> {
    read(message, Direction::Call, None).map(|(call, _)| call)
}

/// Reads a `ModelInferResponse`.
///
/// # Errors
/// The message is not of the protocol's form, or lengths do not agree.
pub(super) fn read_answer(message: &[u8]) -> Result<Message<'_>, Refusal> {
    read(message, Direction::Answer, None).map(|(answer, _)| answer)
}

/// Reads a message. Fields that are not known are refused or dropped by the rules of `lossy`; those of an answer have no
/// counterpart and are left out.
fn read<'m>(
    message: &'m [u8],
    direction: Direction,
    mut lossy: Option<&mut Lossy<'_>>,
) -> Result<(Message<'m>, bool), Refusal> {
    let mut read = Message::default();
    let (mut tensors, mut raw): (Vec<ReadTensor<'m>>, Vec<&[u8]>) = (Vec::new(), Vec::new());
    for field in fields(message) {
        let Field { number, value, .. } = field?;
        match (number, direction) {
            (1, _) => read.model = Some(text(value)?.into()),
            (2, _) => read.version = text(value)?.into(),
            (3, _) => read.id = text(value)?.into(),
            (4, _) => parameter(value, &mut read.parameters)?,
            (5, _) if tensors.len() == MOST_TENSORS => return Err(too_many("tensors", MOST_TENSORS)),
            (5, _) => tensors.push(tensor(bytes(value)?, lossy.as_deref_mut())?),
            (6, Direction::Call) if read.wanted.len() == MOST_TENSORS => return Err(too_many("outputs", MOST_TENSORS)),
            (6, Direction::Call) => read.wanted.push(output(bytes(value)?, lossy.as_deref_mut())?),
            (6, Direction::Answer) | (7, Direction::Call) => {
                if raw.len() == MOST_TENSORS {
                    return Err(too_many("raw contents", MOST_TENSORS));
                }
                raw.push(bytes(value)?);
            }
            _ => unknown(&format!("field {number}"), lossy.as_deref_mut())?,
        }
    }
    let is_raw = !raw.is_empty();
    if is_raw && raw.len() != tensors.len() {
        let message = format!(
            "The raw contents have {} entries for {} tensors; expected one for each.",
            raw.len(),
            tensors.len()
        );
        return Err(Refusal::invalid("invalid_tensor", message).param("raw_input_contents"));
    }
    let mut raw = raw.into_iter();
    for tensor in tensors {
        read.tensors.push(with_elements(tensor, raw.next())?);
    }
    Ok((read, is_raw))
}

fn unknown(name: &str, lossy: Option<&mut Lossy<'_>>) -> Result<(), Refusal> {
    lossy.map_or(Ok(()), |lossy| lossy.without(name, HTTP))
}

/// Tensor with its elements, of its own contents or of the raw ones.
fn with_elements<'m>(read: ReadTensor<'m>, raw: Option<&'m [u8]>) -> Result<Tensor<'m>, Refusal> {
    let ReadTensor { name, datatype, shape, parameters, contents } = read;
    let Some(datatype) = DataType::of(datatype) else {
        return Err(wrong(name, format_args!("has an unknown datatype `{}`", shown(datatype))));
    };
    let fault = |fault: Fault| wrong(name, fault);
    let count = elements::count(&shape).map_err(fault)?;
    // MLServer writes empty contents beside raw ones.
    let data = match (raw, contents.filter(|contents| !contents.is_empty())) {
        (Some(_), Some(_)) => return Err(wrong(name, "has both `contents` and raw contents")),
        (Some(raw), None) => {
            elements::check(datatype, count, raw).map_err(fault)?;
            Cow::Borrowed(raw)
        }
        (None, contents) => elements::from_typed(contents.unwrap_or_default(), datatype, count).map_err(fault)?.into(),
    };
    Ok(Tensor { name: name.into(), datatype, shape, parameters, data })
}

/// Reads an entry of a map of parameters: the key is field 1, the value field 2.
fn parameter<'m>(value: Value<'m>, into: &mut Parameters<'m>) -> Result<(), Refusal> {
    let (mut name, mut read) = ("", None);
    for field in fields(bytes(value)?) {
        let Field { number, value, .. } = field?;
        match number {
            1 => name = text(value)?,
            2 => read = choice(bytes(value)?)?,
            _ => {}
        }
    }
    if into.iter().any(|(known, _)| known == name) {
        return Err(duplicate(&shown(name)));
    }
    if into.len() == MOST_PARAMETERS {
        return Err(too_many("parameters", MOST_PARAMETERS));
    }
    // A parameter without a value says nothing.
    into.extend(read.map(|read| (name.into(), read)));
    Ok(())
}

/// Reads an `InferParameter`, of whose fields the last one counts.
fn choice(message: &[u8]) -> Result<Option<Parameter<'_>>, Refusal> {
    let mut read = None;
    for field in fields(message) {
        let Field { number, value, .. } = field?;
        read = Some(match (number, value) {
            (1, Value::Varint(value)) => Parameter::Bool(value != 0),
            (2, Value::Varint(value)) => Parameter::Int(value.cast_signed()),
            (3, value) => Parameter::Text(text(value)?.into()),
            (4, Value::Fixed64(value)) => Parameter::Double(f64::from_le_bytes(value)),
            (5, Value::Varint(value)) => Parameter::Unsigned(value),
            _ => return Err(malformed()),
        });
    }
    Ok(read)
}

/// Reads an `InferInputTensor` or `InferOutputTensor`.
fn tensor<'m>(message: &'m [u8], mut lossy: Option<&mut Lossy<'_>>) -> Result<ReadTensor<'m>, Refusal> {
    let mut read = ReadTensor { name: "", datatype: "", shape: Vec::new(), parameters: Vec::new(), contents: None };
    for field in fields(message) {
        let Field { number, value, .. } = field?;
        match number {
            1 => read.name = text(value)?,
            2 => read.datatype = text(value)?,
            3 => dimensions::<MOST_DIMENSIONS, _>(value, &mut read.shape)?,
            4 => parameter(value, &mut read.parameters)?,
            5 if read.contents.is_some() => return Err(duplicate("contents")),
            5 => read.contents = Some(bytes(value)?),
            _ => unknown(&format!("inputs.field {number}"), lossy.as_deref_mut())?,
        }
    }
    Ok(read)
}

/// Reads an `InferRequestedOutputTensor`.
fn output<'m>(message: &'m [u8], mut lossy: Option<&mut Lossy<'_>>) -> Result<Wanted<'m>, Refusal> {
    let mut read = Wanted { name: Cow::Borrowed(""), parameters: Vec::new() };
    for field in fields(message) {
        let Field { number, value, .. } = field?;
        match number {
            1 => read.name = text(value)?.into(),
            2 => parameter(value, &mut read.parameters)?,
            _ => unknown(&format!("outputs.field {number}"), lossy.as_deref_mut())?,
        }
    }
    Ok(read)
}
