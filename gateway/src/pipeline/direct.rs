//! Requests that their route sends to a built-in model, whatever they ask of it: the outcome, and the name of the model for the
//! caller.

use spillway_filter::Refusal;

use crate::builtin::LoadedModel;
use crate::exchange::Exchange;
use crate::topology::Route;

/// Outcome of a request that its route sends to a built-in model.
pub(super) enum Direct {
    /// The model answered.
    Answered,
    /// The model has no room.
    NoRoom,
    /// The model cannot take the request, for this reason.
    Unable(Box<Refusal>),
}

/// Name under which a built-in model answers: its own, but that of the caller where an alias of the caller stands for the model.
pub(super) fn name_for_caller<'a>(route: &Route, model: &'a LoadedModel, exchange: &'a Exchange) -> &'a str {
    let is_meant = exchange.alias().is_some_and(|alias| route.model_name(&alias.served) == model.name());
    exchange.model_sent().filter(|_| is_meant).unwrap_or(model.name())
}
