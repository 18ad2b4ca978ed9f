//! Reasons why a built-in model does not answer.

use std::time::Duration;

use http::StatusCode;
use spillway_engine::{Busy, BusyReason};
use spillway_filter::{ErrorKind, Refusal};

use super::model::{LoadedModel, NotLoaded};
use crate::protocol::Ignored;

/// Reason why a built-in model does not answer, with the refusal for a caller that addressed the model directly.
#[derive(Debug)]
pub enum SpillError {
    /// The request is not a task of the model.
    CannotSpill(Refusal),
    /// The conversation is longer than the context.
    TooLong(Refusal),
    /// The model has no free slot or memory.
    Busy(Refusal),
    /// The model failed.
    Failed(Refusal),
}

impl SpillError {
    /// Refusal for a caller that addressed the model directly.
    pub fn refusal(&self) -> &Refusal {
        match self {
            Self::CannotSpill(r) | Self::TooLong(r) | Self::Busy(r) | Self::Failed(r) => r,
        }
    }

    /// Refusal for a caller that addressed the model directly, by value.
    pub fn into_refusal(self) -> Refusal {
        match self {
            Self::CannotSpill(r) | Self::TooLong(r) | Self::Busy(r) | Self::Failed(r) => r,
        }
    }
}

impl From<Busy> for SpillError {
    fn from(busy: Busy) -> Self {
        let message = match busy.reason {
            BusyReason::QueueFull => "Too many requests wait for the built-in model; try again.",
            BusyReason::WaitTooLong => "The built-in model is busy for longer than a request may wait; try again.",
            BusyReason::PromptTooLong => {
                "The built-in model would read this prompt for longer than a request may wait; send a shorter one."
            }
            BusyReason::TenantQueueFull => "Too many requests of this caller wait for the built-in model; try again.",
            BusyReason::TooManyChoices => "The built-in model writes fewer answers at once than `n` asks for.",
            BusyReason::Recovering => "The built-in model is being set up again after a fault; try again.",
            BusyReason::Stopped => "The built-in model has been stopped; try again.",
        };
        no_room(message, busy.retry_after)
    }
}

impl From<NotLoaded> for SpillError {
    fn from(reason: NotLoaded) -> Self {
        match reason {
            NotLoaded::Loading => no_room("The built-in model is being loaded; try again.", Duration::from_secs(1)),
            NotLoaded::NoRoom => no_room(
                "There is no memory for the built-in model while others are in use; try again.",
                Duration::from_secs(1),
            ),
            NotLoaded::Failed(wait) => {
                no_room("The built-in model cannot be loaded; the gateway's log says why.", wait)
            }
        }
    }
}

pub(super) fn no_room(message: &'static str, retry_after: Duration) -> SpillError {
    SpillError::Busy(
        Refusal::new(StatusCode::TOO_MANY_REQUESTS, ErrorKind::Overloaded, "overloaded", message)
            .retry_after(retry_after.max(Duration::from_millis(1))),
    )
}

/// Refuses fields that the model does not know, where its configuration says so.
pub(super) fn check_ignored(model: &LoadedModel, ignored: &Ignored) -> Result<(), SpillError> {
    match ignored.first() {
        Some(name) if model.refuses_unknown_fields() => {
            let message = format!("`{name}`: the built-in model does not know this field.");
            let refusal = Refusal::invalid("unknown_parameter", message).param(name.to_owned());
            Err(SpillError::CannotSpill(refusal))
        }
        _ => Ok(()),
    }
}

/// Refuses a prompt that is too long; `prompt_field` is its key in the request.
pub(super) fn too_long(message: String, prompt_field: &'static str) -> SpillError {
    SpillError::TooLong(Refusal::invalid("context_length_exceeded", message).param(prompt_field))
}

pub(super) fn internal(message: impl Into<std::borrow::Cow<'static, str>>) -> Refusal {
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, ErrorKind::Internal, "engine_error", message)
}
