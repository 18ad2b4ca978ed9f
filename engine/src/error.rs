//! Errors: at load, with a prompt, when a request is submitted, while it runs.

use std::path::PathBuf;
use std::time::Duration;

/// A model cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// I/O error of the system.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// The file is of another kind.
    #[error("{path} is {kind}: {remedy}")]
    WrongKind {
        /// File.
        path: PathBuf,
        /// Kind of file that was found.
        kind: &'static str,
        /// Advice to the operator.
        remedy: &'static str,
    },
    /// The file is damaged.
    #[error("{path} is damaged: {reason}; fetch it again")]
    Corrupt {
        /// Corrupt file.
        path: PathBuf,
        /// Place and kind of the damage.
        reason: String,
    },
    /// The file holds something that this engine does not run.
    #[error("{path}: {reason}")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// Unsupported feature, and the advice.
        reason: String,
    },
    /// No device can run the model.
    #[error("{0}")]
    NoDevice(String),
    /// The device refused.
    #[error("device `{device}`: {reason}")]
    Device {
        /// Name of the device.
        device: String,
        /// Reason.
        reason: String,
    },
    /// The device does not return from the first step of a model.
    #[error(
        "device `{device}` ({kind}) hangs: the first step of a model on it has not ended in time; until it ends, its memory stays taken and {} is not used: check the driver, or the disk of the file",
        if *kind == crate::device::CPU { "this file" } else { "the device" }
    )]
    Hangs {
        /// Name of the device.
        device: String,
        /// Kind of the device.
        kind: &'static str,
    },
    /// The allowed KV cache holds less than one context.
    #[error(
        "one context of {context} tokens needs a KV cache of {needed} MiB; `kvCache` allows {allowed} MiB: raise it, or lower `contextLength`"
    )]
    Cache {
        /// Tokens of a context.
        context: usize,
        /// MiB that one context needs.
        needed: u64,
        /// MiB allowed by `kvCache`.
        allowed: u64,
    },
    /// The model needs more memory than it may take.
    #[error(
        "the model needs {needed} MiB of device memory ({parts}); `memory` allows {allowed} MiB: raise it, or lower `contextLength` or `maxSequences`"
    )]
    Memory {
        /// MiB needed.
        needed: u64,
        /// MiB of each part: weights, KV cache, activations.
        parts: String,
        /// MiB allowed by `memory`.
        allowed: u64,
    },
}

/// Error of a prompt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PromptError {
    /// The prompt is longer than the context.
    #[error("the prompt has {tokens} tokens; expected fewer than the context of {context}: shorten it")]
    TooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Tokens of prompt and answer together.
        context: usize,
    },
    /// The model does not generate text: it is an encoder.
    #[error("the model does not generate text: it is an encoder")]
    NotGenerating,
    /// The prompt has no tokens.
    #[error("the prompt is empty; expected a message or at least one token")]
    Empty,
    /// A token outside the model's vocabulary.
    #[error("token {token} is outside the vocabulary; expected less than {vocabulary}")]
    Token {
        /// The token.
        token: u32,
        /// Tokens of the vocabulary.
        vocabulary: u32,
    },
    /// The model has no chat template.
    #[error("the model has no chat template (`tokenizer.chat_template`): it continues texts, not conversations")]
    NoTemplate,
    /// The chat template knows no tools, or uses a syntax of calls that is not supported.
    #[error("the chat template has no tool calls in a known syntax; expected that of Hermes, Qwen or Llama 3")]
    NoTools,
    /// A tool or a call of one cannot be rendered for the model.
    #[error("a tool or a tool call cannot be rendered: {0}")]
    Tools(String),
    /// The tokenizer has no tokens for the text.
    #[error("the tokenizer of the model cannot tokenise this text: {0}")]
    Text(String),
    /// Unknown role.
    #[error("invalid role `{0}`; expected lower-case letters and `_`, such as `user`")]
    Role(String),
    /// The chat template refuses the conversation.
    #[error("the chat template of the model refuses this conversation: {0}")]
    Template(String),
}

/// Error of the grammar of an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// The schema is too long.
    #[error("the schema has {bytes} bytes; expected at most {most}")]
    TooLarge {
        /// Bytes of the schema.
        bytes: usize,
        /// Bytes allowed.
        most: usize,
    },
    /// The schema is invalid, cannot be satisfied, or costs too much.
    #[error("the schema cannot be used: {0}")]
    Invalid(String),
    /// The model's tokens cannot be constrained.
    #[error("this model's answers cannot be constrained: {0}")]
    Tokens(String),
}

/// Reason for refusing a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BusyReason {
    /// The queue is full.
    QueueFull,
    /// The first token would come too late, after those of other requests.
    WaitTooLong,
    /// The first token would come too late although nothing else runs: prefill of the prompt alone takes too long.
    PromptTooLong,
    /// The tenant has more than its share of the queue.
    TenantQueueFull,
    /// More choices than sequences run together: retrying never helps.
    TooManyChoices,
    /// The device failed and is being set up again.
    Recovering,
    /// The engine has ended.
    Stopped,
}

/// Refusal of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the model is busy ({reason:?}); try again in {retry_after:?}")]
pub struct Busy {
    /// Reason.
    pub reason: BusyReason,
    /// Delay after which a retry may succeed.
    pub retry_after: Duration,
}

/// Error of an accepted request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The deadline has passed.
    #[error("the deadline of the request has passed")]
    Deadline,
    /// The consumer of the answer stopped reading.
    #[error("the answer was not read for too long")]
    Stalled,
    /// The device failed.
    #[error("the device failed: {0}")]
    Device(String),
    /// The engine failed by a defect and has ended.
    #[error("the engine failed: {0}")]
    Defect(String),
    /// The grammar of the answer became too costly.
    #[error("the grammar of the answer cannot be enforced any longer: {0}")]
    Grammar(String),
    /// The model is for another task.
    #[error("the model is for {is}, not for {wanted}")]
    Task {
        /// Task of the model.
        is: crate::Task,
        /// Requested task.
        wanted: crate::Task,
    },
    /// The input cannot be processed.
    #[error("{0}")]
    Input(String),
    /// The queue is full or the device is not ready.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// The engine ends.
    #[error("the engine is shutting down")]
    Shutdown,
}
