//! Neutral types of a request: a whole conversation with all that APIs can say in one. Each is plain data without a wire
//! format. A field of one API that no other knows stays in it by its name, so that it is refused or dropped and never lost.

use std::borrow::Cow;

use serde_json::{Map, Number, Value};

/// Request for the next message of a conversation.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conversation {
    /// Model named by the caller.
    pub model: Option<String>,
    /// Messages, the oldest first. Instructions are turns of [`Role::System`].
    pub turns: Vec<Turn>,
    /// Tools that the answer may call.
    pub tools: Vec<ToolSpec>,
    /// Choice between text and tool calls; `None` where the caller left it to the API.
    pub tool_pick: Option<ToolPick>,
    /// True if the answer may call one tool only.
    pub one_tool_call: bool,
    /// True if the answer is wanted as an event stream.
    pub stream: bool,
    /// True if the event stream ends with its usage.
    pub include_usage: bool,
    /// All other fields.
    pub settings: Settings,
    /// Fields that change no answer, such as marks for a cache: dropped where the server's API does not know them.
    pub hints: Vec<String>,
    /// Members of the answer that repeat the request, as JSON text without braces; empty in APIs without them.
    pub echoed: Box<str>,
}

/// Author of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Instructions of the application.
    System,
    /// The user, and the tools, whose results are parts of a turn.
    User,
    /// The model.
    Assistant,
}

/// Message of a conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct Turn {
    /// Author.
    pub role: Role,
    /// Content in its order.
    pub parts: Vec<Part>,
    /// Field of the request that holds the message, such as `messages[2]`.
    pub at: String,
}

/// Part of a message.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// Text.
    Text(String),
    /// Image.
    Image(Image),
    /// Reasoning that led to the rest of the message.
    Thinking {
        /// Text of the reasoning.
        text: String,
        /// Proof of the server that the text is its own; never empty.
        signature: Option<String>,
    },
    /// Reasoning that only its server can read.
    RedactedThinking(String),
    /// Call of a tool.
    ToolCall {
        /// Id under which its result is reported.
        id: String,
        /// Name of the tool.
        name: String,
        /// Arguments as JSON text.
        arguments: String,
    },
    /// Result of a tool call.
    ToolResult {
        /// Id of the call.
        id: String,
        /// Content: texts and images.
        parts: Vec<Part>,
        /// True if the tool failed.
        is_error: bool,
    },
    /// Text by which the model declined to answer.
    Refusal(String),
    /// Content that only the API of the caller knows.
    Other {
        /// Field of the request, such as `messages[2].content[0]`.
        at: String,
        /// Type of the content in its API.
        kind: String,
    },
}

/// Image in a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Place of the bytes.
    pub source: ImageSource,
}

/// Place of the bytes of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageSource {
    /// Address from which the server fetches the image.
    Url(String),
    /// The image itself.
    Base64 {
        /// Media type, such as `image/png`.
        media_type: String,
        /// Bytes in base64.
        data: String,
    },
}

/// Tool that an answer may call.
#[derive(Debug, Clone, PartialEq)]
pub enum ToolSpec {
    /// Function that the caller runs.
    Function {
        /// Name.
        name: String,
        /// Purpose, for the model.
        description: Option<String>,
        /// JSON Schema of the arguments.
        parameters: Option<Map<String, Value>>,
        /// True if the arguments must match the schema.
        strict: Option<bool>,
    },
    /// Tool that only the API of the caller knows, such as a search by its servers.
    Other {
        /// Field of the request, such as `tools[1]`.
        at: String,
        /// Type of the tool in its API.
        kind: String,
    },
}

/// Choice of an answer between text and tool calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolPick {
    /// Left to the model.
    Auto,
    /// No tool.
    None,
    /// Some tool.
    Required,
    /// The tool of this name.
    Named(String),
}

/// Form that an answer must have.
#[derive(Debug, Clone, PartialEq)]
pub enum Format {
    /// A JSON object.
    JsonObject,
    /// JSON that satisfies a schema.
    JsonSchema {
        /// Name of the schema; `None` in APIs without one.
        name: Option<String>,
        /// The schema.
        schema: Value,
        /// True if the API promises that the answer matches.
        strict: Option<bool>,
    },
}

/// Reasoning before an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thinking {
    /// None.
    Off,
    /// As much as the model finds useful.
    Adaptive,
    /// At most so many tokens.
    Budget(u64),
}

/// Effort that the model is to spend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the words of the APIs")]
pub enum Effort {
    Minimal,
    Low,
    Medium,
    High,
    ExtraHigh,
    Max,
}

impl Effort {
    /// Word of the APIs, which share them.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Minimal => "minimal",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::ExtraHigh => "xhigh",
            Self::Max => "max",
        }
    }

    /// Effort of a word.
    pub fn of(word: &str) -> Option<Self> {
        [Self::Minimal, Self::Low, Self::Medium, Self::High, Self::ExtraHigh, Self::Max]
            .into_iter()
            .find(|effort| effort.as_str() == word)
    }
}

/// Field of a request beside its messages and tools.
#[derive(Debug, Clone, PartialEq)]
pub enum Setting {
    /// Most tokens of the answer.
    MaxTokens(u64),
    /// Temperature.
    Temperature(Number),
    /// Nucleus sampling.
    TopP(Number),
    /// Number of likeliest tokens to sample from.
    TopK(u64),
    /// Least probability relative to the likeliest token.
    MinP(Number),
    /// Seed of repeatable sampling.
    Seed(Number),
    /// Strings that end the answer.
    Stop(Vec<String>),
    /// Penalty on tokens that were written before.
    PresencePenalty(Number),
    /// Penalty for each time that a token was written before.
    FrequencyPenalty(Number),
    /// Penalty on repeated tokens; 1 changes nothing.
    RepetitionPenalty(Number),
    /// Token ids with the number added to their logit.
    LogitBias(Map<String, Value>),
    /// Number of answers.
    Choices(u64),
    /// Log probabilities of the written tokens, with this many of the likeliest beside each.
    Logprobs(u64),
    /// Form of the answer.
    Format(Format),
    /// Reasoning before the answer.
    Thinking(Thinking),
    /// Effort.
    Effort(Effort),
    /// End user on whose behalf the caller asks, as an opaque id.
    User(String),
    /// Field that only the API of the caller knows.
    Other(Value),
    /// Field that not even the reader of the caller's API knows.
    Unknown(Value),
}

/// Setting with its name in the API of the caller.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedSetting {
    /// Name of the field, such as `top_p` or `output_config.format`.
    pub name: Cow<'static, str>,
    /// Value.
    pub setting: Setting,
}

/// Settings of a request, each once, in the order of their reader.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Settings(Vec<NamedSetting>);

impl Settings {
    /// Adds a setting that the caller wrote as `name`.
    pub fn push(&mut self, name: impl Into<Cow<'static, str>>, setting: Setting) {
        self.0.push(NamedSetting { name: name.into(), setting });
    }

    /// All settings.
    pub fn iter(&self) -> impl Iterator<Item = &NamedSetting> {
        self.0.iter()
    }

    /// First value that `pick` finds.
    pub fn find<'s, T>(&'s self, pick: impl Fn(&'s Setting) -> Option<T>) -> Option<T> {
        self.0.iter().find_map(|named| pick(&named.setting))
    }
}
