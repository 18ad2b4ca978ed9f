//! Checks of backends that speak the Open Inference Protocol, and of the routes to them.

use super::{Context, at};
use crate::schema::{BackendProtocol, Route};

pub(super) fn all(cx: &mut Context<'_>) {
    let config = cx.config;
    for (n, backend) in config.backends.iter().enumerate() {
        if backend.protocol == BackendProtocol::OipGrpc && !backend.http2 {
            cx.error(
                at!["backends", n, "protocol"],
                "gRPC needs HTTP/2, and the backend does not have it: it must say `http2: true`",
            );
        }
    }
    for (n, route) in config.routes.iter().enumerate() {
        transports(cx, n, route);
    }
}

/// Reports a route whose servers speak the protocol over HTTP and over gRPC: each call would fail at the others.
fn transports(cx: &mut Context<'_>, n: usize, route: &Route) {
    let index = cx.index;
    let transport = |name: &str| match index.backends.get(name)?.protocol {
        BackendProtocol::Oip => Some("HTTP"),
        BackendProtocol::OipGrpc => Some("gRPC"),
        _ => None,
    };
    let saturated = route.when_saturated.as_ref().and_then(|rule| rule.spill_to.as_deref());
    let unavailable = route.when_unavailable.as_ref().and_then(|rule| rule.spill_to.as_deref());
    let refs =
        route.backend_refs.iter().enumerate().filter_map(|(r, reference)| {
            Some((at!["routes", n, "backendRefs", r, "name"], reference.name.as_deref()?))
        });
    let spills = [("whenSaturated", saturated), ("whenUnavailable", unavailable)];
    let spills = spills.into_iter().filter_map(|(key, name)| Some((at!["routes", n, key, "spillTo"], name?)));
    let mut first: Option<(&str, &str)> = None;
    let mut found = Vec::new();
    for (place, name) in refs.chain(spills) {
        let Some(own) = transport(name) else { continue };
        let (other, theirs) = *first.get_or_insert((name, own));
        if theirs != own {
            found.push((
                place,
                format!(
                    "`{name}` speaks the Open Inference Protocol over {own} and `{other}` over {theirs}, and calls are not \
                     translated from one to the other: give each a route of its own"
                ),
            ));
        }
    }
    for (place, message) in found {
        cx.error(place, message);
    }
}
