//! The compiled configuration: immutable, indexed, cheap to read. A request takes one and sees it from start to end.
//! It holds references to state that outlives it (endpoints, models, limits) and owns none of it.
//! It is made from a checked `spillway_config::schema::Config` by [`compile`] and from nothing else.

mod caller_headers;
mod compile;

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use spillway_config::schema::{Access, BackendProtocol, EncodedSlashes, HashOn, PolicyName, RouteAuthentication};
use spillway_filter::Filter;
use tokio::sync::Semaphore;

pub use caller_headers::{CallerHeaders, claims_to_be_ours, same_name};
pub(crate) use compile::bearer;
pub use compile::{Compiler, SnapshotError};

use crate::admission::{Queue, RetryBudget, Room, SpillRule};
use crate::adoptions::Adoptions;
use crate::balancing::{Balancer, Care, now_millis};
use crate::downstream::Downstream;
use crate::identity::Authenticator;
use crate::limits::{Limits, Prices, Rules};
use crate::protocol::Api;
use crate::protocol::openai::ModelCard;
use crate::routing::RouteTable;
use crate::spill::{LoadedModel, Models};
use crate::telemetry::{CertificateSample, ModelMetrics, RouteMetrics, Tracer};

/// The compiled configuration.
pub struct Snapshot {
    /// Which requests go where.
    pub routes: RouteTable,
    /// API keys and whose they are.
    pub identity: Authenticator,
    /// Headers that tell backends the consumer and the tenant.
    pub identity_headers: [Option<HeaderName>; 2],
    /// Headers of a caller that do not pass to servers.
    pub caller_headers: CallerHeaders,
    /// What tokens cost.
    pub prices: Prices,
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
    /// Share of one request in the memory for answers that wait for their clients, in bytes.
    pub buffered_answers_per_request: u64,
    /// State of all answers to clients, kept over reloads.
    pub downstream: Arc<Downstream>,
    /// How long requests may go on after SIGTERM.
    pub drain_timeout: Duration,
    /// The configuration as operators see it, without secrets and digests.
    pub shown: serde_json::Value,
    /// Changes with every snapshot of the process.
    pub generation: u64,
    /// What metrics say of the certificates that are shown to backends.
    pub certificates: Vec<CertificateSample>,
    /// What its rules are made with.
    pub limits: Limits,
    /// What it does to state that outlives it: run once, when it begins to run.
    pub adoptions: Adoptions,
}

/// A compiled route.
pub struct Route {
    /// Its name.
    pub name: String,
    /// The shape of its errors.
    pub api: Api,
    /// Treatment of paths with encoded slashes; `None` leaves it to the listener.
    pub encoded_slashes: Option<EncodedSlashes>,
    /// Number of the route's rules for callers: equal for routes with equal rules.
    pub rules: usize,
    /// True if a filter decides by the path of the request.
    pub judges_path: bool,
    /// Whether a caller must show who it is.
    pub authentication: RouteAuthentication,
    /// Who of the known callers may use it.
    pub access: Option<Access>,
    /// Filters that run before the caller is known.
    pub guards: Vec<NamedFilter>,
    /// Filters that run when the caller is known.
    pub filters: Vec<NamedFilter>,
    /// Where requests go.
    pub targets: Vec<Target>,
    /// What keeps a caller on one target.
    pub sticky: Option<HeaderName>,
    /// Whether other targets of its priority are tried when the drawn one has no room.
    pub try_others: bool,
    /// Where requests wait that find no room: none, one, or one for each target where requests stay with theirs.
    pub queues: Vec<Arc<Queue>>,
    /// Longest wait there.
    pub max_queue_wait: Duration,
    /// What happens when no endpoint has room.
    pub when_saturated: Last,
    /// What happens when no endpoint is available or all tries are spent.
    pub when_unavailable: Last,
    /// Which requests may be answered by somebody else.
    pub spill: SpillRule,
    /// Whether a stream that died is continued.
    pub resume: bool,
    /// Backends that get copies of requests.
    pub mirrors: Vec<MirrorPlan>,
    /// Arrival to last byte.
    pub request_timeout: Duration,
    /// One attempt.
    pub attempt_timeout: Option<Duration>,
    /// Arrival to the first content of a stream, or from the beginning of a further try.
    pub first_token_timeout: Option<Duration>,
    /// Further tries after the first.
    pub retry: RetryPlan,
    /// Whether one of the guards answers what browsers ask before a request.
    pub answers_preflight: bool,
    /// Bytes of a body.
    pub max_body: u64,
    /// Whether the body is held before it goes anywhere, whoever calls: a target or spill needs to read it.
    pub holds_body: bool,
    /// True if its filters, its spill or the model names of its backends depend on what a body says.
    pub judges_body: bool,
    /// True if a backend gets another model name than the one that the caller sends.
    pub renames_model: bool,
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
    /// The rules of limits that it stands for at this place; then it is not asked itself.
    pub rules: Rules,
}

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

/// What is left when nothing takes a request: somebody who answers instead, then a refusal.
#[derive(Clone)]
pub struct Last {
    /// Answers instead.
    pub spill_to: Option<TargetKind>,
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
    /// Thousandths of a retry or hedge that each request adds to its backend's budget.
    pub budget: i64,
    /// Further attempts beside a slow one.
    pub hedge: Option<HedgePlan>,
}

/// A backend that gets copies of requests.
pub struct MirrorPlan {
    /// The backend.
    pub backend: Arc<Backend>,
    /// Share of the requests, from 0 to 1.
    pub share: f64,
    /// Longest time of a copy.
    pub timeout: Duration,
    /// One for each copy at the same time.
    pub places: Arc<Semaphore>,
    /// Bytes of a body.
    pub max_body: u64,
}

/// Further attempts beside a slow one.
#[derive(Debug, Clone, Copy)]
pub struct HedgePlan {
    /// How long the last one may take without the head of an answer.
    pub after: Duration,
    /// How many beside the first.
    pub max: usize,
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
            encoded_slashes: None,
            rules: 0,
            judges_path: false,
            authentication: RouteAuthentication::None,
            access: None,
            guards: Vec::new(),
            filters: Vec::new(),
            targets: Vec::new(),
            sticky: None,
            try_others: true,
            queues: Vec::new(),
            max_queue_wait: Duration::ZERO,
            when_saturated: last.clone(),
            when_unavailable: last,
            spill: SpillRule::default(),
            resume: false,
            mirrors: Vec::new(),
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
                budget: 200,
                hedge: None,
            },
            answers_preflight: false,
            max_body: 20 << 20,
            holds_body: false,
            judges_body: false,
            renames_model: false,
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
            metrics: crate::telemetry::Metrics::new().model("openai", name),
        }
    }
}
