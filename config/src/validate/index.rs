//! Names of a configuration, with the parts that have them: checks of one part look at the others without a walk over them.

use std::collections::{HashMap, HashSet};

use crate::schema::{Backend, BackendProtocol, Config, Route, RouteAuthentication};

/// Names of a configuration.
pub(crate) struct Index<'c> {
    pub(super) backends: HashMap<&'c str, &'c Backend>,
    pub(super) models: HashSet<&'c str>,
    pub(super) consumers: HashSet<&'c str>,
    pub(super) tenants: HashSet<&'c str>,
    /// Backends for which a consumer has credentials.
    pub(super) personal: HashSet<&'c str>,
    /// Backends of routes whose callers need not be known.
    pub(super) open: HashSet<&'c str>,
    /// Requests that the queues of the routes of each backend hold.
    pub(super) queued: HashMap<&'c str, u64>,
    /// True if a route spills when it is saturated.
    pub(super) spills: bool,
}

impl<'c> Index<'c> {
    pub(crate) fn new(config: &'c Config) -> Self {
        let consumers = &config.consumers;
        let asks = !consumers.is_empty() || config.authentication.is_some();
        let is_open = |route: &&Route| match route.authentication {
            Some(mode) => mode != RouteAuthentication::Required,
            None => !asks,
        };
        let backends_of = |route: &'c Route| route.backend_refs.iter().filter_map(|r| r.name.as_deref());
        let mut queued: HashMap<&str, u64> = HashMap::new();
        for route in &config.routes {
            let Some(queue) = route.when_saturated.as_ref().and_then(|rule| rule.queue.as_ref()) else { continue };
            // Where requests stay with their target, each target has a queue.
            for backend in backends_of(route).collect::<HashSet<_>>() {
                *queued.entry(backend).or_default() += u64::from(queue.max_depth.get());
            }
        }
        Self {
            // The first of two with one name, which is reported, counts.
            backends: config.backends.iter().rev().map(|backend| (backend.name.as_str(), backend)).collect(),
            models: config.models.iter().map(|model| model.name.as_str()).collect(),
            consumers: consumers.iter().map(|consumer| consumer.name.as_str()).collect(),
            tenants: consumers.iter().map(|c| c.tenant.as_deref().unwrap_or(&c.name)).collect(),
            personal: consumers.iter().flat_map(|c| c.credentials.keys().map(String::as_str)).collect(),
            open: config.routes.iter().filter(is_open).flat_map(backends_of).collect(),
            queued,
            spills: config.spills(),
        }
    }

    /// True for a backend whose requests call models.
    pub(super) fn calls_models(&self, name: &str) -> bool {
        self.backends.get(name).is_some_and(|backend| backend.protocol.calls_models())
    }

    /// True for a backend whose requests may be ones that a built-in model answers in its place.
    pub(super) fn can_spill(&self, name: &str) -> bool {
        let is_of_texts = |protocol| {
            matches!(protocol, BackendProtocol::Openai | BackendProtocol::Anthropic | BackendProtocol::Ollama)
        };
        self.backends.get(name).is_some_and(|backend| is_of_texts(backend.protocol))
    }
}
