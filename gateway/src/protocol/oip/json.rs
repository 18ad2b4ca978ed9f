//! Calls of `infer` over HTTP: JSON, with the binary data of tensors behind it where `Inference-Header-Content-Length` says
//! how long the JSON is (Triton, `docs/protocol/extension_binary_data.md`).

use std::fmt;

use http::{HeaderName, HeaderValue};
use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use spillway_filter::{Fields, Refusal};

use super::infer::{InferRequest, MOST_TENSORS, Wanted};
use super::tensor::{Elements, Input, wrong};
use super::values::{Data, Few, Parameter, Parameters, wrong_parameter};
use crate::protocol::chat::Ignored;

/// Length of the JSON at the head of a body, in bytes; the binary data of its tensors follow.
pub static INFERENCE_HEADER_CONTENT_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// Most dimensions of a shape.
const MOST_DIMENSIONS: usize = 8;
/// Longest message of the JSON parser that is repeated, in characters.
pub(super) const MOST_SHOWN: usize = 200;

pub(super) const BINARY_DATA: &str = "binary_data";
pub(super) const BINARY_DATA_SIZE: &str = "binary_data_size";
pub(super) const BINARY_DATA_OUTPUT: &str = "binary_data_output";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonInput {
    name: String,
    shape: Few<u64, MOST_DIMENSIONS>,
    datatype: String,
    #[serde(default)]
    parameters: Parameters,
    data: Option<Data>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonOutput {
    name: String,
    #[serde(default)]
    parameters: Parameters,
}

/// JSON of a call. Fields that are not known are noted, as in the requests of other APIs.
#[derive(Default)]
struct JsonRequest {
    id: Option<String>,
    model_name: Option<String>,
    model_version: Option<String>,
    parameters: Option<Parameters>,
    inputs: Option<Few<JsonInput, MOST_TENSORS>>,
    outputs: Option<Few<JsonOutput, MOST_TENSORS>>,
    ignored: Ignored,
}

impl<'de> Deserialize<'de> for JsonRequest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Request;
        impl<'de> Visitor<'de> for Request {
            type Value = JsonRequest;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with `inputs`")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<JsonRequest, A::Error> {
                fn set<'de, A: MapAccess<'de>, T: Deserialize<'de>>(
                    map: &mut A,
                    into: &mut Option<T>,
                    name: &'static str,
                ) -> Result<(), A::Error> {
                    if into.is_some() {
                        return Err(Error::duplicate_field(name));
                    }
                    *into = Some(map.next_value()?);
                    Ok(())
                }
                let mut read = JsonRequest::default();
                while let Some(name) = map.next_key::<String>()? {
                    match name.as_str() {
                        "id" => set(&mut map, &mut read.id, "id")?,
                        "model_name" => set(&mut map, &mut read.model_name, "model_name")?,
                        "model_version" => set(&mut map, &mut read.model_version, "model_version")?,
                        "parameters" => set(&mut map, &mut read.parameters, "parameters")?,
                        "inputs" => set(&mut map, &mut read.inputs, "inputs")?,
                        "outputs" => set(&mut map, &mut read.outputs, "outputs")?,
                        _ => {
                            read.ignored.push(name);
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(read)
            }
        }
        deserializer.deserialize_map(Request)
    }
}

/// Fields with the header of this value alone, of a body whose other fields are gone.
pub fn length_field(value: Option<&HeaderValue>) -> Fields {
    value.map(|value| (INFERENCE_HEADER_CONTENT_LENGTH.clone(), value.clone())).into_iter().collect()
}

/// Length of the JSON of a body of this many bytes, in bytes, as the header says it; `None` without the header. It is 0 for a
/// body without JSON.
///
/// # Errors
/// Refuses a header that is no length within the body, and one that appears more than once.
pub fn json_length(headers: &Fields, body: usize) -> Result<Option<usize>, Refusal> {
    let mut lengths = headers.get_all(&INFERENCE_HEADER_CONTENT_LENGTH).iter();
    let Some(written) = lengths.next() else { return Ok(None) };
    if lengths.next().is_some() {
        return Err(wrong_length("appears more than once"));
    }
    let digits = written.as_bytes();
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    match written.to_str().ok().filter(|_| is_number).and_then(|text| text.parse::<usize>().ok()) {
        None => Err(wrong_length("must be the length of the JSON in bytes, in digits")),
        Some(length) if length > body => Err(wrong_length(&format!("is {length}; the whole body has {body} bytes"))),
        Some(length) => Ok(Some(length)),
    }
}

/// Refusal of a length of the JSON.
fn wrong_length(what: &str) -> Refusal {
    let name = "Inference-Header-Content-Length";
    Refusal::invalid("invalid_header_length", format!("`{name}` {what}.")).param(name.to_ascii_lowercase())
}

/// Parts of a body: its JSON, and the binary data behind it.
pub(super) fn split<'b>(headers: &Fields, body: &'b [u8]) -> Result<(&'b [u8], &'b [u8]), Refusal> {
    match json_length(headers, body.len())? {
        // A body without JSON has no names and shapes of tensors: Triton knows those of its one input by itself.
        Some(0) => Err(wrong_length(
            "is 0, which says that the body has no JSON; names and shapes of its tensors are needed here",
        )),
        length => Ok(body.split_at_checked(length.unwrap_or(body.len())).unwrap_or((body, &[]))),
    }
}

/// Reads a call.
///
/// # Errors
/// Refuses bodies that are not of the protocol's form, and lengths that do not agree with each other or with the body.
pub(super) fn read(headers: &Fields, body: &[u8]) -> Result<InferRequest, Refusal> {
    let (head, mut binary) = split(headers, body)?;
    let read: JsonRequest = serde_json::from_slice(head).map_err(|error| {
        let text: String = error.to_string().chars().filter(|c| !c.is_control()).take(MOST_SHOWN).collect();
        Refusal::invalid("invalid_json", format!("The body is no call of the Open Inference Protocol: {text}."))
    })?;
    let mut call = InferRequest {
        id: read.id,
        model: read.model_name,
        version: read.model_version,
        ignored: read.ignored,
        ..InferRequest::default()
    };
    let mut parameters = read.parameters.unwrap_or_default();
    call.is_binary = parameters.take_flag(BINARY_DATA_OUTPUT)?.unwrap_or(false);
    parameters.end(&mut call.ignored)?;
    for input in read.inputs.map(|Few(inputs)| inputs).unwrap_or_default() {
        let (input, rest) = with_data(input, binary, &mut call.ignored)?;
        binary = rest;
        call.inputs.push(input);
    }
    if !binary.is_empty() {
        let message = format!("The body has {} bytes behind the data of its last input.", binary.len());
        return Err(Refusal::invalid("invalid_tensor", message));
    }
    for JsonOutput { name, mut parameters } in read.outputs.map(|Few(outputs)| outputs).unwrap_or_default() {
        let is_binary = parameters.take_flag(BINARY_DATA)?;
        parameters.end(&mut call.ignored)?;
        call.wanted.push(Wanted { name, is_binary });
    }
    Ok(call)
}

/// Input with its elements, of its own JSON or of the binary data, and the rest of those.
fn with_data<'b>(input: JsonInput, binary: &'b [u8], ignored: &mut Ignored) -> Result<(Input, &'b [u8]), Refusal> {
    let JsonInput { name, shape: Few(shape), datatype, mut parameters, data } = input;
    let size = match parameters.take(BINARY_DATA_SIZE) {
        None => None,
        Some(Parameter::Unsigned(size)) => Some(size),
        Some(_) => return Err(wrong_parameter(BINARY_DATA_SIZE, "must be a number of bytes")),
    };
    parameters.end(ignored)?;
    let (elements, rest) = match (data, size) {
        (Some(Data { texts, count, has_others }), None) => (Elements::Read { texts, count, has_others }, binary),
        (None, Some(size)) => {
            let parts = usize::try_from(size).ok().and_then(|size| binary.split_at_checked(size));
            let Some((data, rest)) = parts else {
                let left = binary.len();
                return Err(wrong(&name, format_args!("has `{BINARY_DATA_SIZE}` {size}; {left} bytes are left")));
            };
            (Elements::Raw(data), rest)
        }
        (Some(_), Some(_)) => return Err(wrong(&name, format_args!("has both `data` and `{BINARY_DATA_SIZE}`"))),
        (None, None) => return Err(wrong(&name, format_args!("has neither `data` nor `{BINARY_DATA_SIZE}`"))),
    };
    Ok((Input::new(name, &datatype, shape, elements)?, rest))
}
