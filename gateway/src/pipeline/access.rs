//! Access of callers to routes, and the refusal of a path that no route takes.

use http::{Method, StatusCode};
use spillway_filter::{ErrorKind, Refusal};

use crate::downstream::ClientSession;
use crate::exchange::{End, Exchange};
use crate::protocol::{Operation, PROBLEM, ResolvedOperation, model_not_found};
use crate::topology::{Route, TargetKind};
use crate::upstream::{has_counterpart, no_counterpart};

/// Prefix of the paths of model APIs.
const API_PREFIX: &str = "/v1";

/// Refusal of a path that no route takes.
pub(super) fn no_route(session: &ClientSession) -> End {
    let head = session.req_header();
    End::refuse(Refusal::new(
        StatusCode::NOT_FOUND,
        ErrorKind::NotFound,
        "no_route",
        format!("no route matches {} {}{}", head.method, head.uri.path(), base_hint(&head.method, head.uri.path())),
    ))
}

/// Hint for a client whose base URL lacks the prefix of model APIs, or that adds it a second time.
fn base_hint(method: &Method, path: &str) -> &'static str {
    let is_known = |path: &str| ResolvedOperation::of(method, path).operation != Operation::Other;
    match path.strip_prefix(API_PREFIX) {
        None if is_known(&format!("{API_PREFIX}{path}")) => {
            ": the path lacks /v1, with which the base URL of this client must end (http://HOST/v1)"
        }
        Some(rest) if rest.starts_with(API_PREFIX) && is_known(rest) => {
            ": the path has /v1 twice, so the base URL of this client must end without it (http://HOST)"
        }
        _ => "",
    }
}

/// True if the caller may use the route.
pub(super) fn is_open_to(route: &Route, exchange: &Exchange) -> bool {
    let Some(access) = &route.access else { return true };
    exchange.caller_view().is_some_and(|caller| {
        let one_of = |list: &[String], name: &str| list.is_empty() || list.iter().any(|entry| entry == name);
        one_of(&access.consumers, caller.consumer)
            && one_of(&access.tenants, caller.tenant)
            && access.scopes.iter().all(|scope| caller.scopes.contains(scope))
    })
}

/// Refusal of an operation that is not for this route and caller, whatever the body says; `None` where it may be. `resolved` is
/// the operation on this route.
pub(super) fn refused_operation(route: &Route, resolved: ResolvedOperation, exchange: &Exchange) -> Option<Refusal> {
    let dialect = resolved.dialect;
    if dialect != PROBLEM && route.protocols.as_ref().is_some_and(|protocols| !protocols.contains(&dialect)) {
        let message = format!("This route does not take requests of the API `{}`.", dialect.name());
        return Some(Refusal::new(StatusCode::NOT_FOUND, ErrorKind::NotFound, "unsupported_endpoint", message));
    }
    // Such a call is for callers of all models: its server acts on others than the one that the body names for the gateway. A
    // path that is still shared here is one of an application's.
    let reaches_all = resolved.operation.reaches_all_models() && !resolved.is_shared();
    let is_restricted = exchange.caller.as_ref().is_some_and(|caller| caller.is_restricted());
    (reaches_all && is_restricted).then(|| model_not_found("", exchange.dialect))
}

/// Refusal of an operation that no target of the route has, itself or by translation; `None` where one has it. A route without
/// targets answers by itself.
pub(super) fn refused_by_targets(route: &Route, resolved: ResolvedOperation) -> Option<Refusal> {
    let mut first = None;
    for target in &route.targets {
        let TargetKind::Backend(backend) = &target.kind else { return None };
        if has_counterpart(backend, resolved.dialect, resolved.operation) {
            return None;
        }
        first.get_or_insert(backend);
    }
    first.map(|backend| no_counterpart(backend))
}
