//! Names of the model of a request on both sides: the one that the servers of a backend get, and the one that the caller reads
//! in its answer. It owns no state; inputs are the facts of a request and of its backend.

use std::sync::Arc;

use crate::exchange::Exchange;
use crate::topology::Backend;

/// Name that the servers of a backend get in place of the one in the request; `None` where they get that. The backend's own
/// name for all its models goes before the one that an alias of the caller stands for.
pub(super) fn at_server<'a>(backend: &'a Backend, exchange: &'a Exchange) -> Option<&'a Arc<str>> {
    backend.model.as_ref().or_else(|| exchange.alias().map(|alias| &alias.served))
}

/// As [`at_server`], as JSON text to put into a body.
pub(super) fn json_at_server<'a>(backend: &'a Backend, exchange: &'a Exchange) -> Option<&'a str> {
    backend.upstream_model.as_deref().or_else(|| exchange.alias().map(|alias| &*alias.json))
}

/// Names to exchange in an answer, that of the server and that of the caller; `None` where the caller reads what the server
/// writes.
pub(super) fn exchanged<'a>(backend: &'a Backend, exchange: &'a Exchange) -> Option<(&'a Arc<str>, &'a str)> {
    // An answer in place of another keeps the name that its backend has for the model which gave it.
    if backend.model.is_some() && exchange.outcome.spilled.is_some() {
        return None;
    }
    let (from, to) = (at_server(backend, exchange)?, exchange.model_sent()?);
    (**from != *to).then_some((from, to))
}
