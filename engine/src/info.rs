//! Facts of a loaded model, its device and its load.

use std::time::Duration;

use crate::DeviceInfo;

/// Task of a model.
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

/// Embedding of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// As many values as the model is wide, of length 1: the cosine of two is their dot product.
    pub values: Vec<f32>,
    /// Tokens read, special tokens included.
    pub tokens: u32,
    /// True if the text was longer than the model's context and only its beginning was read.
    pub truncated: bool,
}

/// Function from the logits of a classifier to probabilities, as its `problem_type` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scoring {
    /// Softmax, for one label of several.
    Softmax,
    /// Logistic function, for each label by itself or a single one.
    Sigmoid,
}

impl Scoring {
    /// Probabilities of the labels, from their logits.
    pub fn probabilities(self, logits: &[f32]) -> Vec<f32> {
        match self {
            Self::Sigmoid => logits.iter().map(|logit| 1.0 / (1.0 + (-logit).exp())).collect(),
            Self::Softmax => {
                let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let shares: Vec<f32> = logits.iter().map(|logit| (logit - most).exp()).collect();
                let sum: f32 = shares.iter().sum();
                shares.into_iter().map(|share| share / sum).collect()
            }
        }
    }
}

/// Scores of a text or a pair of texts.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// A logit for each label, in the order of [`ModelInfo::labels`]; [`ModelInfo::scoring`] makes probabilities of
    /// them.
    pub logits: Vec<f32>,
    /// Tokens read.
    pub tokens: u32,
    /// True if the input was cut to fit the model's context.
    pub truncated: bool,
}

/// Facts of a loaded model.
#[derive(Debug, Clone)]
pub struct ModelInfo {
    /// Task of the model.
    pub task: Task,
    /// Names of a classifier's labels, `LABEL_0` and so on if the file has none.
    pub labels: Vec<String>,
    /// Way to a classifier's probabilities; `None` for other models, and for one whose scores are none (`regression`).
    pub scoring: Option<Scoring>,
    /// Values of an embedding, or labels; 0 for a model that generates.
    pub outputs: u32,
    /// Name given at load.
    pub name: String,
    /// `general.architecture` of the file.
    pub architecture: String,
    /// Number of weights.
    pub parameters: u64,
    /// Most frequent type of the model's matrices as they are kept, such as `Q4_1`.
    pub quantization: String,
    /// Tokens of prompt and answer together.
    pub context_length: u32,
    /// Tokens of the vocabulary.
    pub vocabulary: u32,
    /// Size of the file in bytes.
    pub file_bytes: u64,
    /// Time from the call of [`Engine::load`](crate::Engine::load) to ready.
    pub load_time: Duration,
}

/// Current device of a model; another one than at load after a GPU was lost.
#[derive(Debug, Clone, PartialEq)]
pub struct Placement {
    /// Device.
    pub device: DeviceInfo,
    /// Device memory taken, in bytes: weights, KV cache, activations.
    pub memory_bytes: u64,
    /// Tokens per second, measured at set-up: decoded by one sequence, or, for an encoder, read in a full step.
    pub rate: f64,
    /// Bytes of weights per second that a step of one row reads, measured at set-up.
    pub bandwidth: f64,
}

impl Placement {
    /// A placement without measurements.
    pub(crate) fn new(device: DeviceInfo, memory_bytes: u64) -> Self {
        Self { device, memory_bytes, rate: 0.0, bandwidth: 0.0 }
    }
}

/// Current load of a model, and totals since load.
#[derive(Debug, Clone, Copy, Default)]
pub struct EngineStats {
    /// Running sequences, each with a slot.
    pub active: usize,
    /// Requests that wait for a slot.
    pub waiting: usize,
    /// Estimated time to the first token of a short prompt.
    pub estimated_wait: Duration,
    /// Tokens decoded since load.
    pub generated_tokens: u64,
    /// Prompt tokens read since load.
    pub prompt_tokens: u64,
    /// Tokens in the KV cache.
    pub kv_used: usize,
    /// Capacity of the KV cache in tokens.
    pub kv_capacity: usize,
    /// Tokens of the KV cache that no sequence uses and that a prompt may reuse as its prefix.
    pub kv_idle: usize,
    /// Prompt tokens since load that were in the KV cache already.
    pub cached_tokens: u64,
    /// Sequences preempted since load: they gave up their KV cache to an older sequence and were prefilled again.
    pub preemptions: u64,
    /// True if the model can run; false while a failed device is set up again.
    pub is_ready: bool,
    /// Faults of the device since load.
    pub faults: u64,
    /// Recent decode rate of one sequence, in tokens per second.
    pub decode_rate: f64,
}
