//! Rules of a route that a caller could want to evade: who may use it, how much, which models. Compared by `check` and at
//! run time, where a path has a second reading that another route governs.

use crate::schema::{Access, BackendProtocol, Config, FilterEntry, Route, RouteAuthentication};

/// Filters that neither refuse a request nor count it.
const HARMLESS: [&str; 6] =
    ["requestHeaders", "responseHeaders", "cors", "strictTransportSecurity", "urlRewrite", "redirect"];

/// Rules that a route applies to callers. Equal for two routes where it makes no difference which of them takes a request.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteRules<'c> {
    authentication: RouteAuthentication,
    access: Option<&'c Access>,
    filters: Vec<(&'c str, &'c serde_json::Value)>,
    /// Name of a route with limits of its own: two routes with equal limits count separately.
    counts_as: Option<&'c str>,
    max_body: u64,
    /// Models that its matches name, in the order of the file.
    models: Vec<Option<&'c str>>,
    /// True if the body is held, so that the caller's list of models is applied to what it names.
    reads_model: bool,
}

impl<'c> RouteRules<'c> {
    /// Rules of a route of this configuration.
    pub fn of(route: &'c Route, config: &'c Config) -> Self {
        let known_callers = !config.consumers.is_empty() || config.authentication.is_some();
        let default = if known_callers { RouteAuthentication::Required } else { RouteAuthentication::None };
        let judges = |filter: &&FilterEntry| !HARMLESS.contains(&filter.name.as_str());
        let filters: Vec<_> = route.filters.iter().filter(judges).map(|f| (f.name.as_str(), &f.config)).collect();
        let counts = filters.iter().any(|(name, _)| *name == "rateLimit");
        let is_openai = |name: &str| {
            config.backends.iter().any(|backend| backend.name == name && backend.protocol == BackendProtocol::Openai)
        };
        let calls_model =
            route.backend_refs.iter().any(|r| r.model.is_some() || r.name.as_deref().is_some_and(is_openai));
        let mut models: Vec<_> = route.matches.iter().map(|m| m.model.as_deref()).collect();
        models.dedup();
        if models == [None] {
            models.clear();
        }
        Self {
            authentication: route.authentication.unwrap_or(default),
            access: route.access.as_ref(),
            counts_as: counts.then(|| route.name.as_deref().unwrap_or("default")),
            max_body: route.limits.max_body.0,
            models,
            reads_model: calls_model || route.when_saturated.as_ref().is_some_and(|w| w.queue.is_some()),
            filters,
        }
    }

    /// First rule in which two routes differ, by its key in the file; `None` where all are equal.
    pub fn difference(&self, other: &Self) -> Option<&'static str> {
        if self.authentication != other.authentication {
            Some("authentication")
        } else if self.access != other.access {
            Some("access")
        } else if self.filters != other.filters || self.counts_as != other.counts_as {
            Some("filters")
        } else if self.max_body != other.max_body {
            Some("limits")
        } else if self.models != other.models || self.reads_model != other.reads_model {
            Some("models")
        } else {
            None
        }
    }

    /// True if a filter of the route may decide by the path of the request: an expression that names it, another server,
    /// a filter that is not one of ours.
    pub fn judges_path(&self) -> bool {
        self.filters.iter().any(|(name, config)| match *name {
            "clientAddress" | "mirror" => false,
            "authorize" | "cel" | "rateLimit" => config.to_string().contains("path"),
            _ => true,
        })
    }
}
