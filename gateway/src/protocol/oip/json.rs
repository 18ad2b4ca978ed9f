//! Bodies of `infer` over HTTP: JSON, with the binary data of tensors behind it where `Inference-Header-Content-Length` says
//! how long the JSON is (Triton, `docs/protocol/extension_binary_data.md`).

use std::fmt;
use std::marker::PhantomData;

use bytes::Bytes;
use http::HeaderName;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use spillway_filter::{Fields, Refusal};

use super::infer::{AnswerPlan, InferRequest, MOST_TENSORS, OutputTensor, VERSION, Wanted};
use super::tensor::{DataType, Elements, Input, MOST_TEXTS, wrong};
use crate::protocol::chat::{Encoded, Ignored};
use crate::protocol::json;

/// Length of the JSON at the head of a body, in bytes; the binary data of its tensors follow.
pub static INFERENCE_HEADER_CONTENT_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// Most parameters of a call, an input or an output.
const MOST_PARAMETERS: usize = 64;
/// Most dimensions of a shape.
const MOST_DIMENSIONS: usize = 8;
/// Longest message of the JSON parser that is repeated, in characters.
const MOST_SHOWN: usize = 200;

const BINARY_DATA: &str = "binary_data";
const BINARY_DATA_SIZE: &str = "binary_data_size";
const BINARY_DATA_OUTPUT: &str = "binary_data_output";
const CLASSIFICATION: &str = "classification";
/// Begin of the names of the parameters that place a tensor in shared memory.
const SHARED_MEMORY: &str = "shared_memory_";

/// List of at most `MOST` entries: small entries must not grow a body many times over.
struct Few<T, const MOST: usize>(Vec<T>);

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for Few<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List<T, const MOST: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for List<T, MOST> {
            type Value = Few<T, MOST>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MOST} entries")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = list.next_element()? {
                    if entries.len() == MOST {
                        return Err(Error::invalid_length(MOST + 1, &self));
                    }
                    entries.push(entry);
                }
                Ok(Few(entries))
            }
        }
        deserializer.deserialize_seq(List(PhantomData))
    }
}

/// Value of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parameter {
    Bool(bool),
    Unsigned(u64),
    Other,
}

impl<'de> Deserialize<'de> for Parameter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Scalar;
        impl Visitor<'_> for Scalar {
            type Value = Parameter;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a number, true or false")
            }
            fn visit_bool<E>(self, value: bool) -> Result<Parameter, E> {
                Ok(Parameter::Bool(value))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Parameter, E> {
                Ok(Parameter::Unsigned(value))
            }
            fn visit_i64<E>(self, _: i64) -> Result<Parameter, E> {
                Ok(Parameter::Other)
            }
            fn visit_f64<E>(self, _: f64) -> Result<Parameter, E> {
                Ok(Parameter::Other)
            }
            fn visit_str<E>(self, _: &str) -> Result<Parameter, E> {
                Ok(Parameter::Other)
            }
        }
        deserializer.deserialize_any(Scalar)
    }
}

/// Parameters by name, each once.
#[derive(Default)]
struct Parameters(Vec<(String, Parameter)>);

impl<'de> Deserialize<'de> for Parameters {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Map;
        impl<'de> Visitor<'de> for Map {
            type Value = Parameters;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {MOST_PARAMETERS} parameters")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parameters, A::Error> {
                let mut all: Vec<(String, Parameter)> = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, Parameter>()? {
                    if all.iter().any(|(known, _)| *known == name) {
                        return Err(A::Error::custom(format_args!("duplicate parameter `{name}`")));
                    }
                    if all.len() == MOST_PARAMETERS {
                        return Err(Error::invalid_length(MOST_PARAMETERS + 1, &self));
                    }
                    all.push((name, value));
                }
                Ok(Parameters(all))
            }
        }
        deserializer.deserialize_map(Map)
    }
}

impl Parameters {
    /// Value of a parameter, which is no longer among those that are left.
    fn take(&mut self, name: &str) -> Option<Parameter> {
        let at = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.swap_remove(at).1)
    }

    /// Value of a parameter that is true or false.
    fn take_flag(&mut self, name: &'static str) -> Result<Option<bool>, Refusal> {
        match self.take(name) {
            None => Ok(None),
            Some(Parameter::Bool(value)) => Ok(Some(value)),
            Some(_) => Err(wrong_parameter(name, "must be true or false")),
        }
    }

    /// Refuses parameters that ask for another answer than the one that is given, and notes all others as ignored.
    fn end(self, ignored: &mut Ignored) -> Result<(), Refusal> {
        for (name, _) in self.0 {
            check_parameter(&name)?;
            ignored.push(format!("parameters.{name}"));
        }
        Ok(())
    }
}

fn wrong_parameter(name: &str, what: &str) -> Refusal {
    Refusal::invalid("invalid_value", format!("The parameter `{name}` {what}.")).param(name.to_owned())
}

/// Refuses a parameter that changes where tensors are, or what an output holds.
pub(super) fn check_parameter(name: &str) -> Result<(), Refusal> {
    if name.starts_with(SHARED_MEMORY) {
        return Err(wrong_parameter(name, "is not accepted: the caller and a built-in model share no memory"));
    }
    if name == CLASSIFICATION {
        return Err(wrong_parameter(name, "is not accepted: the outputs of this model are no classes"));
    }
    Ok(())
}

/// Elements of `data`, nested or flat, row by row.
#[derive(Default)]
struct Data {
    texts: Vec<String>,
    count: usize,
    has_others: bool,
}

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut data = Self::default();
        Row { into: &mut data, is_outer: true }.deserialize(deserializer)?;
        Ok(data)
    }
}

/// Row of elements, or within one an element.
struct Row<'d> {
    into: &'d mut Data,
    is_outer: bool,
}

impl Row<'_> {
    fn other<E: Error>(self) -> Result<(), E> {
        if self.is_outer {
            return Err(E::custom("`data` must be a list"));
        }
        self.into.count += 1;
        self.into.has_others = true;
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Row<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Row<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of strings, numbers, true or false")
    }
    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        self.other()
    }
    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        self.other()
    }
    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        self.other()
    }
    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        self.other()
    }
    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        if self.is_outer {
            return self.other();
        }
        self.into.count += 1;
        // One more than is accepted shows the excess.
        if self.into.texts.len() <= MOST_TEXTS {
            self.into.texts.push(text.to_owned());
        }
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(Row { into: self.into, is_outer: false })?.is_some() {}
        Ok(())
    }
}

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

/// Parts of a body: its JSON, and the binary data behind it.
fn split<'b>(headers: &Fields, body: &'b [u8]) -> Result<(&'b [u8], &'b [u8]), Refusal> {
    let mut lengths = headers.get_all(&INFERENCE_HEADER_CONTENT_LENGTH).iter();
    let Some(written) = lengths.next() else { return Ok((body, &[])) };
    let name = "Inference-Header-Content-Length";
    let wrong = |what: String| {
        Err(Refusal::invalid("invalid_header_length", format!("`{name}` {what}.")).param(name.to_ascii_lowercase()))
    };
    if lengths.next().is_some() {
        return wrong("appears more than once".to_owned());
    }
    let digits = written.as_bytes();
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let length = written.to_str().ok().filter(|_| is_number).and_then(|text| text.parse::<usize>().ok());
    match length {
        None => wrong("must be the length of the JSON in bytes, in digits".to_owned()),
        // A body without JSON has no names and shapes of tensors: Triton knows those of its one input by itself.
        Some(0) => wrong("is 0, which says that the body has no JSON; a built-in model needs it".to_owned()),
        Some(length) => match body.split_at_checked(length) {
            Some(parts) => Ok(parts),
            None => wrong(format!("is {length}; the whole body has {} bytes", body.len())),
        },
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
