//! Compiled routes.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, StatusCode};
use spillway_config::schema::{Access, EncodedSlashes, RouteAuthentication};
use spillway_filter::Filter;
use tokio::sync::Semaphore;

use super::backend::{Backend, Target, TargetKind};
use super::spill_rule::SpillRule;
use crate::limits::Rules;
use crate::protocol::{Dialect, ModelCard};
use crate::queueing::Queue;
use crate::telemetry::RouteMetrics;

/// A compiled route.
pub struct Route {
    /// Its name.
    pub name: String,
    /// Dialect of its errors and of the list of its models.
    pub dialect: &'static dyn Dialect,
    /// True if its requests call models.
    pub calls_models: bool,
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
    /// Values that the environment brought into headers which filters set for servers; `None` where there are none.
    pub environment: Option<Arc<[Box<[u8]>]>>,
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
    pub when_saturated: Fallback,
    /// What happens when no endpoint is available or all tries are spent.
    pub when_unavailable: Fallback,
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
        ModelCard { id: &self.id, created: self.created }
    }
}

/// A filter and the name it has in the file.
pub struct NamedFilter {
    /// For metrics and spans.
    pub name: String,
    /// What it does.
    pub filter: Arc<dyn Filter>,
    /// Rules of its limits that are judged here, before the filter itself is asked.
    pub rules: Rules,
    /// True where its hooks are called: at one place at most. A filter may have rules at another one as well.
    pub acts: bool,
}

/// What happens when no target takes a request: another backend or a built-in model answers, else it is refused.
#[derive(Clone)]
pub struct Fallback {
    /// Backend or built-in model that answers instead.
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
    /// Filter that declares the copies and picks the requests.
    pub filter: Arc<dyn Filter>,
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

impl Route {
    /// Every filter with hooks, each once, guards first.
    pub fn all_filters(&self) -> impl Iterator<Item = &NamedFilter> {
        self.guards.iter().chain(&self.filters).filter(|named| named.acts)
    }
}

#[cfg(test)]
impl Route {
    /// A route that goes nowhere.
    pub(crate) fn for_tests(name: &str) -> Self {
        let last =
            Fallback { spill_to: None, status: StatusCode::SERVICE_UNAVAILABLE, retry_after: Duration::from_secs(1) };
        Self {
            name: name.to_owned(),
            dialect: crate::protocol::PROBLEM,
            calls_models: false,
            encoded_slashes: None,
            rules: 0,
            judges_path: false,
            authentication: RouteAuthentication::None,
            access: None,
            guards: Vec::new(),
            filters: Vec::new(),
            environment: None,
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
