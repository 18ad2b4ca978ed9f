//! What can go wrong: at load, with a prompt, when a request is submitted, while it runs.

use std::path::PathBuf;
use std::time::Duration;

/// A model cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is of another kind.
    #[error("{path} is {kind}: {remedy}")]
    WrongKind {
        /// The file.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// The file is damaged.
    #[error("{path} is damaged: {reason}; fetch it again")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where and how.
        reason: String,
    },
    /// The file holds something that this engine does not run.
    #[error("{path}: {reason}")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What, and what to do.
        reason: String,
    },
    /// There is nothing to run it on.
    #[error("{0}")]
    NoDevice(String),
    /// The device refused.
    #[error("device `{device}`: {reason}")]
    Device {
        /// The device.
        device: String,
        /// Why.
        reason: String,
    },
    /// The device does not come back from the first step of a model.
    #[error(
        "device `{device}` ({kind}) hangs: the first step of a model on it has not ended in time; until it does, that model's memory stays taken and {} is left alone",
        if *kind == crate::device::CPU { "this file" } else { "the device" }
    )]
    Hangs {
        /// The device.
        device: String,
        /// What kind of device it is.
        kind: &'static str,
    },
    /// The KV cache that it is given holds not one context.
    #[error(
        "one context of {context} tokens needs a KV cache of {needed} MiB and `kvCache` is {allowed} MiB: raise it, or lower `contextLength`"
    )]
    Cache {
        /// Tokens of a context.
        context: usize,
        /// MiB that it needs.
        needed: u64,
        /// MiB that it may take.
        allowed: u64,
    },
    /// It needs more memory than it may take.
    #[error(
        "the model needs {needed} MiB of device memory ({parts}) and may take {allowed} MiB: raise `memory`, or lower `contextLength` or `maxSequences`"
    )]
    Memory {
        /// MiB it needs.
        needed: u64,
        /// What for.
        parts: String,
        /// MiB it may take.
        allowed: u64,
    },
}

/// A conversation cannot be answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PromptError {
    /// It is longer than the context.
    #[error("the prompt has {tokens} tokens, the context {context}")]
    TooLong {
        /// Its tokens.
        tokens: usize,
        /// Tokens of prompt and answer together.
        context: usize,
    },
    /// The model answers nothing: it is an encoder.
    #[error("the model does not generate text")]
    NotGenerating,
    /// There is nothing to answer.
    #[error("there is nothing to answer")]
    Empty,
    /// A token that the model does not have.
    #[error("{token} is no token of the model: it has {vocabulary}")]
    Token {
        /// The token.
        token: u32,
        /// How many there are.
        vocabulary: u32,
    },
    /// The model has no chat template.
    #[error("the model has no chat template (`tokenizer.chat_template`): it continues texts, not conversations")]
    NoTemplate,
    /// Its template knows no tools, or has it call them in a way that is not read here.
    #[error("the model was not taught to call tools, or in another way than that of Hermes, Qwen and Llama 3")]
    NoTools,
    /// A tool or a call of one cannot be shown to the model.
    #[error("a tool or a call cannot be shown to the model: {0}")]
    Tools(String),
    /// The model's tokenizer has no tokens for it.
    #[error("the tokenizer of the model cannot cut this text: {0}")]
    Text(String),
    /// A role that no chat template knows.
    #[error("`{0}` is not a role")]
    Role(String),
    /// The template of the model refuses it.
    #[error("the chat template of the model refuses this conversation: {0}")]
    Template(String),
}

/// What an answer must be cannot be held to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// The schema is too long.
    #[error("the schema has {bytes} bytes, more than {most}")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// What is allowed.
        most: usize,
    },
    /// It is no schema, cannot be satisfied, or costs too much.
    #[error("the schema cannot be used: {0}")]
    Invalid(String),
    /// The model's tokens cannot be constrained.
    #[error("this model's answers cannot be constrained: {0}")]
    Tokens(String),
}

/// Why a request is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BusyReason {
    /// Too many wait.
    QueueFull,
    /// The first token would come too late.
    WaitTooLong,
    /// Its tenant has more than its share of the queue.
    TenantQueueFull,
    /// More choices than sequences run together: this never fits.
    TooManyChoices,
    /// The device failed and is being set up again.
    Recovering,
    /// The engine has ended.
    Stopped,
}

/// A request is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the model is busy ({reason:?}); try again in {retry_after:?}")]
pub struct Busy {
    /// Why.
    pub reason: BusyReason,
    /// When it may be worth trying again.
    pub retry_after: Duration,
}

/// A request that was taken fails.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// Its time is over.
    #[error("the deadline of the request has passed")]
    Deadline,
    /// Nobody reads its answer.
    #[error("the answer was not read for too long")]
    Stalled,
    /// The device failed.
    #[error("the device failed: {0}")]
    Device(String),
    /// The engine itself failed, which is a defect: it has ended.
    #[error("the engine failed: {0}")]
    Defect(String),
    /// The grammar of the answer became too costly.
    #[error("the answer can no longer be held to its grammar: {0}")]
    Grammar(String),
    /// The model does not do this.
    #[error("the model is for {is}, not for {wanted}")]
    Task {
        /// What it is for.
        is: crate::Task,
        /// What was asked of it.
        wanted: crate::Task,
    },
    /// What was given cannot be worked on.
    #[error("{0}")]
    Input(String),
    /// Too much waits.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// The engine ends.
    #[error("the engine is shutting down")]
    Shutdown,
}
