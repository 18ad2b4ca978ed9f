//! Loads the engine of a configured model, and names the reasons why that fails.

use std::path::Path;

use spillway_config::schema::{Device, Model, ModelWeights};
use spillway_engine::{CpuOptions, CpuUnit, DeviceChoice, Engine, Hold, LoadError, LoadOptions, Task, WeightPrecision};

use super::memory::{LIMIT_KEY, NoRoom};

/// Reason why a model cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The engine rejected the model.
    #[error("model `{model}`: {source}")]
    Load {
        /// Name of the model.
        model: String,
        /// Reason.
        source: LoadError,
    },
    /// The name has characters that no header may have.
    #[error("model `{model}`: its name is sent in the header x-spillway-served-by and must hold no control characters")]
    Name {
        /// Name of the model.
        model: String,
    },
    /// The file is for another task than the configured one.
    #[error(
        "model `{model}`: its `task` says {wanted}, and its file is for {is}: name another file, or leave `task` out"
    )]
    Task {
        /// Name of the model.
        model: String,
        /// Task of the file.
        is: Task,
        /// Task of the configuration.
        wanted: Task,
    },
    /// The file is for a model that encodes text, and keys are set that only affect writing text.
    #[error("model `{model}`: {keys} can take no effect, because its file is for {is}: take the keys out")]
    Keys {
        /// Name of the model.
        model: String,
        /// Task of the file.
        is: Task,
        /// Keys without an effect.
        keys: String,
    },
    /// The other models leave too little memory.
    #[error(
        "model `{model}`: {source}: raise that, lower `contextLength`, `maxSequences` or `kvCache`, or load fewer models"
    )]
    Room {
        /// Name of the model.
        model: String,
        /// Memory that is missing.
        source: NoRoom,
    },
    /// The device hangs with the memory of the model, and the processor has none for it.
    #[error(
        "model `{model}`: the device that it was loaded on hangs and keeps its memory, and on the CPU {source}: raise that, or name a device that works with `device`"
    )]
    Hangs {
        /// Name of the model.
        model: String,
        /// Memory that is missing.
        source: NoRoom,
    },
    /// The models that serve until the edit is accepted leave too little memory.
    #[error(
        "model `{model}`: {source}, also by models that this edit replaces or takes out and that serve until it is accepted: they go on. To have the new one, restart the gateway, with {LIMIT_KEY} raised or without, or set `keepWarm: false` for it: then it is loaded when a request needs it and the old ones have gone"
    )]
    Beside {
        /// Name of the model.
        model: String,
        /// Memory that is missing.
        source: NoRoom,
    },
    /// The environment names an unknown vector unit.
    #[error("{VECTOR_UNIT} is `{0}`: it must be one of {units}", units = CpuUnit::ALL.map(CpuUnit::name).join(", "))]
    Unit(String),
    /// The thread that loads the model panicked.
    #[error("model `{model}`: loading ended without a result: {reason}")]
    Lost {
        /// Name of the model.
        model: String,
        /// Reason.
        reason: String,
    },
}

/// Variable that names the vector unit for CPU kernels instead of the fastest: to try kernels of slower machines.
const VECTOR_UNIT: &str = "SPILLWAY_CPU_UNIT";

fn cpu_unit() -> Result<Option<CpuUnit>, ModelError> {
    let Some(name) = std::env::var_os(VECTOR_UNIT) else { return Ok(None) };
    let name = name.to_string_lossy();
    CpuUnit::named(&name).map(Some).ok_or_else(|| ModelError::Unit(name.chars().take(64).collect()))
}

/// Options of the engine for a configured model.
pub(crate) fn options(written: &Model, cache_dir: Option<&Path>) -> Result<LoadOptions, ModelError> {
    Ok(LoadOptions {
        name: written.name.clone(),
        weights: match written.weights {
            ModelWeights::File => WeightPrecision::File,
            ModelWeights::Int8 => WeightPrecision::Int8,
        },
        device: match &written.device {
            Device::Auto => DeviceChoice::Auto,
            Device::Cpu => DeviceChoice::Cpu,
            Device::Software => DeviceChoice::Software,
            Device::Name(name) => DeviceChoice::Name(name.clone()),
            Device::Index(index) => DeviceChoice::Index(usize::try_from(*index).unwrap_or(usize::MAX)),
        },
        cpu: CpuOptions { cores: written.cores.and_then(|cores| cores.try_into().ok()), unit: cpu_unit()? },
        context_length: written.context_length.map(Into::into),
        max_sequences: written.max_sequences().get(),
        max_queue: written.max_queue,
        max_queue_wait: written.max_queue_wait.0,
        stall_timeout: written.stall_timeout(),
        memory: written.memory.map(|size| size.0),
        kv_cache: written.kv_cache.map(|size| size.0),
        token_pause: written.token_pause(),
        cache_dir: cache_dir.map(Path::to_owned),
        ..LoadOptions::new(&written.source)
    })
}

/// Reason why an engine could not be loaded.
pub(super) enum NoEngine {
    Load(LoadError),
    Room(NoRoom),
    /// Too little memory for the processor, after a GPU hung.
    Hangs(NoRoom),
}

impl From<LoadError> for NoEngine {
    fn from(source: LoadError) -> Self {
        Self::Load(source)
    }
}

impl NoEngine {
    pub(super) fn of(self, model: &str) -> ModelError {
        let model = model.to_owned();
        match self {
            Self::Load(source) => ModelError::Load { model, source },
            Self::Room(source) => ModelError::Room { model, source },
            Self::Hangs(source) => ModelError::Hangs { model, source },
        }
    }
}

/// Reserves memory for an engine.
pub(super) type FindRoom<'a> = &'a mut dyn FnMut() -> Result<Hold, NoEngine>;

/// Loads an engine; blocks until it is loaded.
pub(super) fn load_engine(options: LoadOptions, hold: FindRoom<'_>) -> Result<Engine, NoEngine> {
    let name = options.name.clone();
    let engine = Engine::load_holding(options, hold)?;
    let (info, placement) = (engine.info(), engine.placement());
    let device = &placement.device;
    tracing::info!(
        event = "model_loaded", model = %name, architecture = %info.architecture, quantization = %info.quantization,
        context = info.context_length, device = %device.name, kind = device.kind,
        driver = %device.driver, reason = %device.reason, seconds = info.load_time.as_secs_f64(),
        memory = placement.memory_bytes,
        tokens_per_second = placement.rate.round(), gigabytes_per_second = (placement.bandwidth / 1e8).round() / 10.0,
    );
    Ok(engine)
}
