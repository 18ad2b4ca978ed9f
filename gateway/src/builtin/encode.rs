//! Embeddings of texts and ranks of documents, by a built-in model that encodes. Such a model never stands in for a backend:
//! vectors of another model are wrong answers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use spillway_engine::{EmbedInput, Embedding, Engine, EngineError, Scores, Task};
use spillway_filter::{Embedded, Embedder, ErrorKind, NotEmbedded, Refusal, Vectors};

use super::LoadedModel;
use super::classify::{WINDOWS, windows};
use super::error::{SpillError, check_ignored, internal};
use crate::protocol::{Encode, EncodeInput, EncodeRequest, Encoded};

/// Encodes the texts of a request, moving them out of it. Returns the vectors or ranks, and the number of tokens read.
pub async fn encode(
    model: &Arc<LoadedModel>,
    request: &mut EncodeRequest,
    what: Encode,
    deadline: Instant,
) -> Result<(Encoded, u64), SpillError> {
    check_ignored(model, &request.ignored)?;
    let engine = model.engine(deadline).await?;
    let wanted = match what {
        Encode::Embeddings => Task::Embed,
        Encode::Rerank => Task::Classify,
    };
    let is = engine.info().task;
    if is != wanted {
        let message = format!("The model `{}` is for {is}, not for {wanted}.", model.name());
        return Err(cannot("unsupported_value", message, "model"));
    }
    if let Some(dimensions) = request.dimensions.filter(|dimensions| *dimensions > engine.info().outputs) {
        let most = engine.info().outputs;
        let message = format!("`dimensions` is {dimensions}; vectors of this model have {most} values.");
        return Err(cannot("integer_above_max_value", message, "dimensions"));
    }
    let work = async {
        match what {
            Encode::Embeddings => vectors(&engine, request).await,
            Encode::Rerank => ranks(&engine, request).await,
        }
    };
    match tokio::time::timeout_at(deadline.into(), work).await {
        Ok(encoded) => encoded.map_err(|error| failed(error, what)),
        Err(_) => Err(SpillError::Failed(Refusal::new(
            StatusCode::GATEWAY_TIMEOUT,
            ErrorKind::Timeout,
            "request_timeout",
            "The time for this request was over before the built-in model had answered.",
        ))),
    }
}

/// Embedding of a text by a model that has nothing else to do; `None` where it is not loaded, has work, or fails. For work that
/// may be left undone: a model is never loaded for it, and no request waits behind it for longer than one text takes.
pub async fn idle_vector(model: &Arc<LoadedModel>, text: String, deadline: Instant) -> Option<Vec<f32>> {
    let engine = model.engine_now()?;
    if engine.info().task != Task::Embed || is_idle(model) != Some(true) {
        return None;
    }
    let work = engine.embed_inputs(vec![EmbedInput::Text(text)]);
    let encoded = tokio::time::timeout_at(deadline.into(), work).await.ok()?;
    encoded.ok()?.pop().map(|embedding| embedding.values)
}

/// Embeddings for filters by a built-in model: of few texts at a time, so that callers of the model wait for none but these.
pub struct FilterEmbedder(Arc<LoadedModel>);

impl FilterEmbedder {
    /// Embedder of a model for embeddings.
    pub fn new(model: Arc<LoadedModel>) -> Self {
        Self(model)
    }
}

impl Embedder for FilterEmbedder {
    fn embed(&self, text: String, timeout: Duration) -> spillway_filter::Embedding {
        let (model, deadline) = (self.0.clone(), Instant::now() + timeout);
        Box::pin(async move {
            let _permit = model.filter_permit()?;
            let engine = model.engine(deadline).await.ok()?;
            let work = engine.embed_inputs(vec![EmbedInput::Text(text)]);
            let encoded = tokio::time::timeout_at(deadline.into(), work).await.ok()?;
            // Two texts with one beginning are not one text.
            encoded.ok()?.pop().filter(|embedding| !embedding.truncated).map(|embedding| embedding.values)
        })
    }

    fn embed_whole(&self, text: String, timeout: Duration) -> Embedded {
        let (model, deadline) = (self.0.clone(), Instant::now() + timeout);
        Box::pin(async move {
            let work = whole_vectors(&model, text, deadline);
            tokio::time::timeout_at(deadline.into(), work).await.unwrap_or(Err(NotEmbedded::TooLate))
        })
    }

    fn version(&self) -> u64 {
        self.0.version()
    }
}

/// Vectors of all windows of a text, some at a time.
async fn whole_vectors(model: &Arc<LoadedModel>, text: String, deadline: Instant) -> Vectors {
    let late = |_| if Instant::now() < deadline { NotEmbedded::Failed } else { NotEmbedded::TooLate };
    let engine = model.engine(deadline).await.map_err(late)?;
    let mut windows = windows(&engine, vec![text]).await.map_err(|_| NotEmbedded::Failed)?.into_iter();
    let mut vectors = Vec::with_capacity(windows.len());
    loop {
        let some: Vec<EmbedInput> = windows.by_ref().take(WINDOWS).collect();
        if some.is_empty() {
            return Ok(vectors);
        }
        let turn = model.filter_permits().clone().acquire_owned().await.map_err(|_| NotEmbedded::Failed)?;
        let encoded = engine.embed_inputs(some).await;
        drop(turn);
        for embedding in encoded.map_err(|_| NotEmbedded::Failed)? {
            // A comparison with what is no number says nothing.
            if embedding.truncated || !embedding.values.iter().all(|value| value.is_finite()) {
                return Err(NotEmbedded::Failed);
            }
            vectors.push(embedding.values);
        }
    }
}

/// True if the model has nothing to do; `None` where it is not loaded.
pub fn is_idle(model: &LoadedModel) -> Option<bool> {
    let stats = model.engine_now()?.stats();
    Some(stats.active == 0 && stats.waiting == 0)
}

/// Values of a vector of the model, which is loaded where it is not.
pub async fn width(model: &Arc<LoadedModel>, deadline: Instant) -> Result<u32, SpillError> {
    Ok(model.engine(deadline).await?.info().outputs)
}

fn cannot(code: &'static str, message: String, param: &'static str) -> SpillError {
    SpillError::CannotSpill(Refusal::invalid(code, message).param(param))
}

fn failed(error: EngineError, what: Encode) -> SpillError {
    let param = match what {
        Encode::Embeddings => "input",
        Encode::Rerank => "documents",
    };
    match error {
        EngineError::Busy(busy) => busy.into(),
        EngineError::Input(message) => cannot("invalid_value", format!("`{param}`: {message}"), param),
        _ => SpillError::Failed(internal("The built-in model failed; the gateway's log says why.")),
    }
}

async fn vectors(engine: &Engine, request: &mut EncodeRequest) -> Result<(Encoded, u64), EngineError> {
    let inputs = std::mem::take(&mut request.inputs).into_iter().map(|input| match input {
        EncodeInput::Text(text) => EmbedInput::Text(text),
        EncodeInput::Tokens(tokens) => EmbedInput::Tokens(tokens),
    });
    let encoded = engine.embed_inputs(inputs.collect()).await?;
    let tokens = encoded.iter().map(|text| u64::from(text.tokens)).sum();
    let vectors = encoded.into_iter().map(|text| shortened(text, request.dimensions)).collect();
    Ok((Encoded::Vectors(vectors), tokens))
}

/// Cuts a vector to `dimensions` values and scales it to length 1 (arXiv:2205.13147); true if the text was cut.
fn shortened(text: Embedding, dimensions: Option<u32>) -> (Vec<f32>, bool) {
    let Embedding { mut values, truncated, .. } = text;
    if let Some(dimensions) = dimensions.and_then(|n| usize::try_from(n).ok()).filter(|n| *n < values.len()) {
        values.truncate(dimensions);
        let length = values.iter().map(|v| v * v).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
        values.iter_mut().for_each(|v| *v /= length);
    }
    (values, truncated)
}

async fn ranks(engine: &Engine, request: &EncodeRequest) -> Result<(Encoded, u64), EngineError> {
    let query = request.query.as_deref().unwrap_or_default();
    let scored = engine.rerank(query, request.texts.clone()).await?;
    let tokens = scored.iter().map(|text| u64::from(text.tokens)).sum();
    // The logistic function of the only logit, as cross-encoders are trained.
    let score = |text: &Scores| text.logits.first().map_or(0.0, |logit| 1.0 / (1.0 + (-logit).exp()));
    Ok((Encoded::Scores(scored.iter().map(score).collect()), tokens))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortened_vector_has_length_one() {
        let text = |values: &[f32]| Embedding { values: values.to_vec(), tokens: 1, truncated: true };
        assert_eq!(shortened(text(&[0.6, 0.8]), None), (vec![0.6, 0.8], true));
        assert_eq!(shortened(text(&[0.6, 0.8]), Some(2)).0, [0.6, 0.8]);
        let (short, _) = shortened(text(&[0.3, 0.4, 0.866]), Some(2));
        assert!((short[0] - 0.6).abs() < 1e-6 && (short[1] - 0.8).abs() < 1e-6, "{short:?}");
    }
}
