//! Access of callers to routes, and the refusal of a path that no route takes.

use http::{Method, StatusCode};
use spillway_filter::{ErrorKind, Refusal};

use crate::downstream::ClientSession;
use crate::exchange::{End, Exchange};
use crate::protocol::{Operation, ResolvedOperation};
use crate::topology::Route;

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
