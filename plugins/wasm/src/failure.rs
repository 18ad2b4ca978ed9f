//! Failures of modules: at reload, which are mistakes of the configuration, and for a request.

use wasmtime::Trap;

use crate::abi::wasi::Exit;

/// Longest text of a failure, in bytes: a trap's has a line for each function on the stack.
const MAX_REASON: usize = 400;

/// Reason for which a call of a module has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    /// The call took longer than it may.
    #[error("it ran longer than `limits.time`")]
    Timeout,
    /// The module trapped.
    #[error("{0}")]
    Trap(String),
    /// The module stopped the request and waits for nothing that could continue it.
    #[error("it paused the request and waits for no call")]
    PausedForever,
    /// All instances work for other requests.
    #[error("all its instances are busy")]
    Busy,
    /// All instances have crashed, and none is started for now.
    #[error("it crashed too often and is started again later")]
    BackingOff,
    /// The instance that held the stream has crashed.
    #[error("its instance has crashed")]
    Gone,
    /// A new instance does not start, though one did at reload.
    #[error("a new instance does not start: {0}")]
    Start(String),
    /// A stream holds more than may be held.
    #[error("it holds back more of the answer than {0} bytes")]
    HeldTooMuch(usize),
}

impl Failure {
    /// True if the instance can no longer be used.
    pub(crate) fn is_crash(&self) -> bool {
        matches!(self, Self::Timeout | Self::Trap(_))
    }
}

impl From<wasmtime::Error> for Failure {
    fn from(error: wasmtime::Error) -> Self {
        match error.downcast_ref::<Trap>() {
            Some(Trap::Interrupt) => Self::Timeout,
            _ => Self::Trap(text_of(&error)),
        }
    }
}

/// Reason for which a module cannot be used, as its author has to read it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StartError {
    /// The module cannot be compiled, or asks for what there is not.
    #[error("{0}")]
    Module(String),
    /// The module refuses its configuration, or does not start with it.
    #[error("{0}")]
    Config(String),
}

/// Text of an error of the run time: the innermost cause, which names the trap.
pub(crate) fn text_of(error: &wasmtime::Error) -> String {
    if let Some(exit) = error.downcast_ref::<Exit>() {
        return exit.to_string();
    }
    let text = error.downcast_ref::<Trap>().map_or_else(|| format!("{error:#}"), |trap| trap.to_string());
    bounded(&text, MAX_REASON).replace('\n', " ")
}

/// The beginning of a text.
pub(crate) fn bounded(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.get(..end).unwrap_or_default()
}
