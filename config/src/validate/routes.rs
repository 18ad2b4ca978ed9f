//! Checks of `routes`: matches, filters, references, and routes that can never win.

use crate::catalog::FieldError;
use crate::catalog::{ExpressionPlace, SignalName};
use crate::model_pattern::ModelPattern;
use crate::rules::rewrites_by_pattern;
use crate::schema::{
    BackendProtocol, BackendRef, FilterEntry, Match, PathMatch, Route, RouteAuthentication, TargetFilter,
};

use super::{Context, Segment, admission, at, quality, rollouts};

/// Built-in filters that answer requests by themselves.
const ANSWERING: [&str; 2] = ["respond", "redirect"];

/// Built-in filters that see a request in their order and change no answer: behind `respond` they see none.
const BEHIND_RESPOND: [&str; 7] =
    ["authorize", "cel", "externalAuthorization", "mirror", "requestHeaders", "respond", "urlRewrite"];

/// Built-in filters that change answers of servers alone.
const FOR_SERVERS: [&str; 1] = ["publicLocation"];

pub(super) fn all(cx: &mut Context<'_>) {
    let config = cx.config;
    if config.routes.is_empty() && !config.has_discovery() {
        cx.error(at!["routes"], "no route; there must be at least one: add its `backendRefs`");
    }
    let signals = config.signal_names();
    for (n, route) in config.routes.iter().enumerate() {
        listeners(cx, n, route);
        hostnames(cx, n, route);
        for (m, written) in route.matches.iter().enumerate() {
            one_match(cx, n, m, written, &signals);
        }
        authentication(cx, n, route);
        filters(cx, n, route);
        references(cx, n, route);
        after_respond(cx, n, route);
        without_servers(cx, n, route);
        model_names(cx, n, route);
        admission::all(cx, n, route);
        rollouts::all(cx, n, route);
        quality::all(cx, n, route);
        upgrades(cx, n, route);
        times(cx, n, route);
        if let Some(sticky) = &route.sticky {
            header_name(cx, at!["routes", n, "sticky", "header"], &sticky.header);
        }
    }
    shadows(cx);
}

fn header_name(cx: &mut Context<'_>, at: Vec<Segment>, name: &str) {
    if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
        cx.error(at, format!("`{name}` is not a header name"));
    }
}

fn listeners(cx: &mut Context<'_>, n: usize, route: &Route) {
    let config = cx.config;
    let names = || config.listeners.iter().filter_map(|listener| listener.name.as_deref());
    for (l, name) in route.listeners.iter().enumerate() {
        let at = at!["routes", n, "listeners", l];
        if !names().any(|known| known == name) {
            // Listeners that come from elsewhere have routes of their own.
            let known: Vec<&str> =
                config.listeners.iter().filter(|one| !one.own_routes).filter_map(|one| one.name.as_deref()).collect();
            cx.unknown(at, "listener", name, &known);
        } else if route.listeners.iter().take(l).any(|known| known == name) {
            cx.error(at, format!("`{name}` is in the list already: remove one"));
        }
    }
}

fn hostnames(cx: &mut Context<'_>, n: usize, route: &Route) {
    for (h, host) in route.hostnames.iter().enumerate() {
        let name = host.strip_prefix("*.").unwrap_or(host);
        let label = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        let is_address = name.parse::<std::net::IpAddr>().is_ok();
        if name.len() > 253 || !(name.split('.').all(label) || is_address) {
            let message =
                format!("`{host}` is not a host name: write api.example.com or *.example.com, without a port");
            cx.error(at!["routes", n, "hostnames", h], message);
        }
    }
}

fn no_slash(path: &str) -> String {
    format!("`{path}` does not begin with `/`: write `/{path}`")
}

/// Checks a regular expression over the whole of something.
fn regular_expression(cx: &mut Context<'_>, at: Vec<Segment>, pattern: &str, of: &str) {
    // Alone too: `a)|(?:b` would take the anchors apart that hold it to the whole.
    let build = |pattern: &str| regex::RegexBuilder::new(pattern).size_limit(1 << 20).build();
    if let Err(e) = build(pattern).and_then(|_| build(&format!("^(?:{pattern})$"))) {
        let message = e.to_string().lines().last().unwrap_or_default().to_owned();
        cx.error(at, format!("not a regular expression ({message}); expected one over the whole {of}"));
    }
}

/// Checks the value of a header or a parameter: one way of comparison.
fn one_value(cx: &mut Context<'_>, mut at: Vec<Segment>, (exact, regex): (&Option<String>, &Option<String>)) {
    if exact.is_some() == regex.is_some() {
        cx.error(at, "found both or none; expected exactly one of `exact` and `regex`");
    } else if let Some(pattern) = regex {
        at.push(Segment::from("regex"));
        regular_expression(cx, at, pattern, "value");
    }
}

fn one_match(cx: &mut Context<'_>, n: usize, m: usize, written: &Match, signals: &[SignalName]) {
    match &written.path {
        Some(PathMatch::Exact(path)) if !path.starts_with('/') => {
            cx.error(at!["routes", n, "matches", m, "path", "exact"], no_slash(path));
        }
        Some(PathMatch::Prefix(path)) if !path.starts_with('/') => {
            cx.error(at!["routes", n, "matches", m, "path", "prefix"], no_slash(path));
        }
        Some(PathMatch::Regex(pattern)) => {
            regular_expression(cx, at!["routes", n, "matches", m, "path", "regex"], pattern, "path");
        }
        _ => {}
    }
    if let Some(method) = &written.method
        && (http::Method::from_bytes(method.as_bytes()).is_err() || method.chars().any(|c| c.is_ascii_lowercase()))
    {
        let message = format!("`{method}` is not a method: write GET, POST, ... in capitals");
        cx.error(at!["routes", n, "matches", m, "method"], message);
    }
    for (h, header) in written.headers.iter().enumerate() {
        let at = at!["routes", n, "matches", m, "headers", h];
        header_name(cx, at!["routes", n, "matches", m, "headers", h, "name"], &header.name);
        one_value(cx, at, (&header.exact, &header.regex));
        if header.exact.as_ref().is_some_and(|value| http::HeaderValue::from_str(value).is_err()) {
            let message = "this value has characters that no header may have: remove them";
            cx.error(at!["routes", n, "matches", m, "headers", h, "exact"], message);
        }
    }
    for (q, parameter) in written.query_params.iter().enumerate() {
        if parameter.name.is_empty() {
            cx.error(
                at!["routes", n, "matches", m, "queryParams", q, "name"],
                "an empty name; expected that of a parameter",
            );
        }
        one_value(cx, at!["routes", n, "matches", m, "queryParams", q], (&parameter.exact, &parameter.regex));
    }
    if let Some(expression) = &written.when
        && let Err(message) = cx.options.catalog.check_expression(expression, ExpressionPlace::Match(signals))
    {
        cx.error(at!["routes", n, "matches", m, "when"], message);
    }
    if written.model.as_deref() == Some("") {
        cx.error(
            at!["routes", n, "matches", m, "model"],
            "an empty model name matches nothing; expected a name, or `*` for any",
        );
    }
}

fn authentication(cx: &mut Context<'_>, n: usize, route: &Route) {
    let config = cx.config;
    let anybody = super::callers::anybody(cx);
    match route.authentication {
        Some(RouteAuthentication::Required) if !anybody => {
            let message = "no consumer has a key or token: no caller could ever pass (`spillway key new` makes a key)";
            cx.error(at!["routes", n, "authentication"], message);
        }
        None if (!config.consumers.is_empty() || config.authentication.is_some()) && !anybody => {
            let message = "callers must be known here, and no consumer has a key or token, so no caller could ever pass: give one `keys`";
            cx.error(at!["routes", n], message);
        }
        _ => {}
    }
    let Some(access) = &route.access else { return };
    if access.consumers.is_empty() && access.tenants.is_empty() && access.scopes.is_empty() {
        cx.error(
            at!["routes", n, "access"],
            "no caller is named; expected consumers, tenants or scopes, or leave it out",
        );
    }
    let asks = config.authentication.is_some() || !config.consumers.is_empty();
    if route.authentication == Some(RouteAuthentication::None) || (route.authentication.is_none() && !asks) {
        cx.error(
            at!["routes", n, "access"],
            "no effect, because callers are not identified on this route: write `authentication: required`",
        );
    }
    let made_from_claims = config.authentication.iter().flat_map(|a| &a.jwt).any(|issuer| issuer.claims.is_some());
    if !access.scopes.is_empty() && config.authentication.iter().all(|a| a.jwt.is_empty()) {
        cx.error(
            at!["routes", n, "access", "scopes"],
            "no effect: only tokens have scopes, and there is no `authentication.jwt`; add that",
        );
    }
    if made_from_claims {
        return;
    }
    let index = cx.index;
    for (i, name) in access.consumers.iter().enumerate() {
        if !index.consumers.contains(name.as_str()) {
            let known: Vec<&str> = config.consumers.iter().map(|c| c.name.as_str()).collect();
            cx.unknown(at!["routes", n, "access", "consumers", i], "consumer", name, &known);
        }
    }
    for (i, name) in access.tenants.iter().enumerate() {
        if !index.tenants.contains(name.as_str()) {
            let known: Vec<&str> = config.consumers.iter().map(|c| c.tenant.as_deref().unwrap_or(&c.name)).collect();
            cx.unknown(at!["routes", n, "access", "tenants", i], "tenant", name, &known);
        }
    }
}

fn filters(cx: &mut Context<'_>, n: usize, route: &Route) {
    let changes_path = |filter: &&FilterEntry| {
        filter.name == "urlRewrite"
            && ["path", "replacePrefix", "azureOpenai"].iter().any(|key| filter.config.get(key).is_some())
    };
    let first = route.filters.iter().position(|filter| changes_path(&filter));
    for (f, filter) in route.filters.iter().enumerate() {
        if rewrites_by_pattern(&filter.name, &filter.config) && first.is_some_and(|first| first < f) {
            let message = "another `urlRewrite` before it changes the path; expected the expression first, over the path of \
                           the caller: write both changes into one expression";
            cx.error(at!["routes", n, "filters", f, "urlRewrite", "path"], message);
        }
        for FieldError { path, message } in cx.options.catalog.check(&filter.name, &filter.config) {
            let mut at = at!["routes", n, "filters", f, filter.name.as_str()];
            at.extend(path.iter().map(|key| Segment::from(key.as_str())));
            cx.error(at, message);
        }
        if filter.config.get("onExceeded").and_then(serde_json::Value::as_str) == Some("spill")
            && route.when_saturated.as_ref().is_none_or(|w| w.spill_to.is_none())
        {
            let message =
                "no effect, because this route has no `whenSaturated.spillTo`: name there what answers instead";
            cx.error(at!["routes", n, "filters", f, filter.name.as_str(), "onExceeded"], message);
        }
        if filter.name == "mirror"
            && let Some(name) = filter.config.get("backend").and_then(serde_json::Value::as_str)
        {
            let config = cx.config;
            let at = at!["routes", n, "filters", f, "mirror", "backend"];
            if cx.index.models.contains(name) {
                cx.error(at, format!("`{name}` is a built-in model, which takes no copies; expected a backend"));
            } else if !cx.index.backends.contains_key(name) {
                let known: Vec<&str> = config.backends.iter().map(|b| b.name.as_str()).collect();
                cx.unknown(at, "backend", name, &known);
            }
        }
    }
}

/// True if the route has a filter that answers by itself.
pub(super) fn answers_itself(route: &Route) -> bool {
    route.filters.iter().any(|filter| ANSWERING.contains(&filter.name.as_str()) && !answers_some(filter))
}

/// True if a filter answers only some of the requests.
fn answers_some(filter: &FilterEntry) -> bool {
    filter.config.get("percent").and_then(serde_json::Value::as_f64).is_some_and(|percent| percent < 100.0)
}

/// Reports keys about targets on a route that has none.
fn without_targets(cx: &mut Context<'_>, n: usize, route: &Route) {
    for (key, is_written) in [
        ("sticky", route.sticky.is_some()),
        ("rollout", route.rollout.is_some()),
        ("whenSaturated", route.when_saturated.is_some()),
        ("whenUnavailable", route.when_unavailable.is_some()),
        ("resume", route.resume),
    ] {
        if is_written {
            cx.error(
                at!["routes", n, key],
                "no effect, because this route has no `backendRefs`: add one, or remove this",
            );
        }
    }
}

/// Checks of names of models that a route can never answer.
fn model_names(cx: &mut Context<'_>, n: usize, route: &Route) {
    let own: Vec<&str> = route.backend_refs.iter().filter_map(|r| r.model.as_deref()).collect();
    for (alias, model) in &route.model_alias {
        let place = at!["routes", n, "modelAlias", alias.as_str()];
        if !own.contains(&model.as_str()) {
            cx.unknown(place, "model of `backendRefs`", model, &own);
        } else if own.contains(&alias.as_str()) {
            cx.error(place, format!("`{alias}` is the name of a built-in model of this route: choose another name"));
        }
    }
    let is_ollama = |name: &str| cx.index.backends.get(name).is_some_and(|b| b.protocol == BackendProtocol::Ollama);
    if route.backend_refs.iter().any(|reference| reference.name.as_deref().is_some_and(is_ollama)) {
        for (m, written) in route.matches.iter().enumerate() {
            if let Some(name) = &written.model {
                super::backends::ollama_name(cx, at!["routes", n, "matches", m, "model"], name);
            }
        }
    }
    let backends: Vec<_> =
        route.backend_refs.iter().filter_map(|r| cx.index.backends.get(r.name.as_deref()?)).collect();
    // Patterns of the names that some target serves; a backend without a list serves all.
    let Some(listed) = backends.iter().map(|b| b.models.as_deref()).collect::<Option<Vec<&[String]>>>() else { return };
    let listed: Vec<ModelPattern> = listed.into_iter().flatten().map(|pattern| ModelPattern::new(pattern)).collect();
    for (m, written) in route.matches.iter().enumerate() {
        let Some(name) = written.model.as_deref().filter(|name| !name.is_empty() && !name.contains('*')) else {
            continue;
        };
        let is_own = own.contains(&name) || route.model_alias.contains_key(name);
        if !is_own && !listed.iter().any(|pattern| pattern.matches(name)) {
            let message = format!(
                "no target of this route serves `{name}`, so every such request is 404: add a target that does, or an \
                 entry of `modelAlias`"
            );
            cx.warn(at!["routes", n, "matches", m, "model"], message);
        }
    }
}

/// Warns of targets and filters that get no request, because `respond` answers each.
fn after_respond(cx: &mut Context<'_>, n: usize, route: &Route) {
    let Some(f) = route.filters.iter().position(|filter| filter.name == "respond" && !answers_some(filter)) else {
        return;
    };
    if !route.backend_refs.is_empty() {
        let message = "`respond` answers every request of this route, so these get none: remove one of both";
        cx.warn(at!["routes", n, "backendRefs"], message);
    }
    for (later, filter) in route.filters.iter().enumerate().skip(f + 1) {
        if BEHIND_RESPOND.contains(&filter.name.as_str()) {
            let message = format!("`respond` has answered before `{}` is asked: move it up, or remove it", filter.name);
            cx.warn(at!["routes", n, "filters", later, filter.name.as_str()], message);
        }
    }
}

/// Reports filters of servers' answers on a route to which no server belongs.
fn without_servers(cx: &mut Context<'_>, n: usize, route: &Route) {
    let saturated = route.when_saturated.as_ref().and_then(|rule| rule.spill_to.as_deref());
    let unavailable = route.when_unavailable.as_ref().and_then(|rule| rule.spill_to.as_deref());
    let mut names = route.backend_refs.iter().filter_map(|r| r.name.as_deref()).chain(saturated).chain(unavailable);
    if names.any(|name| !cx.index.models.contains(name)) {
        return;
    }
    for (f, filter) in route.filters.iter().enumerate() {
        if FOR_SERVERS.contains(&filter.name.as_str()) {
            let message = "no effect, because no server answers requests of this route: add a backend, or remove this";
            cx.error(at!["routes", n, "filters", f, filter.name.as_str()], message);
        }
    }
}

/// Checks of the filters of one target.
fn target_filters(cx: &mut Context<'_>, n: usize, r: usize, reference: &BackendRef) {
    if reference.model.is_some() && !reference.filters.is_empty() {
        cx.error(
            at!["routes", n, "backendRefs", r, "filters"],
            "a built-in model has no filters of its own: write them under the filters of the route",
        );
    }
    for (f, TargetFilter(filter)) in reference.filters.iter().enumerate() {
        let at = at!["routes", n, "backendRefs", r, "filters", f, filter.name.as_str()];
        if !TargetFilter::NAMES.contains(&filter.name.as_str()) {
            let known = TargetFilter::NAMES.map(|name| format!("`{name}`")).join(" or ");
            let message = format!(
                "`{}` is no filter of one target; expected {known}: write others under the filters of the route",
                filter.name
            );
            cx.error(at, message);
            continue;
        }
        for FieldError { path, message } in cx.options.catalog.check(&filter.name, &filter.config) {
            let mut at = at.clone();
            at.extend(path.iter().map(|key| Segment::from(key.as_str())));
            cx.error(at, message);
        }
    }
}

fn references(cx: &mut Context<'_>, n: usize, route: &Route) {
    let (config, index) = (cx.config, cx.index);
    let backends = || config.backends.iter().map(|b| b.name.as_str());
    let models = || config.models.iter().map(|m| m.name.as_str());
    if route.backend_refs.is_empty() && !answers_itself(route) {
        cx.error(
            at!["routes", n, "backendRefs"],
            "no target; a route needs at least one backend or model: add one, or a filter that answers by itself \
             (`respond`, `redirect`)",
        );
    } else if route.backend_refs.is_empty() {
        without_targets(cx, n, route);
    } else if route.backend_refs.iter().all(|reference| reference.weight == 0) {
        cx.error(
            at!["routes", n, "backendRefs"],
            "all weights are zero, so nothing would get a request; expected one above zero",
        );
    }
    let mut seen = std::collections::HashSet::new();
    for (r, reference) in route.backend_refs.iter().enumerate() {
        match (&reference.name, &reference.model) {
            (Some(name), None) if index.models.contains(name.as_str()) => {
                let message = format!("`{name}` is a built-in model and no backend: write {{model: {name}}}");
                cx.error(at!["routes", n, "backendRefs", r, "name"], message);
            }
            (Some(name), None) if !index.backends.contains_key(name.as_str()) => {
                let known: Vec<&str> = backends().collect();
                cx.unknown(at!["routes", n, "backendRefs", r, "name"], "backend", name, &known);
            }
            (None, Some(model)) if !index.models.contains(model.as_str()) => {
                let known: Vec<&str> = models().collect();
                cx.unknown(at!["routes", n, "backendRefs", r, "model"], "model", model, &known);
            }
            (Some(_), Some(_)) | (None, None) => {
                cx.error(
                    at!["routes", n, "backendRefs", r],
                    "found both or none; expected exactly one of `name` (a backend) and `model`",
                );
            }
            _ => {}
        }
        target_filters(cx, n, r, reference);
        // The shares of a rollout, and callers that stay, are told apart by the names of targets.
        let tells_apart = route.rollout.is_none() && route.sticky.is_none() && route.quality.is_none();
        let filters = tells_apart.then(|| serde_json::to_string(&reference.filters).unwrap_or_default());
        if !seen.insert((&reference.name, &reference.model, filters)) {
            cx.error(
                at!["routes", n, "backendRefs", r],
                "duplicate target: remove one, and add its weight to the other",
            );
        }
    }
    if let Some(protocols) = &route.protocols {
        let at = at!["routes", n, "protocols"];
        if protocols.is_empty() {
            cx.error(at, "no API, so no caller could use the route: name one, or remove this");
        } else if protocols.iter().enumerate().any(|(p, one)| protocols.iter().take(p).any(|other| other == one)) {
            cx.error(at, "an API is named twice: remove one");
        }
    }
    let spills = |r: &BackendRef| r.model.is_some() || r.name.as_deref().is_some_and(|r| index.can_spill(r));
    let can_spill = route.backend_refs.iter().any(spills);
    let spills = [
        ("whenSaturated", route.when_saturated.as_ref().map(|w| (w.spill_to.as_ref(), w.reject.as_ref()))),
        ("whenUnavailable", route.when_unavailable.as_ref().map(|w| (w.spill_to.as_ref(), w.reject.as_ref()))),
    ];
    for (key, rule) in spills {
        let Some((spill_to, reject)) = rule else { continue };
        if let Some(name) = spill_to {
            let at = at!["routes", n, key, "spillTo"];
            if index.backends.contains_key(name.as_str()) {
                if route.backend_refs.iter().any(|r| r.name.as_deref() == Some(name)) {
                    let message =
                        format!("`{name}` is in this route's backendRefs and tried before; expected another target");
                    cx.error(at, message);
                }
            } else if !index.models.contains(name.as_str()) {
                let known: Vec<&str> = models().chain(backends()).collect();
                cx.unknown(at, "model or backend", name, &known);
            } else if !can_spill {
                let message = "no backend of this route speaks a model protocol, so nothing could spill: write `protocol: openai` there";
                cx.error(at, message);
            }
        }
        if let Some(reject) = reject
            && !matches!(reject.status.0, 429 | 503)
        {
            cx.error(
                at!["routes", n, key, "reject", "status"],
                format!("found {}; expected 429 or 503, which say that there is no room", reject.status.0),
            );
        }
    }
}

/// Checks the names of protocols. A tunnel of HTTP/2 would carry requests that no rule sees (RFC 9113, 3.1: `h2c`).
fn upgrades(cx: &mut Context<'_>, n: usize, route: &Route) {
    const NEVER: [&str; 4] = ["h2c", "h2", "http", "tls"];
    let is_token = |name: &str| {
        let is_of_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~/".contains(&byte);
        !name.is_empty() && name.bytes().all(is_of_token)
    };
    for (place, name) in route.upgrades.iter().enumerate() {
        let own = name.split('/').next().unwrap_or_default();
        if !is_token(name) {
            let message = format!("`{name}` is no name of a protocol; expected one such as `websocket`");
            cx.error(at!["routes", n, "upgrades", place], message);
        } else if NEVER.iter().any(|never| never.eq_ignore_ascii_case(own)) {
            let message =
                format!("`{name}` is never passed on: its tunnel would carry requests that no rule here sees");
            cx.error(at!["routes", n, "upgrades", place], message);
        }
    }
}

fn times(cx: &mut Context<'_>, n: usize, route: &Route) {
    let t = &route.timeouts;
    let all = [("request", Some(t.request)), ("backendRequest", t.backend_request), ("firstToken", t.first_token)];
    for (key, value) in all {
        let Some(value) = value else { continue };
        if value.0.is_zero() {
            cx.error(
                at!["routes", n, "timeouts", key],
                "a time limit of zero lets nothing pass; expected a longer time",
            );
        } else if value > t.request {
            let message =
                format!("{value} is longer than timeouts.request ({}) and can never pass; expected less", t.request);
            cx.warn(at!["routes", n, "timeouts", key], message);
        }
    }
    for (key, value) in [("socketIdle", Some(t.socket_idle)), ("socketLifetime", t.socket_lifetime)] {
        if value.is_some_and(|value| value.0.is_zero()) {
            cx.error(
                at!["routes", n, "timeouts", key],
                "a time limit of zero lets no socket live; expected a longer time",
            );
        }
    }
    if route.retry.attempts > 10 {
        cx.error(
            at!["routes", n, "retry", "attempts"],
            format!("found {}; expected at most 10 further tries, to spare the servers", route.retry.attempts),
        );
    }
    let (index, limits) = (cx.index, &cx.config.limits);
    let calls_models = route.backend_refs.iter().any(|reference| {
        reference.model.is_some() || reference.name.as_deref().is_some_and(|name| index.calls_models(name))
    });
    let share = limits.buffered_bodies.min(limits.buffered_bodies_per_caller);
    if calls_models && route.limits.max_body > share {
        let key = if share == limits.buffered_bodies { "bufferedBodies" } else { "bufferedBodiesPerCaller" };
        let message = format!(
            "bodies of this route are held, and limits.{key} leaves {share} for one: write at most that, or raise the limit"
        );
        cx.warn(at!["routes", n, "limits", "maxBody"], message);
    }
}

/// Warns of matches that an earlier route has too: the same path, method, headers and model on the same hosts.
fn shadows(cx: &mut Context<'_>) {
    let key = |m: &Match| {
        let mut headers: Vec<_> =
            m.headers.iter().map(|h| (h.name.to_lowercase(), h.exact.clone(), h.regex.clone())).collect();
        headers.sort();
        let mut parameters: Vec<_> =
            m.query_params.iter().map(|q| (q.name.clone(), q.exact.clone(), q.regex.clone())).collect();
        parameters.sort();
        let path = m.path.as_ref().map(|p| format!("{p:?}"));
        (path, m.method.clone(), headers, parameters, m.model.clone(), m.when.clone())
    };
    let everything = [Match::default()];
    let mut seen = std::collections::HashMap::new();
    let mut found = Vec::new();
    for (n, route) in cx.config.routes.iter().enumerate() {
        let matches = if route.matches.is_empty() { everything.as_slice() } else { &route.matches };
        for (m, written) in matches.iter().enumerate() {
            let hosts = if route.hostnames.is_empty() { vec![String::new()] } else { route.hostnames.clone() };
            for host in hosts {
                let first = *seen.entry((&route.listeners, host.to_lowercase(), key(written))).or_insert(n);
                if first != n {
                    found.push((n, m, first));
                }
            }
        }
    }
    found.dedup();
    for (n, m, first) in found {
        let message = format!(
            "{} matches the same requests and comes first, so this never wins: remove it, or move it up",
            (cx.place)(at!["routes", first])
        );
        cx.warn(at!["routes", n, "matches", m], message);
    }
}
