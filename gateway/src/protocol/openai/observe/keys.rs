//! Meaning of the lists, objects and keys of an answer.

/// Meaning of a list or object, by its position in the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Container {
    Root,
    /// `response` of an event of the Responses API: the answer so far. Its text has come in earlier events.
    Answer,
    /// `message` right under the root: the beginning of an answer of the Messages API, or an answer of Ollama.
    Message,
    Choices,
    Choice,
    /// `delta` of a stream or `message` of a choice.
    Delta,
    ToolCalls,
    /// Parts of the text, at any depth.
    Content,
    /// JSON that the model wrote, such as the arguments of a tool call: all of it is text.
    Free,
    Usage,
    Details,
    Error,
    Other,
}

/// Key that means something in some container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KnownKey {
    Id,
    Model,
    Choices,
    Delta,
    Message,
    Response,
    Output,
    ContentBlock,
    FinishReason,
    /// Finish reason of the Messages API and of Ollama. In a choice it is the text that ended it.
    StopReason,
    /// Text of the answer, or its parts.
    Content,
    /// Text inside of those.
    Text,
    /// Text that leads to the answer. Some servers send it under two names at once.
    Reasoning,
    ToolCalls,
    /// Arguments of a tool call, as text or as JSON.
    Arguments,
    /// Parts that repeat text, or that no model wrote.
    Repeated,
    Usage,
    /// Tokens of the prompt, those in the cache included.
    PromptTokens,
    /// Tokens of the prompt; in the Messages API without those of the cache.
    InputTokens,
    CacheRead,
    CacheCreated,
    OutputTokens,
    TotalTokens,
    Details,
    CachedTokens,
    /// Tokens of the prompt that were written to a cache, among those of the prompt.
    CacheWritten,
    /// Tokens written to a cache that are kept for an hour, in an object of their own in the Messages API.
    CacheWrittenForAnHour,
    ReasoningTokens,
    /// Tokens of the prompt, right under the root.
    PromptCount,
    /// Tokens written, right under the root.
    OutputCount,
    /// True at the end of a stream of lines.
    Done,
    Status,
    Error,
    Kind,
    Object,
    /// Code of an error, or code that a model wrote.
    Code,
    Other,
}

impl KnownKey {
    pub(super) fn of(name: &[u8]) -> Self {
        match name {
            b"id" => Self::Id,
            b"model" => Self::Model,
            b"choices" => Self::Choices,
            b"delta" => Self::Delta,
            b"message" => Self::Message,
            b"response" => Self::Response,
            b"output" => Self::Output,
            b"content_block" => Self::ContentBlock,
            b"finish_reason" => Self::FinishReason,
            b"stop_reason" | b"done_reason" => Self::StopReason,
            b"content" => Self::Content,
            b"text" | b"refusal" | b"partial_json" | b"transcript" | b"name" => Self::Text,
            b"code" => Self::Code,
            b"reasoning_content" | b"reasoning" | b"thinking" => Self::Reasoning,
            b"tool_calls" => Self::ToolCalls,
            b"arguments" | b"input" => Self::Arguments,
            b"reasoning_details" | b"annotations" | b"citations" | b"results" | b"logprobs" => Self::Repeated,
            b"usage" => Self::Usage,
            b"prompt_tokens" => Self::PromptTokens,
            b"input_tokens" => Self::InputTokens,
            b"cache_read_input_tokens" => Self::CacheRead,
            b"cache_creation_input_tokens" => Self::CacheCreated,
            b"completion_tokens" | b"output_tokens" => Self::OutputTokens,
            b"total_tokens" => Self::TotalTokens,
            b"prompt_tokens_details"
            | b"completion_tokens_details"
            | b"input_tokens_details"
            | b"output_tokens_details"
            | b"input_token_details"
            | b"output_token_details"
            | b"cache_creation" => Self::Details,
            b"cached_tokens" | b"prompt_cache_hit_tokens" => Self::CachedTokens,
            b"cache_write_tokens" => Self::CacheWritten,
            b"ephemeral_1h_input_tokens" => Self::CacheWrittenForAnHour,
            b"reasoning_tokens" => Self::ReasoningTokens,
            b"prompt_eval_count" | b"tokens_evaluated" => Self::PromptCount,
            b"eval_count" | b"tokens_predicted" => Self::OutputCount,
            b"done" => Self::Done,
            b"status" => Self::Status,
            b"error" => Self::Error,
            b"type" => Self::Kind,
            b"object" => Self::Object,
            _ => Self::Other,
        }
    }

    /// True if a string under this key of a container is text of the answer.
    pub(super) fn is_text_in(self, container: Container) -> bool {
        match container {
            Container::Free => true,
            Container::Choice => matches!(self, Self::Text | Self::Content | Self::Reasoning),
            Container::Delta => matches!(self, Self::Text | Self::Content | Self::Reasoning | Self::Arguments),
            Container::Content => {
                matches!(self, Self::Text | Self::Content | Self::Reasoning | Self::Arguments | Self::Code)
            }
            Container::Message => matches!(self, Self::Content | Self::Reasoning),
            // `content` as text is that of llama.cpp's own completions.
            Container::Root => matches!(self, Self::Delta | Self::Response | Self::Reasoning | Self::Content),
            _ => false,
        }
    }
}

impl Container {
    /// Meaning of a list or object under a key of `parent`, which is `None` for the outermost one.
    pub(super) fn under(parent: Option<Self>, key: KnownKey, is_object: bool) -> Self {
        let Some(parent) = parent else { return if is_object { Self::Root } else { Self::Other } };
        match (parent, key) {
            (Self::Root, KnownKey::Choices) if !is_object => Self::Choices,
            (Self::Root, KnownKey::Response) if is_object => Self::Answer,
            (Self::Root, KnownKey::Message) if is_object => Self::Message,
            (Self::Root, KnownKey::Delta) if is_object => Self::Delta,
            (Self::Root, KnownKey::Output | KnownKey::Content) if !is_object => Self::Content,
            (Self::Root, KnownKey::ContentBlock) if is_object => Self::Content,
            (Self::Root | Self::Answer | Self::Message, KnownKey::Usage) if is_object => Self::Usage,
            (Self::Root | Self::Answer, KnownKey::Error) if is_object => Self::Error,
            (Self::Choices, _) if is_object => Self::Choice,
            (Self::Choice, KnownKey::Delta | KnownKey::Message) if is_object => Self::Delta,
            (Self::Delta | Self::Message | Self::Content, KnownKey::Repeated | KnownKey::Usage) => Self::Other,
            (Self::Delta | Self::Message, KnownKey::ToolCalls) if !is_object => Self::ToolCalls,
            (Self::Content, KnownKey::Arguments) | (Self::Free, _) => Self::Free,
            (Self::Delta | Self::Message | Self::ToolCalls | Self::Content, _) => Self::Content,
            (Self::Usage, KnownKey::Details) if is_object => Self::Details,
            _ => Self::Other,
        }
    }

    /// True if the container belongs to a shape whose text is counted.
    pub(super) fn shows_shape(self) -> bool {
        matches!(self, Self::Choices | Self::Answer | Self::Message | Self::Delta | Self::Content)
    }
}
