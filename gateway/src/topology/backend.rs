//! Compiled backends, and what a route may use: a backend or a built-in model.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use spillway_config::schema::{HashOn, PolicyName};

use crate::balancing::Balancer;
use crate::builtin::LoadedModel;
use crate::clock::now_millis;
use crate::protocol::Dialect;
use crate::queueing::{RetryBudget, Room};
use crate::telemetry::ModelMetrics;

/// One of the places that a route's requests go to.
pub struct Target {
    /// Name of the backend or model.
    pub name: String,
    /// Share of the requests.
    pub weight: u32,
    /// Its tier: a higher number comes later.
    pub priority: u32,
    /// What it is.
    pub kind: TargetKind,
}

/// A backend or a model inside.
#[derive(Clone)]
pub enum TargetKind {
    /// A group of servers.
    Backend(Arc<Backend>),
    /// A model inside the gateway.
    Model(Arc<LoadedModel>),
}

/// A compiled backend.
pub struct Backend {
    /// Its name.
    pub name: Arc<str>,
    /// Dialect of the model API that its servers speak; `None` for servers of anything else.
    pub dialect: Option<&'static dyn Dialect>,
    /// Its servers: which one takes a request, and which are well.
    pub balancer: Balancer,
    /// What keeps a request on its endpoint, for the policy `hash`.
    pub hash_on: Option<HashOn>,
    /// Name of the policy.
    pub policy: PolicyName,
    /// Whether its servers are asked for their load with each request.
    pub load_reports: bool,
    /// What may be sent to it beside the requests themselves.
    pub retries: Arc<RetryBudget>,
    /// How much of that at a time.
    pub max_retries: u32,
    /// How many may wait for it at a time.
    pub max_pending: u32,
    /// Where its free places are offered to those who wait.
    pub room: Arc<Room>,
    /// The model name its servers know, when it differs from the caller's.
    pub model: Option<Arc<str>>,
    /// The same, as JSON text ready to be put into a body.
    pub upstream_model: Option<String>,
    /// Replaces the caller's credentials.
    pub credentials: Option<HeaderValue>,
    /// Credentials of callers that identify nobody at the gateway go along.
    pub passes_credentials: bool,
    /// Answers that mean full.
    pub full_statuses: Vec<u16>,
    /// Longest time that one such answer keeps an endpoint out.
    pub max_full_for: Duration,
    /// From the end of the request to the head of the answer.
    pub first_byte_timeout: Duration,
    /// Between two reads of the answer.
    pub idle_timeout: Duration,
    /// Bytes of the header of an answer with the early answers before it, and of its trailers.
    pub max_header_bytes: u64,
    /// Series of its model calls.
    pub metrics: Arc<ModelMetrics>,
}

impl Backend {
    /// True if its requests call models.
    pub fn calls_models(&self) -> bool {
        self.dialect.is_some()
    }

    /// True if a request may reach a server twice whatever its method: a second model call costs tokens and changes nothing.
    pub fn may_repeat(&self) -> bool {
        self.calls_models()
    }

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

#[cfg(test)]
impl Backend {
    /// A backend with one endpoint that is never connected to.
    pub(crate) fn for_tests(name: &str) -> Self {
        Self {
            name: name.into(),
            dialect: None,
            balancer: crate::balancing::tests::balancer(crate::balancing::tests::endpoints(&[1])),
            hash_on: None,
            policy: PolicyName::LeastRequest,
            load_reports: false,
            retries: Arc::default(),
            max_retries: u32::MAX,
            max_pending: u32::MAX,
            room: Arc::default(),
            model: None,
            upstream_model: None,
            credentials: None,
            passes_credentials: false,
            full_statuses: Vec::new(),
            max_full_for: Duration::from_secs(10),
            first_byte_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(60),
            max_header_bytes: 64 << 10,
            metrics: crate::telemetry::Metrics::new().model("http", name),
        }
    }
}
