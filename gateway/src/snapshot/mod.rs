//! The compiled configuration: immutable, indexed, cheap to read. A request takes one and sees it from start to end.
//! It holds references to state that outlives it (endpoints, models, limits) and owns none of it.
//! It is made from a checked `spillway_config::schema::Config` by [`compile`] and from nothing else.

mod compile;

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use spillway_config::schema::{BackendProtocol, HashOn, ListenerLimits, PolicyName, RouteAuthentication};
use spillway_filter::Filter;

pub use compile::{Compiler, SnapshotError};

use crate::balancing::{Balancer, Care, now_millis};
use crate::identity::Authenticator;
use crate::protocol::Api;
use crate::protocol::openai::ModelCard;
use crate::routing::RouteTable;
use crate::spill::{LoadedModel, Models};
use crate::telemetry::{ModelMetrics, RouteMetrics, Tracer};

/// The compiled configuration.
pub struct Snapshot {
    /// Which requests go where.
    pub routes: RouteTable,
    /// API keys and whose they are.
    pub identity: Authenticator,
    /// Where traces go.
    pub tracer: Tracer,
    /// Whether each request is logged.
    pub access_log: bool,
    /// What is to be looked after beside the requests; taken when the snapshot begins to run.
    pub cares: parking_lot::Mutex<Vec<Care>>,
    /// Every backend, for the operators' view.
    pub backends: Vec<Arc<Backend>>,
    /// Every model inside.
    pub models: Models,
    /// Memory for bodies that are held.
    pub buffered_bodies: u64,
    /// How long requests may go on after SIGTERM.
    pub drain_timeout: Duration,
    /// The configuration as written, without secrets and digests.
    pub redacted: serde_json::Value,
    /// Changes with every snapshot of the process.
    pub generation: u64,
}

/// A listener to be opened or kept.
#[derive(Debug, Clone)]
pub struct ListenerPlan {
    /// Name in logs and metrics.
    pub name: String,
    /// Where it listens; port 0 takes a free one.
    pub address: std::net::SocketAddr,
    /// Its limits.
    pub limits: ListenerLimits,
}

/// The listeners that a configuration asks for.
pub fn plans(config: &spillway_config::schema::Config) -> Vec<ListenerPlan> {
    config
        .listeners
        .iter()
        .map(|listener| ListenerPlan {
            name: listener.name.clone().unwrap_or_else(|| listener.address.to_string()),
            address: listener.address.0,
            limits: listener.limits.clone(),
        })
        .collect()
}

/// A compiled route.
pub struct Route {
    /// Its name.
    pub name: String,
    /// The shape of its errors.
    pub api: Api,
    /// Whether a caller must show who it is.
    pub authentication: RouteAuthentication,
    /// Filters that run before the caller is known.
    pub guards: Vec<NamedFilter>,
    /// Filters that run when the caller is known.
    pub filters: Vec<NamedFilter>,
    /// Where requests go.
    pub targets: Vec<Target>,
    /// What keeps a caller on one target.
    pub sticky: Option<HeaderName>,
    /// Whether other targets are tried when the drawn one has no room.
    pub try_others: bool,
    /// What happens when no endpoint has room.
    pub when_saturated: Last,
    /// What happens when no endpoint is available or all tries are spent.
    pub when_unavailable: Last,
    /// Arrival to last byte.
    pub request_timeout: Duration,
    /// One attempt.
    pub attempt_timeout: Option<Duration>,
    /// Arrival to the first content of a stream.
    pub first_token_timeout: Option<Duration>,
    /// Further tries after the first.
    pub retry: RetryPlan,
    /// Bytes of a body.
    pub max_body: u64,
    /// Whether the body is held before it goes anywhere: a target or spill needs to read it.
    pub holds_body: bool,
    /// Model names that the list of models shows.
    pub listed_models: Vec<ListedModel>,
    /// Its series.
    pub metrics: Arc<RouteMetrics>,
}

/// A model that a route's list shows.
#[derive(Debug, Clone)]
pub struct ListedModel {
    /// Its name.
    pub id: String,
    /// Unix seconds.
    pub created: u64,
}

impl ListedModel {
    /// As the list wants it.
    pub fn card(&self) -> ModelCard<'_> {
        ModelCard { id: &self.id, created: self.created, owned_by: "spillway" }
    }
}

/// A filter and the name it has in the file.
pub struct NamedFilter {
    /// For metrics and spans.
    pub name: String,
    /// What it does.
    pub filter: Arc<dyn Filter>,
}

/// One of the places that a route's requests go to.
pub struct Target {
    /// Name of the backend or model.
    pub name: String,
    /// Share of the requests.
    pub weight: u32,
    /// The lowest that is available comes first.
    pub priority: u32,
    /// What it is.
    pub kind: TargetKind,
}

/// A backend or a model inside.
pub enum TargetKind {
    /// A group of servers.
    Backend(Arc<Backend>),
    /// A model inside the gateway.
    Model(Arc<LoadedModel>),
}

/// What is left when nothing takes a request: a model that answers, then a refusal.
#[derive(Clone)]
pub struct Last {
    /// Answers instead.
    pub spill_to: Option<Arc<LoadedModel>>,
    /// Status of the refusal.
    pub status: StatusCode,
    /// Its Retry-After.
    pub retry_after: Duration,
}

/// Further tries after the first.
#[derive(Debug, Clone)]
pub struct RetryPlan {
    /// How many.
    pub attempts: u32,
    /// After a connection could not be opened.
    pub on_connect_failure: bool,
    /// After a connection broke before any byte of the answer.
    pub on_reset: bool,
    /// After an answer with one of these.
    pub on_statuses: Vec<u16>,
    /// Before the second try.
    pub backoff_base: Duration,
    /// At most.
    pub backoff_max: Duration,
}

/// A compiled backend.
pub struct Backend {
    /// Its name.
    pub name: Arc<str>,
    /// What its servers speak.
    pub protocol: BackendProtocol,
    /// Its servers: which one takes a request, and which are well.
    pub balancer: Balancer,
    /// What keeps a request on its endpoint, for the policy `hash`.
    pub hash_on: Option<HashOn>,
    /// Name of the policy.
    pub policy: PolicyName,
    /// Whether its servers are asked for their load with each request.
    pub load_reports: bool,
    /// The model name its servers know, as JSON text ready to be put into a body.
    pub upstream_model: Option<String>,
    /// Replaces the caller's credentials.
    pub credentials: Option<HeaderValue>,
    /// Answers that mean full.
    pub full_statuses: Vec<u16>,
    /// Longest time that one such answer keeps an endpoint out.
    pub max_full_for: Duration,
    /// From the end of the request to the head of the answer.
    pub first_byte_timeout: Duration,
    /// Between two reads of the answer.
    pub idle_timeout: Duration,
    /// Series of its model calls.
    pub metrics: Arc<ModelMetrics>,
}

impl Backend {
    /// Whether an endpoint may have traffic at all.
    pub fn is_available(&self) -> bool {
        self.balancer.is_available(now_millis())
    }
}

impl Target {
    /// Whether it can take requests at all.
    pub fn is_available(&self) -> bool {
        self.weight > 0
            && match &self.kind {
                TargetKind::Backend(backend) => backend.is_available(),
                TargetKind::Model(_) => true,
            }
    }
}

impl Route {
    /// Every filter, guards first.
    pub fn all_filters(&self) -> impl Iterator<Item = &NamedFilter> {
        self.guards.iter().chain(&self.filters)
    }
}

#[cfg(test)]
impl Route {
    /// A route that goes nowhere.
    pub(crate) fn for_tests(name: &str) -> Self {
        let last =
            Last { spill_to: None, status: StatusCode::SERVICE_UNAVAILABLE, retry_after: Duration::from_secs(1) };
        Self {
            name: name.to_owned(),
            api: Api::Problem,
            authentication: RouteAuthentication::None,
            guards: Vec::new(),
            filters: Vec::new(),
            targets: Vec::new(),
            sticky: None,
            try_others: true,
            when_saturated: last.clone(),
            when_unavailable: last,
            request_timeout: Duration::from_secs(600),
            attempt_timeout: None,
            first_token_timeout: None,
            retry: RetryPlan {
                attempts: 1,
                on_connect_failure: true,
                on_reset: true,
                on_statuses: Vec::new(),
                backoff_base: Duration::from_millis(25),
                backoff_max: Duration::from_secs(1),
            },
            max_body: 20 << 20,
            holds_body: false,
            listed_models: Vec::new(),
            metrics: Arc::new(RouteMetrics::default()),
        }
    }
}

#[cfg(test)]
impl Backend {
    /// A backend with one endpoint that is never connected to.
    pub(crate) fn for_tests(name: &str) -> Self {
        Self {
            name: name.into(),
            protocol: BackendProtocol::Http,
            balancer: crate::balancing::tests::balancer(crate::balancing::tests::endpoints(&[1])),
            hash_on: None,
            policy: PolicyName::LeastRequest,
            load_reports: false,
            upstream_model: None,
            credentials: None,
            full_statuses: Vec::new(),
            max_full_for: Duration::from_secs(10),
            first_byte_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(60),
            metrics: crate::telemetry::Metrics::new().model("openai", name),
        }
    }
}
