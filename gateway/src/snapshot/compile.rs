//! Compiles a validated configuration into a snapshot: names become references, text becomes matchers, hosts become
//! addresses, models are loaded. State that outlives a snapshot is found again here by its identity.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::HeaderName;
use spillway_config::Loaded;
use spillway_config::schema::{Config, IdentityHeaders, KeysByApi};
use spillway_filter::{AnswerStores, GrpcClient, HttpClient, Pricing, Registry, SharedStates};

use super::compile_backend::BackendCompiler;
use super::compile_rollouts;
use super::compile_route::RouteCompiler;
use super::{CallerHeaders, ShownConfig, Snapshot};
use crate::balancing::{DnsResolver, Endpoints, Resolve, ResolveError, ResolvedAddresses};
use crate::batch::Batches;
use crate::builtin::Models;
use crate::cache::SharedAnswers;
use crate::commit_steps::CommitSteps;
use crate::downstream::Downstream;
use crate::feedback::Feedback;
use crate::grpc_client::Grpc;
use crate::http_client::Http;
use crate::identity::{Authenticator, IdentityDeps, IssuedKeys};
use crate::limits::{Limits, Prices};
use crate::notify::Notifier;
use crate::prompt_signals::PromptSignals;
use crate::quality::{Contents, Quality};
use crate::rollout::{PreparedRollouts, RolloutPlan, Rollouts};
use crate::telemetry::{ComputedFields, LogExport, LoggedHeaders, Metrics, Tracer};

/// Configuration that passed validation and still cannot run: every reason, one a line.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct SnapshotError(pub Vec<String>);

impl SnapshotError {
    fn of(errors: impl IntoIterator<Item = impl std::fmt::Display>) -> Self {
        Self(errors.into_iter().map(|e| e.to_string()).collect())
    }
}

/// Compiles snapshots; holds the state that they share.
pub struct Compiler {
    downstream: Arc<Downstream>,
    /// Filters that a configuration may name.
    pub registry: Arc<Registry>,
    /// State of filters.
    pub states: SharedStates,
    /// State of endpoints.
    pub endpoints: Arc<Endpoints>,
    /// Metrics of the process.
    pub metrics: Arc<Metrics>,
    /// Folder for compiled GPU pipelines of models.
    pub cache_dir: Option<PathBuf>,
    /// Levels and budgets.
    pub limits: Limits,
    /// Sketches of what callers ask and targets answer.
    pub quality: Arc<Quality>,
    /// Reader of texts for spans.
    pub contents: Arc<Contents>,
    /// Client for requests that the gateway itself makes.
    pub http: Arc<dyn HttpClient>,
    /// Client for streams of gRPC messages of filters.
    pub grpc: Arc<dyn GrpcClient>,
    /// Receivers of events.
    pub notifier: Arc<Notifier>,
    /// Rollouts of the process.
    pub rollouts: Rollouts,
    /// Keys of consumers that are made at run time.
    pub issued_keys: Arc<IssuedKeys>,
    /// Memory and figures of labels.
    pub feedback: Arc<Feedback>,
    /// Files and batches.
    pub batches: Arc<Batches>,
    purpose: Purpose,
    generation: AtomicU64,
}

/// Purpose of a compilation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// Compiles a configuration to run it.
    Run,
    /// Only validates: reads every file, and opens no socket or device, resolves no name, writes nothing.
    Judge {
        /// True if models are validated in full ([`Models::judge`]).
        models_in_full: bool,
    },
}

/// Resolver for validation: every name has one address (RFC 5737), and no server is queried.
struct AnyName;

#[async_trait::async_trait]
impl Resolve for AnyName {
    async fn resolve(&self, _: &str) -> Result<ResolvedAddresses, ResolveError> {
        Ok(ResolvedAddresses { addresses: vec![Ipv4Addr::new(192, 0, 2, 1).into()], ttl: Duration::MAX })
    }
}

fn has_budget(config: &Config) -> bool {
    let issuers = config.authentication.iter().flat_map(|a| &a.jwt);
    let of_issuers = issuers.flat_map(|issuer| issuer.plans.values().chain([&issuer.limits]));
    let of_callers = config.consumers.iter().map(|c| &c.limits).chain(config.tenants.iter().map(|t| &t.limits));
    // A key that is made at run time may have one.
    keys_by_api(config).is_some() || of_callers.chain(of_issuers).any(|limits| limits.budget.is_some())
}

/// Prices of the configuration, before those of the catalogue where that is on.
fn prices(config: &Config) -> Result<Prices, String> {
    let catalogue = config.uses_price_catalogue().then(spillway_config::price_catalogue).transpose()?;
    Ok(Prices::new(&config.prices, catalogue.unwrap_or_default()))
}

fn keys_by_api(config: &Config) -> Option<&KeysByApi> {
    config.authentication.as_ref().and_then(|authentication| authentication.keys_by_api.as_ref())
}

/// Headers that carry the consumer and the tenant to backends.
fn identity_headers(written: &IdentityHeaders) -> [Option<HeaderName>; 2] {
    let header = |name: &Option<String>| name.as_ref().and_then(|n| HeaderName::from_bytes(n.as_bytes()).ok());
    [header(&written.consumer), header(&written.tenant)]
}

impl Compiler {
    /// Creates the compiler of a new process.
    pub fn new(
        registry: Arc<Registry>,
        metrics: Arc<Metrics>,
        limits: Limits,
        downstream: Arc<Downstream>,
        cache_dir: Option<PathBuf>,
    ) -> Self {
        let http: Arc<dyn HttpClient> = Arc::new(Http::default());
        let rollouts = Rollouts::new(
            http.clone(),
            metrics.process.rollout_observations_lost.clone(),
            metrics.process.rollout_answers_unread.clone(),
        );
        let feedback = Arc::new(Feedback::default());
        feedback.connect(Arc::new(rollouts.clone()));
        let notifier = Arc::new(Notifier::new(metrics.clone()));
        Self {
            rollouts,
            issued_keys: Arc::new(IssuedKeys::new(metrics.clone())),
            downstream,
            limits,
            quality: Arc::new(Quality::new(notifier.clone())),
            contents: Arc::default(),
            notifier,
            http,
            grpc: Arc::new(Grpc::default()),
            feedback,
            batches: Arc::new(Batches::new(&metrics)),
            registry,
            states: SharedStates::default(),
            endpoints: Arc::default(),
            metrics,
            cache_dir,
            purpose: Purpose::Run,
            generation: AtomicU64::new(0),
        }
    }

    /// Creates a separate compiler that only validates.
    pub fn for_judging(config: &Config, registry: Arc<Registry>, models_in_full: bool) -> Self {
        let metrics = Arc::new(Metrics::new());
        let limits = Limits::new(config.limits.limit_keys, metrics.clone());
        let downstream = Downstream::new(config.limits.buffered_answers.0, metrics.process.write_timeouts.clone());
        let purpose = Purpose::Judge { models_in_full };
        Self { purpose, ..Self::new(registry, metrics, limits, Arc::new(downstream), None) }
    }

    /// Compiles a configuration. State of parts that did not change is reused from `previous`; state that both snapshots
    /// share changes when the new snapshot's `commit_steps` run, and not before.
    pub async fn compile(&self, loaded: &Loaded, previous: Option<&Snapshot>) -> Result<Snapshot, SnapshotError> {
        let config = &loaded.config;
        let mut errors = Vec::new();
        let dropped = &self.metrics.spans_dropped;
        let tracer = Tracer::new(config.telemetry.tracing.as_ref(), previous.map(|p| &p.tracer), dropped);
        let tracer = tracer.unwrap_or_else(|e| {
            errors.push(e.to_string());
            Tracer::default()
        });
        let (logs, exported) = (config.telemetry.logs.otlp.as_ref(), previous.map(|p| &p.log_export));
        let log_export = LogExport::new(logs, exported, &self.metrics.log_records_dropped).unwrap_or_else(|e| {
            errors.push(e.to_string());
            LogExport::default()
        });
        let commit_steps = CommitSteps::default();
        let limits = self.limits(config, previous, &commit_steps, &mut errors).await;
        let written = config.state.cache.as_ref().map(|cache| &cache.redis);
        let known = previous.and_then(|p| p.answers.as_ref());
        let answers = SharedAnswers::sharing(written, known, &self.metrics, &commit_steps).unwrap_or_else(|e| {
            errors.push(e.to_string());
            None
        });
        match self.notifier.compile(&config.notifications) {
            Ok(plans) => {
                let notifier = self.notifier.clone();
                commit_steps.add(move || notifier.adopt(plans));
            }
            Err(faults) => errors.extend(faults.iter().map(ToString::to_string)),
        }
        let deps = IdentityDeps {
            limits: &limits,
            states: &self.states,
            http: &self.http,
            metrics: &self.metrics,
            commit_steps: &commit_steps,
        };
        let authentication = config.authentication.clone().unwrap_or_default();
        let known = previous.map(|p| &p.identity);
        let identity = Authenticator::new(&authentication, &config.consumers, &config.tenants, known, deps);
        let identity = identity.map_err(|e| errors.push(e.to_string())).ok();
        let identity = self.issued(config, identity, &limits, &commit_steps, &mut errors).await;
        let resolver = self.resolver(config).await?;
        let compiler = BackendCompiler {
            states: &self.states,
            endpoints: &self.endpoints,
            metrics: &self.metrics,
            resolver: &resolver,
            previous,
        };
        let backends = compiler.backends(config, &mut errors).await;
        let plans = compile_rollouts::plans(config, &mut errors);
        let prepared = match self.purpose {
            Purpose::Run => self.batches.prepare(config.batch.as_ref(), &commit_steps).await,
            Purpose::Judge { .. } => Batches::judge(config.batch.as_ref()).await,
        };
        errors.extend(prepared.err().map(|e| e.to_string()));
        let Some(identity) = identity.filter(|_| errors.is_empty()) else { return Err(SnapshotError(errors)) };
        let models = self.models(config, previous).await?;
        let rollouts = self.rollouts(config, plans).await?;
        let prices = Arc::new(prices(config).map_err(|e| SnapshotError::of([e]))?);
        let compiler = RouteCompiler {
            registry: &self.registry,
            states: &self.states,
            http: &self.http,
            grpc: &self.grpc,
            metrics: &self.metrics,
            config,
            backends: &backends.by_name,
            models: &models,
            limits: &limits,
            commit_steps: &commit_steps,
            rollouts: &rollouts,
            origins: &loaded.origins,
            feedback: &self.feedback,
            quality: &self.quality,
            contents: &self.contents,
            answers: answers.as_deref().map(|answers| answers as &dyn AnswerStores),
            prices: &(prices.clone() as Arc<dyn Pricing>),
        };
        let signals = PromptSignals::new(&config.signals, &compiler, &self.states, &self.metrics, &commit_steps);
        let signals = signals.map_err(SnapshotError)?;
        let (routes, filter_headers) = compiler.table().map_err(SnapshotError::of)?;
        let feedback = config.feedback.as_ref().map(|written| Arc::new(compiler.feedback_plan(written)));
        let batch = config.batch.as_ref().map(|written| Arc::new(compiler.batch_plan(written, &self.batches)));
        let adopting = self.rollouts.clone();
        commit_steps.add(move || adopting.adopt(rollouts));
        let identity_headers = identity_headers(&authentication.identity_headers);
        let owned_headers = identity_headers.iter().flatten().chain(&filter_headers);
        Ok(Snapshot {
            caller_headers: CallerHeaders::new(&authentication, owned_headers),
            routes,
            signals: Arc::new(signals),
            feedback,
            batch,
            identity,
            identity_headers,
            prices,
            tracer,
            log_export,
            access_log: config.telemetry.logs.access,
            open_metrics: config.telemetry.metrics.open_metrics,
            logged_headers: LoggedHeaders::new(&config.telemetry.logs),
            fields: ComputedFields::new(&config.telemetry).map_err(|e| SnapshotError::of([e]))?,
            server_timing: config.telemetry.server_timing,
            background_tasks: parking_lot::Mutex::new(backends.background_tasks),
            backends: backends.by_name.into_values().collect(),
            models,
            buffered_answers_per_request: config.limits.buffered_answers_per_request.0,
            downstream: self.downstream.clone(),
            drain_timeout: config.shutdown.drain_timeout.0,
            shutdown_delay: config.shutdown.delay.0,
            hand_over: config.shutdown.hand_over.clone(),
            shown: ShownConfig::new(&loaded.shown()),
            generation: self.generation.fetch_add(1, Ordering::Relaxed) + 1,
            certificates: backends.certificates,
            limits,
            answers,
            commit_steps,
        })
    }

    /// Limits with the stores that the configuration names; adds to `errors` why a store cannot be used.
    async fn limits(
        &self,
        config: &Config,
        previous: Option<&Snapshot>,
        commit_steps: &CommitSteps,
        errors: &mut Vec<String>,
    ) -> Limits {
        let redis = config.state.limits.as_ref().map(|limits| &limits.redis);
        let limits = self.limits.sharing(redis, previous.map(|p| &p.limits), commit_steps).unwrap_or_else(|e| {
            errors.push(e.to_string());
            self.limits.clone()
        });
        if has_budget(config) {
            let file = &config.state.budgets.sqlite;
            let opened = match self.purpose {
                Purpose::Run => limits.open_budgets(file, commit_steps).await,
                Purpose::Judge { .. } => limits.judge_budgets(file).await,
            };
            errors.extend(opened.err().map(|e| e.to_string()));
        }
        limits
    }

    /// Callers with the keys that are made at run time; adds to `errors` why the store of those cannot be used.
    async fn issued(
        &self,
        config: &Config,
        identity: Option<Authenticator>,
        limits: &Limits,
        commit_steps: &CommitSteps,
        errors: &mut Vec<String>,
    ) -> Option<Authenticator> {
        let (settings, store) = (keys_by_api(config), &config.state.store);
        let prepared = match self.purpose {
            Purpose::Run => self.issued_keys.prepare(settings, store, commit_steps).await,
            Purpose::Judge { .. } => IssuedKeys::judge(settings, store).await.map_err(Into::into),
        };
        errors.extend(prepared.err().map(|e| e.to_string()));
        let facts = (config.spills(), config.has_prices());
        let issued = |identity: Authenticator| match settings {
            Some(settings) => identity.with_issued(&self.issued_keys, settings, limits, facts),
            None => identity,
        };
        identity.map(issued)
    }

    /// Rollouts with their state from the store; the store is only validated where nothing is to run.
    async fn rollouts(&self, config: &Config, plans: Vec<Arc<RolloutPlan>>) -> Result<PreparedRollouts, SnapshotError> {
        let store = &config.state.store;
        let prepared = match self.purpose {
            Purpose::Run => self.rollouts.prepare(plans, store).await,
            Purpose::Judge { .. } => Rollouts::judge(&plans, store).await,
        };
        prepared.map_err(|e| SnapshotError::of([e]))
    }

    async fn resolver(&self, config: &Config) -> Result<Arc<dyn Resolve>, SnapshotError> {
        match self.purpose {
            Purpose::Run => {
                let dns = config.dns.clone();
                let resolver = tokio::task::spawn_blocking(move || DnsResolver::read(&dns)).await;
                Ok(Arc::new(resolver.map_err(|e| SnapshotError::of([e]))?))
            }
            Purpose::Judge { .. } => Ok(Arc::new(AnyName)),
        }
    }

    async fn models(&self, config: &Config, previous: Option<&Snapshot>) -> Result<Models, SnapshotError> {
        let (memory, running) = (config.limits.model_memory.map(|size| size.0), previous.map(|p| &p.models));
        let models = match self.purpose {
            Purpose::Run => {
                Models::load(&config.models, memory, running, &self.metrics, self.cache_dir.as_deref()).await
            }
            Purpose::Judge { models_in_full } => {
                Models::judge(&config.models, memory, &self.metrics, models_in_full).await
            }
        };
        models.map_err(SnapshotError::of)
    }
}
