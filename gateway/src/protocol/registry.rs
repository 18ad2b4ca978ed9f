//! Registry of the dialects that the gateway speaks. The operation of a request is resolved here once, when the request
//! begins; no other file matches a path of an API.

use http::Method;

use super::dialect::Dialect;
use super::inference::InferenceCall;
use super::operation::{Known, ModelPlace, Operation};
use super::{grpc, oip, openai, predict, problem};

/// OpenAI's API, with the reranking of Jina, Cohere and vLLM.
pub const OPENAI: &dyn Dialect = &openai::OpenAi;

/// RFC 9457: requests of no model API.
pub const PROBLEM: &dyn Dialect = &problem::Problem;

/// gRPC: calls that are known by their content type, whatever their path.
pub const GRPC: &dyn Dialect = &grpc::Grpc;

/// The Open Inference Protocol over HTTP.
pub const OIP: &dyn Dialect = &oip::Oip;

/// The Open Inference Protocol over gRPC.
pub const OIP_GRPC: &dyn Dialect = &oip::grpc::OipGrpc;

/// Dialects with paths of their own, in the order in which a path is offered to them.
const DIALECTS: [&dyn Dialect; 5] = [OPENAI, OIP, OIP_GRPC, &predict::TensorFlow, &predict::TorchServe];

/// Operation of a request with its dialect and facts. Kept in the exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResolvedOperation {
    /// Operation.
    pub operation: Operation,
    /// Dialect of the path, which is the shape of errors until the route is known.
    pub dialect: &'static dyn Dialect,
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
    /// Operation of a request whose path belongs to no dialect.
    pub const OTHER: Self = Self {
        operation: Operation::Other,
        dialect: PROBLEM,
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
                let dialect = if is_own_path { api } else { PROBLEM };
                // Tensors of an answer are no text.
                let writes_tokens = writes_tokens && operation != Operation::Inference(InferenceCall::Infer);
                Self { operation, dialect, api, model_place: api.model_place(), must_be_json, writes_tokens }
            }
            None => Self { writes_tokens, ..Self::OTHER },
        }
    }

    /// True if the path belongs to the API of some dialect.
    pub fn is_known(self) -> bool {
        self.operation != Operation::Other || self.dialect != PROBLEM
    }
}

/// True unless the path is that of embeddings, under any prefix: an answer of vectors has no written tokens.
fn writes_tokens(path: &str) -> bool {
    !path.ends_with("/embeddings")
}
