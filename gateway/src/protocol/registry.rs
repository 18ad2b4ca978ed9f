//! Registry of the dialects that the gateway speaks. The operation of a request is resolved here once, when the request
//! begins; no other file matches a path of an API.

use http::Method;
use spillway_filter::{Fields, SystemPlace};

use super::dialect::Dialect;
use super::inference::InferenceCall;
use super::operation::{Known, ModelPlace, ModelScope, Operation, Operations};
use super::{anthropic, grpc, oip, ollama, openai, predict, problem};

/// OpenAI's API, with the reranking of Jina, Cohere and vLLM.
pub const OPENAI: &dyn Dialect = &openai::OpenAi;

/// Anthropic's Messages API.
pub const ANTHROPIC: &dyn Dialect = &anthropic::Anthropic;

/// Ollama's API.
pub const OLLAMA: &dyn Dialect = &ollama::Ollama;

/// RFC 9457: requests of no model API.
pub const PROBLEM: &dyn Dialect = &problem::Problem;

/// gRPC: calls that are known by their content type, whatever their path.
pub const GRPC: &dyn Dialect = &grpc::Grpc;

/// The Open Inference Protocol over HTTP.
pub const OIP: &dyn Dialect = &oip::Oip;

/// The Open Inference Protocol over gRPC.
pub const OIP_GRPC: &dyn Dialect = &oip::grpc::OipGrpc;

/// Dialects with paths of their own, in the order in which a path is offered to them.
const DIALECTS: [&dyn Dialect; 7] =
    [OPENAI, ANTHROPIC, OLLAMA, OIP, OIP_GRPC, &predict::TensorFlow, &predict::TorchServe];

/// Paths of the health protocol of gRPC, whose calls say nothing of models.
const GRPC_HEALTH: &str = "/grpc.health.v1.Health/";

/// Ends of paths, under any prefix, of calls whose body names the model.
const BODY_NAMES_MODEL: [&str; 7] =
    ["/chat/completions", "/completions", "/embeddings", "/responses", "/messages", "/rerank", "/audio/transcriptions"];

/// Path of the question whether a server is there, of TorchServe, SageMaker and vLLM.
const PING: &str = "/ping";

/// Path of that question of vLLM, SGLang, llama.cpp and text-generation-inference.
const HEALTH: &str = "/health";

/// True for a question whether a server is there, which says nothing of its models.
fn asks_for_life(method: &Method, path: &str, query: Option<&str>) -> bool {
    let is_read = matches!(*method, Method::GET | Method::HEAD);
    // By a query, servers of llama.cpp have shown what others ask.
    let is_health = path == HEALTH && query.is_none_or(str::is_empty);
    path.starts_with(GRPC_HEALTH) || (is_read && (is_health || path == PING))
}

/// Operation of a request with its dialect and facts. Kept in the exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResolvedOperation {
    /// Operation.
    pub operation: Operation,
    /// Dialect of the path, which is the shape of errors until the route is known.
    pub dialect: &'static dyn Dialect,
    /// API that has the path on routes that call models only, because servers of other kinds may have it too; true beside it
    /// if the body must be JSON there.
    shared: Option<(&'static dyn Dialect, bool)>,
    /// Dialect that knows the path and finds the model, also where the errors are in another.
    pub api: &'static dyn Dialect,
    /// Part of the request that names the model.
    pub model_place: ModelPlace,
    /// True if the body must be JSON, whatever its Content-Type says.
    pub must_be_json: bool,
    /// True if the answer can have tokens that a model writes.
    pub writes_tokens: bool,
}

impl ResolvedOperation {
    /// Place of the system prompt in the body; `None` for an operation that asks for no text.
    pub fn system_place(&self) -> Option<SystemPlace> {
        self.api.system_place(self.operation)
    }

    /// Operation of a request whose path belongs to no dialect.
    pub const OTHER: Self = Self {
        operation: Operation::Other,
        dialect: PROBLEM,
        shared: None,
        api: PROBLEM,
        model_place: ModelPlace::Body,
        must_be_json: false,
        writes_tokens: true,
    };

    /// Resolves a method and path. A path of no dialect is [`Operation::Other`] with the errors of problem+json.
    pub fn of(method: &Method, path: &str) -> Self {
        let writes_tokens = writes_tokens(path);
        let known = DIALECTS.into_iter().find_map(|dialect| Some((dialect, dialect.operation(method, path)?)));
        match known {
            Some((api, Known { operation, is_own_path, must_be_json })) => {
                // Tensors of an answer are no text, and a count uses no tokens.
                let has_none = matches!(operation, Operation::Inference(InferenceCall::Infer) | Operation::CountTokens);
                let known = Self {
                    operation,
                    api,
                    model_place: api.model_place(),
                    writes_tokens: writes_tokens && !has_none,
                    ..Self::OTHER
                };
                if is_own_path {
                    Self { dialect: api, must_be_json, ..known }
                } else {
                    Self { shared: Some((api, must_be_json)), ..known }
                }
            }
            None => Self { writes_tokens, ..Self::OTHER },
        }
    }

    /// Models that a call on this path, in which its API finds the operation, and with this query is about.
    pub fn scope(self, method: &Method, path: &str, query: Option<&str>) -> ModelScope {
        match self.operation {
            Operation::Chat
            | Operation::Completions
            | Operation::Embeddings
            | Operation::Rerank
            | Operation::Responses
            | Operation::ResponsesSocket
            | Operation::Realtime
            | Operation::Messages
            | Operation::CountTokens => ModelScope::Named,
            Operation::Inference(call) if call.is_of_server() => ModelScope::None,
            Operation::Inference(call) if call.names_model() => ModelScope::Named,
            Operation::Models | Operation::LoadedModels | Operation::ManageModels | Operation::Inference(_) => {
                ModelScope::Unknown
            }
            Operation::Other if asks_for_life(method, path, query) => ModelScope::None,
            Operation::Other if self.model_place == ModelPlace::Path => ModelScope::Named,
            Operation::Other => self.api.scope_of_other(method, path),
        }
    }

    /// As [`Self::scope`], before servers of models: those that have an API under a prefix of their own (`/openai/v1/...`,
    /// `/v1beta/openai/...`) name the model in the body there, too.
    pub fn scope_at_models(self, method: &Method, path: &str, query: Option<&str>) -> ModelScope {
        let is_call = !self.is_known()
            && method == Method::POST
            && BODY_NAMES_MODEL.iter().any(|end| path.ends_with(end))
            // Older paths name a model themselves.
            && !path.split('/').any(|segment| matches!(segment, "engines" | "deployments" | "models"));
        if is_call { ModelScope::Named } else { self.scope(method, path, query) }
    }

    /// The list of models in the form that the caller reads: callers of Anthropic's API, which has the same path, send its
    /// version.
    #[must_use]
    pub fn listing_for(self, headers: &Fields) -> Self {
        let dialect = if headers.contains_key(&anthropic::VERSION) { ANTHROPIC } else { self.dialect };
        Self { dialect, ..self }
    }

    /// True if servers of other kinds may have the path too: its API is known once its route is.
    pub fn is_shared(self) -> bool {
        self.shared.is_some()
    }

    /// Operation on a route that calls models, to which a shared path is one of its API.
    #[must_use]
    pub fn on_models(self) -> Self {
        match self.shared {
            Some((dialect, must_be_json)) => Self { dialect, must_be_json, shared: None, ..self },
            None => self,
        }
    }

    /// True if the path belongs to the API of one dialect alone, whatever the servers of a route see.
    pub fn is_certain(self) -> bool {
        self.is_known() && !self.is_shared()
    }

    /// True if the path belongs to the API of some dialect.
    pub fn is_known(self) -> bool {
        self.operation != Operation::Other || self.is_shared() || self.dialect != PROBLEM
    }
}

/// True unless the path, under any prefix, is one of answers without written tokens: vectors, verdicts, sounds and images.
/// The usage that such an answer tells counts, its bytes do not.
fn writes_tokens(path: &str) -> bool {
    let (above, name) = path.rsplit_once('/').unwrap_or_default();
    match name {
        "embeddings" | "embed" | "moderations" => false,
        "speech" => !above.ends_with("/audio"),
        "generations" | "edits" | "variations" => !above.ends_with("/images"),
        _ => true,
    }
}

/// Operations of the APIs of callers that servers of a backend do not have. Two APIs may have the same operation, each in its
/// own form.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ForeignOperations {
    of_openai: Operations,
    of_anthropic: Operations,
    of_ollama: Operations,
    /// The Open Inference Protocol over the transport that the servers do not speak.
    other_transport: Option<&'static dyn Dialect>,
}

impl ForeignOperations {
    /// No operation: requests pass as they are.
    pub const NONE: Self = Self {
        of_openai: Operations::NONE,
        of_anthropic: Operations::NONE,
        of_ollama: Operations::NONE,
        other_transport: None,
    };

    /// Operations that servers of `server` do not have. Servers of Ollama have those of all.
    pub fn to(server: &'static dyn Dialect) -> Self {
        if server == OLLAMA {
            return Self::NONE;
        }
        const OF_OPENAI: [Operation; 6] = [
            Operation::Chat,
            Operation::Completions,
            Operation::Embeddings,
            Operation::Rerank,
            Operation::Responses,
            Operation::CountTokens,
        ];
        const OF_ANTHROPIC: [Operation; 2] = [Operation::Messages, Operation::CountTokens];
        const OF_OLLAMA: [Operation; 3] = [Operation::Chat, Operation::Completions, Operation::Embeddings];
        let of = |owner: &'static dyn Dialect, operations: &[Operation]| match owner == server {
            true => Operations::NONE,
            false => operations.iter().fold(Operations::NONE, |all, operation| all.with(*operation)),
        };
        Self {
            of_openai: of(OPENAI, &OF_OPENAI),
            of_anthropic: of(ANTHROPIC, &OF_ANTHROPIC),
            of_ollama: of(OLLAMA, &OF_OLLAMA),
            other_transport: match server {
                server if server == OIP => Some(OIP_GRPC),
                server if server == OIP_GRPC => Some(OIP),
                _ => None,
            },
        }
    }

    /// Sets for servers of OpenAI's API that have no Responses API.
    #[must_use]
    pub fn and_responses(self) -> Self {
        Self { of_openai: self.of_openai.with(Operation::Responses).with(Operation::CountTokens), ..self }
    }

    /// Sets for servers of OpenAI's API that have no older completions.
    #[must_use]
    pub fn and_completions(self) -> Self {
        Self { of_openai: self.of_openai.with(Operation::Completions), ..self }
    }

    /// True if an operation of the API `caller` is none of the servers'.
    pub fn contains(&self, caller: &'static dyn Dialect, operation: Operation) -> bool {
        let foreign = match caller {
            caller if caller == OPENAI => self.of_openai,
            caller if caller == ANTHROPIC => self.of_anthropic,
            caller if caller == OLLAMA => self.of_ollama,
            caller => return self.other_transport.is_some_and(|other| other == caller),
        };
        foreign.contains(operation)
    }
}
