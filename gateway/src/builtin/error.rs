//! Why a built-in model does not answer.

use std::time::Duration;

use http::StatusCode;
use spillway_engine::{Busy, BusyReason};
use spillway_filter::{ErrorKind, Refusal};

use super::model::NotLoaded;

/// Why the model inside does not answer. Each carries what to say where the model was addressed directly.
#[derive(Debug)]
pub enum SpillError {
    /// It is not its task.
    CannotSpill(Refusal),
    /// The conversation is longer than its context.
    TooLong(Refusal),
    /// It has no room.
    Busy(Refusal),
    /// It failed.
    Failed(Refusal),
}

impl SpillError {
    /// What to say when the model was addressed directly.
    pub fn refusal(&self) -> &Refusal {
        match self {
            Self::CannotSpill(r) | Self::TooLong(r) | Self::Busy(r) | Self::Failed(r) => r,
        }
    }

    /// The same, taken out.
    pub fn into_refusal(self) -> Refusal {
        match self {
            Self::CannotSpill(r) | Self::TooLong(r) | Self::Busy(r) | Self::Failed(r) => r,
        }
    }
}

impl From<Busy> for SpillError {
    fn from(busy: Busy) -> Self {
        let message = match busy.reason {
            BusyReason::QueueFull => "Too many requests wait for the model inside the gateway; try again.",
            BusyReason::WaitTooLong => {
                "The model inside the gateway is busy for longer than a request may wait; try again."
            }
            BusyReason::TenantQueueFull => {
                "Too many requests of this caller wait for the model inside the gateway; try again."
            }
            BusyReason::TooManyChoices => {
                "The model inside the gateway writes fewer answers at once than `n` asks for."
            }
            BusyReason::Recovering => "The model inside the gateway is being set up again after a fault; try again.",
            BusyReason::Stopped => "The model inside the gateway has been stopped; try again.",
        };
        no_room(message, busy.retry_after)
    }
}

impl From<NotLoaded> for SpillError {
    fn from(reason: NotLoaded) -> Self {
        match reason {
            NotLoaded::Loading => {
                no_room("The model inside the gateway is being loaded; try again.", Duration::from_secs(1))
            }
            NotLoaded::NoRoom => no_room(
                "There is no memory for the model inside the gateway while others are in use; try again.",
                Duration::from_secs(1),
            ),
            NotLoaded::Failed(wait) => {
                no_room("The model inside the gateway cannot be loaded; its log says why.", wait)
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

/// Refuses what is too long, as the key `prompt_field` has it.
pub(super) fn too_long(message: String, prompt_field: &'static str) -> SpillError {
    SpillError::TooLong(Refusal::invalid("context_length_exceeded", message).param(prompt_field))
}

pub(super) fn internal(message: impl Into<std::borrow::Cow<'static, str>>) -> Refusal {
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, ErrorKind::Internal, "engine_error", message)
}
