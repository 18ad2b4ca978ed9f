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
    /// List of models, or one of them.
    Models,
    /// Call of the Open Inference Protocol.
    Inference(InferenceCall),
    /// Anything else.
    Other,
}

impl Operation {
    /// True if the answer is text, which a built-in model for conversations can write.
    pub fn asks_for_text(self) -> bool {
        matches!(self, Self::Chat | Self::Completions)
    }

    /// True if the request asks about servers or all their models, and so names no model.
    pub fn is_of_server(self) -> bool {
        match self {
            Self::Models => true,
            Self::Inference(call) => call.is_of_server(),
            _ => false,
        }
    }

    /// Name in the semantic conventions for generative AI (`gen_ai.operation.name`); `None` where they have none.
    pub fn gen_ai_name(self) -> Option<&'static str> {
        match self {
            Self::Chat | Self::Responses => Some("chat"),
            Self::Completions => Some("text_completion"),
            Self::Embeddings => Some("embeddings"),
            Self::Rerank | Self::Models | Self::Inference(_) | Self::Other => None,
        }
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
