//! Compiled backends, and what a route may use: a backend or a built-in model.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use spillway_config::ModelPattern;
use spillway_config::schema::{HashOn, PolicyName};

use super::named_filter::NamedFilter;
use crate::balancing::{Balancer, ServedModels};
use crate::builtin::LoadedModel;
use crate::clock::now_millis;
use crate::credentials::Credential;
use crate::protocol::translate::{ServerKind, ServerWords};
use crate::protocol::{Dialect, ForeignOperations};
use crate::queueing::{RetryBudget, Room};
use crate::telemetry::ModelMetrics;

/// Backend or built-in model that a route's requests go to.
pub struct Target {
    /// Name of the backend or model.
    pub name: String,
    /// Share of the requests.
    pub weight: u32,
    /// Tier: targets with a higher number are tried later.
    pub priority: u32,
    /// Backend or built-in model.
    pub kind: TargetKind,
    /// Filters of headers for this target alone.
    pub filters: Vec<NamedFilter>,
}

/// Backend or built-in model.
#[derive(Clone)]
pub enum TargetKind {
    /// A group of servers.
    Backend(Arc<Backend>),
    /// A built-in model.
    Model(Arc<LoadedModel>),
}

/// Compiled backend.
pub struct Backend {
    /// Name in the configuration.
    pub name: Arc<str>,
    /// Dialect of the model API that its servers speak; `None` for servers of anything else.
    pub dialect: Option<&'static dyn Dialect>,
    /// Balancer over its endpoints, with their health.
    pub balancer: Balancer,
    /// Part of a request that keeps it on its endpoint, for the policy `hash`.
    pub hash_on: Option<HashOn>,
    /// Name of the policy.
    pub policy: PolicyName,
    /// True if its servers are spoken to in HTTP/2, where they accept it.
    pub http2: bool,
    /// True if each request asks its server for a load report.
    pub load_reports: bool,
    /// Budget of retries and hedges.
    pub retries: Arc<RetryBudget>,
    /// Most retries and hedges at a time.
    pub max_retries: u32,
    /// Most waiters at a time.
    pub max_pending: u32,
    /// Room that offers its free slots to waiters.
    pub room: Arc<Room>,
    /// Model name that its servers know, where it differs from the caller's.
    pub model: Option<Arc<str>>,
    /// Model name that its servers know, as JSON text to put into a body.
    pub upstream_model: Option<String>,
    /// Names of models that its servers serve; `None` for all.
    pub serves: Option<Vec<ModelPattern>>,
    /// True if its servers are asked for their models.
    pub lists_models: bool,
    /// Credential that replaces those of the caller.
    pub credentials: Option<Credential>,
    /// Headers that its servers need and get where the caller sent none.
    pub default_headers: Vec<(HeaderName, HeaderValue)>,
    /// Operations whose requests are translated, because its servers do not have them.
    pub foreign: ForeignOperations,
    /// True if servers of OpenAI's API have the Responses API too.
    pub has_responses: bool,
    /// True if they count tokens at `/tokenize`.
    pub has_tokenize: bool,
    /// Fields of requests that its servers do not get.
    pub drop_fields: Vec<String>,
    /// True if requests may have to be written anew for it: it has foreign operations, or fields to drop.
    pub rewrites: bool,
    /// Words in which its servers read translated requests.
    pub words: ServerWords,
    /// True if its servers are asked for the usage of streams for which callers do not ask.
    pub stream_usage: bool,
    /// True if credentials of callers that identify no consumer are passed on.
    pub passes_credentials: bool,
    /// Statuses with which its servers report that they are full.
    pub full_statuses: Vec<u16>,
    /// Longest time that one such answer keeps an endpoint out.
    pub max_full_for: Duration,
    /// Longest time from the end of the request to the head of the answer; `None` for the time that the route has.
    pub first_byte_timeout: Option<Duration>,
    /// Longest time between two reads of the answer; `None` for the time that the route has.
    pub idle_timeout: Option<Duration>,
    /// Longest time for a server to take a part of the request.
    pub send_timeout: Duration,
    /// Most bytes of the header of an answer with the early answers before it, and of its trailers.
    pub max_header_bytes: u64,
    /// Most bytes of an answer that is kept to be translated.
    pub max_translated_bytes: usize,
    /// Series of its model calls; `None` where it calls no models.
    pub metrics: Option<Arc<ModelMetrics>>,
}

impl Backend {
    /// API of its servers, as translations know it; `None` for servers of other kinds.
    pub fn kind(&self) -> Option<ServerKind> {
        let Self { dialect, has_responses, has_tokenize, .. } = *self;
        dialect.map(|dialect| ServerKind { dialect, has_responses, has_tokenize })
    }

    /// True if its requests call models.
    pub fn calls_models(&self) -> bool {
        self.dialect.is_some()
    }

    /// True if a request may reach a server twice whatever its method: a second model call costs tokens but changes nothing.
    pub fn may_repeat(&self) -> bool {
        self.calls_models()
    }

    /// True if its servers serve the model `name`.
    pub fn serves(&self, name: &str) -> bool {
        self.serves.as_ref().is_none_or(|patterns| patterns.iter().any(|pattern| pattern.matches(name)))
    }

    /// Models that its servers said they have, endpoint by endpoint; a name may be in several lists.
    pub fn served_models(&self) -> Vec<Arc<ServedModels>> {
        if !self.lists_models {
            return Vec::new();
        }
        self.balancer.endpoints().all().iter().filter_map(|endpoint| endpoint.state.models()).collect()
    }

    /// True if it has a server with this URL, resolved or not.
    pub fn has_url(&self, url: &str) -> bool {
        let set = self.balancer.endpoints();
        set.all().iter().any(|endpoint| endpoint.url.to_string() == url)
            || set.unresolved().iter().any(|endpoint| endpoint.url.to_string() == url)
    }

    /// True if its servers can be spoken to in HTTP/1.1, which alone has upgrades: HTTP/2 without TLS is not negotiated.
    pub fn takes_upgrades(&self) -> bool {
        !self.http2 || self.balancer.endpoints().all().iter().all(|endpoint| endpoint.url.https)
    }

    /// True if an endpoint may get traffic at all.
    pub fn is_available(&self) -> bool {
        self.balancer.is_available(now_millis())
    }
}

impl TargetKind {
    /// Name of the target in reports: that of the backend, or `builtin/NAME`.
    pub fn served_by(&self) -> &Arc<str> {
        match self {
            Self::Backend(backend) => &backend.name,
            Self::Model(model) => model.served_by_text(),
        }
    }
}

impl Target {
    /// True if the target may get requests at all.
    pub fn is_available(&self) -> bool {
        self.weight > 0
            && match &self.kind {
                TargetKind::Backend(backend) => backend.is_available(),
                TargetKind::Model(_) => true,
            }
    }
}

#[cfg(test)]
impl Backend {
    /// Backend with one endpoint that is never connected to.
    pub(crate) fn for_tests(name: &str) -> Self {
        Self {
            name: name.into(),
            dialect: None,
            balancer: crate::balancing::tests::balancer(crate::balancing::tests::endpoints(&[1])),
            hash_on: None,
            policy: PolicyName::LeastRequest,
            http2: false,
            load_reports: false,
            retries: Arc::default(),
            max_retries: u32::MAX,
            max_pending: u32::MAX,
            room: Arc::default(),
            model: None,
            upstream_model: None,
            serves: None,
            lists_models: false,
            credentials: None,
            default_headers: Vec::new(),
            foreign: ForeignOperations::NONE,
            has_responses: true,
            has_tokenize: false,
            drop_fields: Vec::new(),
            rewrites: false,
            words: ServerWords::default(),
            stream_usage: false,
            passes_credentials: false,
            full_statuses: Vec::new(),
            max_full_for: Duration::from_secs(10),
            first_byte_timeout: Some(Duration::from_secs(60)),
            idle_timeout: Some(Duration::from_secs(60)),
            send_timeout: Duration::from_secs(60),
            max_header_bytes: 64 << 10,
            max_translated_bytes: 8 << 20,
            metrics: None,
        }
    }
}
