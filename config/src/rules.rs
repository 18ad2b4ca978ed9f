//! Rules of a route that a caller could want to evade: who may use it, as whom and how much, and which servers and models
//! answer. Compared by `check` and at run time, where a path has a second reading that another route governs.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::schema::{Access, BackendRef, Config, FilterEntry, Route, RouteAuthentication, SpillLimits, UnknownCalls};

/// Filters that make no difference for the request, its answer or its caller.
const HARMLESS: [&str; 1] = ["strictTransportSecurity"];

/// Built-in filters whose outcome depends on the path of a request only where their configuration names it.
const EXPRESSIONS: [&str; 3] = ["authorize", "cel", "rateLimit"];

/// Built-in filters that refuse no request for its path.
const BLIND_TO_PATHS: [&str; 9] = [
    "clientAddress",
    "cors",
    "mirror",
    "publicLocation",
    "redirect",
    "requestHeaders",
    "respond",
    "responseHeaders",
    "urlRewrite",
];

/// Rules that a route applies to requests. Equal for two routes where it makes no difference which of them takes a request.
/// Time limits, retries and the sizes of shares are left out: they decide how long and how often, not what.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteRules<'c> {
    authentication: RouteAuthentication,
    access: Option<&'c Access>,
    filters: Vec<(&'c str, &'c serde_json::Value)>,
    /// Name of a route whose filters count for it alone or read its name: equal filters of another route differ.
    named: Option<&'c str>,
    max_body: u64,
    /// Models that its matches name, in the order of the file.
    models: Vec<Option<&'c str>>,
    /// True if requests are calls of a model, which limits of tokens and budgets count.
    calls_model: bool,
    /// Backends and models that a request may go to.
    targets: BTreeSet<(Option<&'c str>, Option<&'c str>)>,
    /// Filters of these alone: name of the target, name and configuration of the filter.
    target_filters: Vec<(Option<&'c str>, &'c str, &'c serde_json::Value)>,
    /// Further names of its built-in models.
    aliases: &'c BTreeMap<String, String>,
    /// Calls of restricted consumers whose model is not known.
    unknown_calls: UnknownCalls,
    /// Backends and models that answer instead, when there is no room and when no endpoint is available.
    spills_to: [Option<&'c str>; 2],
    /// Requests that may be answered by those.
    spill: Option<&'c SpillLimits>,
}

impl<'c> RouteRules<'c> {
    /// Rules of each route of a configuration.
    pub fn all(config: &'c Config) -> Vec<Self> {
        let known_callers = !config.consumers.is_empty() || config.authentication.is_some();
        let default = if known_callers { RouteAuthentication::Required } else { RouteAuthentication::None };
        let models = config.backends.iter().filter(|backend| backend.protocol.calls_models());
        let models: HashSet<&str> = models.map(|backend| backend.name.as_str()).collect();
        config.routes.iter().map(|route| Self::of(route, default, &models)).collect()
    }

    /// Rules of a route; `models` are the backends that speak the API of a model.
    fn of(route: &'c Route, default: RouteAuthentication, models: &HashSet<&str>) -> Self {
        let judges = |filter: &&FilterEntry| !HARMLESS.contains(&filter.name.as_str());
        let filters: Vec<_> = route.filters.iter().filter(judges).map(|f| (f.name.as_str(), &f.config)).collect();
        let target_filters: Vec<_> = route.backend_refs.iter().flat_map(filters_of).collect();
        let of_targets = target_filters.iter().map(|(_, name, config)| (*name, *config));
        let spill_names_route = route.spill.as_ref().is_some_and(|spill| spill.asks_for("route"));
        let is_named = spill_names_route
            || filters.iter().copied().chain(of_targets).any(|(name, config)| depends_on_route(name, config));
        let calls_model = route
            .backend_refs
            .iter()
            .any(|r| r.model.is_some() || r.name.as_deref().is_some_and(|name| models.contains(name)));
        let mut models: Vec<_> = route.matches.iter().map(|m| m.model.as_deref()).collect();
        models.dedup();
        if models == [None] {
            models.clear();
        }
        let candidate = route.rollout.as_ref().map(|rollout| rollout.to.as_str());
        let is_candidate = |reference: &BackendRef| {
            candidate.is_some() && [reference.name.as_deref(), reference.model.as_deref()].contains(&candidate)
        };
        let targets = route.backend_refs.iter().filter(|reference| reference.weight > 0 || is_candidate(reference));
        let saturated = route.when_saturated.as_ref().and_then(|rule| rule.spill_to.as_deref());
        let unavailable = route.when_unavailable.as_ref().map_or(saturated, |rule| rule.spill_to.as_deref());
        let spills = saturated.is_some() || unavailable.is_some();
        Self {
            authentication: route.authentication.unwrap_or(default),
            access: route.access.as_ref(),
            named: is_named.then(|| route.name.as_deref().unwrap_or("default")),
            max_body: route.limits.max_body.0,
            models,
            calls_model,
            targets: targets.map(|reference| (reference.name.as_deref(), reference.model.as_deref())).collect(),
            target_filters,
            aliases: &route.model_alias,
            unknown_calls: route.unknown_calls,
            spills_to: [saturated, unavailable],
            spill: route.spill.as_ref().filter(|_| spills),
            filters,
        }
    }

    /// Numbers of rules: equal for equal ones.
    pub fn numbers(rules: &[Self]) -> Vec<usize> {
        // Rules that differ here are not equal; few of those that do not are compared.
        let mut alike: HashMap<_, Vec<usize>> = HashMap::new();
        let mut numbers = Vec::with_capacity(rules.len());
        for (n, own) in rules.iter().enumerate() {
            let own_rules = (own.named, own.max_body, own.access, own.spills_to);
            let of_targets = (&own.targets, &own.target_filters);
            let key = (&own.filters, own_rules, &own.models, of_targets, own.aliases);
            let alike = alike.entry(key).or_default();
            let first = alike.iter().copied().find(|first| rules.get(*first) == Some(own));
            if first.is_none() {
                alike.push(n);
            }
            numbers.push(first.unwrap_or(n));
        }
        numbers
    }

    /// First rule in which two routes differ, by its key in the file; `None` where all are equal.
    pub fn difference(&self, other: &Self) -> Option<&'static str> {
        if self.authentication != other.authentication {
            Some("authentication")
        } else if self.access != other.access {
            Some("access")
        } else if self.filters != other.filters || self.named != other.named {
            Some("filters")
        } else if self.max_body != other.max_body {
            Some("limits")
        } else if self.models != other.models {
            Some("models")
        } else if self.targets != other.targets
            || self.target_filters != other.target_filters
            || self.calls_model != other.calls_model
        {
            Some("backendRefs")
        } else if self.aliases != other.aliases {
            Some("modelAlias")
        } else if self.unknown_calls != other.unknown_calls {
            Some("unknownCalls")
        } else if self.spills_to != other.spills_to {
            Some("spillTo")
        } else if self.spill != other.spill {
            Some("spill")
        } else {
            None
        }
    }

    /// True if a filter of the route may decide by the path of the request: an expression that names it, another server,
    /// a filter that is not one of ours.
    pub fn judges_path(&self) -> bool {
        self.spill.is_some_and(|spill| spill.asks_for("path"))
            || self.filters.iter().any(|(name, config)| {
                if EXPRESSIONS.contains(name) {
                    config.to_string().contains("path")
                } else if computed_headers(config).any(|(_, _, text)| text.contains("path")) || asks_for_path(config) {
                    true
                } else {
                    !BLIND_TO_PATHS.contains(name) || rewrites_by_pattern(name, config)
                }
            })
    }
}

/// True for a filter whose condition names the path.
fn asks_for_path(config: &serde_json::Value) -> bool {
    config.get("when").and_then(serde_json::Value::as_str).is_some_and(|when| when.contains("path"))
}

/// Headers that `requestHeaders` or `responseHeaders` compute: `set` or `add`, the name, the expression.
pub(crate) fn computed_headers(config: &serde_json::Value) -> impl Iterator<Item = (&'static str, &str, &str)> {
    let below = |key: &'static str| config.get(key).and_then(serde_json::Value::as_object).map(|map| (key, map));
    let all = ["set", "add"].into_iter().filter_map(below);
    all.flat_map(|(key, map)| {
        map.iter().filter_map(move |(name, value)| Some((key, name.as_str(), value.get("value")?.as_str()?)))
    })
}

/// True for a filter that finds a part of the path by an expression.
pub(crate) fn rewrites_by_pattern(name: &str, config: &serde_json::Value) -> bool {
    name == "urlRewrite" && config.get("path").is_some_and(serde_json::Value::is_object)
}

/// Filters of a target, each with the name of the target.
fn filters_of(reference: &BackendRef) -> impl Iterator<Item = (Option<&str>, &str, &serde_json::Value)> {
    reference.filters.iter().map(|filter| (reference.name.as_deref(), filter.0.name.as_str(), &filter.0.config))
}

/// True if the same filter on another route could decide otherwise: a limit counts by route, an expression or a header
/// value may name the route. A filter that is not built in sees its name.
fn depends_on_route(name: &str, config: &serde_json::Value) -> bool {
    let is_built_in = EXPRESSIONS.contains(&name) || BLIND_TO_PATHS.contains(&name) || name == "externalAuthorization";
    name == "rateLimit" || !is_built_in || config.to_string().contains("route")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_that_is_computed_of_the_path_judges_it() {
        for (filter, judges) in [
            (r#"{"requestHeaders": {"set": {"x-path": "a path"}}}"#, false),
            (r#"{"requestHeaders": {"set": {"x-tenant": {"value": "consumer.tenant"}}}}"#, false),
            (r#"{"requestHeaders": {"set": {"x-admin": {"value": "request.path.startsWith('/admin')"}}}}"#, true),
            (r#"{"mirror": {"backend": "b", "when": "request.method == 'GET'"}}"#, false),
            (r#"{"mirror": {"backend": "b", "when": "request.path == '/a'"}}"#, true),
            (r#"{"responseHeaders": {"add": {"x-at": {"value": "request['path']"}}}}"#, true),
        ] {
            let config = format!(r#"{{"listeners": [], "routes": [{{"name": "r", "filters": [{filter}]}}]}}"#);
            let config: Config = serde_json::from_str(&config).unwrap();
            assert_eq!(RouteRules::all(&config)[0].judges_path(), judges, "{filter}");
        }
    }
}
