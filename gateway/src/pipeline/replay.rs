//! The route that a configuration has for a request that has ended, from what was kept of its head: by the routing of the
//! gateway itself. A head whose route depends on something that was not kept has no answer, and the reason is named.
//! Inputs are requests that end, and snapshots that take none.

use std::sync::Arc;

use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Method, header};
use spillway_config::{path, spelling};
use spillway_filter::Fields;

use super::begin::{operation_of, preflight_method};
use super::target::host_of;
use crate::coding::{DIGESTS, GRPC_ENCODING};
use crate::downstream::ClientSession;
use crate::exchange::{ConnectionInfo, Exchange};
use crate::protocol::ResolvedOperation;
use crate::routing::{AskedHeader, HeadContext, PartialHead, Undecided};
use crate::snapshot::Snapshot;
use crate::telemetry::{RecentHead, RecentHeader};
use crate::topology::Route;

/// Reason why the route of a head cannot be told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotReplayed {
    /// A match asks for a header that is not kept.
    #[error("a match asks for the header `{0}`, of which nothing is kept")]
    Header(HeaderName),
    /// A match asks for a parameter of the query.
    #[error("a match asks for a parameter of the query, which is not kept")]
    Query,
    /// An expression reads what is not kept.
    #[error("an expression of the route `{0}` reads headers or the query, which are not kept")]
    Expression(String),
    /// A match asks for a model, and the body was not read.
    #[error("a match asks for a model, and the gateway did not read the bodies")]
    Model,
    /// The path has several readings, and whether it is refused depends on more than the route.
    #[error("the path has a second reading")]
    Path,
}

/// Head of a request that ends, as it is kept; `None` for one that no route was sought for by its own head.
#[cold]
pub(super) fn kept(
    connection: &ConnectionInfo,
    session: &ClientSession,
    exchange: &Exchange,
    has_body: bool,
) -> Option<RecentHead> {
    let (snapshot, head) = (&exchange.snapshot, session.req_header());
    let is_own = |route: &Arc<Route>| snapshot.feedback.as_ref().is_some_and(|plan| Arc::ptr_eq(&plan.route, route));
    // The route of these was sought and not found.
    let is_unrouted = matches!(exchange.outcome.error_code, Some("no_route" | "model_not_found"));
    let is_routed = exchange.route.as_ref().map_or(is_unrouted, |route| !is_own(route));
    if !is_routed || exchange.is_probe || preflight_method(head).is_some() {
        return None;
    }
    let keep = |AskedHeader { name, value, sha256 }: &AskedHeader| {
        // What the gateway itself takes off a body is no longer in the head.
        let is_kept = !snapshot.caller_headers.may_hold_credential(name)
            && *name != header::CONTENT_ENCODING
            && *name != GRPC_ENCODING
            && !DIGESTS.contains(name);
        let met = || head.headers.get_all(name).iter().any(|found| found == value);
        is_kept.then(|| RecentHeader { name: name.as_str().to_owned(), sha256: sha256.clone(), met: met() })
    };
    let kept = RecentHead {
        generation: snapshot.generation,
        method: head.method.as_str().to_owned(),
        host: host_of(head).map(str::to_owned),
        listener: (*connection.listener).to_owned(),
        path: head.uri.path().to_owned(),
        client: exchange.client,
        route: exchange.route.as_ref().map(|route| route.name.clone()),
        model: exchange.asked.as_ref().and_then(|asked| asked.model.clone()),
        is_model_known: exchange.asked.is_some() || !has_body,
        headers: snapshot.routes.of_listener(&connection.listener).asked_headers().iter().filter_map(keep).collect(),
    };
    // A request may have been kept from its route, as by a list of its consumers: the head alone does not tell why.
    let is_told = match replay(snapshot, &kept) {
        Ok(route) => route.map(|route| route.name.clone()) == kept.route,
        Err(_) => kept.route.is_some(),
    };
    is_told.then_some(kept)
}

/// Route that a configuration has for a request; `None` where it has none.
///
/// # Errors
/// The route depends on something that is not kept of requests.
pub fn replay(snapshot: &Snapshot, head: &RecentHead) -> Result<Option<Arc<Route>>, NotReplayed> {
    let (spelling, method) = match (spelling::read(&head.path), Method::from_bytes(head.method.as_bytes())) {
        (Ok((_, spelling)), Ok(method)) => (spelling, method),
        _ => return Err(NotReplayed::Path),
    };
    if !spelling.is_one() {
        return Err(NotReplayed::Path);
    }
    let path = path::key(&head.path);
    if let Some(plan) = snapshot.feedback.as_ref().filter(|plan| plan.takes(&head.listener, &path)) {
        return Ok(Some(plan.route.clone()));
    }
    let routes = snapshot.routes.of_listener(&head.listener);
    // Values that this configuration asks for, and whether the request had them. What is not among them is not known.
    let asked: Vec<_> = routes
        .asked_headers()
        .iter()
        .filter_map(|AskedHeader { name, value, sha256 }| {
            let kept = head.headers.iter().find(|kept| kept.name == name.as_str() && kept.sha256 == *sha256)?;
            Some((name, value, kept.met))
        })
        .collect();
    let mut headers = Fields::default();
    for (name, value, _) in asked.iter().filter(|(.., met)| *met) {
        headers.append((*name).clone(), (*value).clone());
    }
    let known = |name: &HeaderName, value: &HeaderValue| {
        asked.iter().find(|(asked, wanted, _)| *asked == name && *wanted == value).map(|(.., met)| *met)
    };
    let (host, context) = (head.host.as_deref(), HeadContext { query: "", client: head.client });
    let partial = PartialHead { path: &path, method: &method, client: head.client, known: &known };
    match routes.undecided(host, &partial) {
        None => {}
        Some(Undecided::Header(name)) => return Err(NotReplayed::Header(name)),
        Some(Undecided::Query) => return Err(NotReplayed::Query),
        Some(Undecided::Expression(route)) => return Err(NotReplayed::Expression(route)),
    }
    let candidates = routes.candidates(host, &path, &method, &headers, context);
    let target = head.path.parse::<PathAndQuery>().ok();
    let resolved = ResolvedOperation::of(&method, &head.path);
    let resolved = operation_of(resolved, &method, target.as_ref(), &candidates);
    let candidates = if resolved.operation.is_of_server() { candidates.listing_models() } else { candidates };
    match candidates.only() {
        Some(route) => Ok(Some(route.clone())),
        None if candidates.is_empty() => Ok(None),
        None if head.is_model_known => Ok(candidates.by_model(head.model.as_deref()).cloned()),
        None => Err(NotReplayed::Model),
    }
}
