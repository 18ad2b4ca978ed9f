//! Models of a snapshot. A model whose file and options did not change is kept over a reload. A removed model ends with the
//! last snapshot that holds it, after its requests.

use std::path::Path;
use std::sync::Arc;

use spillway_config::schema::{Model, ModelTask};
use spillway_engine::{LoadError, Task};

use super::files::{Identities, identities};
use super::loading::{ModelError, options};
use super::memory::{ModelMemory, NoRoom};
use super::model::LoadedModel;
use crate::telemetry::Metrics;

/// Models of one snapshot.
#[derive(Clone)]
pub struct Models {
    models: Vec<Arc<LoadedModel>>,
    memory: Arc<ModelMemory>,
}

impl Models {
    /// Loads new models and keeps unchanged ones. Returns all errors, not only the first.
    pub async fn load(
        models: &[Model],
        memory: Option<u64>,
        previous: Option<&Self>,
        metrics: &Metrics,
        cache_dir: Option<&Path>,
    ) -> Result<Self, Vec<ModelError>> {
        let memory = previous.map_or_else(|| ModelMemory::new(memory), |previous| previous.memory.clone());
        let mut loaded = Vec::with_capacity(models.len());
        let mut errors = Vec::new();
        let found = models.iter().map(|written| {
            let files = identities(written);
            let before = previous.and_then(|previous| previous.get(&written.name));
            let is_kept = before.is_some_and(|before| before.is(written, files.as_ref()));
            (written, files, before, is_kept)
        });
        let found: Vec<_> = found.collect();
        let is_kept = |model| {
            found
                .iter()
                .any(|(.., before, is_kept)| *is_kept && before.is_some_and(|before| Arc::ptr_eq(before, model)))
        };
        // Models that the edit removes, and that serve until it is accepted.
        let some_go =
            previous.is_some_and(|previous| previous.iter().any(|model| model.is_loaded() && !is_kept(model)));
        for (written, files, before, is_kept) in found {
            if let Some(kept) = before.filter(|_| is_kept) {
                loaded.push(kept.clone());
                continue;
            }
            let serves = before.is_some_and(|before| before.is_loaded());
            if let Some(before) = before.filter(|_| !serves) {
                // The share has no engine, and the new model needs the memory.
                before.release_share();
            }
            match load_one(written, files, &memory, metrics, cache_dir, serves).await {
                Ok(model) => loaded.push(model),
                Err(ModelError::Room { model, source }) if some_go && source.needed <= source.limit => {
                    errors.push(ModelError::Beside { model, source });
                }
                Err(e) => errors.push(e),
            }
        }
        if errors.is_empty() { Ok(Self { models: loaded, memory }) } else { Err(errors) }
    }

    /// Validates models as [`Self::load`] does, without a device: nothing is loaded. With `in_full`, tokenizers and
    /// templates are read too, and models that are kept warm take their shares of the memory. That takes as long as
    /// loading a small model.
    pub async fn judge(
        models: &[Model],
        memory: Option<u64>,
        metrics: &Metrics,
        in_full: bool,
    ) -> Result<Self, Vec<ModelError>> {
        let memory = ModelMemory::new(memory);
        let (mut judged, mut errors) = (Vec::with_capacity(models.len()), Vec::new());
        for written in models {
            let model = judge_one(written, None, &memory, metrics, None, in_full).await;
            let reserved = model.and_then(|model| if in_full { model.reserve().map(|()| model) } else { Ok(model) });
            match reserved {
                Ok(model) => judged.push(model),
                Err(e) => errors.push(e),
            }
        }
        if errors.is_empty() { Ok(Self { models: judged, memory }) } else { Err(errors) }
    }

    /// Memory budget of all models.
    pub fn memory(&self) -> &ModelMemory {
        &self.memory
    }

    /// Finds the model with this name.
    pub fn get(&self, name: &str) -> Option<&Arc<LoadedModel>> {
        self.models.iter().find(|model| model.name() == name)
    }

    /// All models.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<LoadedModel>> {
        self.models.iter()
    }
}

/// Loads a model, or only validates it if it is not kept warm. `serves` is true if a model of the same name serves until
/// this one replaces it.
async fn load_one(
    written: &Model,
    files: Option<Identities>,
    memory: &Arc<ModelMemory>,
    metrics: &Metrics,
    cache_dir: Option<&Path>,
    serves: bool,
) -> Result<Arc<LoadedModel>, ModelError> {
    let model = judge_one(written, files, memory, metrics, cache_dir, false).await?;
    if written.keep_warm {
        match model.load().await {
            Ok(_) => {}
            // A device that hangs is no fault of the configuration: a request that needs the model tries again.
            Err(error) if !serves && is_for_a_hang(&error, memory) => {}
            Err(error) => return Err(error),
        }
    } else {
        tracing::info!(event = "model_on_demand", model = %written.name);
    }
    Ok(model)
}

/// Validates a model by its file and its configuration, and registers it with the memory budget.
async fn judge_one(
    written: &Model,
    files: Option<Identities>,
    memory: &Arc<ModelMemory>,
    metrics: &Metrics,
    cache_dir: Option<&Path>,
    in_full: bool,
) -> Result<Arc<LoadedModel>, ModelError> {
    let name = written.name.clone();
    let options = options(written, cache_dir)?;
    let asked = options.clone();
    let judged = tokio::task::spawn_blocking(move || {
        let info = spillway_engine::inspect(&asked.source)?;
        if in_full {
            spillway_engine::check(&asked)?;
        }
        let needs = spillway_engine::needs(&asked)?;
        Ok((info, needs))
    });
    let (info, needs) = judged
        .await
        .map_err(|e| ModelError::Lost { model: name.clone(), reason: e.to_string() })?
        .map_err(|source| ModelError::Load { model: name.clone(), source })?;
    let task = info.task;
    let needs = needs.weights.saturating_add(needs.kv_cache).saturating_add(needs.activations);
    if let Some(wanted) = written.task.map(engine_task).filter(|wanted| *wanted != task) {
        return Err(ModelError::Task { model: name, is: task, wanted });
    }
    let useless = written.keys_for_text();
    if task != Task::Generate && !useless.is_empty() {
        let keys = useless.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
        return Err(ModelError::Keys { model: name, is: task, keys });
    }
    if needs > memory.limit() {
        let source = NoRoom { needed: needs, taken: memory.taken(), limit: memory.limit() };
        return Err(ModelError::Room { model: name, source });
    }
    let model = Arc::new(LoadedModel::new(written, info.into(), files, options, (needs, memory), metrics)?);
    memory.enter(&model);
    Ok(model)
}

/// True if a model could not be loaded because a device hangs.
fn is_for_a_hang(error: &ModelError, memory: &ModelMemory) -> bool {
    match error {
        ModelError::Load { source: LoadError::Hangs { .. }, .. } | ModelError::Hangs { .. } => true,
        ModelError::Room { source, .. } => {
            let without = source.taken.saturating_sub(memory.held_by_hung_threads());
            without.saturating_add(source.needed) <= source.limit
        }
        _ => false,
    }
}

fn engine_task(task: ModelTask) -> Task {
    match task {
        ModelTask::Chat => Task::Generate,
        ModelTask::Embedding => Task::Embed,
        ModelTask::Rerank => Task::Classify,
    }
}
