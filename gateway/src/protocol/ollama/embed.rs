//! Reader of `/api/embed` and the older `/api/embeddings`, which has one `prompt` and answers with one vector, and the writer
//! of their answers.

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;
use spillway_filter::Refusal;

use super::bare;
use crate::protocol::chat::{EncodeInput, EncodeRequest};
use crate::protocol::json;
use crate::protocol::members::{Members, entries, probe, text};
use crate::protocol::openai::request::findings::Findings;
use crate::protocol::openai::request::values::Probe;
use crate::protocol::refusals::shown;

/// Most texts in one request, as in OpenAI's API.
const MAX_TEXTS: usize = 2048;

/// Reads a request for vectors. An error names the field at fault.
pub(super) fn read(body: &[u8]) -> Result<EncodeRequest, Refusal> {
    let mut members = Members::of_body(body)?;
    let mut findings = Findings::default();
    let mut request = EncodeRequest::default();
    if let Some(model) = members.take("model") {
        request.model = text(model).map(|model| bare(&model).to_owned());
        if request.model.is_none() {
            findings.wrong_type("model", "must be a string");
        }
    }
    match (members.take("input"), members.take("prompt")) {
        (Some(input), None) => request.inputs = inputs(input, &mut findings),
        (None, Some(prompt)) => {
            request.is_single = true;
            match text(prompt).filter(|text| !text.is_empty()) {
                Some(text) => request.inputs = vec![EncodeInput::Text(text.into())],
                None => findings.wrong("invalid_value", "prompt", "must be a text"),
            }
        }
        (Some(_), Some(_)) => findings.wrong("invalid_value", "prompt", "stands beside `input`: send one of them"),
        (None, None) => findings.wrong("missing_required_parameter", "input", "is missing"),
    }
    if let Some(dimensions) = members.take("dimensions") {
        request.dimensions = findings.count("dimensions", &probe(dimensions));
    }
    // The built-in model cuts texts to its context, as Ollama does unless this says otherwise.
    if members.take("truncate").is_some_and(|truncate| probe(truncate) != Probe::Bool(true)) {
        findings.ignore("truncate");
    }
    if members.take("options").is_some_and(|options| !matches!(probe(options), Probe::Object(0, _))) {
        findings.ignore("options");
    }
    for (name, _) in members.rest() {
        findings.ignore(shown(&name));
    }
    request.ignored = std::mem::take(&mut findings.ignored);
    match findings.first() {
        Some(refusal) => Err(refusal),
        None => Ok(request),
    }
}

/// Reads a text or a list of texts.
fn inputs(input: &RawValue, findings: &mut Findings) -> Vec<EncodeInput> {
    let one = text(input).map(|text| vec![text]);
    let list = one.or_else(|| {
        let list = entries(input, MAX_TEXTS).filter(|list| !list.has_more)?;
        list.list.into_iter().map(text).collect::<Option<Vec<_>>>()
    });
    match list {
        Some(list) if !list.is_empty() && list.iter().all(|text| !text.is_empty()) => {
            list.into_iter().map(|text| EncodeInput::Text(text.into())).collect()
        }
        Some(_) => {
            findings.wrong("invalid_value", "input", "must have a text, and no empty one");
            Vec::new()
        }
        None => {
            findings.wrong("invalid_type", "input", format!("must be a text or a list of at most {MAX_TEXTS} texts"));
            Vec::new()
        }
    }
}

#[derive(Serialize)]
struct Embeddings<'a> {
    model: &'a str,
    embeddings: Vec<&'a [f32]>,
    prompt_eval_count: u64,
}

#[derive(Serialize)]
struct Embedding<'a> {
    embedding: &'a [f32],
}

/// Answer with the vectors of a request, in the order of its texts.
pub(super) fn write(model: &str, request: &EncodeRequest, vectors: &[(Vec<f32>, bool)], tokens: u64) -> Bytes {
    if request.is_single {
        return json(&Embedding { embedding: vectors.first().map_or(&[], |(values, _)| values) });
    }
    let embeddings = vectors.iter().map(|(values, _)| &**values).collect();
    json(&Embeddings { model, embeddings, prompt_eval_count: tokens })
}
