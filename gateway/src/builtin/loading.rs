//! From a model as it is configured to an engine that runs it, and why that cannot be.

use std::path::Path;

use spillway_config::schema::{Device, Model};
use spillway_engine::{CpuOptions, CpuUnit, DeviceChoice, Engine, Hold, LoadError, LoadOptions, Task};

use super::memory::{LIMIT_KEY, NoRoom};

/// A model that cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The engine refused it.
    #[error("model `{model}`: {source}")]
    Load {
        /// Its name.
        model: String,
        /// Why.
        source: LoadError,
    },
    /// Its name cannot stand in a header.
    #[error("model `{model}`: its name is told in the header x-spillway-served-by and must hold no control characters")]
    Name {
        /// Its name.
        model: String,
    },
    /// Its file is for something else than it is configured for.
    #[error(
        "model `{model}`: its `task` says {wanted}, and its file is for {is}: name another file, or leave `task` out"
    )]
    Task {
        /// Its name.
        model: String,
        /// What the file is for.
        is: Task,
        /// What the configuration says.
        wanted: Task,
    },
    /// Its file is one that encodes text, and keys are set that only writing text has a use for.
    #[error("model `{model}`: {keys} can take no effect, because its file is for {is}: take the keys out")]
    Keys {
        /// Its name.
        model: String,
        /// What the file is for.
        is: Task,
        /// The keys.
        keys: String,
    },
    /// There is no memory for it beside the others.
    #[error(
        "model `{model}`: {source}: raise that, lower `contextLength`, `maxSequences` or `kvCache`, or load fewer models"
    )]
    Room {
        /// Its name.
        model: String,
        /// How much is missing.
        source: NoRoom,
    },
    /// Its device hangs with its memory, and there is none for it on the processor.
    #[error(
        "model `{model}`: the device that it was loaded on hangs and keeps its memory, and on the CPU {source}: raise that, or name a device that works with `device`"
    )]
    Hangs {
        /// Its name.
        model: String,
        /// How much is missing.
        source: NoRoom,
    },
    /// There is no memory for it beside those that serve until the edit that it comes with is taken.
    #[error(
        "model `{model}`: {source}, also by models that this edit replaces or takes out and that serve until it is taken: they go on. To have the new one, restart the gateway, with {LIMIT_KEY} raised or without, or set `keepWarm: false` for it: then it is loaded when a request needs it and the old ones have gone"
    )]
    Beside {
        /// Its name.
        model: String,
        /// How much is missing.
        source: NoRoom,
    },
    /// The environment names no vector unit.
    #[error("{VECTOR_UNIT} is `{0}`: it must be one of {units}", units = CpuUnit::ALL.map(CpuUnit::name).join(", "))]
    Unit(String),
    /// The thread that loads it was lost.
    #[error("model `{model}`: loading ended without a result: {reason}")]
    Lost {
        /// Its name.
        model: String,
        /// Why.
        reason: String,
    },
}

/// Names the vector unit of the CPU that kernels use instead of the fastest: to try what slower machines do.
const VECTOR_UNIT: &str = "SPILLWAY_CPU_UNIT";

fn cpu_unit() -> Result<Option<CpuUnit>, ModelError> {
    let Some(name) = std::env::var_os(VECTOR_UNIT) else { return Ok(None) };
    let name = name.to_string_lossy();
    CpuUnit::named(&name).map(Some).ok_or_else(|| ModelError::Unit(name.chars().take(64).collect()))
}

/// What the engine is told of a model.
pub(crate) fn options(written: &Model, cache_dir: Option<&Path>) -> Result<LoadOptions, ModelError> {
    Ok(LoadOptions {
        name: written.name.clone(),
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

/// Why an engine is not there.
pub(super) enum NoEngine {
    Load(LoadError),
    Room(NoRoom),
    /// For the processor, where a GPU hangs.
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

/// Finds room for an engine's memory.
pub(super) type FindRoom<'a> = &'a mut dyn FnMut() -> Result<Hold, NoEngine>;

/// Loads an engine. Blocks for as long as that takes.
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
