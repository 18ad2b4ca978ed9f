//! Lists and descriptions of models, and the version of the API.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use spillway_engine::Task;

use super::answer::rfc3339;
use crate::protocol::dialect::{BuiltinCard, ListPage, ModelCard};
use crate::protocol::json;

/// Version of Ollama whose API the answers follow. Clients compare it with the least version that they need.
const VERSION: &str = "0.13.0";

#[derive(Serialize)]
struct Version {
    version: &'static str,
}

/// Answer of `/api/version`.
pub(super) fn version() -> Bytes {
    json(&Version { version: VERSION })
}

#[derive(Serialize)]
struct List<M> {
    models: Vec<M>,
}

#[derive(Serialize)]
struct Listed<'a> {
    name: &'a str,
    model: &'a str,
    modified_at: String,
    size: u64,
    digest: String,
    details: Details,
}

#[derive(Serialize)]
struct Running<'a> {
    name: &'a str,
    model: &'a str,
    size: u64,
    digest: String,
    details: Details,
    context_length: u32,
}

#[derive(Serialize, Default)]
struct Details {
    parent_model: &'static str,
    format: &'static str,
    family: String,
    families: Vec<String>,
    parameter_size: String,
    quantization_level: String,
}

impl Details {
    fn of(model: &BuiltinCard<'_>) -> Self {
        let Some(info) = &model.info else { return Self { format: "gguf", ..Self::default() } };
        Self {
            parent_model: "",
            format: "gguf",
            family: info.architecture.clone(),
            families: vec![info.architecture.clone()],
            parameter_size: size_text(info.parameters),
            quantization_level: info.quantization.clone(),
        }
    }
}

/// Number of weights as Ollama writes it: `134.5M`, `8.0B`.
fn size_text(parameters: u64) -> String {
    #[allow(clippy::cast_precision_loss, reason = "shown with one decimal")]
    let parameters = parameters as f64;
    if parameters >= 1e9 { format!("{:.1}B", parameters / 1e9) } else { format!("{:.1}M", parameters / 1e6) }
}

/// Digest that identifies a model to clients: that of its name, because models of a backend have no file here.
fn digest(name: &str) -> String {
    hex::encode(Sha256::digest(name.as_bytes()))
}

/// Answer of `/api/tags`. The size of a model is not known before it is loaded, and is told as 0.
pub(super) fn tags(models: &[ModelCard<'_>]) -> Bytes {
    let listed = models.iter().map(|model| Listed {
        name: model.id,
        model: model.id,
        modified_at: rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(model.created)),
        size: 0,
        digest: digest(model.id),
        details: Details::default(),
    });
    json(&List { models: listed.collect() })
}

#[derive(Deserialize)]
struct Tag {
    name: String,
}

#[derive(Deserialize)]
struct Tags {
    models: Vec<Tag>,
}

/// Reads the answer of a server to `GET /api/tags`.
pub(super) fn read_tags(body: &[u8]) -> Option<ListPage> {
    let tags: Tags = serde_json::from_slice(body).ok()?;
    Some(ListPage { models: tags.models.into_iter().map(|tag| (tag.name, 0)).collect(), next: None })
}

/// Answer of `/api/ps`: those of the models that are loaded.
pub(super) fn running(models: &[&BuiltinCard<'_>]) -> Bytes {
    let running = models.iter().filter_map(|model| {
        let info = model.info.as_ref()?;
        Some(Running {
            name: model.id,
            model: model.id,
            size: info.file_bytes,
            digest: digest(model.id),
            details: Details::of(model),
            context_length: info.context_length,
        })
    });
    json(&List { models: running.collect() })
}

#[derive(Serialize)]
struct Shown {
    modelfile: &'static str,
    parameters: &'static str,
    template: &'static str,
    details: Details,
    model_info: Map<String, Value>,
    capabilities: Vec<&'static str>,
    modified_at: String,
}

/// Answer of `/api/show`. The facts of the model's file are told once it is loaded.
pub(super) fn show(model: &BuiltinCard<'_>) -> Bytes {
    let mut model_info = Map::new();
    if let Some(info) = &model.info {
        let architecture = &info.architecture;
        model_info.insert("general.architecture".into(), architecture.as_str().into());
        model_info.insert("general.parameter_count".into(), info.parameters.into());
        model_info.insert(format!("{architecture}.context_length"), info.context_length.into());
    }
    let mut capabilities = match model.task {
        Task::Generate => vec!["completion"],
        Task::Embed => vec!["embedding"],
        Task::Classify => Vec::new(),
    };
    if model.calls_tools {
        capabilities.push("tools");
    }
    json(&Shown {
        modelfile: "",
        parameters: "",
        template: "",
        details: Details::of(model),
        model_info,
        capabilities,
        modified_at: rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(model.created)),
    })
}
