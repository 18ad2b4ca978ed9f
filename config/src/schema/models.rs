//! `models`: built-in models.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::values::{Duration, ModelPath, Size};

/// Built-in model, which the gateway runs itself.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Model {
    /// Name that routes and callers use; one namespace with the backends.
    pub name: String,
    /// A GGUF file, or a model in safetensors as Hugging Face's libraries keep it: its folder, or the file of its weights
    /// (or the index of their parts) in that folder.
    pub source: ModelPath,
    /// Numbers in which the weights are kept.
    #[serde(default)]
    pub weights: ModelWeights,
    /// Task of the model; found from the file when left out. A file for another task is an error.
    #[serde(default)]
    pub task: Option<ModelTask>,
    /// Device that runs the model.
    #[serde(default)]
    pub device: Device,
    /// Threads that it runs on where it runs on the CPU, at most one for each logical processor. When left out: one for
    /// each physical core that the process may use (affinity and control groups count) less one, and one at least.
    #[serde(default)]
    pub cores: Option<NonZeroU32>,
    /// Tokens of prompt and answer together; the smaller of the model's own and 2048 when left out.
    #[serde(default)]
    pub context_length: Option<NonZeroU32>,
    /// Answers written at the same time; 16 when left out.
    #[serde(default)]
    pub max_sequences: Option<NonZeroU32>,
    /// Requests that wait for a sequence; further ones are refused.
    #[serde(default = "Model::default_queue")]
    pub max_queue: u32,
    /// Longest estimated wait for a first token at which a request is still accepted.
    #[serde(default = "Model::default_queue_wait")]
    pub max_queue_wait: Duration,
    /// Share of the sequences that requests over a limit (`onExceeded: spill`) may hold, a quarter when left out; they
    /// never wait for one.
    #[serde(default)]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub over_limit_share: Option<f64>,
    /// Time that a caller may read nothing before its answer is cancelled; 10s when left out.
    #[serde(default)]
    pub stall_timeout: Option<Duration>,
    /// Loads the model at the start and keeps it. Otherwise the first request that needs the model loads it and waits,
    /// and the model is unloaded after `idleUnload`.
    #[serde(default = "Model::default_keep_warm")]
    pub keep_warm: bool,
    /// Time that a model that is not kept warm stays loaded without requests; 5m when left out.
    #[serde(default)]
    pub idle_unload: Option<Duration>,
    /// Device memory that it may take; it is refused at load when it needs more.
    #[serde(default)]
    pub memory: Option<Size>,
    /// Memory for the KV cache, shared by all running answers and part of `memory`; half the file's size, 16 MiB at
    /// least and one full context in any case when left out. Where it is short, the youngest answers wait and are read
    /// again. Beginnings that prompts have in common are kept in it once.
    #[serde(default)]
    pub kv_cache: Option<Size>,
    /// Longest pause between two tokens of an answer while a long prompt of another request is read; never less than
    /// twice the time of a token without that. 50ms when left out.
    #[serde(default)]
    pub token_pause: Option<Duration>,
    /// Treatment of fields that the model does not know and that change no form of the answer, such as `verbosity`. Fields
    /// that change it (`tools`, `response_format`, `logprobs`, `n`, images, sound) are never ignored.
    #[serde(default)]
    pub unknown_fields: UnknownFields,
}

/// The weights of a model in safetensors within its folder: the first of these that is there.
const SAFETENSORS: [&str; 2] = ["model.safetensors", "model.safetensors.index.json"];
/// Files of a model in safetensors beside its weights.
const BESIDE_SAFETENSORS: [&str; 9] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
];
/// Most parts of a model's weights.
const MOST_PARTS: usize = 1024;

impl Model {
    /// Files that the model is read from, its weights first; the others need not all exist. A folder itself is not
    /// among them: further files in it do not change the model.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files = vec![self.source.to_path_buf()];
        if self.source.is_dir() {
            let [whole, index] = SAFETENSORS.map(|name| self.source.join(name));
            let is_in_parts = !whole.exists() && index.exists();
            files = if is_in_parts { vec![index, whole] } else { vec![whole, index] };
        }
        let weights = files.first().cloned().unwrap_or_default();
        let name = weights.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_index = name.ends_with(".safetensors.index.json");
        let Some(folder) = weights.parent().filter(|_| is_index || name.ends_with(".safetensors")) else {
            return files;
        };
        files.extend(BESIDE_SAFETENSORS.map(|name| folder.join(name)));
        if is_index {
            files.extend(parts(&weights).unwrap_or_else(|| all_parts(folder)).into_iter().take(MOST_PARTS));
        }
        files
    }

    /// Keys in the file that have an effect only on a model which writes text.
    pub fn keys_for_text(&self) -> Vec<&'static str> {
        let keys = [
            ("maxSequences", self.max_sequences.is_some()),
            ("kvCache", self.kv_cache.is_some()),
            ("tokenPause", self.token_pause.is_some()),
            ("stallTimeout", self.stall_timeout.is_some()),
            ("overLimitShare", self.over_limit_share.is_some()),
        ];
        keys.into_iter().filter(|(_, set)| *set).map(|(key, _)| key).collect()
    }

    /// Answers written at the same time.
    pub fn max_sequences(&self) -> NonZeroU32 {
        self.max_sequences.unwrap_or(NonZeroU32::MIN.saturating_add(15))
    }
    /// Share of the sequences that requests over a limit may hold.
    pub fn over_limit_share(&self) -> f64 {
        self.over_limit_share.unwrap_or(0.25)
    }
    /// Time that a caller may read nothing before its answer is cancelled.
    pub fn stall_timeout(&self) -> std::time::Duration {
        self.stall_timeout.map_or(std::time::Duration::from_secs(10), |timeout| timeout.0)
    }
    /// Longest pause between two tokens of an answer while a long prompt of another request is read.
    pub fn token_pause(&self) -> std::time::Duration {
        self.token_pause.map_or(std::time::Duration::from_millis(50), |pause| pause.0)
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
    /// Time that a model that is not kept warm stays loaded without requests.
    pub fn idle_unload(&self) -> std::time::Duration {
        self.idle_unload.map_or(std::time::Duration::from_secs(300), |idle| idle.0)
    }
}

/// The parts that an index names, in its folder; `None` where it cannot be read.
fn parts(index: &Path) -> Option<BTreeSet<PathBuf>> {
    let list: serde_json::Value = serde_json::from_slice(&crate::read_bytes(index).ok()?).ok()?;
    let names = list.get("weight_map")?.as_object()?.values().filter_map(serde_json::Value::as_str);
    Some(names.map(|name| index.with_file_name(name)).collect())
}

/// All files that may be parts.
fn all_parts(folder: &Path) -> BTreeSet<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.extension().is_some_and(|e| e == "safetensors")).collect()
}

/// Task of a model.
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

/// Numbers in which a built-in model's weights are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ModelWeights {
    /// Weights stay as the file has them.
    #[default]
    File,
    /// Floats are rounded at load to 8 bits, in blocks of 32 with a scale each (`Q8_0` of GGUF): a quarter of the memory
    /// of 32-bit floats, and an encoder takes about half the time, for a small loss. Weights that the file has in 8 bits
    /// or fewer stay as they are.
    Int8,
}

/// Treatment of fields of a request that a built-in model does not know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum UnknownFields {
    /// Ignored, and named in the header `x-spillway-dropped` of the answer.
    #[default]
    Ignore,
    /// Refused with 400 where the request names the model; any other request does not spill.
    Refuse,
}

/// Device that runs a model.
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
    /// Adapter at this index of the list that the log prints.
    Index(u32),
}
