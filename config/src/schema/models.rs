//! `models`: what runs inside the gateway.

use std::num::NonZeroU32;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::values::{Duration, Size};

/// A model that runs inside the gateway.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Model {
    /// Name that routes and callers use; one namespace with the backends.
    pub name: String,
    /// A GGUF file.
    pub source: PathBuf,
    /// What it is for; worked out from the file when left out, and an error when the file is for something else.
    #[serde(default)]
    pub task: Option<ModelTask>,
    /// Where it runs.
    #[serde(default)]
    pub device: Device,
    /// Threads that it runs on where it runs on the CPU, at most one for each logical processor. When left out: one for
    /// each physical core that the process may use (affinity and control groups count) less one, and one at least.
    #[serde(default)]
    pub cores: Option<NonZeroU32>,
    /// Tokens of prompt and answer together; the smaller of the model's own and 2048 when left out.
    #[serde(default)]
    pub context_length: Option<NonZeroU32>,
    /// Answers written at the same time.
    #[serde(default = "Model::default_sequences")]
    pub max_sequences: NonZeroU32,
    /// Requests that wait for a place; a further one is refused.
    #[serde(default = "Model::default_queue")]
    pub max_queue: u32,
    /// Longest estimated wait for a first token at which a request is still taken.
    #[serde(default = "Model::default_queue_wait")]
    pub max_queue_wait: Duration,
    /// Share of the sequences that requests over a limit (`onExceeded: spill`) may hold; they never wait for one.
    #[serde(default = "Model::default_over_limit_share")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub over_limit_share: f64,
    /// How long a caller may read nothing before its answer is given up.
    #[serde(default = "Model::default_stall_timeout")]
    pub stall_timeout: Duration,
    /// Whether it is loaded at the start and stays. Otherwise it is loaded when the first request needs it, which waits
    /// for that, and unloaded after `idleUnload`.
    #[serde(default = "Model::default_keep_warm")]
    pub keep_warm: bool,
    /// How long a model that is not kept warm stays loaded when nobody needs it; 5m when left out.
    #[serde(default)]
    pub idle_unload: Option<Duration>,
    /// Device memory that it may take; it is refused at load when it needs more.
    #[serde(default)]
    pub memory: Option<Size>,
    /// Memory for what running answers remember (the KV cache), shared by all of them and part of `memory`; half the
    /// file's size, 16 MiB at least and one full context in any case when left out. Where it is short, the youngest
    /// answers wait and are read again. Beginnings that prompts have in common are kept in it once.
    #[serde(default)]
    pub kv_cache: Option<Size>,
    /// How long a pause between two words of an answer may become because somebody else's long prompt is being read;
    /// never less than twice what a word takes without that.
    #[serde(default = "Model::default_token_pause")]
    pub token_pause: Duration,
}

/// What a model in safetensors is beside its weights.
const BESIDE_SAFETENSORS: [&str; 4] =
    ["config.json", "tokenizer.json", "sentence_bert_config.json", "1_Pooling/config.json"];

impl Model {
    /// Its file, and those beside it that it is read with; not all of them need to be there.
    pub fn files(&self) -> Vec<std::path::PathBuf> {
        let mut files = vec![self.source.clone()];
        if let (true, Some(folder)) =
            (self.source.extension().is_some_and(|e| e == "safetensors"), self.source.parent())
        {
            files.extend(BESIDE_SAFETENSORS.map(|name| folder.join(name)));
        }
        files
    }

    /// The keys with another value than their default that only a model which writes text has a use for.
    pub fn keys_for_text(&self) -> Vec<&'static str> {
        let keys = [
            ("maxSequences", self.max_sequences != Self::default_sequences()),
            ("kvCache", self.kv_cache.is_some()),
            ("tokenPause", self.token_pause != Self::default_token_pause()),
            ("stallTimeout", self.stall_timeout != Self::default_stall_timeout()),
            ("overLimitShare", (self.over_limit_share - Self::default_over_limit_share()).abs() > f64::EPSILON),
        ];
        keys.into_iter().filter(|(_, set)| *set).map(|(key, _)| key).collect()
    }

    fn default_sequences() -> NonZeroU32 {
        NonZeroU32::MIN.saturating_add(15)
    }
    fn default_queue() -> u32 {
        64
    }
    fn default_queue_wait() -> Duration {
        Duration::seconds(2)
    }
    fn default_keep_warm() -> bool {
        true
    }
    /// How long a model that is not kept warm stays loaded when nobody needs it.
    pub fn idle_unload(&self) -> std::time::Duration {
        self.idle_unload.map_or(std::time::Duration::from_secs(300), |idle| idle.0)
    }
    fn default_token_pause() -> Duration {
        Duration::millis(50)
    }
    fn default_over_limit_share() -> f64 {
        0.25
    }
    fn default_stall_timeout() -> Duration {
        Duration::seconds(10)
    }
}

/// What a model is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ModelTask {
    /// Conversations: `/v1/chat/completions`, and requests that spill.
    Chat,
    /// Texts as vectors: `/v1/embeddings`.
    Embedding,
    /// Documents ranked by a query: `/v1/rerank`.
    Rerank,
}

/// Where a model runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Device {
    /// The best GPU there is, else the CPU.
    #[default]
    Auto,
    /// The CPU's own vector units.
    Cpu,
    /// Software Vulkan on the CPU: slow, for trying what a GPU would run.
    Software,
    /// The first adapter whose name contains this text.
    Name(String),
    /// The adapter at this place in the list that the log prints.
    Index(u32),
}
