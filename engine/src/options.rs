//! How a model is loaded.

use std::any::Any;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use crate::{CpuUnit, DeviceChoice};

/// What is held for the memory of a model, whatever that is: it is dropped after the memory was given back.
pub type Hold = Box<dyn Any + Send>;

/// What is loaded, where, and how much of it at once. [`LoadOptions::new`] has the defaults.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Name in logs and errors.
    pub name: String,
    /// A GGUF file.
    pub source: PathBuf,
    /// Where it runs.
    pub device: DeviceChoice,
    /// How it runs on the processor.
    pub cpu: CpuOptions,
    /// Tokens of prompt and answer; the smaller of the file's and 2048 when left out.
    pub context_length: Option<u32>,
    /// Sequences decoded together.
    pub max_sequences: u32,
    /// Requests that wait for a place.
    pub max_queue: u32,
    /// Longest estimated wait for a first token at which a request is taken.
    pub max_queue_wait: Duration,
    /// How long a receiver may read nothing.
    pub stall_timeout: Duration,
    /// Device memory in bytes that it may take.
    pub memory: Option<u64>,
    /// Bytes of the KV cache, which all sequences share; half the file's size and one context at least when left out.
    pub kv_cache: Option<u64>,
    /// How long a step may take that writes tokens while prompts are read: the pause between two tokens of an answer
    /// that a long prompt of somebody else may cause. A step that only writes takes what it takes.
    pub token_pause: Duration,
    /// Where compiled pipelines are kept; nowhere when left out.
    pub cache_dir: Option<PathBuf>,
}

impl LoadOptions {
    /// A file under its defaults: the best device, what the gateway allows when its configuration says nothing.
    pub fn new(source: impl Into<PathBuf>) -> Self {
        Self {
            name: "model".into(),
            source: source.into(),
            device: DeviceChoice::Auto,
            cpu: CpuOptions::default(),
            context_length: None,
            max_sequences: 16,
            max_queue: 64,
            max_queue_wait: Duration::from_secs(2),
            stall_timeout: Duration::from_secs(10),
            memory: None,
            kv_cache: None,
            token_pause: Duration::from_millis(50),
            cache_dir: None,
        }
    }
}

/// How a model runs on the processor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuOptions {
    /// Threads of a step; where left out, one for each physical core that the process may use, less one, and one at least.
    pub cores: Option<NonZeroUsize>,
    /// The vector unit; the fastest that there is where left out.
    pub unit: Option<CpuUnit>,
}
