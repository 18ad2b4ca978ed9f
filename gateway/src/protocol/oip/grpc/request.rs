//! Messages of callers (KServe, `open_inference_grpc.proto`; Triton, `grpc_service.proto`), read in bounded memory: only what
//! built-in models need, and the name of the model for any call.

use std::ops::Range;

use http::StatusCode;
use spillway_filter::{ErrorKind, Refusal};

use super::wire::{FRAME, Field, Frame, Malformed, Value, fields, frame, put_varint, varint};
use crate::protocol::inference::{AnswerName, NamedModel};
use crate::protocol::oip::infer::{InferRequest, MOST_TENSORS, Wanted};
use crate::protocol::oip::tensor::{Elements, Input, MOST_TEXTS};
use crate::protocol::oip::values::check_parameter;
use crate::protocol::peek::check_model;
use crate::protocol::refusals::duplicate;

/// Field of the model's name in the messages of all calls that name one.
const MODEL: u32 = 1;
/// Field of its version there.
const VERSION: u32 = 2;

/// Most fields of a tensor's shape that are read.
const MOST_DIMENSIONS: usize = 8;

pub(in crate::protocol::oip) fn malformed() -> Refusal {
    Refusal::invalid("invalid_message", "The message is not in the form of the Open Inference Protocol.")
}

impl From<Malformed> for Refusal {
    fn from(Malformed: Malformed) -> Self {
        malformed()
    }
}

pub(in crate::protocol::oip) fn too_many(what: &str, most: usize) -> Refusal {
    Refusal::invalid("invalid_message", format!("The message has more than {most} {what}."))
}

pub(in crate::protocol::oip) fn text(value: Value<'_>) -> Result<&str, Refusal> {
    match value {
        Value::Bytes(bytes) => std::str::from_utf8(bytes).map_err(|_| malformed()),
        _ => Err(malformed()),
    }
}

pub(in crate::protocol::oip) fn bytes(value: Value<'_>) -> Result<&[u8], Refusal> {
    if let Value::Bytes(bytes) = value { Ok(bytes) } else { Err(malformed()) }
}

/// Message of a body that holds one.
///
/// # Errors
/// Refuses a message in a coding, and any other number of messages.
pub(in crate::protocol::oip) fn message(body: &[u8]) -> Result<&[u8], Refusal> {
    match frame(body) {
        Frame::Message(message) => Ok(message),
        Frame::Compressed => Err(Refusal::new(
            StatusCode::NOT_IMPLEMENTED,
            ErrorKind::InvalidRequest,
            "unsupported_content_encoding",
            "The message is compressed (`grpc-encoding`), and the gateway has to read it: send it as it is.",
        )),
        Frame::Other => Err(Refusal::invalid("invalid_message", "The call must have one message, and all of it.")),
    }
}

/// Finds the model that a body names; `None` where it names none.
///
/// # Errors
/// Refuses a body that is not one message, a name that appears twice, and one that no body of JSON may have either.
pub(super) fn model(body: &[u8]) -> Result<Option<NamedModel>, Refusal> {
    let mut found: Option<NamedModel> = None;
    for field in fields(message(body)?) {
        let field = field?;
        if field.number == MODEL {
            if found.is_some() {
                return Err(duplicate("model_name"));
            }
            let name = text(field.value)?.to_owned();
            check_model(&name, true)?;
            found = Some(NamedModel { name, at: FRAME + field.from..FRAME + field.to });
        }
    }
    Ok(found.filter(|named| !named.name.is_empty()))
}

/// Part of a body to replace, and the bytes in its place, so that its message names the model `name`. `at` is the range of
/// the name's field. `None` where the message would be too long for a frame.
pub(super) fn renamed(body: &[u8], at: &Range<usize>, name: &str) -> Option<(Range<usize>, Vec<u8>)> {
    with_name(body, at, body.len().checked_sub(FRAME)?, name)
}

/// As [`renamed`], for the beginning of a body whose message has `length` bytes.
fn with_name(body: &[u8], at: &Range<usize>, length: usize, name: &str) -> Option<(Range<usize>, Vec<u8>)> {
    let mut field = vec![u8::try_from(MODEL << 3 | 2).ok()?];
    put_varint(&mut field, u64::try_from(name.len()).ok()?);
    field.extend_from_slice(name.as_bytes());
    let length = (length + field.len()).checked_sub(at.len())?;
    let mut out = u32::try_from(length).ok()?.to_be_bytes().to_vec();
    out.extend_from_slice(body.get(FRAME..at.start)?);
    out.extend_from_slice(&field);
    // The length in the frame comes before the name.
    Some((1..at.end, out))
}

/// Finds the model's name in the beginning of an answer with one message, in whose first bytes servers write it. Names of answers
/// are in the same field as those of calls.
pub(super) fn rename_answer(beginning: &[u8], from: &str, to: &str) -> AnswerName {
    let Some(([flag, length @ ..], message)) = beginning.split_first_chunk::<FRAME>() else {
        return AnswerName::NotYet;
    };
    let Ok(length) = usize::try_from(u32::from_be_bytes(*length)) else { return AnswerName::Absent };
    if *flag != 0 {
        return AnswerName::Absent;
    }
    let is_whole = message.len() >= length;
    for field in fields(message.get(..length).unwrap_or(message)) {
        let Ok(field) = field else { return if is_whole { AnswerName::Absent } else { AnswerName::NotYet } };
        if field.number == MODEL {
            if field.value != Value::Bytes(from.as_bytes()) {
                return AnswerName::Absent;
            }
            let at = FRAME + field.from..FRAME + field.to;
            let replaced = with_name(beginning, &at, length, to);
            return replaced.map_or(AnswerName::Absent, |(range, bytes)| AnswerName::Replace(range, bytes));
        }
    }
    if is_whole { AnswerName::Absent } else { AnswerName::NotYet }
}

/// Version of the model that a call names, empty for none.
pub(super) fn version(body: &[u8]) -> Result<String, Refusal> {
    let mut found = "";
    for field in fields(message(body)?) {
        let field = field?;
        if field.number == VERSION {
            found = text(field.value)?;
        }
    }
    Ok(found.to_owned())
}

/// Input as its message has it; the elements may be in `raw_input_contents`.
struct Written<'m> {
    name: &'m str,
    datatype: &'m str,
    shape: Vec<u64>,
    contents: Option<&'m [u8]>,
}

/// Reads a `ModelInferRequest`.
///
/// # Errors
/// Refuses messages that are not of the protocol's form, and lengths that do not agree.
pub(super) fn infer(body: &[u8]) -> Result<InferRequest, Refusal> {
    let mut call = InferRequest::default();
    let (mut inputs, mut raw): (Vec<Written<'_>>, Vec<&[u8]>) = (Vec::new(), Vec::new());
    for field in fields(message(body)?) {
        let Field { number, value, .. } = field?;
        match number {
            MODEL => {}
            VERSION => call.version = Some(text(value)?.to_owned()),
            3 => call.id = Some(text(value)?.to_owned()).filter(|id| !id.is_empty()),
            4 => parameter(value, "parameters", &mut call)?,
            5 if inputs.len() == MOST_TENSORS => return Err(too_many("inputs", MOST_TENSORS)),
            5 => inputs.push(input(bytes(value)?, &mut call)?),
            6 if call.wanted.len() == MOST_TENSORS => return Err(too_many("outputs", MOST_TENSORS)),
            6 => {
                let output = output(bytes(value)?, &mut call)?;
                call.wanted.push(output);
            }
            7 if raw.len() == MOST_TENSORS => return Err(too_many("raw contents", MOST_TENSORS)),
            7 => raw.push(bytes(value)?),
            _ => call.ignored.push(format!("field {number}")),
        }
    }
    call.is_binary = !raw.is_empty();
    if !raw.is_empty() && raw.len() != inputs.len() {
        let message = format!(
            "`raw_input_contents` has {} entries for {} inputs; expected one for each.",
            raw.len(),
            inputs.len()
        );
        return Err(Refusal::invalid("invalid_tensor", message).param("raw_input_contents"));
    }
    let mut raw = raw.into_iter();
    for Written { name, datatype, shape, contents } in inputs {
        let elements = match (raw.next(), contents.filter(|contents| !contents.is_empty())) {
            (Some(_), Some(_)) => {
                let message = "An input has both `contents` and `raw_input_contents`.";
                return Err(Refusal::invalid("invalid_tensor", message).param(name.to_owned()));
            }
            (Some(bytes), None) => Elements::Raw(bytes),
            (None, contents) => typed(contents.unwrap_or_default())?,
        };
        call.inputs.push(Input::new(name.to_owned(), datatype, shape, elements)?);
    }
    Ok(call)
}

/// Notes a parameter as ignored, or refuses it by name. Its message is an entry of a map: the key is field 1.
fn parameter(value: Value<'_>, place: &str, call: &mut InferRequest) -> Result<(), Refusal> {
    let mut name = "";
    for field in fields(bytes(value)?) {
        let field = field?;
        if field.number == 1 {
            name = text(field.value)?;
        }
    }
    check_parameter(name)?;
    call.ignored.push(format!("{place}.{name}"));
    Ok(())
}

/// Reads an `InferInputTensor`.
fn input<'m>(message: &'m [u8], call: &mut InferRequest) -> Result<Written<'m>, Refusal> {
    let mut read = Written { name: "", datatype: "", shape: Vec::new(), contents: None };
    for field in fields(message) {
        let Field { number, value, .. } = field?;
        match number {
            1 => read.name = text(value)?,
            2 => read.datatype = text(value)?,
            3 => dimensions::<MOST_DIMENSIONS, _>(value, &mut read.shape)?,
            4 => parameter(value, "inputs.parameters", call)?,
            5 if read.contents.is_some() => return Err(duplicate("contents")),
            5 => read.contents = Some(bytes(value)?),
            _ => call.ignored.push(format!("inputs.field {number}")),
        }
    }
    Ok(read)
}

/// Reads dimensions of a shape, packed or one, of which there may be `MOST`.
pub(in crate::protocol::oip) fn dimensions<const MOST: usize, N: TryFrom<i64>>(
    value: Value<'_>,
    into: &mut Vec<N>,
) -> Result<(), Refusal> {
    let mut add = |dimension: u64| {
        if into.len() == MOST {
            return Err(too_many("dimensions in a shape", MOST));
        }
        // A negative number of protobuf's `int64` is a varint with the highest bit set.
        let dimension = i64::try_from(dimension).ok().and_then(|dimension| N::try_from(dimension).ok());
        let negative = || Refusal::invalid("invalid_tensor", "A shape has a negative dimension.").param("shape");
        into.push(dimension.ok_or_else(negative)?);
        Ok(())
    };
    match value {
        Value::Varint(dimension) => add(dimension),
        Value::Bytes(mut packed) => {
            while !packed.is_empty() {
                let (dimension, rest) = varint(packed).ok_or_else(malformed)?;
                add(dimension)?;
                packed = rest;
            }
            Ok(())
        }
        Value::Fixed32(_) | Value::Fixed64(_) => Err(malformed()),
    }
}

/// Reads an `InferRequestedOutputTensor`.
fn output(message: &[u8], call: &mut InferRequest) -> Result<Wanted, Refusal> {
    let mut name = "";
    for field in fields(message) {
        let Field { number, value, .. } = field?;
        match number {
            1 => name = text(value)?,
            2 => parameter(value, "outputs.parameters", call)?,
            _ => call.ignored.push(format!("outputs.field {number}")),
        }
    }
    Ok(Wanted { name: name.to_owned(), is_binary: None })
}

/// Reads `InferTensorContents`: the elements of `bytes_contents`, and the number of all others.
fn typed(message: &[u8]) -> Result<Elements<'_>, Refusal> {
    const BYTES_CONTENTS: u32 = 8;
    let (mut texts, mut count, mut has_others) = (Vec::new(), 0usize, false);
    for field in fields(message) {
        let Field { number, value, .. } = field?;
        if number == BYTES_CONTENTS {
            count += 1;
            // One more than is accepted shows the excess.
            if texts.len() <= MOST_TEXTS {
                texts.push(text(value)?.to_owned());
            }
            continue;
        }
        has_others = true;
        count = count.saturating_add(match value {
            Value::Bytes(packed) if number == 6 => packed.len() / 4,
            Value::Bytes(packed) if number == 7 => packed.len() / 8,
            // Each varint ends with the byte whose highest bit is clear.
            Value::Bytes(packed) => packed.iter().filter(|byte| **byte & 0x80 == 0).count(),
            _ => 1,
        });
    }
    Ok(Elements::Read { texts, count, has_others })
}
