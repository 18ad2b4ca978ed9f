//! Embeddings of texts for filters, by built-in models. The gateway provides them, so that a filter knows no engine.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// A pending embedding.
pub type Embedding = Pin<Box<dyn Future<Output = Option<Vec<f32>>> + Send>>;

/// Vectors of a text, each of length 1, or the reason why there are none.
pub type Vectors = Result<Vec<Vec<f32>>, NotEmbedded>;

/// Pending vectors of a text.
pub type Embedded = Pin<Box<dyn Future<Output = Vectors> + Send>>;

/// Reason why a text was not turned into vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotEmbedded {
    /// The model had not answered in time: it is loading, or reads other texts.
    TooLate,
    /// The model is not loaded, failed, or has no tokens for the text.
    Failed,
}

/// Built-in model that turns texts into vectors.
pub trait Embedder: Send + Sync {
    /// Vector of a text, of length 1, within `timeout`. `None` where the model has no time for filters, is not loaded in time,
    /// fails, or would read a part of the text only. Dropping it cancels.
    fn embed(&self, text: String, timeout: Duration) -> Embedding;
    /// Vectors of a text within `timeout`, waiting for its turn: one, or of a text longer than the context of the model one for each of
    /// the windows that overlap. Dropping it cancels.
    fn embed_whole(&self, text: String, timeout: Duration) -> Embedded;
    /// Number of the model as it was made from its configuration and files. Vectors of two numbers do not compare. A number
    /// stands for one model while an embedder of it lives.
    fn version(&self) -> u64;
}

/// Built-in models of a configuration that turn texts into vectors.
pub trait Embedders {
    /// Model of this name.
    ///
    /// # Errors
    /// No model has the name, or the one that has it is for something else: a sentence that says what to do.
    fn embedder(&self, model: &str) -> Result<Arc<dyn Embedder>, String>;
}

/// No models; for checks and tests.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoEmbedders;

impl Embedders for NoEmbedders {
    fn embedder(&self, model: &str) -> Result<Arc<dyn Embedder>, String> {
        Err(format!("no built-in model is called `{model}`; add it to `models`"))
    }
}
