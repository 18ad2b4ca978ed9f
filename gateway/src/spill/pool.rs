//! The models of a snapshot. One whose file and options did not change is kept over a reload; one that is gone ends
//! with the last snapshot that holds it, after its requests.

use std::path::Path;
use std::sync::Arc;

use spillway_config::schema::{Model, ModelTask};
use spillway_engine::Task;

use super::files::{Identities, identities};
use super::loading::{ModelError, options};
use super::model::LoadedModel;
use crate::telemetry::Metrics;

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
            let files = identities(written);
            let kept = previous
                .and_then(|previous| previous.get(&written.name))
                .filter(|kept| kept.is(written, files.as_ref()));
            if let Some(kept) = kept {
                loaded.push(kept.clone());
                continue;
            }
            match load_one(written, files, metrics, cache_dir).await {
                Ok(model) => loaded.push(model),
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

/// A model as it is configured: loaded, or, where it is not kept warm, only judged.
async fn load_one(
    written: &Model,
    files: Option<Identities>,
    metrics: &Metrics,
    cache_dir: Option<&Path>,
) -> Result<Arc<LoadedModel>, ModelError> {
    let name = written.name.clone();
    let source = written.source.clone();
    let judged = tokio::task::spawn_blocking(move || spillway_engine::inspect(&source)).await;
    let task = judged
        .map_err(|e| ModelError::Lost { model: name.clone(), reason: e.to_string() })?
        .map_err(|source| ModelError::Load { model: name.clone(), source })?
        .task;
    if let Some(wanted) = written.task.map(engine_task).filter(|wanted| *wanted != task) {
        return Err(ModelError::Task { model: name, is: task, wanted });
    }
    let useless = written.keys_for_text();
    if task != Task::Generate && !useless.is_empty() {
        let keys = useless.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
        return Err(ModelError::Keys { model: name, is: task, keys });
    }
    let model = Arc::new(LoadedModel::new(written, task, files, options(written, cache_dir)?, metrics)?);
    if written.keep_warm {
        model.load().await?;
    } else {
        tracing::info!(event = "model_on_demand", model = %name);
    }
    Ok(model)
}

fn engine_task(task: ModelTask) -> Task {
    match task {
        ModelTask::Chat => Task::Generate,
        ModelTask::Embedding => Task::Embed,
        ModelTask::Rerank => Task::Classify,
    }
}
