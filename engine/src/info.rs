//! What a loaded model is, where it runs and what it does.

use std::time::Duration;

use crate::DeviceInfo;

/// What a model is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Continuing conversations and texts: [`Engine::submit`](crate::Engine::submit).
    Generate,
    /// Texts as vectors: [`Engine::embed`](crate::Engine::embed).
    Embed,
    /// Texts, or pairs of them, as scores: [`Engine::classify`](crate::Engine::classify),
    /// [`Engine::rerank`](crate::Engine::rerank).
    Classify,
}

impl std::fmt::Display for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Generate => "generating text",
            Self::Embed => "embeddings",
            Self::Classify => "classification",
        })
    }
}

/// A text as a vector.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// As many values as the model is wide, of length 1: the cosine of two is their dot product.
    pub values: Vec<f32>,
    /// Tokens read, those around the text too.
    pub tokens: u32,
    /// Whether the text was longer than the model's context and only its beginning was read.
    pub truncated: bool,
}

/// What a classifier makes of a text or a pair of texts.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// A logit for each label, in the order of [`ModelInfo::labels`]. Softmax over them, or the logistic function of a
    /// single one, gives probabilities.
    pub logits: Vec<f32>,
    /// Tokens read.
    pub tokens: u32,
    /// Whether something was cut off to fit the model's context.
    pub truncated: bool,
}

/// What was loaded.
#[derive(Debug, Clone)]
pub struct ModelInfo {
    /// What it is for.
    pub task: Task,
    /// Names of a classifier's labels, where the file has them.
    pub labels: Vec<String>,
    /// Values of an embedding, or labels; 0 for a model that generates.
    pub outputs: u32,
    /// Name it was loaded under.
    pub name: String,
    /// `general.architecture` of the file.
    pub architecture: String,
    /// Weights.
    pub parameters: u64,
    /// Most frequent type of its matrices, such as `Q4_1`.
    pub quantization: String,
    /// Tokens of prompt and answer together.
    pub context_length: u32,
    /// Tokens that it knows.
    pub vocabulary: u32,
    /// Size of the file.
    pub file_bytes: u64,
    /// From the call of [`Engine::load`](crate::Engine::load) to ready.
    pub load_time: Duration,
}

/// Where a model runs now: another place than at first after its GPU was lost.
#[derive(Debug, Clone, PartialEq)]
pub struct Placement {
    /// The device.
    pub device: DeviceInfo,
    /// Device memory taken, in bytes: weights, KV cache, activations.
    pub memory_bytes: u64,
    /// Tokens per second, as measured when it was set up: written by one sequence, or, of an encoder, read in a full step.
    pub rate: f64,
    /// Bytes of weights per second that a step of one row reads, as measured then.
    pub bandwidth: f64,
}

impl Placement {
    /// Nothing is measured yet.
    pub(crate) fn new(device: DeviceInfo, memory_bytes: u64) -> Self {
        Self { device, memory_bytes, rate: 0.0, bandwidth: 0.0 }
    }
}

/// What a loaded model does now.
#[derive(Debug, Clone, Copy, Default)]
pub struct EngineStats {
    /// Sequences with a place.
    pub active: usize,
    /// Requests that wait for one.
    pub waiting: usize,
    /// Estimated wait of a short prompt for its first token.
    pub estimated_wait: Duration,
    /// Tokens written since load.
    pub generated_tokens: u64,
    /// Tokens read since load.
    pub prompt_tokens: u64,
    /// Tokens in the KV cache.
    pub kv_used: usize,
    /// Tokens that fit.
    pub kv_capacity: usize,
    /// Tokens that nobody uses now and that a prompt may begin with.
    pub kv_idle: usize,
    /// Prompt tokens since load that were in the cache already.
    pub cached_tokens: u64,
    /// Sequences since load that gave up their part of the cache to an older one and were read again.
    pub preemptions: u64,
    /// Whether it can run: false while a device that failed is set up again.
    pub is_ready: bool,
    /// Faults of the device since load.
    pub faults: u64,
    /// Tokens per second of one sequence, as measured of late.
    pub decode_rate: f64,
}
