//! Options of loading a model.

use std::any::Any;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use crate::{CpuUnit, DeviceChoice};

/// Guard held for the memory of a model; dropped after the memory is released.
pub type Hold = Box<dyn Any + Send>;

/// Model, device and limits of a load. [`LoadOptions::new`] has the defaults.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Name in logs and errors.
    pub name: String,
    /// A GGUF file, a safetensors file or a folder with one.
    pub source: PathBuf,
    /// Numbers in which the device keeps the weights.
    pub weights: WeightPrecision,
    /// Requested device.
    pub device: DeviceChoice,
    /// Options for running on the CPU.
    pub cpu: CpuOptions,
    /// Tokens of prompt and answer; default: the smaller of the file's and 2048.
    pub context_length: Option<u32>,
    /// Sequences decoded together.
    pub max_sequences: u32,
    /// Requests that wait for a slot.
    pub max_queue: u32,
    /// Longest estimated wait for a first token at which a request is accepted.
    pub max_queue_wait: Duration,
    /// Longest time that a receiver may read nothing.
    pub stall_timeout: Duration,
    /// Limit of device memory, in bytes.
    pub memory: Option<u64>,
    /// Bytes of the KV cache, shared by all sequences; default: half the file's size, and at least one context.
    pub kv_cache: Option<u64>,
    /// Longest step that decodes while prompts are prefilled: the pause between two tokens that somebody else's long
    /// prompt may cause. A step that only decodes has no such limit.
    pub token_pause: Duration,
    /// Folder of compiled pipelines; none are kept if left out.
    pub cache_dir: Option<PathBuf>,
}

impl LoadOptions {
    /// Options for a file with the defaults: the best device, and the limits of the gateway's default configuration.
    pub fn new(source: impl Into<PathBuf>) -> Self {
        Self {
            name: "model".into(),
            source: source.into(),
            weights: WeightPrecision::default(),
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

/// Numbers in which a device keeps the weights of a model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WeightPrecision {
    /// Weights stay as the file has them.
    #[default]
    File,
    /// Floats are rounded at load to 8 bits in blocks of 32 of a row, as in a GGUF file of type `Q8_0`; what the file has
    /// in 8 bits or fewer stays as it is.
    Int8,
}

/// Options for running a model on the CPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuOptions {
    /// Threads of a step; default: one for each physical core that the process may use, less one, and at least one.
    pub cores: Option<NonZeroUsize>,
    /// Vector unit; default: the fastest that the CPU has.
    pub unit: Option<CpuUnit>,
}
