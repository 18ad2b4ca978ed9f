//! Messages of HTTP: JSON, with the binary data of tensors behind it where a length says so. Read without a copy of data that
//! are binary already.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;
use spillway_filter::{Fields, Refusal};

use super::GRPC;
use super::elements::{self, Fault};
use super::message::{
    BINARY, MOST_DIMENSIONS, MOST_PARAMETERS, MOST_TENSORS, Message, Parameter, Parameters, Tensor, Wanted,
};
use crate::protocol::members::{Members, text};
use crate::protocol::oip::grpc::request::malformed;
use crate::protocol::oip::json::{BINARY_DATA, BINARY_DATA_OUTPUT, BINARY_DATA_SIZE, MOST_SHOWN, split};
use crate::protocol::oip::tensor::{DataType, wrong};
use crate::protocol::oip::values::{Few, SHARED_MEMORY, wrong_parameter};
use crate::protocol::refusals::shown;
use crate::protocol::translate::Lossy;

/// Form in which a caller wants the outputs of its answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct AnswerForm {
    /// True if outputs are wanted as binary data where nothing else is said.
    all_binary: bool,
    /// Outputs of which something else is said.
    outputs: Vec<(Box<str>, bool)>,
}

impl AnswerForm {
    /// True if an output is wanted as binary data.
    fn is_binary(&self, output: &str) -> bool {
        let said = self.outputs.iter().find(|(name, _)| **name == *output);
        said.map_or(self.all_binary, |(_, is_binary)| *is_binary)
    }
}

/// Value of a parameter; `None` for one that is no text, number, true or false. Numbers are read here, because the library reads
/// some to their neighbours.
fn scalar(value: &RawValue) -> Option<Parameter<'_>> {
    let word = value.get();
    match word {
        "true" => Some(Parameter::Bool(true)),
        "false" => Some(Parameter::Bool(false)),
        _ if word.starts_with('"') => text(value).map(Parameter::Text),
        _ => {
            let whole = || Some(Parameter::Int(word.parse().ok()?));
            let large = || Some(Parameter::Unsigned(word.parse().ok()?));
            let is_number = word.starts_with(|first: char| first == '-' || first.is_ascii_digit());
            let double =
                || word.parse().ok().filter(|value: &f64| is_number && value.is_finite()).map(Parameter::Double);
            whole().or_else(large).or_else(double)
        }
    }
}

/// Parameters by name, each once.
#[derive(Default)]
struct JsonParameters<'a>(Vec<(Cow<'a, str>, Option<Parameter<'a>>)>);

impl<'de: 'a, 'a> Deserialize<'de> for JsonParameters<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ParametersVisitor;
        impl<'de> Visitor<'de> for ParametersVisitor {
            type Value = JsonParameters<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {MOST_PARAMETERS} parameters")
            }
            // As servers write it that have none.
            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(JsonParameters::default())
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut all: Vec<(Cow<'de, str>, Option<Parameter<'de>>)> = Vec::new();
                while let Some((name, value)) = map.next_entry::<Cow<'de, str>, &'de RawValue>()? {
                    if all.iter().any(|(known, _)| *known == name) {
                        return Err(A::Error::custom(format_args!("duplicate parameter `{}`", shown(&name))));
                    }
                    if all.len() == MOST_PARAMETERS {
                        return Err(Error::invalid_length(MOST_PARAMETERS + 1, &self));
                    }
                    all.push((name, scalar(value)));
                }
                Ok(JsonParameters(all))
            }
        }
        deserializer.deserialize_any(ParametersVisitor)
    }
}

impl<'a> JsonParameters<'a> {
    /// Value of a parameter, which is no longer among those that are left.
    fn take(&mut self, name: &str) -> Option<Option<Parameter<'a>>> {
        let at = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.remove(at).1)
    }

    fn take_flag(&mut self, name: &'static str) -> Result<Option<bool>, Refusal> {
        match self.take(name) {
            None => Ok(None),
            Some(Some(Parameter::Bool(value))) => Ok(Some(value)),
            Some(_) => Err(wrong_parameter(name, "must be true or false")),
        }
    }

    /// Parameters of a call that are for the server.
    fn of_call(self) -> Result<Parameters<'a>, Refusal> {
        let value = |(name, value): (Cow<'a, str>, Option<Parameter<'a>>)| {
            if name.starts_with(SHARED_MEMORY) {
                return Err(wrong_parameter(&name, "is not accepted: the caller and the server share no memory"));
            }
            if name.starts_with(BINARY) {
                return Err(wrong_parameter(&shown(&name), "does not belong here"));
            }
            match value {
                Some(value) => Ok((name, value)),
                None => Err(wrong_parameter(&shown(&name), "must be a text, a number, true or false")),
            }
        };
        self.0.into_iter().map(value).collect()
    }

    /// Parameters of an answer that its caller can read.
    fn of_answer(self) -> Parameters<'a> {
        let kept = self.0.into_iter().filter(|(name, _)| !name.starts_with(BINARY));
        kept.filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

#[derive(Deserialize)]
struct JsonTensor<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    shape: Few<i64, MOST_DIMENSIONS>,
    #[serde(borrow)]
    datatype: Cow<'a, str>,
    #[serde(borrow, default)]
    parameters: JsonParameters<'a>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct JsonOutput<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow, default)]
    parameters: JsonParameters<'a>,
}

/// JSON of an answer. Further members have no counterpart.
#[derive(Deserialize)]
struct JsonAnswer<'a> {
    #[serde(borrow, default)]
    model_name: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    model_version: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    parameters: JsonParameters<'a>,
    #[serde(borrow)]
    outputs: Few<JsonTensor<'a>, MOST_TENSORS>,
}

/// Reads a member of a call.
fn member<'a, T: Deserialize<'a>>(value: Option<&'a RawValue>, name: &'static str) -> Result<Option<T>, Refusal> {
    let read = value.map(|value| serde_json::from_str(value.get())).transpose();
    read.map_err(|error| {
        let text: String = error.to_string().chars().filter(|c| !c.is_control()).take(MOST_SHOWN).collect();
        Refusal::invalid("invalid_value", format!("`{name}` is not of the protocol's form: {text}.")).param(name)
    })
}

/// Reads a call, and the form of the answer that it asks for.
///
/// # Errors
/// Refuses bodies that are not of the protocol's form, lengths that do not agree, and what gRPC cannot express.
pub(super) fn read_request<'b>(
    headers: &Fields,
    body: &'b [u8],
    lossy: &mut Lossy<'_>,
) -> Result<(Message<'b>, AnswerForm), Refusal> {
    let (head, mut binary) = split(headers, body)?;
    let mut members = Members::of_body(head)?;
    let mut texts = [("id", None), ("model_name", None), ("model_version", None)];
    for (name, found) in &mut texts {
        if let Some(value) = members.take(name) {
            let wrong = || Refusal::invalid("invalid_type", format!("`{name}` must be a string.")).param(*name);
            *found = Some(text(value).ok_or_else(wrong)?);
        }
    }
    let [(_, id), (_, model), (_, version)] = texts;
    let mut parameters: JsonParameters<'b> = member(members.take("parameters"), "parameters")?.unwrap_or_default();
    let mut form =
        AnswerForm { all_binary: parameters.take_flag(BINARY_DATA_OUTPUT)?.unwrap_or(false), outputs: Vec::new() };
    let mut call = Message {
        model,
        version: version.unwrap_or_default(),
        id: id.unwrap_or_default(),
        parameters: parameters.of_call()?,
        ..Message::default()
    };
    let inputs: Option<Few<&RawValue, MOST_TENSORS>> = member(members.take("inputs"), "inputs")?;
    for input in inputs.map(|Few(inputs)| inputs).unwrap_or_default() {
        check_members(input, &["name", "shape", "datatype", "parameters", "data"], "inputs", lossy)?;
        let Some(mut input) = member::<JsonTensor<'b>>(Some(input), "inputs")? else { continue };
        let (datatype, data) = data_of(&mut input, &mut binary)?;
        let JsonTensor { name, shape: Few(shape), parameters, .. } = input;
        call.tensors.push(Tensor { name, datatype, shape, parameters: parameters.of_call()?, data });
    }
    if !binary.is_empty() {
        let message = format!("The body has {} bytes behind the data of its last input.", binary.len());
        return Err(Refusal::invalid("invalid_tensor", message));
    }
    let outputs: Option<Few<&RawValue, MOST_TENSORS>> = member(members.take("outputs"), "outputs")?;
    for output in outputs.map(|Few(outputs)| outputs).unwrap_or_default() {
        check_members(output, &["name", "parameters"], "outputs", lossy)?;
        let Some(output) = member::<JsonOutput<'b>>(Some(output), "outputs")? else { continue };
        let JsonOutput { name, mut parameters } = output;
        if let Some(is_binary) = parameters.take_flag(BINARY_DATA)? {
            form.outputs.push((name.as_ref().into(), is_binary));
        }
        call.wanted.push(Wanted { name, parameters: parameters.of_call()? });
    }
    for (name, _) in members.rest() {
        lossy.without(&name, GRPC)?;
    }
    Ok((call, form))
}

/// Refuses members of an entry that are not known, unless they may be dropped.
fn check_members(entry: &RawValue, known: &[&str], place: &str, lossy: &mut Lossy<'_>) -> Result<(), Refusal> {
    // An entry that is no object is refused where it is read.
    for (name, _) in Members::of(entry).unwrap_or_default().rest() {
        if !known.contains(&&*name) {
            lossy.without(&format!("{place}.{name}"), GRPC)?;
        }
    }
    Ok(())
}

/// Refuses a call whose body names another model or version than its path.
///
/// # Errors
/// The names differ.
pub(super) fn check_names(call: &Message<'_>, model: &str, version: &str) -> Result<(), Refusal> {
    let pairs = [("model_name", call.model.as_deref(), model), ("model_version", Some(&*call.version), version)];
    for (field, named, path) in pairs {
        if named.is_some_and(|named| !named.is_empty() && named != path) {
            let named = shown(named.unwrap_or_default());
            let message = format!("The body has `{named}` as its `{field}`, the path another.");
            return Err(Refusal::invalid("ambiguous_model", message).param(field));
        }
    }
    Ok(())
}

/// Elements of a tensor, of its own JSON or of the binary data, whose rest is left in `binary`.
fn data_of<'b>(tensor: &mut JsonTensor<'b>, binary: &mut &'b [u8]) -> Result<(DataType, Cow<'b, [u8]>), Refusal> {
    let JsonTensor { name, shape: Few(shape), datatype, parameters, data } = tensor;
    let size = match parameters.take(BINARY_DATA_SIZE) {
        None => None,
        Some(Some(Parameter::Int(size))) if size >= 0 => Some(size),
        Some(_) => return Err(wrong_parameter(BINARY_DATA_SIZE, "must be a number of bytes")),
    };
    let Some(datatype) = DataType::of(datatype) else {
        return Err(wrong(name, format_args!("has an unknown datatype `{}`", shown(datatype))));
    };
    let fault = |fault: Fault| wrong(name, fault);
    let count = elements::count(shape).map_err(fault)?;
    let data = match (data, size) {
        (Some(data), None) => elements::from_json(data, datatype, count).map_err(fault)?.into(),
        (None, Some(size)) => {
            let parts = usize::try_from(size).ok().and_then(|size| binary.split_at_checked(size));
            let Some((data, rest)) = parts else {
                let left = binary.len();
                return Err(wrong(name, format_args!("has `{BINARY_DATA_SIZE}` {size}; {left} bytes are left")));
            };
            *binary = rest;
            elements::check(datatype, count, data).map_err(fault)?;
            Cow::Borrowed(data)
        }
        (Some(_), Some(_)) => return Err(wrong(name, format_args!("has both `data` and `{BINARY_DATA_SIZE}`"))),
        (None, None) => return Err(wrong(name, format_args!("has neither `data` nor `{BINARY_DATA_SIZE}`"))),
    };
    Ok((datatype, data))
}

/// Reads an answer.
///
/// # Errors
/// The body is not of the protocol's form, or lengths do not agree.
pub(super) fn read_answer<'b>(headers: &Fields, body: &'b [u8]) -> Result<Message<'b>, Refusal> {
    let (head, mut binary) = split(headers, body)?;
    let answer: JsonAnswer<'b> = serde_json::from_slice(head).map_err(|_| malformed())?;
    let JsonAnswer { model_name, model_version, id, parameters, outputs: Few(outputs) } = answer;
    let mut tensors = Vec::with_capacity(outputs.len());
    for mut output in outputs {
        let (datatype, data) = data_of(&mut output, &mut binary)?;
        let JsonTensor { name, shape: Few(shape), parameters, .. } = output;
        tensors.push(Tensor { name, datatype, shape, parameters: parameters.of_answer(), data });
    }
    Ok(Message {
        model: model_name,
        version: model_version.unwrap_or_default(),
        id: id.unwrap_or_default(),
        parameters: parameters.of_answer(),
        tensors,
        wanted: Vec::new(),
    })
}

/// Writer of one object of JSON.
struct Object<'o> {
    out: &'o mut Vec<u8>,
    is_empty: bool,
}

impl<'o> Object<'o> {
    fn begin(out: &'o mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, is_empty: true }
    }

    /// Begins a member; its value is appended to the bytes.
    fn member(&mut self, name: &str) -> &mut Vec<u8> {
        if !std::mem::take(&mut self.is_empty) {
            self.out.push(b',');
        }
        self.out.extend_from_slice(&crate::protocol::json(&name));
        self.out.push(b':');
        self.out
    }

    fn set(&mut self, name: &str, value: &impl serde::Serialize) {
        let value = crate::protocol::json(value);
        self.member(name).extend_from_slice(&value);
    }

    fn text(&mut self, name: &str, text: &str) {
        if !text.is_empty() {
            self.set(name, &text);
        }
    }

    /// Writes parameters, and `more` behind them; nothing where there are none.
    fn parameters(&mut self, parameters: &Parameters<'_>, more: Option<(&str, Parameter<'_>)>) {
        if parameters.is_empty() && more.is_none() {
            return;
        }
        let mut object = Object::begin(self.member("parameters"));
        for (name, value) in parameters
            .iter()
            .map(|(name, value)| (&**name, value))
            .chain(more.as_ref().map(|(name, value)| (*name, value)))
        {
            match value {
                Parameter::Bool(value) => object.set(name, value),
                Parameter::Int(value) => object.set(name, value),
                Parameter::Unsigned(value) => object.set(name, value),
                Parameter::Double(value) => object.set(name, value),
                Parameter::Text(value) => object.set(name, value),
            }
        }
        object.end();
    }

    fn list<T>(&mut self, name: &str, entries: impl IntoIterator<Item = T>, mut write: impl FnMut(T, &mut Object<'_>)) {
        let out = self.member(name);
        out.push(b'[');
        for (n, entry) in entries.into_iter().enumerate() {
            if n > 0 {
                out.push(b',');
            }
            let mut object = Object::begin(out);
            write(entry, &mut object);
            object.end();
        }
        out.push(b']');
    }

    fn end(self) {
        self.out.push(b'}');
    }
}

/// Writes a tensor, its elements into the JSON or behind it.
fn put_tensor(tensor: &Tensor<'_>, is_binary: bool, object: &mut Object<'_>) {
    object.set("name", &tensor.name);
    object.set("shape", &tensor.shape);
    object.set("datatype", &tensor.datatype.as_str());
    let size = is_binary.then(|| i64::try_from(tensor.data.len()).unwrap_or(i64::MAX));
    object.parameters(&tensor.parameters, size.map(|size| (BINARY_DATA_SIZE, Parameter::Int(size))));
    if !is_binary {
        elements::write_json(tensor.datatype, &tensor.data, object.member("data"));
    }
}

/// Bytes that a name, shape and the other parts of a tensor take in JSON, about.
const BESIDE_ELEMENTS: usize = 256;

/// Empty buffer for a body with these tensors, of which some are binary: grown step by step it would take twice the space.
fn buffer<'t>(tensors: impl IntoIterator<Item = (&'t Tensor<'t>, bool)>) -> Vec<u8> {
    let length = |(tensor, is_binary): (&Tensor<'_>, bool)| {
        if is_binary { tensor.data.len() } else { elements::json_length(tensor.datatype, &tensor.data) }
    };
    let lengths = tensors.into_iter().map(|tensor| length(tensor).saturating_add(BESIDE_ELEMENTS));
    Vec::with_capacity(lengths.fold(BESIDE_ELEMENTS, usize::saturating_add))
}

/// Body of a JSON head and the binary data of these tensors behind it, and the length of the head where there are any.
fn with_binary(mut head: Vec<u8>, binary: &[&Tensor<'_>]) -> (Bytes, Option<usize>) {
    if binary.is_empty() {
        return (head.into(), None);
    }
    let length = head.len();
    binary.iter().for_each(|tensor| head.extend_from_slice(&tensor.data));
    (head.into(), Some(length))
}

/// Writes a call: JSON where it can express the inputs without becoming much longer, and binary data behind it where not. Returns the length of the JSON where
/// binary data follow. The outputs are wanted as binary data, which is a parameter without meaning to servers that know none.
pub(super) fn write_request(call: &Message<'_>) -> (Bytes, Option<usize>) {
    let is_binary = |tensor: &&Tensor<'_>| {
        !elements::fits_json(tensor.datatype, &tensor.data) || elements::swells(tensor.datatype, &tensor.data)
    };
    let binary: Vec<&Tensor<'_>> = call.tensors.iter().filter(is_binary).collect();
    let is_binary = |tensor: &Tensor<'_>| binary.iter().any(|other| std::ptr::eq(*other, tensor));
    let mut head = buffer(call.tensors.iter().map(|tensor| (tensor, is_binary(tensor))));
    let mut object = Object::begin(&mut head);
    object.text("id", &call.id);
    object.parameters(&call.parameters, Some((BINARY_DATA_OUTPUT, Parameter::Bool(true))));
    object.list("inputs", &call.tensors, |tensor, object| put_tensor(tensor, is_binary(tensor), object));
    if !call.wanted.is_empty() {
        object.list("outputs", &call.wanted, |output, object| {
            object.set("name", &output.name);
            object.parameters(&output.parameters, None);
        });
    }
    object.end();
    with_binary(head, &binary)
}

/// Bytes that the outputs of an answer take at least in the form that is wanted.
pub(super) fn least_length(answer: &Message<'_>, form: &AnswerForm) -> usize {
    let of_output = |tensor: &Tensor<'_>| match form.is_binary(&tensor.name) {
        false if elements::is_exact(tensor.datatype) => elements::json_length(tensor.datatype, &tensor.data),
        // Numbers have no fewer digits in JSON than one each.
        false => tensor.data.len() / tensor.datatype.size().unwrap_or(1) * 2,
        true => tensor.data.len(),
    };
    answer.tensors.iter().map(of_output).fold(0, usize::saturating_add)
}

/// Writes the answer of the model `model`. Returns the length of the JSON where binary data follow.
///
/// # Errors
/// An output is wanted as JSON, which cannot express it.
pub(super) fn write_answer(
    answer: &Message<'_>,
    model: &str,
    form: &AnswerForm,
) -> Result<(Bytes, Option<usize>), Refusal> {
    let is_binary = |tensor: &&Tensor<'_>| form.is_binary(&tensor.name);
    if let Some(output) =
        answer.tensors.iter().find(|tensor| !is_binary(tensor) && !elements::fits_json(tensor.datatype, &tensor.data))
    {
        let name = shown(&output.name);
        let fault = match output.datatype {
            datatype @ (DataType::Fp16 | DataType::Bf16) => Fault::BinaryOnly(datatype),
            _ => Fault::NotJson,
        };
        let message = format!("The output `{name}` {fault}. Ask for it with the parameter `binary_data`.");
        return Err(Refusal::invalid("invalid_tensor", message).param(name));
    }
    let binary: Vec<&Tensor<'_>> = answer.tensors.iter().filter(is_binary).collect();
    let mut head = buffer(answer.tensors.iter().map(|tensor| (tensor, form.is_binary(&tensor.name))));
    let mut object = Object::begin(&mut head);
    object.set("model_name", &model);
    object.text("model_version", &answer.version);
    object.text("id", &answer.id);
    object.parameters(&answer.parameters, None);
    object.list("outputs", &answer.tensors, |tensor, object| put_tensor(tensor, form.is_binary(&tensor.name), object));
    object.end();
    Ok(with_binary(head, &binary))
}
