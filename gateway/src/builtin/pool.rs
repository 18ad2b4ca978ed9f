//! The models of a snapshot. One whose file and options did not change is kept over a reload; one that is gone ends
//! with the last snapshot that holds it, after its requests.

use std::path::Path;
use std::sync::Arc;

use spillway_config::schema::{Model, ModelTask};
use spillway_engine::{LoadError, Task};

use super::files::{Identities, identities};
use super::loading::{ModelError, options};
use super::memory::{ModelMemory, NoRoom};
use super::model::LoadedModel;
use crate::telemetry::Metrics;

/// The models of one snapshot.
#[derive(Clone)]
pub struct Models {
    models: Vec<Arc<LoadedModel>>,
    memory: Arc<ModelMemory>,
}

impl Models {
    /// Loads what is new and keeps what did not change. All errors are told, not only the first.
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
        // Models that go when the edit is taken, and serve until then.
        let some_go =
            previous.is_some_and(|previous| previous.iter().any(|model| model.is_loaded() && !is_kept(model)));
        for (written, files, before, is_kept) in found {
            if let Some(kept) = before.filter(|_| is_kept) {
                loaded.push(kept.clone());
                continue;
            }
            let serves = before.is_some_and(|before| before.is_loaded());
            if let Some(before) = before.filter(|_| !serves) {
                // It keeps room for an engine that it does not have.
                before.give_place_back();
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

    /// Judges models as [`Self::load`] does, without a device: nothing is loaded. `in_full` does by the file alone what only
    /// loading does otherwise, which takes as long as loading a small model: it reads tokenizers and templates, and has each
    /// model that is kept warm take its share of the memory.
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

    /// The budget of all models.
    pub fn memory(&self) -> &ModelMemory {
        &self.memory
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

/// A model as it is configured: loaded, or, where it is not kept warm, only judged. `serves` says that another of its name
/// does until this one takes its place.
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
            // No fault of the configuration: the others serve meanwhile, and this one is tried again when it is needed.
            Err(error) if !serves && is_for_a_hang(&error, memory) => {}
            Err(error) => return Err(error),
        }
    } else {
        tracing::info!(event = "model_on_demand", model = %written.name);
    }
    Ok(model)
}

/// Judges a model by its file and its configuration, and enters it among those that may be loaded.
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
        Ok((info.task, spillway_engine::needs(&asked)?))
    });
    let (task, needs) = judged
        .await
        .map_err(|e| ModelError::Lost { model: name.clone(), reason: e.to_string() })?
        .map_err(|source| ModelError::Load { model: name.clone(), source })?;
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
    let model = Arc::new(LoadedModel::new(written, task, files, options, (needs, memory), metrics)?);
    memory.enter(&model);
    Ok(model)
}

/// Whether a device that hangs is why a model is not there.
fn is_for_a_hang(error: &ModelError, memory: &ModelMemory) -> bool {
    match error {
        ModelError::Load { source: LoadError::Hangs { .. }, .. } | ModelError::Hangs { .. } => true,
        ModelError::Room { source, .. } => {
            let without = source.taken.saturating_sub(memory.kept_from_us());
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
