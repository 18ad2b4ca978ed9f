//! Outcome of a request that its route sends to a built-in model, whatever it asks of the model.

use spillway_filter::Refusal;

/// Outcome of a request that its route sends to a built-in model.
pub(super) enum Direct {
    /// The model answered.
    Answered,
    /// The model has no room.
    NoRoom,
    /// The model cannot take the request, for this reason.
    Unable(Box<Refusal>),
}
