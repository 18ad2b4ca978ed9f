//! Checks of rules that read a header, because some headers are removed from requests before.

use http::HeaderName;
use serde_json::Value;

use super::{Context, Finding, Segment, at};
use crate::diagnostic::Severity;
use crate::header_names::{HeaderNames, Sender};
use crate::rules::computed_headers;
use crate::schema::{FilterEntry, HashOn, Route};

pub(super) fn all(cx: &mut Context<'_>) {
    let config = cx.config;
    let has_proxies =
        config.listeners.iter().any(|l| l.client_address.as_ref().is_some_and(|a| !a.trusted_proxies.is_empty()));
    let names = HeaderNames::of(config);
    let mut rules = Vec::new();
    for (n, backend) in config.backends.iter().enumerate() {
        if let Some(HashOn::Header(name)) = &backend.load_balancing.hash_on {
            rules.push((at!["backends", n, "loadBalancing", "hashOn", "header"], name.clone(), Severity::Error));
        }
    }
    for (n, route) in config.routes.iter().enumerate() {
        of_route(n, route, &mut rules);
    }
    for (n, name) in config.telemetry.logs.headers.iter().enumerate() {
        rules.push((at!["telemetry", "logs", "headers", n], name.clone(), Severity::Warning));
    }
    for (n, field) in config.telemetry.logs.fields.iter().enumerate() {
        let at = at!["telemetry", "logs", "fields", n, "value"];
        rules.extend(read_by(&field.value).into_iter().map(|name| (at.clone(), name, Severity::Warning)));
    }
    let attributes = config.telemetry.tracing.iter().flat_map(|tracing| &tracing.attributes);
    for (n, attribute) in attributes.enumerate() {
        let at = at!["telemetry", "tracing", "attributes", n, "value"];
        rules.extend(read_by(&attribute.value).into_iter().map(|name| (at.clone(), name, Severity::Warning)));
    }
    for (at, name, severity) in rules {
        let Ok(header) = HeaderName::from_bytes(name.as_bytes()) else { continue };
        let (message, help) = match names.sender(&header) {
            Sender::TrustedProxy if !has_proxies => (
                format!(
                    "the header `{name}` is removed unless a trusted proxy sent it, and no listener has \
                     `clientAddress.trustedProxies`: no request would have it here"
                ),
                "name the proxies that set it in `listeners[].clientAddress.trustedProxies`, or read another header",
            ),
            Sender::Nobody => (
                format!(
                    "the header `{name}` is removed from every request, because servers could take it for one of the \
                     gateway's: no request would have it here"
                ),
                "read a header of another name",
            ),
            Sender::TrustedProxy | Sender::Anybody => continue,
        };
        cx.add(Finding { at, severity, message, help: Some(help.to_owned()) });
    }
}

/// Headers that the rules of a route read. Expressions and lists of headers may name one to be sure that it is not there: a
/// warning for these.
fn of_route(n: usize, route: &Route, rules: &mut Vec<(Vec<Segment>, String, Severity)>) {
    for (m, written) in route.matches.iter().enumerate() {
        for (h, header) in written.headers.iter().enumerate() {
            let at = at!["routes", n, "matches", m, "headers", h, "name"];
            rules.push((at, header.name.clone(), Severity::Error));
        }
        for name in written.when.iter().flat_map(|when| read_by(when)) {
            rules.push((at!["routes", n, "matches", m, "when"], name, Severity::Warning));
        }
    }
    if let Some(sticky) = &route.sticky {
        rules.push((at!["routes", n, "sticky", "header"], sticky.header.clone(), Severity::Error));
    }
    for name in route.spill.iter().filter_map(|spill| spill.when.as_deref()).flat_map(read_by) {
        rules.push((at!["routes", n, "spill", "when"], name, Severity::Warning));
    }
    for (f, filter) in route.filters.iter().enumerate() {
        of_filter(at!["routes", n, "filters", f, filter.name.as_str()], filter, rules);
    }
}

fn of_filter(at: Vec<Segment>, filter: &FilterEntry, rules: &mut Vec<(Vec<Segment>, String, Severity)>) {
    let below =
        |keys: &[&str]| at.iter().cloned().chain(keys.iter().map(|key| Segment::from(*key))).collect::<Vec<_>>();
    let config = &filter.config;
    let text = |pointer: &str| config.pointer(pointer).and_then(Value::as_str);
    let expressions = match filter.name.as_str() {
        "rateLimit" => {
            if let Some(name) = text("/by/header") {
                rules.push((below(&["by", "header"]), name.to_owned(), Severity::Error));
            }
            text("/by/value").map(|text| (below(&["by", "value"]), text)).into_iter().collect()
        }
        "authorize" => text("").map(|text| (below(&[]), text)).into_iter().collect(),
        "cel" => text("/deny").map(|text| (below(&["deny"]), text)).into_iter().collect(),
        "requestHeaders" | "responseHeaders" => {
            let computed = computed_headers(config);
            computed.map(|(key, name, text)| (below(&[key, name, "value"]), text)).collect()
        }
        "externalAuthorization" => {
            for (i, name) in config.get("forwardHeaders").and_then(Value::as_array).into_iter().flatten().enumerate() {
                let mut at = below(&["forwardHeaders"]);
                at.push(Segment::from(i));
                rules.extend(name.as_str().map(|name| (at, name.to_owned(), Severity::Warning)));
            }
            Vec::new()
        }
        "cache" | "fault" | "guard" | "mirror" | "transform" => {
            let named = ["when", "key"].into_iter().filter_map(|key| Some((key, config.get(key)?.as_str()?)));
            named.map(|(key, text)| (below(&[key]), text)).collect()
        }
        _ => Vec::new(),
    };
    for (at, text) in expressions {
        rules.extend(read_by(text).into_iter().map(|name| (at.clone(), name, Severity::Warning)));
    }
}

/// Headers of the request that an expression reads by a literal name: `request.headers['NAME']`.
fn read_by(expression: &str) -> Vec<String> {
    let parts = expression.split("request.headers[").skip(1).filter_map(|rest| {
        let rest = rest.trim_start();
        let quote = rest.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
        rest.get(1..)?.split_once(quote).map(|(name, _)| name.to_owned())
    });
    parts.collect()
}
