//! A call of a built-in model that encodes texts, between the protocol's tensors and the neutral request. The names of the
//! tensors are the gateway's own; `ModelMetadata` tells them.

use spillway_filter::Refusal;

use super::tensor::{DataType, Input, wrong};
use crate::protocol::chat::{Encode, EncodeInput, EncodeRequest, Encoded, Ignored};
use crate::protocol::refusals::{duplicate, shown};

/// Only version of a built-in model.
pub(super) const VERSION: &str = "1";

/// Most inputs, or wanted outputs, of a call.
pub(super) const MOST_TENSORS: usize = 16;

const TEXT: &str = "text";
const QUERY: &str = "query";
const DOCUMENTS: &str = "documents";

/// Output of a built-in model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Output {
    /// Vectors of the texts.
    Embedding,
    /// True for each text that was cut to the model's context.
    Truncated,
    /// Probability for each document that it is relevant.
    Score,
}

impl Output {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Truncated => "truncated",
            Self::Score => "score",
        }
    }

    pub(super) fn datatype(self) -> DataType {
        match self {
            Self::Embedding | Self::Score => DataType::Fp32,
            Self::Truncated => DataType::Bool,
        }
    }
}

/// Names of the inputs of a model for a task; each holds one text for each row.
pub(super) fn inputs_of(what: Encode) -> &'static [&'static str] {
    match what {
        Encode::Embeddings => &[TEXT],
        Encode::Rerank => &[QUERY, DOCUMENTS],
    }
}

/// Outputs of a model for a task.
pub(super) fn outputs_of(what: Encode) -> &'static [Output] {
    match what {
        Encode::Embeddings => &[Output::Embedding, Output::Truncated],
        Encode::Rerank => &[Output::Score],
    }
}

/// Output that a caller asks for.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) name: String,
    /// True for binary data behind the JSON of an answer, false for JSON; `None` where the call as a whole says it.
    pub(super) is_binary: Option<bool>,
}

/// Request for outputs as a caller sent it, whatever the transport. Its tensors are sound in themselves.
#[derive(Debug, Default)]
pub struct InferRequest {
    /// Id that the answer repeats.
    pub(super) id: Option<String>,
    /// Model and version that the body names, where it names some: the path decides.
    pub(super) model: Option<String>,
    pub(super) version: Option<String>,
    pub(super) inputs: Vec<Input>,
    /// Outputs wanted; empty for all.
    pub(super) wanted: Vec<Wanted>,
    /// True if the outputs are wanted as binary data.
    pub(super) is_binary: bool,
    /// Fields and parameters that are not known here.
    pub(super) ignored: Ignored,
}

/// Outputs of an answer and its id, in the order and form that the caller asked for.
#[derive(Debug)]
pub struct AnswerPlan {
    pub(super) id: Option<String>,
    /// Outputs, each with whether it is wanted as binary data.
    pub(super) outputs: Vec<(Output, bool)>,
}

/// Output of an answer with its values.
pub(super) struct OutputTensor<'e> {
    pub(super) output: Output,
    pub(super) is_binary: bool,
    pub(super) shape: Vec<usize>,
    pub(super) encoded: &'e Encoded,
}

impl InferRequest {
    /// Converts the call to a request for a model `named` so in the path.
    ///
    /// # Errors
    /// Names the model, version, input or output that the model does not have.
    pub fn for_task(mut self, what: Encode, named: &str) -> Result<(EncodeRequest, AnswerPlan), Refusal> {
        if let Some(other) = self.model.as_deref().filter(|model| *model != named) {
            let message = format!("The body names the model `{}`, the path another.", shown(other));
            return Err(Refusal::invalid("ambiguous_model", message).param("model_name"));
        }
        check_version(self.version.as_deref())?;
        let names = inputs_of(what);
        for (n, input) in self.inputs.iter().enumerate() {
            if !names.contains(&input.name.as_str()) {
                return Err(wrong(&input.name, format_args!("does not exist; expected {}", list(names))));
            }
            if self.inputs.iter().take(n).any(|other| other.name == input.name) {
                return Err(duplicate(&input.name));
            }
            check_rows(input)?;
        }
        let mut request =
            EncodeRequest { model: Some(named.to_owned()), ignored: self.ignored, ..EncodeRequest::default() };
        let mut take = |name: &str| {
            let at = self.inputs.iter().position(|input| input.name == name);
            at.map(|at| self.inputs.swap_remove(at).texts).ok_or_else(|| {
                let message = format!("The input `{name}` is missing.");
                Refusal::invalid("missing_required_parameter", message).param(name.to_owned())
            })
        };
        match what {
            Encode::Embeddings => request.inputs = take(TEXT)?.into_iter().map(EncodeInput::Text).collect(),
            Encode::Rerank => {
                let mut query = take(QUERY)?;
                if query.len() != 1 {
                    return Err(wrong(QUERY, format_args!("has {} texts; expected one", query.len())));
                }
                (request.query, request.texts) = (query.pop(), take(DOCUMENTS)?);
            }
        }
        let outputs = wanted(&self.wanted, outputs_of(what), self.is_binary)?;
        Ok((request, AnswerPlan { id: self.id, outputs }))
    }
}

/// Refuses a version that no built-in model has. Callers write none or an empty one for the newest.
///
/// # Errors
/// Names the version as not found.
pub fn check_version(version: Option<&str>) -> Result<(), Refusal> {
    match version {
        None | Some("" | VERSION) => Ok(()),
        Some(other) => Err(Refusal::new(
            http::StatusCode::NOT_FOUND,
            spillway_filter::ErrorKind::NotFound,
            "model_not_found",
            format!("A built-in model has only the version {VERSION}, not `{}`.", shown(other)),
        )
        .param("version")),
    }
}

/// Refuses an input that is no column of texts.
fn check_rows(input: &Input) -> Result<(), Refusal> {
    if input.datatype != DataType::Bytes {
        return Err(wrong(&input.name, format_args!("is {}; expected BYTES", input.datatype.as_str())));
    }
    if !matches!(input.shape.as_slice(), [_] | [_, 1]) {
        return Err(wrong(&input.name, "has another shape than [n] or [n, 1]"));
    }
    if input.texts.is_empty() {
        return Err(wrong(&input.name, "has no text"));
    }
    Ok(())
}

fn list(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" and ")
}

/// Outputs of a call, each with whether it is wanted as binary data.
fn wanted(asked: &[Wanted], all: &[Output], is_binary: bool) -> Result<Vec<(Output, bool)>, Refusal> {
    if asked.is_empty() {
        return Ok(all.iter().map(|output| (*output, is_binary)).collect());
    }
    let mut outputs: Vec<(Output, bool)> = Vec::with_capacity(asked.len());
    for one in asked {
        let Some(output) = all.iter().find(|output| output.name() == one.name) else {
            let names: Vec<&str> = all.iter().map(|output| output.name()).collect();
            let name = shown(&one.name);
            let message = format!("The output `{name}` does not exist; expected {}.", list(&names));
            return Err(Refusal::invalid("invalid_tensor", message).param(name));
        };
        if outputs.iter().any(|(known, _)| known == output) {
            return Err(duplicate(&one.name));
        }
        outputs.push((*output, one.is_binary.unwrap_or(is_binary)));
    }
    Ok(outputs)
}

impl AnswerPlan {
    /// Outputs with their shapes. An output that the model did not make, which cannot be, is left out.
    pub(super) fn tensors<'e>(&self, encoded: &'e Encoded) -> Vec<OutputTensor<'e>> {
        let shape = |output| match (output, encoded) {
            (Output::Embedding, Encoded::Vectors(vectors)) => {
                Some(vec![vectors.len(), vectors.first().map_or(0, |(values, _)| values.len())])
            }
            (Output::Truncated, Encoded::Vectors(vectors)) => Some(vec![vectors.len()]),
            (Output::Score, Encoded::Scores(scores)) => Some(vec![scores.len()]),
            _ => None,
        };
        let tensor = |(output, is_binary): &(Output, bool)| {
            Some(OutputTensor { output: *output, is_binary: *is_binary, shape: shape(*output)?, encoded })
        };
        self.outputs.iter().filter_map(tensor).collect()
    }
}

impl OutputTensor<'_> {
    /// Values of an `FP32` output, in the order of its rows.
    pub(super) fn floats(&self) -> Vec<f32> {
        match self.encoded {
            Encoded::Vectors(vectors) => vectors.iter().flat_map(|(values, _)| values).copied().collect(),
            Encoded::Scores(scores) => scores.clone(),
        }
    }

    /// Values of a `BOOL` output.
    pub(super) fn flags(&self) -> Vec<bool> {
        match self.encoded {
            Encoded::Vectors(vectors) => vectors.iter().map(|(_, truncated)| *truncated).collect(),
            Encoded::Scores(_) => Vec::new(),
        }
    }

    /// Values as bytes of the binary extension: little-endian, row by row.
    pub(super) fn bytes(&self) -> Vec<u8> {
        match self.output.datatype() {
            DataType::Bool => self.flags().into_iter().map(u8::from).collect(),
            _ => self.floats().into_iter().flat_map(f32::to_le_bytes).collect(),
        }
    }
}
