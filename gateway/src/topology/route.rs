//! Compiled routes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, StatusCode};
use spillway_config::ModelPattern;
use spillway_config::schema::{Access, EncodedSlashes, RouteAuthentication};
use spillway_filter::Filter;
use tokio::sync::Semaphore;

use super::backend::{Backend, Target, TargetKind};
use super::named_filter::NamedFilter;
use super::spill_rule::SpillRule;
use crate::builtin::LoadedModel;
use crate::compressing::Compression;
use crate::feedback::RouteLabels;
use crate::protocol::{Dialect, ModelCard, PROBLEM};
use crate::quality::{Contents, Sampling};
use crate::queueing::Queue;
use crate::rollout::{LiveRollout, PairRules};
use crate::telemetry::RouteMetrics;

/// Compiled route.
pub struct Route {
    /// Name in the configuration.
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
    /// Authentication that callers need.
    pub authentication: RouteAuthentication,
    /// Consumers that may use the route; `None` for all.
    pub access: Option<Access>,
    /// True if a caller that may use only some models gets no call through whose model is not known.
    pub refuses_unknown_calls: bool,
    /// True if a server of the route reads several spellings as one name.
    pub folds_models: bool,
    /// Dialects that callers may speak; `None` for all.
    pub protocols: Option<Vec<&'static dyn Dialect>>,
    /// Filters that run before the caller is known.
    pub guards: Vec<NamedFilter>,
    /// Filters that run when the caller is known.
    pub filters: Vec<NamedFilter>,
    /// Values from the environment in headers that filters set for servers; `None` where there are none.
    pub environment: Option<Arc<[Box<[u8]>]>>,
    /// Targets of its requests.
    pub targets: Vec<Target>,
    /// Names of its built-in models by their further names.
    pub model_alias: HashMap<Box<str>, Box<str>>,
    /// Header whose value keeps a caller on one target.
    pub sticky: Option<HeaderName>,
    /// Rollout of one of its targets.
    pub rollout: Option<Box<RouteRollout>>,
    /// True if other targets of the same priority are tried when the drawn one has no room.
    pub try_others: bool,
    /// Queues of requests that find no room: none, one, or one for each target where requests stay with theirs.
    pub queues: Vec<Arc<Queue>>,
    /// Longest wait in a queue.
    pub max_queue_wait: Duration,
    /// Fallback where no endpoint has room.
    pub when_saturated: Fallback,
    /// Fallback where no endpoint is available or all attempts have failed.
    pub when_unavailable: Fallback,
    /// Requests that may spill.
    pub spill: SpillRule,
    /// True if an event stream that breaks is continued.
    pub resume: bool,
    /// True if the route answers lines of batches too.
    pub takes_batches: bool,
    /// Compression of its answers.
    pub compression: Option<Arc<Compression>>,
    /// Backends that get copies of requests.
    pub mirrors: Vec<MirrorPlan>,
    /// True if copies of requests may be sent: to mirrors, or to the candidate of a shadow.
    pub sends_copies: bool,
    /// Longest time from the arrival to the last byte.
    pub request_timeout: Duration,
    /// Longest time of one attempt.
    pub attempt_timeout: Option<Duration>,
    /// Longest time from the arrival, or the beginning of a further attempt, to the first content of a stream.
    pub first_token_timeout: Option<Duration>,
    /// Names of the protocols to which a request may be upgraded, in small letters.
    pub upgrades: Vec<Box<str>>,
    /// Longest time without a byte either way of a socket.
    pub socket_idle: Duration,
    /// Longest life of a socket.
    pub socket_lifetime: Option<Duration>,
    /// Further attempts after the first.
    pub retry: RetryPlan,
    /// True if one of the guards answers the preflight requests of browsers (CORS).
    pub answers_preflight: bool,
    /// Most bytes of a body.
    pub max_body: u64,
    /// True if the body is held whole before any attempt, for every caller: a target or the spill must read it.
    pub holds_body: bool,
    /// True if its filters, its spill or the model names of its backends depend on the content of a body.
    pub judges_body: bool,
    /// True if short bodies are held, because a server may end its connection before it looks at a request.
    pub resends: bool,
    /// True if a backend gets another model name than the caller's.
    pub renames_model: bool,
    /// Model names that the list of models shows.
    pub listed_models: Vec<ListedModel>,
    /// Models that its matches accept; `None` for all.
    pub matched_models: Option<Vec<ModelPattern>>,
    /// Sampling of its requests; `None` where they are not watched.
    pub sampling: Option<Arc<Sampling>>,
    /// Reader of the texts for the spans of its requests; `None` where those show none.
    pub contents: Option<Arc<Contents>>,
    /// Series of its metrics.
    pub metrics: Arc<RouteMetrics>,
    /// Targets whose answers callers may label; `None` where the configuration takes no labels of the route's answers.
    pub labels: Option<Arc<RouteLabels>>,
}

/// Rollout of a route's target.
#[derive(Clone)]
pub struct RouteRollout {
    /// Index of the candidate among the targets.
    pub candidate: usize,
    /// Rollout as requests see it.
    pub live: Arc<LiveRollout>,
    /// Bounds and rules of the copies for a shadow; `None` for another strategy.
    pub shadow: Option<Box<ShadowPlan>>,
}

/// Copies of requests for the candidate of a shadow.
#[derive(Clone)]
pub struct ShadowPlan {
    /// Backend that gets the copies.
    pub backend: Arc<Backend>,
    /// Longest time of a copy.
    pub timeout: Duration,
    /// Permits of the pairs whose answers are not compared yet.
    pub permits: Arc<Semaphore>,
    /// Most bytes of a body that is copied.
    pub max_body: u64,
    /// True if requests to plain servers are copied whose method may change something.
    pub writes: bool,
    /// Rules by which answers are compared.
    pub rules: Arc<PairRules>,
}

/// Model in a route's list of models.
#[derive(Debug, Clone)]
pub struct ListedModel {
    /// Name of the model.
    pub id: String,
    /// Time of its creation, in Unix seconds.
    pub created: u64,
}

impl ListedModel {
    /// Converts to the entry of a dialect's list.
    pub fn card(&self) -> ModelCard<'_> {
        ModelCard { id: &self.id, created: self.created }
    }
}

/// Fallback where no target answers a request: another backend or a built-in model, else a refusal.
#[derive(Clone)]
pub struct Fallback {
    /// Backend or built-in model that answers instead.
    pub spill_to: Option<TargetKind>,
    /// Status of the refusal.
    pub status: StatusCode,
    /// `Retry-After` of the refusal.
    pub retry_after: Duration,
}

/// Further attempts after the first.
#[derive(Debug, Clone)]
pub struct RetryPlan {
    /// Most further attempts.
    pub attempts: u32,
    /// True to retry after a connection could not be opened.
    pub on_connect_failure: bool,
    /// True to retry after a connection broke before any byte of the answer.
    pub on_reset: bool,
    /// Statuses to retry after.
    pub on_statuses: Vec<u16>,
    /// Wait before the second attempt.
    pub backoff_base: Duration,
    /// Longest wait before an attempt.
    pub backoff_max: Duration,
    /// Thousandths of a retry or hedge that each request adds to its backend's budget.
    pub budget: i64,
    /// Further attempts beside a slow one.
    pub hedge: Option<HedgePlan>,
}

/// Copies of requests to a backend.
pub struct MirrorPlan {
    /// Backend that gets the copies.
    pub backend: Arc<Backend>,
    /// Filter that declares the copies and picks the requests.
    pub filter: Arc<dyn Filter>,
    /// Share of the requests, from 0 to 1.
    pub share: f64,
    /// Longest time of a copy.
    pub timeout: Duration,
    /// Permits of the copies that run at the same time.
    pub permits: Arc<Semaphore>,
    /// Most bytes of a body that is copied.
    pub max_body: u64,
}

/// Further attempts beside a slow one.
#[derive(Debug, Clone, Copy)]
pub struct HedgePlan {
    /// Time without the head of an answer after which the next attempt begins.
    pub after: Duration,
    /// Most attempts beside the first.
    pub max: usize,
}

/// Targets of a route that may answer a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answerers {
    /// All targets.
    All,
    /// Targets with these indices.
    Some(Vec<usize>),
}

impl Answerers {
    /// True if the target with this index is among them.
    pub fn has(&self, index: usize) -> bool {
        match self {
            Self::All => true,
            Self::Some(indices) => indices.contains(&index),
        }
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Some(indices) if indices.is_empty())
    }
}

impl Route {
    /// Name of the built-in model that callers may call `name`; `name` itself where it is no further name of one.
    pub fn model_name<'a>(&'a self, name: &'a str) -> &'a str {
        self.model_alias.get(name).map_or(name, |model| model)
    }

    /// True if one of its matches accepts requests for a model.
    pub fn takes_model(&self, name: &str) -> bool {
        self.matched_models.as_ref().is_none_or(|models| models.iter().any(|model| model.matches(name)))
    }

    /// Targets that may answer a request for the model `asked`: those that serve it by name. A built-in model that may
    /// answer in place of another (`stands_in`) also takes its share beside a backend that serves the model. A request that
    /// names no model is for a backend, where there is one.
    pub fn answerers(&self, asked: Option<&str>, stands_in: impl Fn(&LoadedModel) -> bool) -> Answerers {
        let is_plain =
            |target: &Target| matches!(&target.kind, TargetKind::Backend(backend) if backend.serves.is_none());
        if self.targets.iter().all(is_plain) {
            return Answerers::All;
        }
        let pick = |keep: &dyn Fn(&TargetKind) -> bool| -> Vec<usize> {
            let kept = self.targets.iter().enumerate().filter(|(_, target)| keep(&target.kind));
            kept.map(|(index, _)| index).collect()
        };
        let Some(asked) = asked else {
            let backends = pick(&|kind| matches!(kind, TargetKind::Backend(_)));
            return if backends.is_empty() { Answerers::All } else { Answerers::Some(backends) };
        };
        let own = self.model_name(asked);
        let mut found = pick(&|kind| matches!(kind, TargetKind::Model(model) if model.name() == own));
        let backends = pick(&|kind| matches!(kind, TargetKind::Backend(backend) if backend.serves(asked)));
        if found.is_empty() && !backends.is_empty() {
            found = pick(&|kind| matches!(kind, TargetKind::Model(model) if stands_in(model)));
        }
        found.extend(backends);
        Answerers::Some(found)
    }

    /// Targets that are tried first for a request for the model `asked` where all are available, with their weights: those of
    /// the lowest priority. Text such as `chat` or, of several, `chat 95, chat-next 5`.
    pub fn first_targets(&self, asked: Option<&str>) -> String {
        let among = self.answerers(asked, |_| true);
        let all = self.targets.iter().enumerate();
        let able: Vec<&Target> =
            all.filter(|(n, target)| target.weight > 0 && among.has(*n)).map(|(_, target)| target).collect();
        let lowest = able.iter().map(|target| target.priority).min();
        let first: Vec<&&Target> = able.iter().filter(|target| Some(target.priority) == lowest).collect();
        match first.as_slice() {
            [one] => one.kind.served_by().to_string(),
            many => {
                let named = many.iter().map(|target| format!("{} {}", target.kind.served_by(), target.weight));
                named.collect::<Vec<_>>().join(", ")
            }
        }
    }

    /// Targets in `among` whose servers take upgrades.
    pub fn upgraders(&self, among: &Answerers) -> Answerers {
        let takes = |target: &Target| matches!(&target.kind, TargetKind::Backend(backend) if backend.takes_upgrades());
        let all = self.targets.iter().enumerate();
        Answerers::Some(all.filter(|(n, target)| among.has(*n) && takes(target)).map(|(n, _)| n).collect())
    }

    /// True if a filter has hooks.
    pub fn has_filters(&self) -> bool {
        self.all_filters().next().is_some()
    }

    /// Filters of one of the targets; none where another backend than the route's own is asked.
    pub fn filters_of(&self, target: Option<usize>) -> &[NamedFilter] {
        target.and_then(|target| self.targets.get(target)).map_or(&[], |target| &target.filters)
    }

    /// Filters with hooks, each once, guards first.
    pub fn all_filters(&self) -> impl Iterator<Item = &NamedFilter> {
        self.guards.iter().chain(&self.filters).filter(|named| named.acts)
    }
}

impl Route {
    /// Route that the gateway answers itself, for callers who are known: without targets and filters, in the dialect of
    /// `dialect`. `rules` must be the number of no other route.
    pub fn of_gateway(
        name: &str,
        dialect: &'static dyn Dialect,
        rules: usize,
        max_body: u64,
        metrics: Arc<RouteMetrics>,
    ) -> Self {
        Self {
            dialect,
            rules,
            max_body,
            authentication: RouteAuthentication::Required,
            refuses_unknown_calls: false,
            ..Self::without_targets(name, metrics)
        }
    }

    /// Route without targets, of which nothing is asked.
    fn without_targets(name: &str, metrics: Arc<RouteMetrics>) -> Self {
        let fallback =
            Fallback { spill_to: None, status: StatusCode::SERVICE_UNAVAILABLE, retry_after: Duration::from_secs(1) };
        Self {
            name: name.to_owned(),
            dialect: PROBLEM,
            calls_models: false,
            encoded_slashes: None,
            rules: 0,
            judges_path: false,
            authentication: RouteAuthentication::None,
            access: None,
            refuses_unknown_calls: true,
            folds_models: false,
            protocols: None,
            guards: Vec::new(),
            filters: Vec::new(),
            environment: None,
            targets: Vec::new(),
            model_alias: HashMap::new(),
            sticky: None,
            rollout: None,
            try_others: true,
            queues: Vec::new(),
            max_queue_wait: Duration::ZERO,
            when_saturated: fallback.clone(),
            when_unavailable: fallback,
            spill: SpillRule::default(),
            resume: false,
            takes_batches: false,
            compression: None,
            mirrors: Vec::new(),
            sends_copies: false,
            request_timeout: Duration::from_secs(600),
            attempt_timeout: None,
            first_token_timeout: None,
            upgrades: Vec::new(),
            socket_idle: Duration::from_secs(300),
            socket_lifetime: None,
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
            resends: false,
            renames_model: false,
            listed_models: Vec::new(),
            matched_models: None,
            metrics,
            labels: None,
            sampling: None,
            contents: None,
        }
    }
}

#[cfg(test)]
impl Route {
    /// Route without targets.
    pub(crate) fn for_tests(name: &str) -> Self {
        Self::without_targets(name, Arc::default())
    }
}
