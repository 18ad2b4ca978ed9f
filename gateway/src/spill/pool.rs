//! The models of a snapshot. One whose file and options did not change is kept over a reload; one that is gone ends
//! with the last snapshot that holds it, after its requests.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::HeaderValue;
use spillway_config::schema::{Device, Model};
use spillway_engine::{CpuOptions, CpuUnit, DeviceChoice, Engine, LoadError, LoadOptions};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::telemetry::{EngineSample, Metrics, ModelMetrics};

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

/// What a file was when it was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FileIdentity {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

/// Links are followed: a file that took another's place under the same name is another one.
fn identity(path: &Path) -> Option<FileIdentity> {
    let metadata = std::fs::metadata(path).ok()?;
    Some(FileIdentity {
        device: metadata.dev(),
        inode: metadata.ino(),
        length: metadata.len(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
    })
}

/// Long conversations of one model that are turned into tokens at the same time.
const ENCODERS: usize = 2;

/// A model inside the gateway.
pub struct LoadedModel {
    written: Model,
    file: Option<FileIdentity>,
    engine: Engine,
    created: u64,
    served_by: HeaderValue,
    served_by_text: Arc<str>,
    metrics: Arc<ModelMetrics>,
    encoders: Arc<Semaphore>,
    /// Sequences for requests over a limit.
    over_limit: Arc<Semaphore>,
}

impl LoadedModel {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.written.name
    }
    /// When it was loaded, Unix seconds.
    pub fn created(&self) -> u64 {
        self.created
    }
    /// What `x-spillway-served-by` says.
    pub fn served_by(&self) -> &HeaderValue {
        &self.served_by
    }
    /// The same as text.
    pub fn served_by_text(&self) -> &Arc<str> {
        &self.served_by_text
    }
    /// The engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }
    /// Longest estimated wait for a first token at which a request is taken.
    pub(super) fn max_queue_wait(&self) -> Duration {
        self.written.max_queue_wait.0
    }
    /// Turns to encode a long conversation.
    pub(super) fn encoders(&self) -> &Arc<Semaphore> {
        &self.encoders
    }
    /// A place for a request that is over a limit: within its share of the sequences, and only where one is free and
    /// nobody waits, so that it takes nothing from requests within their limits.
    pub fn place_over_limit(&self) -> Option<OwnedSemaphorePermit> {
        let stats = self.engine.stats();
        let all = usize::try_from(self.written.max_sequences.get()).unwrap_or(usize::MAX);
        if stats.waiting > 0 || stats.active >= all {
            return None;
        }
        self.over_limit.clone().try_acquire_owned().ok()
    }
    /// Series of its calls.
    pub fn metrics(&self) -> &Arc<ModelMetrics> {
        &self.metrics
    }
    /// What it says of itself now.
    pub fn sample(&self) -> EngineSample {
        let (stats, info) = (self.engine.stats(), self.engine.info());
        let wide = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        EngineSample {
            model: self.written.name.clone(),
            active: wide(stats.active),
            waiting: wide(stats.waiting),
            kv_used: wide(stats.kv_used),
            kv_capacity: wide(stats.kv_capacity),
            estimated_wait: stats.estimated_wait,
            generated: stats.generated_tokens,
            prompt: stats.prompt_tokens,
            device: info.device.name.clone(),
            device_kind: info.device.kind,
            driver: info.device.driver.clone(),
            decode_rate: info.decode_rate,
            bandwidth: info.bandwidth,
        }
    }
}

/// The models of one snapshot.
#[derive(Clone, Default)]
pub struct Models {
    models: Vec<Arc<LoadedModel>>,
}

impl Models {
    /// Loads what is new and keeps what did not change. All errors are told, not only the first.
    pub async fn load(
        models: &[Model],
        previous: Option<&Self>,
        metrics: &Metrics,
        cache_dir: Option<&Path>,
    ) -> Result<Self, Vec<ModelError>> {
        let mut loaded = Vec::with_capacity(models.len());
        let mut errors = Vec::new();
        for written in models {
            let file = identity(&written.source);
            let kept = previous
                .and_then(|previous| previous.get(&written.name))
                .filter(|kept| kept.written == *written && kept.file == file && file.is_some());
            if let Some(kept) = kept {
                loaded.push(kept.clone());
                continue;
            }
            match load_one(written, file, metrics, cache_dir).await {
                Ok(model) => loaded.push(Arc::new(model)),
                Err(e) => errors.push(e),
            }
        }
        if errors.is_empty() { Ok(Self { models: loaded }) } else { Err(errors) }
    }

    /// The model of this name.
    pub fn get(&self, name: &str) -> Option<&Arc<LoadedModel>> {
        self.models.iter().find(|model| model.name() == name)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<LoadedModel>> {
        self.models.iter()
    }
}

/// Names the vector unit of the CPU that kernels use instead of the fastest: to try what slower machines do.
const VECTOR_UNIT: &str = "SPILLWAY_CPU_UNIT";

fn cpu_unit() -> Result<Option<CpuUnit>, ModelError> {
    let Some(name) = std::env::var_os(VECTOR_UNIT) else { return Ok(None) };
    let name = name.to_string_lossy();
    CpuUnit::named(&name).map(Some).ok_or_else(|| ModelError::Unit(name.chars().take(64).collect()))
}

/// A share of some sequences: one at least, unless the share is nothing.
fn share_of(sequences: u32, share: f64) -> usize {
    if share <= 0.0 {
        return 0;
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 1 to the number of sequences")]
    let places = (f64::from(sequences) * share.min(1.0)).floor().max(1.0) as usize;
    places
}

async fn load_one(
    written: &Model,
    file: Option<FileIdentity>,
    metrics: &Metrics,
    cache_dir: Option<&Path>,
) -> Result<LoadedModel, ModelError> {
    let options = LoadOptions {
        name: written.name.clone(),
        source: written.source.clone(),
        device: match &written.device {
            Device::Auto => DeviceChoice::Auto,
            Device::Cpu => DeviceChoice::Cpu,
            Device::Software => DeviceChoice::Software,
            Device::Name(name) => DeviceChoice::Name(name.clone()),
            Device::Index(index) => DeviceChoice::Index(usize::try_from(*index).unwrap_or(usize::MAX)),
        },
        cpu: CpuOptions { cores: written.cores.and_then(|cores| cores.try_into().ok()), unit: cpu_unit()? },
        context_length: written.context_length.map(Into::into),
        max_sequences: written.max_sequences.get(),
        max_queue: written.max_queue,
        max_queue_wait: written.max_queue_wait.0,
        stall_timeout: written.stall_timeout.0,
        memory: written.memory.map(|size| size.0),
        cache_dir: cache_dir.map(Path::to_owned),
    };
    let name = written.name.clone();
    let text = format!("builtin/{name}");
    let served_by = HeaderValue::from_bytes(text.as_bytes()).map_err(|_| ModelError::Name { model: name.clone() })?;
    let engine = tokio::task::spawn_blocking(move || Engine::load(options))
        .await
        .map_err(|e| ModelError::Lost { model: name.clone(), reason: e.to_string() })?
        .map_err(|source| ModelError::Load { model: name.clone(), source })?;
    let info = engine.info();
    tracing::info!(
        event = "model_loaded", model = %name, architecture = %info.architecture, quantization = %info.quantization,
        context = info.context_length, device = %info.device.name, kind = info.device.kind,
        driver = %info.device.driver, reason = %info.device.reason, seconds = info.load_time.as_secs_f64(),
        tokens_per_second = info.decode_rate.round(), gigabytes_per_second = (info.bandwidth / 1e8).round() / 10.0,
    );
    Ok(LoadedModel {
        written: written.clone(),
        file,
        created: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        served_by,
        served_by_text: text.into(),
        metrics: metrics.model("spillway", &name),
        encoders: Arc::new(Semaphore::new(ENCODERS)),
        over_limit: Arc::new(Semaphore::new(share_of(written.max_sequences.get(), written.over_limit_share))),
        engine,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_one_sequence_at_least_and_all_at_most() {
        let places = [(16, 0.25), (16, 0.0), (2, 0.25), (3, 0.5), (4, 1.0)].map(|(n, share)| share_of(n, share));
        assert_eq!(places, [4, 0, 1, 1, 4]);
    }
}
