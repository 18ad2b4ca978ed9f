//! Ollama's API: conversations, prompts and embeddings, answered in lines of JSON. [`Ollama`] implements its dialect and is
//! the only way into this folder. Shapes are those of `api/types.go` of ollama/ollama and of its Python client 0.6.
//!
//! A name without a tag means the tag `latest`, so that names are compared without it. The paths are not the API's alone:
//! other servers have an `/api/chat` too, so that a path belongs to the API only on routes that call models.

mod answer;
mod embed;
mod messages;
mod models;
mod options;
mod request;
#[cfg(test)]
mod tests;
mod translate;

pub(super) use translate::Embeddings;

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode};
use serde::Serialize;
use spillway_filter::{ErrorKind, Fields, Refusal, SystemPlace};

use super::chat::{ChatRequest, Encode, EncodeRequest, Encoded, ObservedError};
use super::dialect::{
    AnswerHead, BuiltinCard, Dialect, FixedAsk, ListPage, ModelCard, ModelPath, Observe, StreamFraming, WriteAnswer,
};
use super::json;
use super::openai::OpenAi;
use super::operation::{Known, ModelScope, Operation};
use super::translate::CallerApi;

/// Tag that a name without a tag means.
const LATEST: &str = ":latest";

/// Type of a stream of lines.
const LINES: &str = "application/x-ndjson";

/// Path of the list of models.
const TAGS: &str = "/api/tags";

/// Path of the description of a model.
const SHOW: &str = "/api/show";

/// Paths below `/api/` that change the models of an Ollama server.
const CHANGES: [&str; 5] = ["pull", "push", "create", "copy", "delete"];

/// Dialect of Ollama's API.
pub(super) struct Ollama;

#[derive(Serialize)]
struct ErrorBody<'a> {
    error: &'a str,
}

fn error(refusal: &Refusal) -> Bytes {
    json(&ErrorBody { error: &refusal.message })
}

/// Name of a model without the tag that every name has.
fn bare(name: &str) -> &str {
    name.strip_suffix(LATEST).filter(|name| !name.is_empty()).unwrap_or(name)
}

/// True if a path below `/api/` changes the models of a server.
fn changes_models(path: &str) -> bool {
    CHANGES.contains(&path) || path.starts_with("blobs/")
}

impl Dialect for Ollama {
    fn name(&self) -> &'static str {
        "ollama"
    }

    fn system_place(&self, operation: Operation) -> Option<SystemPlace> {
        match operation {
            Operation::Chat => Some(SystemPlace::Messages),
            Operation::Completions => Some(SystemPlace::SystemOrPrompt),
            _ => None,
        }
    }

    fn operation(&self, method: &Method, path: &str) -> Option<Known> {
        let is_post = method == Method::POST;
        let known = |operation, must_be_json| Some(Known { operation, is_own_path: false, must_be_json });
        // The client's question whether a server is there.
        if path == "/" && method == Method::HEAD {
            return known(Operation::Other, false);
        }
        match path.strip_prefix("/api/")? {
            "chat" if is_post => known(Operation::Chat, true),
            "generate" if is_post => known(Operation::Completions, true),
            "embed" | "embeddings" if is_post => known(Operation::Embeddings, true),
            "tags" if matches!(*method, Method::GET | Method::HEAD) => known(Operation::Models, false),
            "show" => known(Operation::Other, is_post),
            "ps" if matches!(*method, Method::GET | Method::HEAD) => known(Operation::LoadedModels, false),
            "version" => known(Operation::Other, false),
            path if changes_models(path) => known(Operation::ManageModels, false),
            _ => None,
        }
    }

    fn error(&self, refusal: &Refusal, _request_id: &str) -> (HeaderValue, Bytes) {
        (HeaderValue::from_static("application/json"), error(refusal))
    }

    fn error_event(&self, _operation: Operation, refusal: &Refusal) -> Option<Bytes> {
        Some([&*error(refusal), b"\n"].concat().into())
    }

    fn stream_framing(&self) -> StreamFraming {
        StreamFraming::Lines
    }

    fn reads_json_always(&self) -> bool {
        true
    }

    fn streams_by_default(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Chat | Operation::Completions)
    }

    fn full_statuses(&self) -> &'static [u16] {
        // 503 where `OLLAMA_MAX_QUEUE` requests wait; 429 of its cloud.
        &[429, 503]
    }

    fn observe(&self, headers: &Fields) -> Option<Box<dyn Observe>> {
        // The observer of answers knows the shapes of all APIs: servers of Ollama speak OpenAI's too.
        OpenAi.observe(headers)
    }

    fn error_status(&self, error: &ObservedError) -> u16 {
        OpenAi.error_status(error)
    }

    fn bare_model<'n>(&self, name: &'n str) -> &'n str {
        bare(name)
    }

    fn folded_model(&self, name: &str) -> String {
        spillway_config::ollama_name(name)
    }

    fn scope_of_other(&self, method: &Method, path: &str) -> ModelScope {
        match path {
            "/" if matches!(*method, Method::GET | Method::HEAD) => ModelScope::None,
            "/api/version" => ModelScope::None,
            SHOW => ModelScope::Named,
            _ => ModelScope::Unknown,
        }
    }

    fn older_model_field(&self) -> Option<&'static str> {
        Some("name")
    }

    fn list_path(&self) -> &'static str {
        TAGS
    }

    fn model_path<'p>(&self, path: &'p str) -> ModelPath<'p> {
        if path == TAGS { ModelPath::List } else { ModelPath::Neither }
    }

    fn model_list(&self, models: &[ModelCard<'_>]) -> Option<Bytes> {
        Some(models::tags(models))
    }

    fn read_list(&self, body: &[u8]) -> Option<ListPage> {
        models::read_tags(body)
    }

    fn loaded_models(&self, models: &[&BuiltinCard<'_>]) -> Option<Bytes> {
        Some(models::running(models))
    }

    fn has_fixed_answers(&self) -> bool {
        true
    }

    fn fixed_answer(&self, ask: &FixedAsk<'_>, model: &BuiltinCard<'_>) -> Option<Result<Bytes, Refusal>> {
        let is_get = matches!(*ask.method, Method::GET | Method::HEAD);
        if ask.path == "/" {
            return Some(Ok(Bytes::new()));
        }
        match ask.path.strip_prefix("/api/")? {
            "version" if is_get => Some(Ok(models::version())),
            "ps" if is_get => Some(Ok(models::running(&[model]))),
            "show" if ask.method == Method::POST => Some(Ok(models::show(model))),
            "chat" | "generate" if request::only_loads(ask.body) => Some(Ok(answer::loaded(ask.path, model))),
            path if changes_models(path) => Some(Err(refuse_change(path))),
            _ => None,
        }
    }

    fn read_chat(&self, operation: Operation, body: &[u8]) -> Option<Result<ChatRequest, Refusal>> {
        match operation {
            Operation::Chat => Some(request::chat(body)),
            Operation::Completions => Some(request::generate(body)),
            _ => None,
        }
    }

    fn write_answer(&self, head: AnswerHead<'_>) -> Option<Box<dyn WriteAnswer>> {
        let shape = match head.operation {
            Operation::Chat => answer::Shape::Chat,
            Operation::Completions => answer::Shape::Generate,
            _ => return None,
        };
        Some(Box::new(answer::Answer::begin(shape, head)))
    }

    fn translator(&self, operation: Operation) -> Option<&'static dyn CallerApi> {
        match operation {
            Operation::Chat => Some(&translate::Chat),
            Operation::Completions => Some(&translate::Generate),
            _ => None,
        }
    }

    fn encode_kind(&self, operation: Operation) -> Option<Encode> {
        (operation == Operation::Embeddings).then_some(Encode::Embeddings)
    }

    fn read_encode(&self, what: Encode, body: &[u8]) -> Option<Result<EncodeRequest, Refusal>> {
        (what == Encode::Embeddings).then(|| embed::read(body))
    }

    fn write_encoded(&self, model: &str, request: &EncodeRequest, encoded: &Encoded, tokens: u64) -> Option<Bytes> {
        let Encoded::Vectors(vectors) = encoded else { return None };
        Some(embed::write(model, request, vectors, tokens))
    }
}

/// Refusal of a path that changes the models of a server.
fn refuse_change(path: &str) -> Refusal {
    let what = if path.starts_with("blobs/") { "blobs" } else { path };
    let message = format!(
        "`/api/{what}` changes the models of a server, and a built-in model is one of the gateway's file: name its file \
         under `models` there, and reload."
    );
    Refusal::new(StatusCode::NOT_IMPLEMENTED, ErrorKind::InvalidRequest, "unsupported_endpoint", message)
}
