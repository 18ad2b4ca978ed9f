//! Neutral types of a model call: the request, the answer and its usage. Dialects translate to and from them, and the
//! built-in model knows nothing else. Each type is plain data without a wire format.

use std::time::Instant;

use http::HeaderValue;
use spillway_engine::{Tool, ToolCall, WrittenToken};
use spillway_filter::Refusal;

/// Text or tokens that an answer continues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PromptInput {
    /// Text.
    Text(String),
    /// Token ids of the model.
    Tokens(Vec<u32>),
}

/// Message of a conversation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: &'static str,
    /// Text. Parts are joined by a line break, as vLLM and llama.cpp do.
    pub content: String,
    /// Tool calls that an assistant made with this message.
    pub tool_calls: Vec<ToolCall>,
    /// Id of the tool call whose result this message carries.
    pub tool_call_id: Option<String>,
}

/// Choice of an answer between text and tool calls.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// Left to the model.
    #[default]
    Auto,
    /// No tool.
    None,
    /// Some tool.
    Required,
    /// The tool of this name.
    Named(String),
}

/// Form that an answer must have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ResponseFormat {
    /// Any text.
    #[default]
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON that satisfies this schema, which is JSON text.
    JsonSchema(Box<str>),
}

/// Names of fields in the API of a request, for messages to the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FieldNames {
    /// Field with the conversation or prompt.
    pub prompt: &'static str,
    /// Field with the form of the answer.
    pub format: &'static str,
}

impl FieldNames {
    /// Names in OpenAI's Chat Completions.
    pub const CHAT: Self = Self { prompt: "messages", format: "response_format" };
}

impl Default for FieldNames {
    fn default() -> Self {
        Self::CHAT
    }
}

/// Request for text: a conversation to answer, or a prompt to continue.
#[derive(Debug, Clone, Default)]
pub struct ChatRequest {
    /// Model named by the caller.
    pub model: Option<String>,
    /// Conversation; empty where a prompt is continued.
    pub messages: Vec<Message>,
    /// Prompt to continue; `None` in a conversation.
    pub prompt: Option<PromptInput>,
    /// Tools that the answer may call; empty where it may call none.
    pub tools: Vec<Tool>,
    /// Tools that the answer must or may call.
    pub tool_choice: ToolChoice,
    /// True if the answer may call one tool only.
    pub one_tool_call: bool,
    /// True if the answer is wanted as an event stream.
    pub stream: bool,
    /// True if the event stream ends with its usage.
    pub include_usage: bool,
    /// Most tokens of the answer.
    pub max_tokens: Option<u32>,
    /// Temperature, 0 to 2; 1 when left out.
    pub temperature: Option<f32>,
    /// Nucleus sampling, 0 to 1; 1 when left out.
    pub top_p: Option<f32>,
    /// Number of likeliest tokens to sample from; `None` does not restrict them.
    pub top_k: Option<u32>,
    /// Seed of repeatable sampling.
    pub seed: Option<u64>,
    /// Strings that end the answer.
    pub stop: Vec<String>,
    /// Choices wanted; one when left out.
    pub n: Option<u32>,
    /// Least probability relative to the likeliest token, 0 to 1.
    pub min_p: Option<f32>,
    /// Penalty on repeated tokens, above 0; 1 changes nothing.
    pub repetition_penalty: Option<f32>,
    /// Penalty on tokens that were written before, -2 to 2.
    pub presence_penalty: Option<f32>,
    /// Penalty for each time that a token was written before, -2 to 2.
    pub frequency_penalty: Option<f32>,
    /// Token ids with the number added to their logit, -100 to 100.
    pub logit_bias: Vec<(u32, f32)>,
    /// True if log probabilities of the written tokens are wanted.
    pub logprobs: bool,
    /// Likeliest tokens reported beside each written one.
    pub top_logprobs: u32,
    /// Form that the answer must have.
    pub response_format: ResponseFormat,
    /// Members of the answer's object that repeat the request, as JSON text without the braces; empty where the API repeats
    /// none.
    pub echoed: Box<str>,
    /// Names of its fields.
    pub fields: FieldNames,
    /// Refusal for the first feature asked for that the built-in model does not have and that changes the form of the answer.
    pub unsupported: Option<Refusal>,
    /// Fields that the built-in model does not know and that change no form of the answer.
    pub ignored: Ignored,
}

/// Most names of ignored fields that are kept.
const MAX_IGNORED: usize = 16;

/// Names of fields that are ignored, in the order of the request. Further ones than 16 are counted only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ignored {
    names: Vec<String>,
    further: bool,
}

impl Ignored {
    /// Adds a name, unless it is there.
    pub fn push(&mut self, name: String) {
        if self.names.contains(&name) {
            return;
        }
        if self.names.len() < MAX_IGNORED {
            self.names.push(name);
        } else {
            self.further = true;
        }
    }

    /// First name; `None` where no field is ignored.
    pub fn first(&self) -> Option<&str> {
        self.names.first().map(String::as_str)
    }

    /// Value of a header that lists the names; `None` where no field is ignored. Marks other than those of a path in JSON
    /// are percent-encoded, because callers choose the names of unknown fields. `...` stands for further names.
    pub fn header(&self) -> Option<HeaderValue> {
        let mut list = String::new();
        for name in &self.names {
            if !list.is_empty() {
                list.push_str(", ");
            }
            for byte in name.bytes() {
                if byte.is_ascii_alphanumeric() || b"_-.[]".contains(&byte) {
                    list.push(char::from(byte));
                } else {
                    list.push_str(&format!("%{byte:02X}"));
                }
            }
        }
        if self.further {
            list.push_str(", ...");
        }
        HeaderValue::from_str(&list).ok().filter(|_| !list.is_empty())
    }
}

impl ChatRequest {
    /// Bytes of text in the conversation, its tools and their calls. Token ids count as none, because they need no encoding.
    pub fn text_bytes(&self) -> usize {
        let message_bytes = |message: &Message| {
            let calls = message.tool_calls.iter().map(|call| call.name.len() + call.arguments.len());
            calls.fold(message.content.len(), usize::saturating_add)
        };
        let messages = self.messages.iter().map(message_bytes);
        let tools = self.tools.iter().map(|tool| tool.function.len());
        let prompt = match &self.prompt {
            Some(PromptInput::Text(text)) => text.len(),
            Some(PromptInput::Tokens(_)) | None => 0,
        };
        messages.chain(tools).fold(prompt, usize::saturating_add)
    }
}

/// Input of an embedding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EncodeInput {
    /// Text.
    Text(String),
    /// Token ids of the model.
    Tokens(Vec<u32>),
}

/// Work of a model that encodes texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encode {
    /// Vectors of texts.
    Embeddings,
    /// Relevance of documents to a query.
    Rerank,
}

/// Request for vectors or ranks.
#[derive(Debug, Default)]
pub struct EncodeRequest {
    /// Model named by the caller.
    pub model: Option<String>,
    /// Inputs of embeddings.
    pub inputs: Vec<EncodeInput>,
    /// Documents of a reranking.
    pub texts: Vec<String>,
    /// Query of a reranking; `None` for embeddings.
    pub query: Option<String>,
    /// True if vectors are wanted as base64 of little-endian f32.
    pub base64: bool,
    /// Length of the vectors in values, if less than the model's.
    pub dimensions: Option<u32>,
    /// Number of best documents wanted; all when left out.
    pub top_n: Option<u32>,
    /// True if the answer is one vector and not a list of them, as in Ollama's older embeddings.
    pub is_single: bool,
    /// True if the answer repeats the documents.
    pub return_documents: bool,
    /// Fields that the built-in model does not know and that change no form of the answer.
    pub ignored: Ignored,
}

/// Vectors or ranks that a model made.
#[derive(Debug)]
pub enum Encoded {
    /// Vectors in the order of the inputs, each with whether its text was cut to the model's context.
    Vectors(Vec<(Vec<f32>, bool)>),
    /// Probabilities that a document is relevant, in the order of the documents.
    Scores(Vec<f32>),
}

impl Encoded {
    /// Bytes of the numbers.
    pub fn bytes(&self) -> usize {
        let numbers = match self {
            Self::Vectors(vectors) => vectors.iter().map(|(vector, _)| vector.len()).sum(),
            Self::Scores(scores) => scores.len(),
        };
        size_of::<f32>().saturating_mul(numbers)
    }
}

/// Tool call of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Id under which the caller reports the result.
    pub id: String,
    /// Name of the tool.
    pub name: String,
    /// Arguments as JSON text.
    pub arguments: String,
}

/// Reason for which a choice ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FinishReason {
    /// The model wrote its end token or a stop string.
    #[default]
    Stop,
    /// The choice reached `max_tokens` or the end of the context.
    Length,
    /// The choice ends with tool calls.
    ToolCalls,
}

impl FinishReason {
    /// Label of logs and spans, in OpenAI's words, which the semantic conventions for generative AI use too.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
        }
    }
}

/// Choice of an answer, whole or as far as the model has written it.
#[derive(Debug, Default)]
pub struct Choice {
    /// Text.
    pub text: String,
    /// Written tokens, where their log probabilities are wanted.
    pub written: Option<Vec<WrittenToken>>,
    /// Tool calls.
    pub calls: Vec<Call>,
    /// Characters of its tokens that a stream has reported so far.
    pub reported: usize,
    /// Reason for which the choice ended.
    pub finish_reason: FinishReason,
    /// Stop string that ended the choice.
    pub stop: Option<String>,
}

/// Tokens of a request and its answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt, those that a cache had or got included.
    pub prompt_tokens: u64,
    /// Tokens written.
    pub completion_tokens: u64,
    /// Tokens of the prompt that were in the KV cache.
    pub cached_tokens: Option<u64>,
    /// Tokens of the prompt that were written to a cache, for later requests.
    pub cache_written_tokens: Option<u64>,
    /// Tokens written to a cache that are kept for an hour.
    pub cache_written_1h_tokens: Option<u64>,
    /// Written tokens that were reasoning and not part of the answer's text.
    pub reasoning_tokens: Option<u64>,
}

/// Error that an answer reports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedError {
    /// Type of the error in its dialect.
    pub kind: String,
    /// Code of the error in its dialect.
    pub code: Option<String>,
}

/// Text of an answer, for which no usage is needed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    /// Events with content; each holds one token at least.
    pub events: u64,
    /// Bytes of text, without the JSON around it.
    pub bytes: u64,
}

impl Written {
    /// Text that came after `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self { events: self.events.saturating_sub(earlier.events), bytes: self.bytes.saturating_sub(earlier.bytes) }
    }

    /// Both texts together.
    pub fn and(self, other: Self) -> Self {
        Self { events: self.events.saturating_add(other.events), bytes: self.bytes.saturating_add(other.bytes) }
    }
}

/// Facts read from an answer while it passes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observation {
    /// Id of the answer.
    pub id: Option<String>,
    /// Model that answers.
    pub model: Option<String>,
    /// Finish reason, in the words of the server.
    pub finish_reason: Option<String>,
    /// Tokens used.
    pub usage: Option<Usage>,
    /// Time at which the first content passed: in an event stream the first event with text or a tool call, in anything else
    /// the first byte.
    pub first_content: Option<Instant>,
    /// Text so far.
    pub written: Written,
    /// Text that `usage` covers. What came after it is not in its number of written tokens.
    pub reported: Written,
    /// True once the answer has shown where its text is: `written` then is all of it.
    pub is_known_shape: bool,
    /// True if the answer says that it is still to be written, to be asked for later.
    pub is_deferred: bool,
    /// True once the end of the answer has passed: a whole JSON object, or the last event of a stream.
    pub is_whole: bool,
    /// Error that the answer reports.
    pub error: Option<ObservedError>,
    /// True once the beginning decides whether this is an answer or an error in its place: the first event or comment of a
    /// stream has ended, or a whole answer has ended or has a member that no error has.
    pub is_certain: bool,
    /// True if an error stands in place of the answer, or of the rest of a stream.
    pub has_failed: bool,
}

/// Text of an event stream that ended early, for another server to continue.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said {
    /// Text so far.
    pub text: String,
    /// Tokens of the text, estimated from the number of events.
    pub tokens: u32,
    /// Fields that are the same in every event of one stream, as the caller has read them.
    pub constants: serde_json::Map<String, serde_json::Value>,
}
