//! Translation of a request for a backend of another API than its caller's, before an attempt is made there.

use std::sync::Arc;

use super::reading::held;
use super::rewritten::api_path;
use crate::downstream::ClientSession;
use crate::exchange::{End, Exchange};
use crate::off_loop::BUILDS_VALUES;
use crate::topology::{Backend, Route};
use crate::upstream::{CallHead, Translation, translate};

/// True if the request must be translated for the backend.
pub(super) fn is_needed(backend: &Backend, exchange: &Exchange) -> bool {
    backend.foreign.contains(exchange.dialect, exchange.resolved.operation)
}

/// Translates the request for a backend, off the event loop where the body is long; `None` where bytes pass as they are.
pub(super) async fn translation(
    route: &Route,
    backend: &Backend,
    session: &ClientSession,
    exchange: &Exchange,
) -> Result<Option<Arc<Translation>>, End> {
    if !is_needed(backend, exchange) {
        return Ok(None);
    }
    let body = held(exchange).unwrap_or_default();
    // It is read to values and written again.
    let weight = body.len().saturating_mul(BUILDS_VALUES).saturating_mul(2);
    let head = session.req_header();
    let path = head.uri.path_and_query().map(|target| api_path(route, &head.method, target)).unwrap_or_default();
    let head =
        CallHead { method: &head.method, path: &path, headers: &head.headers, takes_trailers: session.is_http2() };
    let translated = exchange.off_loop.run(weight, || translate(exchange, backend, head, &body)).await??;
    Ok(Some(Arc::new(translated)))
}
