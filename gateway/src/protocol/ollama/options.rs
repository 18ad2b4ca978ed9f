//! Reader of `options`: how an answer is sampled.

use serde_json::value::RawValue;

use crate::protocol::chat::ChatRequest;
use crate::protocol::members::{Members, entries, probe, text};
use crate::protocol::openai::request::findings::Findings;
use crate::protocol::openai::request::values::Probe;
use crate::protocol::refusals::shown;

/// Most stop strings: each is searched for after every token.
const MAX_STOPS: usize = 16;
/// Longest stop string in bytes.
const MAX_STOP_BYTES: usize = 256;

/// Defaults of Ollama where a request leaves an option out (docs/modelfile, "Valid Parameters and Values"). They differ from
/// those of OpenAI.
const TEMPERATURE: f32 = 0.8;
const TOP_K: u32 = 40;
const TOP_P: f32 = 0.9;

/// Sets the defaults of options that are left out.
pub(super) fn defaults(request: &mut ChatRequest) {
    (request.temperature, request.top_k, request.top_p) = (Some(TEMPERATURE), Some(TOP_K), Some(TOP_P));
}

/// Reads the value of `options`.
pub(super) fn read(options: &RawValue, request: &mut ChatRequest, findings: &mut Findings) {
    let Some(members) = Members::of(options) else {
        return findings.wrong_type("options", "must be an object, with each option once");
    };
    for (name, value) in members.rest() {
        let param = format!("options.{}", shown(&name));
        match &*name {
            "stop" => stop(value, request, findings),
            _ => option(&name, &param, &probe(value), request, findings),
        }
    }
}

fn option(name: &str, param: &str, value: &Probe<'_>, request: &mut ChatRequest, findings: &mut Findings) {
    match name {
        "temperature" => request.temperature = findings.number(param, value, 0.0, 2.0),
        "top_p" => request.top_p = findings.number(param, value, 0.0, 1.0),
        "min_p" => request.min_p = findings.number(param, value, 0.0, 1.0),
        "presence_penalty" => request.presence_penalty = findings.number(param, value, -2.0, 2.0),
        "frequency_penalty" => request.frequency_penalty = findings.number(param, value, -2.0, 2.0),
        "repeat_penalty" => {
            request.repetition_penalty = findings.number(param, value, 0.0, 100.0);
            if request.repetition_penalty == Some(0.0) {
                findings.wrong("decimal_below_min_value", param.to_owned(), "must be more than 0");
            }
        }
        "top_k" => request.top_k = at_least_one(param, value, findings),
        // Numbers below 1 mean no limit.
        "num_predict" => request.max_tokens = at_least_one(param, value, findings),
        "seed" => request.seed = whole(param, value, findings).filter(|seed| *seed >= 0).map(i64::cast_unsigned),
        "typical_p" | "tfs_z" if value.number() == Some(1.0) => {}
        "mirostat" if value.number() == Some(0.0) => {}
        _ => findings.ignore(param),
    }
}

/// Reads a whole number, which may be written as `40.0`.
fn whole(param: &str, value: &Probe<'_>, findings: &mut Findings) -> Option<i64> {
    let number = match value {
        Probe::Unsigned(number) => Some(i64::try_from(*number).unwrap_or(i64::MAX)),
        Probe::Negative(number) => Some(*number),
        #[allow(clippy::cast_possible_truncation, reason = "a whole number; a cast saturates")]
        Probe::Float(number) if number.fract() == 0.0 => Some(*number as i64),
        _ => None,
    };
    if number.is_none() {
        findings.wrong_type(param, "must be a whole number");
    }
    number
}

/// Reads a whole number, of which those below 1 restrict nothing.
fn at_least_one(param: &str, value: &Probe<'_>, findings: &mut Findings) -> Option<u32> {
    let number = whole(param, value, findings).filter(|number| *number > 0)?;
    Some(u32::try_from(number).unwrap_or(u32::MAX))
}

fn stop(value: &RawValue, request: &mut ChatRequest, findings: &mut Findings) {
    let one = text(value).map(|stop| vec![stop]);
    let list = one.or_else(|| {
        let list = entries(value, MAX_STOPS).filter(|list| !list.has_more)?;
        list.list.into_iter().map(text).collect::<Option<Vec<_>>>()
    });
    let is_short = |list: &Vec<_>| list.iter().all(|stop: &std::borrow::Cow<'_, str>| stop.len() <= MAX_STOP_BYTES);
    match list.filter(is_short) {
        // An empty string would end every answer; Ollama passes over it.
        Some(list) => request.stop = list.into_iter().filter(|stop| !stop.is_empty()).map(Into::into).collect(),
        None => {
            let what = format!("must be a string or at most {MAX_STOPS} strings of at most {MAX_STOP_BYTES} bytes");
            findings.wrong("invalid_value", "options.stop", what);
        }
    }
}
