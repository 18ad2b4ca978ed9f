//! Access of callers to routes, and the refusal of a path that no route takes.

use http::StatusCode;
use pingora::protocols::http::ServerSession;
use spillway_filter::{ErrorKind, Refusal};

use crate::exchange::{End, Exchange};
use crate::topology::Route;

/// Refusal of a path that no route takes.
pub(super) fn no_route(session: &ServerSession) -> End {
    let head = session.req_header();
    End::refuse(Refusal::new(
        StatusCode::NOT_FOUND,
        ErrorKind::NotFound,
        "no_route",
        format!("no route matches {} {}", head.method, head.uri.path()),
    ))
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
