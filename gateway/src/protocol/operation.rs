//! Operations of model APIs, with the facts that the gateway decides by.

use super::inference::InferenceCall;

/// Operation that a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Answer to a conversation.
    Chat,
    /// Continuation of a text.
    Completions,
    /// Vectors of texts.
    Embeddings,
    /// Relevance of documents to a query.
    Rerank,
    /// Answer in the form of OpenAI's Responses API.
    Responses,
    /// Conversation over a socket, whose model is in the query (OpenAI's Realtime API).
    Realtime,
    /// Responses over a socket, each of whose models is in its message (OpenAI's Responses API).
    ResponsesSocket,
    /// Answer in the form of Anthropic's Messages API.
    Messages,
    /// Number of tokens of a prompt, in the form of Anthropic's Messages API or of OpenAI's Responses API.
    CountTokens,
    /// List of models, or one of them.
    Models,
    /// List of the models that a server has loaded (Ollama).
    LoadedModels,
    /// Change to the models of a server (Ollama), of which it may name several.
    ManageModels,
    /// Call of the Open Inference Protocol.
    Inference(InferenceCall),
    /// Anything else.
    Other,
}

impl Operation {
    /// True if the answer is text, which a built-in model for conversations can write.
    pub fn asks_for_text(self) -> bool {
        matches!(self, Self::Chat | Self::Completions | Self::Responses | Self::Messages)
    }

    /// True if the answer depends on what the request says, and the request changes nothing at its server.
    pub fn is_repeatable(self) -> bool {
        let is_other = matches!(self, Self::Embeddings | Self::Rerank | Self::CountTokens);
        self.asks_for_text() || is_other || self == Self::Inference(InferenceCall::Infer)
    }

    /// True if the operation goes over a socket.
    pub fn is_socket(self) -> bool {
        matches!(self, Self::Realtime | Self::ResponsesSocket)
    }

    /// True if the request asks about servers or all their models, and so names no model.
    pub fn is_of_server(self) -> bool {
        match self {
            Self::Models | Self::LoadedModels => true,
            Self::Inference(call) => call.is_of_server(),
            _ => false,
        }
    }

    /// True if the request shows or changes a server as a whole, or any of its models, whatever model it names.
    pub fn reaches_all_models(self) -> bool {
        matches!(self, Self::ManageModels | Self::Inference(InferenceCall::OtherOfServer))
    }

    /// Name in the semantic conventions for generative AI (`gen_ai.operation.name`); `None` where they have none.
    pub fn gen_ai_name(self) -> Option<&'static str> {
        match self {
            Self::Chat | Self::Responses | Self::Messages => Some("chat"),
            Self::Completions => Some("text_completion"),
            Self::Embeddings => Some("embeddings"),
            Self::Realtime
            | Self::ResponsesSocket
            | Self::Rerank
            | Self::CountTokens
            | Self::Models
            | Self::LoadedModels
            | Self::ManageModels
            | Self::Inference(_)
            | Self::Other => None,
        }
    }
}

impl Operation {
    /// Bit of a set of operations; all calls of the Open Inference Protocol share one.
    const fn bit(self) -> u32 {
        let number = match self {
            Self::Chat => 0,
            Self::Completions => 1,
            Self::Embeddings => 2,
            Self::Rerank => 3,
            Self::Responses => 4,
            Self::Realtime => 5,
            Self::Messages => 6,
            Self::CountTokens => 7,
            Self::Models => 8,
            Self::Inference(_) => 9,
            Self::Other => 10,
            Self::ManageModels => 11,
            Self::ResponsesSocket => 12,
            Self::LoadedModels => 13,
        };
        1 << number
    }
}

/// Set of operations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Operations(u32);

impl Operations {
    /// No operation.
    pub(super) const NONE: Self = Self(0);

    /// The set with one more.
    #[must_use]
    pub(super) fn with(self, operation: Operation) -> Self {
        Self(self.0 | operation.bit())
    }

    /// True if the set has an operation.
    pub(super) fn contains(self, operation: Operation) -> bool {
        self.0 & operation.bit() != 0
    }
}

/// Operation that a dialect recognises by method and path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Operation.
    pub operation: Operation,
    /// True if the path belongs to the dialect alone: its errors are in the dialect before the route is known.
    pub is_own_path: bool,
    /// True if the body must be JSON, whatever its Content-Type says.
    pub must_be_json: bool,
}

/// Models that a call is about, as far as the gateway knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelScope {
    /// The model that the call names where its API does.
    Named,
    /// None: the call shows nothing of a model, or only what the caller got from one before.
    None,
    /// Any of them.
    Unknown,
}

/// Part of a request in which an API names the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelPlace {
    /// Field of a body in JSON, or of a form.
    Body,
    /// Segment of the path.
    Path,
    /// Field of the message of a gRPC call.
    Message,
}
