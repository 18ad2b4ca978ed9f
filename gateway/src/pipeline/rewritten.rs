//! Operation of a request on the routes that may take it. The caller's path names it; where that path belongs to no API, as
//! under a prefix of a team (`/team-a/v1/...`), or not to one alone, the path names it that the servers of the route will
//! see. It owns no state.

use std::borrow::Cow;
use std::sync::Arc;

use http::Method;
use http::uri::PathAndQuery;
use spillway_config::path;

use crate::protocol::{ResolvedOperation, named_by_path};
use crate::topology::Route;

/// Path that the servers of a route see for a path of a caller; `None` where it is the same.
fn rewritten(route: &Route, target: &PathAndQuery) -> Option<PathAndQuery> {
    let mut seen: Option<PathAndQuery> = None;
    for named in route.all_filters() {
        if let Some(next) = named.filter.upstream_target(seen.as_ref().unwrap_or(target)) {
            seen = Some(next);
        }
    }
    seen
}

/// Operation of a request that one of these routes takes. Where the servers of the routes would see different operations,
/// and the path of the caller names none, none is known before the route is.
pub(super) fn operation<'r>(
    method: &Method,
    target: Option<&PathAndQuery>,
    mut routes: impl Iterator<Item = &'r Arc<Route>>,
) -> ResolvedOperation {
    let Some(target) = target else { return ResolvedOperation::OTHER };
    let own = ResolvedOperation::of(method, target.path());
    if own.is_certain() {
        return own;
    }
    let at_server = |route: &Arc<Route>| {
        let resolved = rewritten(route, target).map(|target| ResolvedOperation::of(method, target.path()));
        resolved.filter(|resolved| resolved.is_known())
    };
    match routes.next().and_then(at_server) {
        Some(first) if routes.all(|route| at_server(route) == Some(first)) => first,
        _ => own,
    }
}

/// Model that the path of a request names on a route, its escapes decoded once; `None` where the path names none.
pub(super) fn model(
    route: &Route,
    resolved: ResolvedOperation,
    method: &Method,
    target: &PathAndQuery,
) -> Option<String> {
    let path = api_path(route, method, target);
    Some(decoded(path.get(resolved.api.model_in_path(&path)?)?))
}

/// Model that the path which the servers of a route see names to them, whatever the method, its escapes decoded once.
pub(super) fn model_at_server(route: &Route, target: &PathAndQuery) -> Option<String> {
    let rewritten = rewritten(route, target);
    let path = rewritten.as_ref().unwrap_or(target).path();
    named_by_path(path, route.calls_models).map(decoded)
}

/// A name out of a path, its escapes decoded once.
fn decoded(escaped: &str) -> String {
    let bytes: Vec<u8> = path::decoded(escaped).into_iter().map(|(byte, _)| byte).collect();
    String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

/// Path of a request in which the route's API finds the name of a model: the caller's own, or that of the servers.
pub(super) fn api_path<'p>(route: &Route, method: &Method, target: &'p PathAndQuery) -> Cow<'p, str> {
    if ResolvedOperation::of(method, target.path()).is_certain() {
        return Cow::Borrowed(target.path());
    }
    rewritten(route, target).map_or(Cow::Borrowed(target.path()), |target| Cow::Owned(target.path().to_owned()))
}

/// Path of a request whose names its servers get: the one that they would see, where it makes the same call, and that of the
/// caller's API ([`api_path`]) otherwise.
pub(super) fn path_for_servers<'p>(
    route: &Route,
    resolved: ResolvedOperation,
    method: &Method,
    target: &'p PathAndQuery,
) -> Cow<'p, str> {
    let seen = rewritten(route, target).filter(|seen| ResolvedOperation::of(method, seen.path()) == resolved);
    seen.map_or_else(|| api_path(route, method, target), |seen| Cow::Owned(seen.path().to_owned()))
}
