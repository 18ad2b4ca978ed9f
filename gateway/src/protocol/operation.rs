//! Operations of model APIs, with the facts that the gateway decides by.

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
    /// Anything else.
    Other,
}

impl Operation {
    /// True if the answer is text, which a built-in model for conversations can write.
    pub fn asks_for_text(self) -> bool {
        matches!(self, Self::Chat | Self::Completions | Self::Responses)
    }

    /// Name in the semantic conventions for generative AI (`gen_ai.operation.name`); `None` where they have none.
    pub fn gen_ai_name(self) -> Option<&'static str> {
        match self {
            Self::Chat | Self::Responses => Some("chat"),
            Self::Completions => Some("text_completion"),
            Self::Embeddings => Some("embeddings"),
            Self::Rerank | Self::Models | Self::Other => None,
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
