//! From a checked configuration to a snapshot: names become references, text becomes matchers, hosts become addresses,
//! models are loaded. Whatever outlives a snapshot is found again here by its identity.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{HeaderName, StatusCode};
use spillway_config::schema::{self, BackendProtocol, Config, RetryOn, RouteAuthentication};
use spillway_config::{Loaded, Origins, RouteRules};
use spillway_engine::Task;
use spillway_filter::{BuildContext, HttpClient, Registry, SharedStates, Stage};
use tokio::sync::Semaphore;

use super::{CallerHeaders, Snapshot};
use crate::adoptions::Adoptions;
use crate::balancing::{
    Addresses, Balancer, Blueprint, Care, Detector, DnsResolver, Endpoints, Resolve, Resolved, Way, addresses,
};
use crate::builtin::Models;
use crate::credentials::bearer;
use crate::downstream::Downstream;
use crate::http_client::Http;
use crate::identity::{Authenticator, Parts};
use crate::limits::{Limits, Prices, Rules};
use crate::model_pattern::ModelPattern;
use crate::protocol::{Dialect, OPENAI, PROBLEM};
use crate::queueing::{Queue, RetryBudget, Room};
use crate::routing::{TableBuilder, comparable};
use crate::telemetry::{CertificateSample, Metrics, Tracer};
use crate::tls::UpstreamTls;
use crate::topology::{
    Backend, Fallback, HedgePlan, ListedModel, MirrorPlan, NamedFilter, RetryPlan, Route, SpillRule, Target, TargetKind,
};

/// A configuration that is sound and still cannot be run: every reason, one a line.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct SnapshotError(pub Vec<String>);

/// Name of the filter that sets headers for servers.
const SETS_HEADERS: &str = "requestHeaders";

/// Shortest value of the environment that is taken for a secret in a header whose name does not say so, bytes. Names of
/// stages and versions are shorter; keys are longer.
const LEAST_SECRET: usize = 12;

/// Makes snapshots; holds what they share.
pub struct Compiler {
    downstream: Arc<Downstream>,
    /// Filters that a configuration may name.
    pub registry: Arc<Registry>,
    /// State of filters.
    pub states: SharedStates,
    /// State of endpoints.
    pub endpoints: Arc<Endpoints>,
    /// Series.
    pub metrics: Arc<Metrics>,
    /// Where compiled pipelines of models are kept.
    pub cache_dir: Option<PathBuf>,
    /// Levels and budgets.
    pub limits: Limits,
    /// Calls of the gateway's own.
    pub http: Arc<dyn HttpClient>,
    purpose: Purpose,
    generation: AtomicU64,
}

/// Purpose of a compilation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// To be run.
    Run,
    /// To be judged: every file is read, and no socket or device is opened, no name asked for, nothing written.
    Judge {
        /// True if models are judged in full ([`Models::judge`]).
        models_in_full: bool,
    },
}

/// Stands in for DNS where a configuration is only judged: every name has an address (RFC 5737), and none is asked for.
struct AnyName;

#[async_trait::async_trait]
impl Resolve for AnyName {
    async fn resolve(&self, _: &str) -> Result<Resolved, String> {
        Ok(Resolved { addresses: vec![std::net::Ipv4Addr::new(192, 0, 2, 1).into()], ttl: Duration::MAX })
    }
}

fn has_budget(config: &Config) -> bool {
    let issuers = config.authentication.iter().flat_map(|a| &a.jwt);
    let of_issuers = issuers.flat_map(|issuer| issuer.plans.values().chain([&issuer.limits]));
    let of_callers = config.consumers.iter().map(|c| &c.limits).chain(config.tenants.iter().map(|t| &t.limits));
    of_callers.chain(of_issuers).any(|limits| limits.budget.is_some())
}

impl Compiler {
    /// A compiler for a new process.
    pub fn new(
        registry: Arc<Registry>,
        metrics: Arc<Metrics>,
        limits: Limits,
        downstream: Arc<Downstream>,
        cache_dir: Option<PathBuf>,
    ) -> Self {
        Self {
            downstream,
            limits,
            http: Arc::new(Http::default()),
            registry,
            states: SharedStates::default(),
            endpoints: Arc::default(),
            metrics,
            cache_dir,
            purpose: Purpose::Run,
            generation: AtomicU64::new(0),
        }
    }

    /// A compiler of its own that only judges.
    pub fn for_judging(config: &Config, registry: Arc<Registry>, models_in_full: bool) -> Self {
        let metrics = Arc::new(Metrics::new());
        let limits = Limits::new(config.limits.limit_keys, metrics.clone());
        let downstream = Downstream::new(config.limits.buffered_answers.0, metrics.process.write_timeouts.clone());
        let purpose = Purpose::Judge { models_in_full };
        Self { purpose, ..Self::new(registry, metrics, limits, Arc::new(downstream), None) }
    }

    /// Compiles a configuration. State of what did not change is taken over from `previous`; state that both share changes
    /// when the new snapshot's `adoptions` are run, and not before.
    pub async fn compile(&self, loaded: &Loaded, previous: Option<&Snapshot>) -> Result<Snapshot, SnapshotError> {
        let config = &loaded.config;
        let mut errors = Vec::new();
        let tracer =
            Tracer::new(config.telemetry.tracing.as_ref(), previous.map(|p| &p.tracer), &self.metrics.spans_dropped);
        let tracer = tracer.unwrap_or_else(|e| {
            errors.push(e.to_string());
            Tracer::default()
        });
        let authentication = config.authentication.clone().unwrap_or_default();
        let adoptions = Adoptions::default();
        let redis = config.state.limits.as_ref().map(|limits| &limits.redis);
        let limits = self.limits.sharing(redis, previous.map(|p| &p.limits), &adoptions).unwrap_or_else(|e| {
            errors.push(e);
            self.limits.clone()
        });
        if has_budget(config) {
            let file = &config.state.budgets.sqlite;
            let opened = match self.purpose {
                Purpose::Run => limits.open_budgets(file, &adoptions).await,
                Purpose::Judge { .. } => limits.judge_budgets(file).await,
            };
            errors.extend(opened.err().map(|e| e.to_string()));
        }
        let parts = Parts {
            limits: &limits,
            states: &self.states,
            http: &self.http,
            metrics: &self.metrics,
            adoptions: &adoptions,
        };
        let known = previous.map(|p| &p.identity);
        let identity = Authenticator::new(&authentication, &config.consumers, &config.tenants, known, parts);
        let identity = identity.map_err(|e| errors.push(e.to_string())).ok();
        let dns = config.dns.clone();
        let resolver: Arc<dyn Resolve> = match self.purpose {
            Purpose::Run => {
                let resolver = tokio::task::spawn_blocking(move || DnsResolver::read(&dns)).await;
                Arc::new(resolver.map_err(|e| SnapshotError(vec![e.to_string()]))?)
            }
            Purpose::Judge { .. } => Arc::new(AnyName),
        };
        let (mut cares, mut certificates) = (Vec::new(), Vec::new());
        let mut backends = HashMap::new();
        for written in &config.backends {
            let is_personal = config.consumers.iter().any(|c| c.credentials.contains_key(&written.name));
            match self.backend(written, is_personal, previous, &resolver, &mut cares, &mut certificates).await {
                Ok(backend) => {
                    backends.insert(written.name.as_str(), Arc::new(backend));
                }
                Err(e) => errors.push(format!("backend `{}`: {e}", written.name)),
            }
        }
        let Some(identity) = identity.filter(|_| errors.is_empty()) else { return Err(SnapshotError(errors)) };
        let (memory, running) = (config.limits.model_memory.map(|size| size.0), previous.map(|p| &p.models));
        let models = match self.purpose {
            Purpose::Run => {
                Models::load(&config.models, memory, running, &self.metrics, self.cache_dir.as_deref()).await
            }
            Purpose::Judge { models_in_full } => {
                Models::judge(&config.models, memory, &self.metrics, models_in_full).await
            }
        };
        let models = models.map_err(|e| SnapshotError(e.iter().map(ToString::to_string).collect()))?;
        let header = |name: &Option<String>| name.as_ref().and_then(|n| HeaderName::from_bytes(n.as_bytes()).ok());
        let written = &authentication.identity_headers;
        let identity_headers = [header(&written.consumer), header(&written.tenant)];
        let mut owned_headers: Vec<HeaderName> = identity_headers.iter().flatten().cloned().collect();
        let mut table = TableBuilder::default();
        let rules: Vec<RouteRules<'_>> = config.routes.iter().map(|route| RouteRules::of(route, config)).collect();
        for (n, (written, own)) in config.routes.iter().zip(&rules).enumerate() {
            let added = self.route(written, config, &backends, &models, parts).and_then(|mut route| {
                route.rules = rules.iter().position(|rules| rules == own).unwrap_or_default();
                route.judges_path = own.judges_path();
                route.environment = environment(&loaded.origins, n, written);
                for named in &route.filters {
                    owned_headers.extend_from_slice(named.filter.owned_headers());
                }
                table.add(&Arc::new(route), &written.hostnames, &written.matches).map_err(|e| e.to_string())
            });
            if let Err(e) = added {
                errors.push(e);
            }
        }
        if !errors.is_empty() {
            return Err(SnapshotError(errors));
        }
        Ok(Snapshot {
            routes: table.build(),
            identity,
            identity_headers,
            caller_headers: CallerHeaders::new(&authentication, &owned_headers),
            prices: Prices::new(&config.prices),
            tracer,
            access_log: config.telemetry.logs.access,
            cares: parking_lot::Mutex::new(cares),
            backends: backends.into_values().collect(),
            models,
            buffered_answers_per_request: config.limits.buffered_answers_per_request.0,
            downstream: self.downstream.clone(),
            drain_timeout: config.shutdown.drain_timeout.0,
            shown: loaded.shown(),
            generation: self.generation.fetch_add(1, Ordering::Relaxed) + 1,
            certificates,
            limits,
            adoptions,
        })
    }

    async fn backend(
        &self,
        written: &schema::Backend,
        is_personal: bool,
        previous: Option<&Snapshot>,
        resolver: &Arc<dyn Resolve>,
        cares: &mut Vec<Care>,
        certificates: &mut Vec<CertificateSample>,
    ) -> Result<Backend, String> {
        let tls = read_tls(written).await?;
        let place = format!("backend {}", written.name);
        certificates.extend(tls.sample.clone().map(|sample| CertificateSample { place, ..sample }));
        let credentials = written.credentials.as_ref().map(bearer).transpose().map_err(|e| e.to_string())?;
        let dialect = dialect_of(written.protocol);
        let full: Vec<u16> = match &written.capacity.statuses {
            Some(statuses) => statuses.iter().map(|status| status.0).collect(),
            None => dialect.map_or_else(Vec::new, |dialect| dialect.full_statuses().to_vec()),
        };
        let way = Way {
            connect: written.timeouts.connect.0,
            tls,
            http2: written.http2,
            max_header_bytes: written.limits.max_header_bytes.0,
        };
        let (endpoints, metrics) = (self.endpoints.clone(), self.metrics.clone());
        let room = self.states.get_or_insert(&written.name, Room::default);
        let blueprint = Blueprint::new(written, &full, credentials.clone(), way, room.clone(), endpoints, metrics);
        let blueprint = Arc::new(blueprint.personal(is_personal));
        let addresses = addresses_of(written, previous, &**resolver).await?;
        // At start all count as available; an endpoint that a reload adds takes traffic after its first check.
        let (set, watches) = blueprint.build(&addresses, previous.is_some());
        let set = Arc::new(ArcSwap::from_pointee(set));
        cares.push(Care { blueprint, set: set.clone(), addresses, watches, resolver: resolver.clone() });
        Ok(Backend {
            name: written.name.as_str().into(),
            dialect,
            balancer: Balancer::new(set, Detector::new(&written.outlier_detection))
                .limited(written.circuit_breaker.max_in_flight),
            max_retries: written.circuit_breaker.max_retries.unwrap_or(u32::MAX),
            max_pending: written.circuit_breaker.max_pending.map_or(u32::MAX, NonZeroU32::get),
            hash_on: written.load_balancing.hash_on.clone(),
            policy: written.load_balancing.policy,
            load_reports: written.capacity.load_reports,
            retries: self.states.get_or_insert(&written.name, RetryBudget::default),
            room,
            model: written.model.as_deref().map(Into::into),
            upstream_model: written.model.as_ref().map(|model| serde_json::Value::from(model.as_str()).to_string()),
            credentials,
            passes_credentials: written.caller_credentials == Some(schema::CallerCredentials::Pass),
            full_statuses: full,
            max_full_for: written.capacity.max_full_for.0,
            first_byte_timeout: written.timeouts.first_byte.0,
            idle_timeout: written.timeouts.idle.0,
            max_header_bytes: written.limits.max_header_bytes.0,
            metrics: self.metrics.model(dialect.unwrap_or(OPENAI).name(), &written.name),
        })
    }

    fn route(
        &self,
        written: &schema::Route,
        config: &Config,
        backends: &HashMap<&str, Arc<Backend>>,
        models: &Models,
        parts: Parts<'_>,
    ) -> Result<Route, String> {
        let name = written.name.clone().unwrap_or_else(|| "default".to_owned());
        let missing = |what: &str| format!("route `{name}`: there is no {what}");
        let model = |name: &str| models.get(name).cloned().ok_or_else(|| missing(name));
        let mut targets = Vec::new();
        for reference in &written.backend_refs {
            let (name, kind) = match (&reference.name, &reference.model) {
                (Some(name), _) => {
                    let backend = backends.get(name.as_str()).cloned().ok_or_else(|| missing(name))?;
                    (name, TargetKind::Backend(backend))
                }
                (None, Some(name)) => (name, TargetKind::Model(model(name)?)),
                (None, None) => return Err(missing("backend or model in a backendRef")),
            };
            let (weight, priority) = (reference.weight, reference.priority);
            targets.push(Target { name: name.clone(), weight, priority, kind });
        }
        let last = |spill_to: Option<&String>, reject: Option<&schema::Reject>| {
            let reject = reject.cloned().unwrap_or_default();
            let spill_to = spill_to.map(|name| match backends.get(name.as_str()) {
                Some(backend) => Ok(TargetKind::Backend(backend.clone())),
                None => match model(name)? {
                    model if model.task() == Task::Generate => Ok(TargetKind::Model(model)),
                    model => Err(format!(
                        "route `{}`: `spillTo: {name}` is a model for {}, not for conversations",
                        written.name.as_deref().unwrap_or("default"),
                        model.task()
                    )),
                },
            });
            Ok::<_, String>(Fallback {
                spill_to: spill_to.transpose()?,
                status: StatusCode::from_u16(reject.status.0).unwrap_or(StatusCode::SERVICE_UNAVAILABLE),
                retry_after: reject.retry_after.0,
            })
        };
        let saturated = written.when_saturated.clone().unwrap_or_default();
        let when_saturated = last(saturated.spill_to.as_ref(), saturated.reject.as_ref())?;
        let when_unavailable = match &written.when_unavailable {
            Some(rule) => last(rule.spill_to.as_ref(), rule.reject.as_ref())?,
            None => when_saturated.clone(),
        };
        let prefixes: Vec<String> = written
            .matches
            .iter()
            .filter_map(|m| match &m.path {
                Some(schema::PathMatch::Prefix(prefix)) => Some(comparable(prefix)),
                _ => None,
            })
            .collect();
        let prefixes: Vec<&str> = prefixes.iter().map(String::as_str).collect();
        let queues = match &saturated.queue {
            Some(queue) => self.queues(&name, queue, saturated.try_others, &targets, parts.adoptions),
            None => Vec::new(),
        };
        let (mut guards, mut filters, mut mirrors) = (Vec::new(), Vec::new(), Vec::new());
        for entry in &written.filters {
            let cx = BuildContext { route: &name, prefixes: &prefixes, states: &self.states, http: &self.http };
            let filter = self
                .registry
                .build(&entry.name, &entry.config, &cx)
                .map_err(|e| format!("route `{name}`, filter `{}`: {}", entry.name, e.message))?;
            for mirror in filter.mirrors() {
                let backend = backends.get(mirror.backend.as_str()).cloned();
                let backend = backend.ok_or_else(|| {
                    format!("route `{name}`, filter `{}`: unknown backend `{}`", entry.name, mirror.backend)
                })?;
                let places = usize::try_from(mirror.max_in_flight).unwrap_or(Semaphore::MAX_PERMITS);
                mirrors.push(MirrorPlan {
                    backend,
                    filter: filter.clone(),
                    share: mirror.share,
                    timeout: mirror.timeout,
                    places: Arc::new(Semaphore::new(places)),
                    max_body: mirror.max_body,
                });
            }
            let (mut early, mut late) = (Rules::new(), Rules::new());
            for spec in filter.limits() {
                let rules = parts.limits.of_filter(&name, spec, parts.adoptions);
                let (first, others) = rules.map_err(|e| format!("route `{name}`: {e}"))?;
                early.extend(first);
                late.extend(others);
            }
            let (acts, is_guard) = (!filter.only_declares(), filter.stage() == Stage::Guard);
            let named = |rules, acts| NamedFilter { name: entry.name.clone(), filter: filter.clone(), rules, acts };
            // A limit by address counts requests before anybody is known, and tokens when the body is.
            if !early.is_empty() || (acts && is_guard) {
                guards.push(named(early, acts && is_guard));
            }
            if !late.is_empty() || (acts && !is_guard) {
                filters.push(named(late, acts && !is_guard));
            }
        }
        let calls_models = targets.iter().any(|target| match &target.kind {
            TargetKind::Backend(backend) => backend.calls_models(),
            TargetKind::Model(_) => true,
        });
        let spills_to = [&when_saturated, &when_unavailable].into_iter().filter_map(|last| last.spill_to.as_ref());
        let renames_model = targets
            .iter()
            .map(|target| &target.kind)
            .chain(spills_to)
            .any(|kind| matches!(kind, TargetKind::Backend(backend) if backend.upstream_model.is_some()));
        let filter_reads_body = filters.iter().any(|named: &NamedFilter| named.filter.needs_body());
        let judges_body = written.spill.as_ref().is_some_and(|spill| spill.models.is_some())
            || renames_model
            || filter_reads_body
            || filters.iter().flat_map(|named| &named.rules).any(|rule| rule.is_by_model() || rule.counts_tokens());
        let holds_body = calls_models || renames_model || filter_reads_body;
        let known_callers = !config.consumers.is_empty() || config.authentication.is_some();
        let default = if known_callers { RouteAuthentication::Required } else { RouteAuthentication::None };
        let on = |reason| written.retry.on.contains(&reason);
        Ok(Route {
            encoded_slashes: written.encoded_slashes,
            environment: None,
            rules: 0,
            judges_path: false,
            dialect: if calls_models { OPENAI } else { PROBLEM },
            calls_models,
            authentication: written.authentication.unwrap_or(default),
            access: written.access.clone(),
            sticky: written.sticky.as_ref().and_then(|s| HeaderName::from_bytes(s.header.as_bytes()).ok()),
            try_others: saturated.try_others,
            max_queue_wait: saturated.queue.as_ref().map_or(Duration::ZERO, |queue| queue.max_wait.0),
            when_saturated,
            when_unavailable,
            request_timeout: written.timeouts.request.0,
            attempt_timeout: written.timeouts.backend_request.map(|t| t.0),
            first_token_timeout: written.timeouts.first_token.map(|t| t.0),
            retry: RetryPlan {
                attempts: written.retry.attempts,
                on_connect_failure: on(RetryOn::ConnectFailure),
                on_reset: on(RetryOn::Reset),
                on_statuses: written
                    .retry
                    .on
                    .iter()
                    .filter_map(|reason| if let RetryOn::Status(code) = reason { Some(*code) } else { None })
                    .collect(),
                backoff_base: written.retry.backoff.base.0,
                backoff_max: written.retry.backoff.max.0,
                budget: thousandths(written.retry.budget),
                hedge: written.retry.hedge.as_ref().map(|hedge| HedgePlan {
                    after: hedge.after.0,
                    max: usize::try_from(hedge.max.get()).unwrap_or(1),
                }),
            },
            answers_preflight: guards.iter().any(|guard| guard.filter.answers_preflight()),
            spill: written.spill.as_ref().map(spill_rule).unwrap_or_default(),
            resume: written.resume,
            max_body: written.limits.max_body.0,
            // Who waits in a queue is watched for leaving, which cannot be seen behind a body that was not read; a copy
            // needs the body a second time.
            holds_body: holds_body || !queues.is_empty() || !mirrors.is_empty(),
            judges_body,
            renames_model,
            queues,
            mirrors,
            listed_models: listed(written, config, &targets),
            metrics: self.metrics.route(&name),
            guards,
            filters,
            targets,
            name,
        })
    }
}

/// Values that the environment brought into headers which the filters of the `n`th route set for servers.
fn environment(origins: &Origins, n: usize, written: &schema::Route) -> Option<Arc<[Box<[u8]>]>> {
    let filters = written.filters.iter().enumerate().filter(|(_, entry)| entry.name == SETS_HEADERS);
    let places = filters.map(|(at, _)| format!("routes[{n}].filters[{at}].{SETS_HEADERS}"));
    let mut values: Vec<Box<[u8]>> = Vec::new();
    for place in places {
        let found = origins.values_at(&place).map(str::trim).filter(|value| value.len() >= LEAST_SECRET);
        values.extend(found.map(|value| value.as_bytes().into()));
    }
    (!values.is_empty()).then(|| values.into())
}

/// The addresses of a backend's endpoints. A name that cannot be resolved keeps those that it had.
async fn addresses_of(
    written: &schema::Backend,
    previous: Option<&Snapshot>,
    resolver: &dyn Resolve,
) -> Result<Addresses, String> {
    let had = previous.and_then(|p| p.backends.iter().find(|b| *b.name == *written.name));
    let mut all = Vec::new();
    for endpoint in &written.endpoints {
        all.push(match addresses(resolver, &endpoint.url.host).await {
            Ok(resolved) => resolved.addresses,
            Err(e) => {
                let set = had.map(|backend| backend.balancer.endpoints());
                let known = set.iter().flat_map(|set| set.all()).filter(|known| known.url == endpoint.url);
                let known: Vec<_> = known.map(|known| known.socket.ip()).collect();
                if known.is_empty() {
                    return Err(e);
                }
                tracing::warn!(event = "name_not_resolved", backend = %written.name, reason = %e, "its addresses are kept");
                known
            }
        });
    }
    Ok(all)
}

/// Reads the files of a backend's TLS, off the runtime's threads.
async fn read_tls(written: &schema::Backend) -> Result<Arc<UpstreamTls>, String> {
    let https = written.endpoints.iter().any(|endpoint| endpoint.url.https);
    let (tls, http2) = (written.tls.clone(), written.http2);
    let read = tokio::task::spawn_blocking(move || UpstreamTls::read(&tls, http2, https)).await;
    read.map_err(|e| e.to_string())?.map(Arc::new).map_err(|e| e.to_string())
}

fn spill_rule(written: &schema::SpillLimits) -> SpillRule {
    let patterns = |models: &Vec<String>| models.iter().map(|model| ModelPattern::new(model)).collect();
    SpillRule {
        max_prompt_tokens: written.max_prompt_tokens,
        models: written.models.as_ref().map(patterns),
        tenants: written.tenants.as_ref().map(|tenants| tenants.iter().map(|t| t.as_str().into()).collect()),
        share: written.percent.map(|percent| percent / 100.0),
    }
}

/// Dialect that the servers of a backend speak.
fn dialect_of(protocol: BackendProtocol) -> Option<&'static dyn Dialect> {
    match protocol {
        BackendProtocol::Openai => Some(OPENAI),
        BackendProtocol::Http => None,
    }
}

/// A share in thousandths; the checks hold it between 0 and 1.
fn thousandths(share: f64) -> i64 {
    #[allow(clippy::cast_possible_truncation, reason = "a number from 0 to 1000")]
    let thousandths = (share.clamp(0.0, 1.0) * 1_000.0).round() as i64;
    thousandths
}

impl Compiler {
    /// One queue of a route, or one for each target where a request stays with the one that it drew: a place that comes
    /// free at another target is none for it.
    fn queues(
        &self,
        route: &str,
        written: &schema::Queue,
        try_others: bool,
        targets: &[Target],
        adoptions: &Adoptions,
    ) -> Vec<Arc<Queue>> {
        let depth = usize::try_from(written.max_depth.get()).unwrap_or(usize::MAX);
        let rooms = |serves: &dyn Fn(&Target) -> bool| {
            let backend = |target: &Target| match &target.kind {
                TargetKind::Backend(backend) if serves(target) => Some(backend.room.clone()),
                _ => None,
            };
            targets.iter().filter_map(backend).collect::<Vec<_>>()
        };
        let queue = |name: &str, rooms: Vec<Arc<Room>>| {
            let make = || Queue::new(depth, written.max_wait.0, self.metrics.queue(route));
            let queue = self.states.get_or_insert(name, make);
            let (adopting, max_wait) = (queue.clone(), written.max_wait.0);
            adoptions.add(move || adopting.adopt(depth, max_wait, rooms));
            queue
        };
        if try_others || targets.len() == 1 {
            return vec![queue(route, rooms(&|_| true))];
        }
        let own = |target: &Target| {
            let serves = |other: &Target| other.name == target.name || other.priority != target.priority;
            queue(&format!("{route}\n{}", target.name), rooms(&serves))
        };
        targets.iter().map(own).collect()
    }
}

/// The models that callers of a route can name, as far as the configuration says.
fn listed(written: &schema::Route, config: &Config, targets: &[Target]) -> Vec<ListedModel> {
    let mut models: Vec<ListedModel> = Vec::new();
    let mut add = |id: &str, created: u64| {
        if !models.iter().any(|model| model.id == id) {
            models.push(ListedModel { id: id.to_owned(), created });
        }
    };
    let exact = written.matches.iter().filter_map(|m| m.model.as_deref());
    for name in exact.filter(|name| ModelPattern::new(name).exact().is_some()) {
        add(name, 0);
    }
    for target in targets {
        match &target.kind {
            TargetKind::Model(model) => add(model.name(), model.created()),
            TargetKind::Backend(backend) => {
                let written = config.backends.iter().find(|b| b.name.as_str() == &*backend.name);
                if let Some(model) = written.and_then(|b| b.model.as_deref()) {
                    add(model, 0);
                }
            }
        }
    }
    models
}
