//! Compiles routes: targets, fallbacks, queues, filters and retries of each route, from the file and from the backends and
//! models that were compiled before.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, StatusCode};
use spillway_cel::{Expression, Scope};
use spillway_config::ModelPattern;
use spillway_config::schema::{self, Config, RetryOn, RouteAuthentication};
use spillway_config::{Origins, RouteRules};
use spillway_engine::Task;
use spillway_filter::{
    AnswerStores, BuildContext, Classifier, Classifiers, Embedder, Embedders, Filter, GrpcClient, HttpClient,
    LimitSpec, MirrorSpec, Pricing, Registry, SharedStates, SignalName, Stage,
};
use tokio::sync::Semaphore;

use super::compile_rollouts::{is_to, route_name};
use crate::batch::Batches;
use crate::builtin::{FilterClassifier, FilterEmbedder, LoadedModel, Models};
use crate::commit_steps::CommitSteps;
use crate::compressing::Compression;
use crate::feedback::{Feedback, RouteLabels, Targets};
use crate::limits::{Limits, Rules};
use crate::protocol::{ANTHROPIC, Dialect, OLLAMA, OPENAI, PROBLEM};
use crate::quality::{
    Contents, Keeping, Plan, ProbePlan, ProbedTarget, ProbesError, Quality, Reference, ReferenceError, ReferenceFile,
    Rules as QualityRules,
};
use crate::queueing::{Queue, Room};
use crate::rollout::{PairRules, PreparedRollouts};
use crate::routing::{CompileError, RouteTable, TableBuilder, comparable};
use crate::telemetry::Metrics;
use crate::topology::{
    Backend, BatchPlan, Fallback, FeedbackPlan, HedgePlan, ListedModel, MirrorPlan, NamedFilter, RetryPlan, Route,
    RouteRollout, ShadowPlan, SpillRule, Target, TargetKind,
};

/// Name of the filter that sets headers for servers.
const SETS_HEADERS: &str = "requestHeaders";

/// Shortest value of an environment variable that counts as a secret in a header with a harmless name, in bytes. Names of
/// stages and versions are shorter; keys are longer.
const LEAST_SECRET: usize = 12;

/// Route that passed validation and still cannot run.
#[derive(Debug, thiserror::Error)]
pub(super) enum RouteError {
    /// A reference names a backend or model that does not exist.
    #[error("route `{route}`: there is no backend or model `{name}`")]
    Unknown { route: String, name: String },
    /// A reference names nothing.
    #[error("route `{route}`: a backendRef names neither a backend nor a model")]
    EmptyReference { route: String },
    /// The built-in model of a fallback cannot hold conversations.
    #[error("route `{route}`: `spillTo: {model}` is a model for {task}, not for conversations")]
    NotConversational { route: String, model: String, task: Task },
    /// A filter rejects its configuration.
    #[error("route `{route}`, filter `{filter}`: {reason}")]
    Filter { route: String, filter: String, reason: String },
    /// The condition of the spill is not one.
    #[error("route `{route}`: spill.when: {reason}")]
    Spill { route: String, reason: String },
    /// The file of a reference cannot be used.
    #[error("route `{route}`: quality.reference.file: {}: {source}", path.display())]
    Reference { route: String, path: PathBuf, source: ReferenceError },
    /// The file of probes cannot be used.
    #[error("route `{route}`: quality.probes.file: {}: {source}", path.display())]
    Probes { route: String, path: PathBuf, source: ProbesError },
    /// The model for embeddings makes none.
    #[error("route `{route}`: {key}: `{model}` is a model for {task}, not for embeddings")]
    NoEmbedder { route: String, key: &'static str, model: String, task: Task },
    /// A limit of the route cannot be kept.
    #[error("route `{route}`: {reason}")]
    Limit { route: String, reason: String },
    /// A match cannot be compiled.
    #[error(transparent)]
    Match(#[from] CompileError),
}

impl RouteError {
    /// Error of a route that names a target which the configuration does not have.
    fn unknown(route: &str, name: &str) -> Self {
        Self::Unknown { route: route.to_owned(), name: name.to_owned() }
    }
}

/// State and parts of a configuration that its routes are compiled from.
#[derive(Clone, Copy)]
pub(super) struct RouteCompiler<'a> {
    pub(super) registry: &'a Registry,
    pub(super) states: &'a SharedStates,
    pub(super) http: &'a Arc<dyn HttpClient>,
    pub(super) grpc: &'a Arc<dyn GrpcClient>,
    pub(super) metrics: &'a Metrics,
    pub(super) config: &'a Config,
    pub(super) backends: &'a HashMap<&'a str, Arc<Backend>>,
    pub(super) models: &'a Models,
    pub(super) limits: &'a Limits,
    pub(super) commit_steps: &'a CommitSteps,
    pub(super) rollouts: &'a PreparedRollouts,
    /// Values of the environment, which no name of a limit may show.
    pub(super) origins: &'a Origins,
    /// Memory and figures of labels.
    pub(super) feedback: &'a Arc<Feedback>,
    pub(super) quality: &'a Arc<Quality>,
    pub(super) contents: &'a Arc<Contents>,
    /// Store of answers that several gateways share.
    pub(super) answers: Option<&'a dyn AnswerStores>,
    pub(super) prices: &'a Arc<dyn Pricing>,
}

/// Filters of a route, by the time at which they run.
#[derive(Default)]
struct RouteFilters {
    guards: Vec<NamedFilter>,
    filters: Vec<NamedFilter>,
    mirrors: Vec<MirrorPlan>,
    compression: Option<Arc<Compression>>,
}

/// Fallbacks of a route.
struct Fallbacks {
    when_saturated: Fallback,
    when_unavailable: Fallback,
}

/// Reasons of a route to read and hold request bodies.
struct BodyNeeds {
    calls_models: bool,
    renames_model: bool,
    judges_body: bool,
    holds_body: bool,
    resends: bool,
}

/// Tables of routes in the making: one for all listeners of the file, and one for each that has routes of its own.
struct Tables {
    common: TableBuilder,
    /// By the name of the listener; true for one that serves the common routes too.
    own: HashMap<Box<str>, (TableBuilder, bool)>,
}

impl Tables {
    fn new(config: &Config) -> Self {
        let named: HashSet<&str> =
            config.routes.iter().flat_map(|route| &route.listeners).map(String::as_str).collect();
        let signals: Arc<[SignalName]> = config.signal_names().into();
        let own = config.listeners.iter().filter_map(|listener| {
            let name = listener.name.as_deref()?;
            let has_own = listener.own_routes || named.contains(name);
            has_own.then(|| (name.into(), (TableBuilder::new(signals.clone()), !listener.own_routes)))
        });
        let own = own.collect();
        Self { common: TableBuilder::new(signals), own }
    }

    /// Adds a route to the tables of its listeners, in the order of the file.
    fn add(&mut self, route: &Arc<Route>, written: &schema::Route) -> Result<(), CompileError> {
        let is_common = written.listeners.is_empty();
        let add_to = |table: &mut TableBuilder| table.add(route, &written.hostnames, &written.matches);
        if is_common {
            add_to(&mut self.common)?;
        }
        for (name, (table, takes_common)) in &mut self.own {
            if if is_common { *takes_common } else { written.listeners.iter().any(|one| **one == **name) } {
                add_to(table)?;
            }
        }
        Ok(())
    }

    fn build(self) -> RouteTable {
        let own = self.own.into_iter().map(|(name, (table, _))| (name, table.build()));
        self.common.build().with_listeners(own)
    }
}

impl Embedders for RouteCompiler<'_> {
    fn embedder(&self, name: &str) -> Result<Arc<dyn Embedder>, String> {
        let unknown = || format!("no built-in model is called `{name}`; add it to `models`");
        let model = self.models.get(name).cloned().ok_or_else(unknown)?;
        if model.task() != Task::Embed {
            return Err(format!("`{name}` is a model for {}; name one for embeddings", model.task()));
        }
        Ok(Arc::new(FilterEmbedder::new(model)))
    }
}

impl Classifiers for RouteCompiler<'_> {
    fn classifier(&self, name: &str) -> Result<Arc<dyn Classifier>, String> {
        let unknown = || format!("no built-in model is called `{name}`; add it to `models`");
        let model = self.models.get(name).cloned().ok_or_else(unknown)?;
        if model.task() != Task::Classify {
            return Err(format!("`{name}` is a model for {}; name one that classifies texts", model.task()));
        }
        FilterClassifier::new(model).ok_or_else(|| {
            format!("the scores of `{name}` are no probabilities (its `problem_type` is `regression`); name another model")
        }).map(|classifier| Arc::new(classifier) as Arc<dyn Classifier>)
    }
}

impl RouteCompiler<'_> {
    /// Compiles every route; returns the table, and the headers that only filters of the routes may set.
    pub(super) fn table(&self) -> Result<(RouteTable, Vec<HeaderName>), Vec<RouteError>> {
        let routes = &self.config.routes;
        let rules = RouteRules::all(self.config);
        let (mut tables, mut owned_headers, mut errors) = (Tables::new(self.config), Vec::new(), Vec::new());
        let mut plans = Vec::new();
        let numbers = RouteRules::numbers(&rules);
        let mut labelled = Targets::default();
        let captures = self.config.telemetry.tracing.as_ref().is_some_and(|tracing| tracing.capture_content);
        for (number, ((written, own), same)) in routes.iter().zip(&rules).zip(numbers).enumerate() {
            let added = self.route(written).and_then(|route| {
                let plan = written.quality.as_ref().map(|quality| self.plan(&route, quality)).transpose()?;
                let route = Route {
                    sampling: plan.as_ref().map(|plan| self.quality.sampling(plan)),
                    contents: (captures && route.calls_models).then(|| self.contents.clone()),
                    rules: same,
                    judges_path: own.judges_path(),
                    environment: environment(self.origins, number, written),
                    labels: self.labels(&route, &mut labelled),
                    ..route
                };
                for named in route.guards.iter().chain(&route.filters) {
                    owned_headers.extend_from_slice(named.filter.owned_headers());
                }
                plans.extend(plan);
                Ok(tables.add(&Arc::new(route), written)?)
            });
            errors.extend(added.err());
        }
        let remember = self.config.feedback.as_ref().map(|written| written.remember);
        let (requests, keep) = remember.map_or((0, Duration::ZERO), |bounds| (bounds.requests.get(), bounds.keep.0));
        self.feedback.commit(labelled, requests, keep, self.commit_steps);
        let (quality, folder) = (self.quality.clone(), self.config.state.quality.folder.to_path_buf());
        self.commit_steps.add(move || quality.adopt(plans, folder));
        if errors.is_empty() { Ok((tables.build(), owned_headers)) } else { Err(errors) }
    }

    /// Targets of a route whose answers callers may label: those of model calls.
    fn labels(&self, route: &Route, all: &mut Targets) -> Option<Arc<RouteLabels>> {
        let written = self.config.feedback.as_ref().filter(|_| route.calls_models)?;
        let spills =
            [&route.when_saturated, &route.when_unavailable].into_iter().filter_map(|one| one.spill_to.as_ref());
        let kinds = route.targets.iter().map(|target| &target.kind).chain(spills);
        let mut names: Vec<&str> = kinds.map(|kind| &**kind.served_by()).collect();
        names.sort_unstable();
        names.dedup();
        Some(self.feedback.route(all, &route.name, names.into_iter(), !written.scopes.is_empty()))
    }

    /// Compiles `feedback`.
    pub(super) fn feedback_plan(&self, written: &schema::Feedback) -> FeedbackPlan {
        // No route of the file has this number, so that no reading of a path as another one passes for the same.
        let route =
            Route::of_gateway("feedback", OPENAI, usize::MAX, written.max_body.0, self.metrics.route("feedback"));
        FeedbackPlan {
            route: Arc::new(route),
            listener: written.listener.as_deref().map(Into::into),
            path: comparable(&written.path).into(),
            scopes: written.scopes.iter().map(|scope| scope.as_str().into()).collect(),
            logs_comments: written.log_comments,
            state: self.feedback.clone(),
        }
    }

    /// Compiles `batch`.
    pub(super) fn batch_plan(&self, written: &schema::Batch, state: &Arc<Batches>) -> BatchPlan {
        /// Most bytes of a body that is no file.
        const MAX_BODY: u64 = 64 << 10;
        let route = Route::of_gateway("batches", OPENAI, usize::MAX, MAX_BODY, self.metrics.route("batches"));
        BatchPlan {
            route: Arc::new(route),
            listener: written.listener.as_deref().map(Into::into),
            paths: ["/v1/files", "/v1/batches"].map(|path| comparable(path).into()),
            state: state.clone(),
        }
    }

    /// Compiles one route, without the facts that depend on its neighbours and on the file's origins.
    fn route(&self, written: &schema::Route) -> Result<Route, RouteError> {
        let name = route_name(written);
        let saturated = written.when_saturated.clone().unwrap_or_default();
        let targets = self.targets(&name, written)?;
        let fallbacks = self.fallbacks(&name, written, &saturated)?;
        let rollout = self.rollout(&name, written, &targets)?;
        let shadow = rollout.as_ref().and_then(|rollout| rollout.shadow.as_ref());
        let queues = match &saturated.queue {
            Some(queue) => {
                let candidate = rollout.as_ref().and_then(|rollout| targets.get(rollout.candidate));
                self.queues(&name, queue, saturated.try_others, &targets, candidate)
            }
            None => Vec::new(),
        };
        let RouteFilters { guards, filters, mirrors, compression } = self.filters(&name, written)?;
        let spill = written.spill.as_ref().map(|spill| spill_rule(&name, spill)).transpose()?.unwrap_or_default();
        let body = body_needs(&spill, &targets, &fallbacks, &filters);
        // Of plain servers those requests are copied that have no body, unless the file says otherwise.
        let copies_bodies = shadow.is_some_and(|shadow| shadow.writes || body.calls_models);
        let sends_copies = !mirrors.is_empty() || shadow.is_some();
        Ok(Route {
            encoded_slashes: written.encoded_slashes,
            environment: None,
            rules: 0,
            judges_path: false,
            sampling: None,
            contents: None,
            dialect: if body.calls_models { dialect_of(&targets) } else { PROBLEM },
            calls_models: body.calls_models,
            authentication: written.authentication.unwrap_or(self.default_authentication()),
            access: written.access.clone(),
            refuses_unknown_calls: written.unknown_calls == schema::UnknownCalls::Refuse && !targets.is_empty(),
            folds_models: targets
                .iter()
                .any(|target| matches!(&target.kind, TargetKind::Backend(backend) if backend.dialect == Some(OLLAMA))),
            protocols: written.protocols.as_ref().map(|list| list.iter().map(|one| spoken(*one)).collect()),
            sticky: written.sticky.as_ref().and_then(|s| HeaderName::from_bytes(s.header.as_bytes()).ok()),
            rollout,
            try_others: saturated.try_others,
            max_queue_wait: saturated.queue.as_ref().map_or(Duration::ZERO, |queue| queue.max_wait.0),
            when_saturated: fallbacks.when_saturated,
            when_unavailable: fallbacks.when_unavailable,
            request_timeout: written.timeouts.request.0,
            attempt_timeout: written.timeouts.backend_request.map(|t| t.0),
            first_token_timeout: written.timeouts.first_token.map(|t| t.0),
            upgrades: written.upgrades.iter().map(|name| name.to_ascii_lowercase().into()).collect(),
            socket_idle: written.timeouts.socket_idle.0,
            socket_lifetime: written.timeouts.socket_lifetime.map(|t| t.0),
            retry: retry_plan(&written.retry),
            answers_preflight: guards.iter().any(|guard| guard.filter.answers_preflight()),
            spill,
            resume: written.resume,
            takes_batches: written.batch,
            max_body: written.limits.max_body.0,
            // A waiter that leaves cannot be seen behind an unread body; a copy sends the body a second time.
            holds_body: body.holds_body || !queues.is_empty() || !mirrors.is_empty() || copies_bodies,
            sends_copies,
            judges_body: body.judges_body,
            resends: body.resends,
            renames_model: body.renames_model,
            queues,
            compression,
            mirrors,
            listed_models: listed(written, &targets),
            matched_models: matched(written),
            metrics: self.metrics.route(&name),
            labels: None,
            guards,
            filters,
            targets,
            model_alias: written
                .model_alias
                .iter()
                .map(|(a, model)| (a.as_str().into(), model.as_str().into()))
                .collect(),
            name,
        })
    }

    /// Authentication of a route that names none: required once the file has consumers or `authentication`.
    fn default_authentication(&self) -> RouteAuthentication {
        let known_callers = !self.config.consumers.is_empty() || self.config.authentication.is_some();
        if known_callers { RouteAuthentication::Required } else { RouteAuthentication::None }
    }

    fn backend(&self, route: &str, name: &str) -> Result<Arc<Backend>, RouteError> {
        self.backends.get(name).cloned().ok_or_else(|| RouteError::unknown(route, name))
    }

    fn model(&self, route: &str, name: &str) -> Result<Arc<LoadedModel>, RouteError> {
        self.models.get(name).cloned().ok_or_else(|| RouteError::unknown(route, name))
    }

    /// Plan of the watch over a route.
    fn plan(&self, route: &Route, written: &schema::Quality) -> Result<Plan, RouteError> {
        let spills = [&route.when_saturated, &route.when_unavailable].into_iter().filter_map(|fallback| {
            Some(match fallback.spill_to.as_ref()? {
                TargetKind::Backend(backend) => backend.name.to_string(),
                TargetKind::Model(model) => model.name().to_owned(),
            })
        });
        let mut targets: Vec<Box<str>> = Vec::new();
        for name in route.targets.iter().map(|target| target.name.clone()).chain(spills) {
            if !targets.iter().any(|known| **known == *name) {
                targets.push(name.into());
            }
        }
        let reference = match &written.reference {
            schema::QualityReference::Window(window) => Reference::Window(window.0.as_secs_f64()),
            schema::QualityReference::File(path) => {
                let wrong =
                    |source| RouteError::Reference { route: route.name.clone(), path: path.to_path_buf(), source };
                Reference::File(Arc::new(ReferenceFile::open(path).map_err(wrong)?))
            }
            schema::QualityReference::Stable => {
                // Of equal weights the first one.
                let stable = route.targets.iter().rev().max_by_key(|target| target.weight);
                Reference::Stable(stable.map(|target| target.name.as_str()).unwrap_or_default().into())
            }
        };
        let model =
            written.embedding.as_ref().map(|name| self.embedder(&route.name, "quality.embedding", name)).transpose()?;
        let probes = written.probes.as_ref().map(|probes| self.probes(route, probes)).transpose()?;
        let rules = QualityRules {
            reference,
            inputs: written.drift.inputs,
            outputs: written.drift.outputs,
            targets,
            embedding: written.embedding.as_deref().map(Into::into),
        };
        let keeping = written.keep_examples.as_ref().map(|keep| Keeping {
            share: keep.percent / 100.0,
            redacts: keep.redact,
            retention: keep.retention.0,
            max_bytes: keep.max_bytes.0,
        });
        Ok(Plan { route: route.name.clone(), share: written.sample, rules, model, probes, keeping })
    }

    /// Probes of a route's own targets. Those that it spills to are nobody's choice.
    fn probes(&self, route: &Route, written: &schema::Probes) -> Result<Arc<ProbePlan>, RouteError> {
        let embedder = written.embedding.as_ref();
        let embedder = embedder.map(|name| self.embedder(&route.name, "quality.probes.embedding", name)).transpose()?;
        let mut targets: Vec<ProbedTarget> = Vec::new();
        for target in &route.targets {
            let model = match &target.kind {
                TargetKind::Model(model) => Some(model.name().to_owned()),
                TargetKind::Backend(backend) => {
                    let exact = || backend.serves.as_ref()?.iter().find_map(|pattern| pattern.exact());
                    exact().or(backend.model.as_deref()).map(str::to_owned)
                }
            };
            if !targets.iter().any(|known| *known.name == *target.name) {
                targets.push(ProbedTarget { name: target.name.as_str().into(), model });
            }
        }
        let wrong = |source| RouteError::Probes { route: route.name.clone(), path: written.file.to_path_buf(), source };
        ProbePlan::compile(&route.name, written, targets, embedder).map(Arc::new).map_err(wrong)
    }

    fn targets(&self, route: &str, written: &schema::Route) -> Result<Vec<Target>, RouteError> {
        let target = |reference: &schema::BackendRef| {
            let (name, kind) = match (&reference.name, &reference.model) {
                (Some(name), _) => (name, TargetKind::Backend(self.backend(route, name)?)),
                (None, Some(name)) => (name, TargetKind::Model(self.model(route, name)?)),
                (None, None) => return Err(RouteError::EmptyReference { route: route.to_owned() }),
            };
            // The rollout owns the weight of its candidate, which may be 0 in the file.
            let to = written.rollout.as_ref().filter(|rollout| rollout.to == *name);
            let weight = if to.is_some() { reference.weight.max(1) } else { reference.weight };
            let filters = reference.filters.iter().map(|filter| self.target_filter(route, &filter.0));
            let filters = filters.collect::<Result<_, RouteError>>()?;
            Ok(Target { name: name.clone(), weight, priority: reference.priority, kind, filters })
        };
        written.backend_refs.iter().map(target).collect()
    }

    /// Filter of one target: it changes headers, and asks for no place in the chain of the route.
    fn target_filter(&self, route: &str, entry: &schema::FilterEntry) -> Result<NamedFilter, RouteError> {
        let cx = BuildContext {
            route,
            prefixes: &[],
            states: self.states,
            http: self.http,
            grpc: self.grpc,
            embedders: self,
            classifiers: self,
            counters: &self.metrics.filters,
            answers: self.answers,
            prices: self.prices,
        };
        let filter = self.registry.build(&entry.name, &entry.config, &cx).map_err(|e| RouteError::Filter {
            route: route.to_owned(),
            filter: entry.name.clone(),
            reason: e.message,
        })?;
        Ok(NamedFilter { name: entry.name.clone(), filter, rules: Rules::new(), acts: true })
    }

    /// Rollout of a route; `None` without one, and where a configuration is only validated.
    fn rollout(
        &self,
        name: &str,
        written: &schema::Route,
        targets: &[Target],
    ) -> Result<Option<Box<RouteRollout>>, RouteError> {
        let Some(rollout) = &written.rollout else { return Ok(None) };
        let Some(candidate) = written.backend_refs.iter().position(|reference| is_to(reference, &rollout.to)) else {
            return Ok(None);
        };
        let kind = targets.get(candidate).map(|target| &target.kind);
        let shadow = match (rollout.strategy, kind) {
            (schema::RolloutStrategy::Shadow, Some(TargetKind::Backend(backend))) => {
                Some(Box::new(self.shadow(name, rollout, backend)?))
            }
            _ => None,
        };
        let live = self.rollouts.live(name);
        Ok(live.map(|live| Box::new(RouteRollout { candidate, live, shadow })))
    }

    /// Copies for the candidate of a shadow.
    fn shadow(&self, route: &str, rollout: &schema::Rollout, backend: &Arc<Backend>) -> Result<ShadowPlan, RouteError> {
        let written = rollout.shadow.clone().unwrap_or_default();
        let model = written
            .embedding
            .as_ref()
            .map(|name| self.embedder(route, "rollout.shadow.embedding", name))
            .transpose()?;
        let least = written.min_similarity.unwrap_or(schema::Shadow::DEFAULT_MIN_SIMILARITY);
        let at_once = usize::try_from(written.max_in_flight.get()).unwrap_or(Semaphore::MAX_PERMITS);
        Ok(ShadowPlan {
            backend: backend.clone(),
            timeout: written.timeout.0,
            permits: Arc::new(Semaphore::new(at_once)),
            max_body: written.max_body.0,
            writes: written.writes,
            rules: Arc::new(PairRules { tolerance: written.tolerance, embedder: model.map(|model| (model, least)) }),
        })
    }

    /// Built-in model for embeddings that the key `key` of a route names.
    fn embedder(&self, route: &str, key: &'static str, name: &str) -> Result<Arc<LoadedModel>, RouteError> {
        let model = self.model(route, name)?;
        if model.task() != Task::Embed {
            let (route, model, task) = (route.to_owned(), model.name().to_owned(), model.task());
            return Err(RouteError::NoEmbedder { route, key, model, task });
        }
        Ok(model)
    }

    fn fallbacks(
        &self,
        route: &str,
        written: &schema::Route,
        saturated: &schema::WhenSaturated,
    ) -> Result<Fallbacks, RouteError> {
        let when_saturated = self.fallback(route, saturated.spill_to.as_deref(), saturated.reject.as_ref())?;
        let when_unavailable = match &written.when_unavailable {
            Some(rule) => self.fallback(route, rule.spill_to.as_deref(), rule.reject.as_ref())?,
            None => when_saturated.clone(),
        };
        Ok(Fallbacks { when_saturated, when_unavailable })
    }

    fn fallback(
        &self,
        route: &str,
        spill_to: Option<&str>,
        reject: Option<&schema::Reject>,
    ) -> Result<Fallback, RouteError> {
        let reject = reject.cloned().unwrap_or_default();
        Ok(Fallback {
            spill_to: spill_to.map(|name| self.spill_target(route, name)).transpose()?,
            status: StatusCode::from_u16(reject.status.0).unwrap_or(StatusCode::SERVICE_UNAVAILABLE),
            retry_after: reject.retry_after.0,
        })
    }

    fn spill_target(&self, route: &str, name: &str) -> Result<TargetKind, RouteError> {
        if let Some(backend) = self.backends.get(name) {
            return Ok(TargetKind::Backend(backend.clone()));
        }
        let model = self.model(route, name)?;
        match model.task() {
            Task::Generate => Ok(TargetKind::Model(model)),
            task => Err(RouteError::NotConversational { route: route.to_owned(), model: name.to_owned(), task }),
        }
    }

    /// Queues of a route: one, or one for each target where a request stays with the target that it drew. Such a request
    /// cannot use a slot of another target of the same priority. On a route with a rollout the targets of one version share a
    /// queue, or have their own each.
    fn queues(
        &self,
        route: &str,
        written: &schema::Queue,
        try_others: bool,
        targets: &[Target],
        candidate: Option<&Target>,
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
            self.commit_steps.add(move || adopting.adopt(depth, max_wait, rooms));
            queue
        };
        if targets.len() == 1 || (try_others && candidate.is_none()) {
            return vec![queue(route, rooms(&|_| true))];
        }
        if let Some(candidate) = candidate.filter(|_| try_others) {
            let is_candidate = |target: &Target| target.name == candidate.name;
            let stable = queue(route, rooms(&|target| !is_candidate(target)));
            let own = queue(&format!("{route}\n{}", candidate.name), rooms(&is_candidate));
            return targets
                .iter()
                .map(|target| if is_candidate(target) { own.clone() } else { stable.clone() })
                .collect();
        }
        let own = |target: &Target| {
            let serves = |other: &Target| other.name == target.name || other.priority != target.priority;
            queue(&format!("{route}\n{}", target.name), rooms(&serves))
        };
        targets.iter().map(own).collect()
    }

    fn filters(&self, route: &str, written: &schema::Route) -> Result<RouteFilters, RouteError> {
        let prefixes = written.matches.iter().filter_map(|m| match &m.path {
            Some(schema::PathMatch::Prefix(prefix)) => Some(comparable(prefix)),
            _ => None,
        });
        let prefixes: Vec<String> = prefixes.collect();
        let prefixes: Vec<&str> = prefixes.iter().map(String::as_str).collect();
        let mut compiled = RouteFilters::default();
        for entry in &written.filters {
            let cx = BuildContext {
                route,
                prefixes: &prefixes,
                states: self.states,
                http: self.http,
                grpc: self.grpc,
                embedders: self,
                classifiers: self,
                counters: &self.metrics.filters,
                answers: self.answers,
                prices: self.prices,
            };
            let filter = self.registry.build(&entry.name, &entry.config, &cx).map_err(|e| RouteError::Filter {
                route: route.to_owned(),
                filter: entry.name.clone(),
                reason: e.message,
            })?;
            for mirror in filter.mirrors() {
                compiled.mirrors.push(self.mirror(route, &entry.name, mirror, &filter)?);
            }
            if let Some(compression) = Compression::of(&filter)
                && compiled.compression.replace(compression).is_some()
            {
                return Err(RouteError::Filter {
                    route: route.to_owned(),
                    filter: entry.name.clone(),
                    reason: "the route has two; expected one, whose answers would else be compressed twice".to_owned(),
                });
            }
            // A limit by address counts requests before the caller is known, and tokens after the body is read.
            let (mut early, mut late) = (Rules::new(), Rules::new());
            for spec in filter.limits() {
                // The subject of a computed limit is its expression, which metrics and refusals name.
                let spec = LimitSpec { subject: self.origins.redact(&spec.subject), ..spec.clone() };
                let rules = self.limits.of_filter(route, &spec, self.commit_steps);
                let (first, others) =
                    rules.map_err(|e| RouteError::Limit { route: route.to_owned(), reason: e.to_string() })?;
                early.extend(first);
                late.extend(others);
            }
            let (acts, is_guard) = (!filter.only_declares(), filter.stage() == Stage::Guard);
            let named = |rules, acts| NamedFilter { name: entry.name.clone(), filter: filter.clone(), rules, acts };
            if !early.is_empty() || (acts && is_guard) {
                compiled.guards.push(named(early, acts && is_guard));
            }
            if !late.is_empty() || (acts && !is_guard) {
                compiled.filters.push(named(late, acts && !is_guard));
            }
        }
        Ok(compiled)
    }

    fn mirror(
        &self,
        route: &str,
        name: &str,
        mirror: &MirrorSpec,
        filter: &Arc<dyn Filter>,
    ) -> Result<MirrorPlan, RouteError> {
        let unknown = || RouteError::Filter {
            route: route.to_owned(),
            filter: name.to_owned(),
            reason: format!("unknown backend `{}`", mirror.backend),
        };
        let at_once = usize::try_from(mirror.max_in_flight).unwrap_or(Semaphore::MAX_PERMITS);
        Ok(MirrorPlan {
            backend: self.backends.get(mirror.backend.as_str()).cloned().ok_or_else(unknown)?,
            share: mirror.share,
            timeout: mirror.timeout,
            permits: Arc::new(Semaphore::new(at_once)),
            max_body: mirror.max_body,
            filter: filter.clone(),
        })
    }
}

/// Dialect of an API that callers speak.
fn spoken(protocol: schema::CallerProtocol) -> &'static dyn Dialect {
    match protocol {
        schema::CallerProtocol::Openai => OPENAI,
        schema::CallerProtocol::Anthropic => ANTHROPIC,
    }
}

fn body_needs(spill: &SpillRule, targets: &[Target], fallbacks: &Fallbacks, filters: &[NamedFilter]) -> BodyNeeds {
    let calls_models = targets.iter().any(|target| match &target.kind {
        TargetKind::Backend(backend) => backend.calls_models(),
        TargetKind::Model(_) => true,
    });
    let spills_to = [&fallbacks.when_saturated, &fallbacks.when_unavailable];
    let spills_to = spills_to.into_iter().filter_map(|fallback| fallback.spill_to.as_ref());
    let renames_model = targets
        .iter()
        .map(|target| &target.kind)
        .chain(spills_to)
        .any(|kind| matches!(kind, TargetKind::Backend(backend) if backend.upstream_model.is_some()));
    let of_targets = targets.iter().flat_map(|target| &target.filters);
    let filter_reads_body = filters.iter().chain(of_targets).any(|named| named.filter.needs_body());
    let spill_reads_body = spill.when.as_ref().is_some_and(|when| when.asked().needs_body());
    let judges_body = spill.models.is_some()
        || spill_reads_body
        || renames_model
        || filter_reads_body
        || filters.iter().flat_map(|named| &named.rules).any(|rule| rule.is_by_model() || rule.counts_tokens());
    let holds_body = calls_models || renames_model || filter_reads_body || spill_reads_body;
    let resends = targets.iter().any(|target| matches!(&target.kind, TargetKind::Backend(backend) if backend.http2));
    BodyNeeds { calls_models, renames_model, judges_body, holds_body, resends }
}

/// Dialect of a route's errors where the path names no API: OpenAI's where a target speaks it, as built-in models do, else
/// that of the first target with a list of models, else that of the first which calls models.
fn dialect_of(targets: &[Target]) -> &'static dyn Dialect {
    let dialects = targets.iter().filter_map(|target| match &target.kind {
        TargetKind::Backend(backend) => backend.dialect,
        TargetKind::Model(_) => Some(OPENAI),
    });
    let has_list = |dialect: &'static dyn Dialect| dialect.model_list(&[]).is_some();
    let better = |first, next| if next == OPENAI || (!has_list(first) && has_list(next)) { next } else { first };
    dialects.reduce(better).unwrap_or(PROBLEM)
}

fn retry_plan(written: &schema::Retry) -> RetryPlan {
    let on = |reason| written.on.contains(&reason);
    let status = |reason: &RetryOn| if let RetryOn::Status(code) = reason { Some(*code) } else { None };
    let hedge =
        |hedge: &schema::Hedge| HedgePlan { after: hedge.after.0, max: usize::try_from(hedge.max.get()).unwrap_or(1) };
    RetryPlan {
        attempts: written.attempts,
        on_connect_failure: on(RetryOn::ConnectFailure),
        on_reset: on(RetryOn::Reset),
        on_statuses: written.on.iter().filter_map(status).collect(),
        backoff_base: written.backoff.base.0,
        backoff_max: written.backoff.max.0,
        budget: thousandths(written.budget),
        hedge: written.hedge.as_ref().map(hedge),
    }
}

/// Values of environment variables in headers that the filters of the `n`th route set for servers.
fn environment(origins: &Origins, n: usize, written: &schema::Route) -> Option<Arc<[Box<[u8]>]>> {
    let filters = written.filters.iter().enumerate().filter(|(_, entry)| entry.name == SETS_HEADERS);
    let paths = filters.map(|(at, _)| format!("routes[{n}].filters[{at}].{SETS_HEADERS}"));
    let of_targets = written.backend_refs.iter().enumerate().flat_map(|(r, reference)| {
        let filters = reference.filters.iter().enumerate().filter(|(_, entry)| entry.0.name == SETS_HEADERS);
        filters.map(move |(at, _)| format!("routes[{n}].backendRefs[{r}].filters[{at}].{SETS_HEADERS}"))
    });
    let mut values: Vec<Box<[u8]>> = Vec::new();
    for path in paths.chain(of_targets) {
        let found = origins.values_at(&path).map(str::trim).filter(|value| value.len() >= LEAST_SECRET);
        values.extend(found.map(|value| value.as_bytes().into()));
    }
    (!values.is_empty()).then(|| values.into())
}

fn spill_rule(route: &str, written: &schema::SpillLimits) -> Result<SpillRule, RouteError> {
    let patterns = |models: &Vec<String>| models.iter().map(|model| ModelPattern::new(model)).collect();
    let when = written.when.as_ref().map(|when| Expression::condition(when, Scope::Request)).transpose();
    let when = when.map_err(|reason| RouteError::Spill { route: route.to_owned(), reason })?;
    Ok(SpillRule {
        when: when.map(Arc::new),
        max_prompt_tokens: written.max_prompt_tokens,
        models: written.models.as_ref().map(patterns),
        tenants: written.tenants.as_ref().map(|tenants| tenants.iter().map(|t| t.as_str().into()).collect()),
        share: written.percent.map(|percent| percent / 100.0),
    })
}

/// Share in thousandths; validation keeps it between 0 and 1.
fn thousandths(share: f64) -> i64 {
    #[allow(clippy::cast_possible_truncation, reason = "a number from 0 to 1000")]
    let thousandths = (share.clamp(0.0, 1.0) * 1_000.0).round() as i64;
    thousandths
}

/// Models that the matches of a route accept; `None` for all.
fn matched(written: &schema::Route) -> Option<Vec<ModelPattern>> {
    let models = written.matches.iter().map(|one| one.model.as_deref().map(ModelPattern::new));
    models.collect::<Option<Vec<_>>>().filter(|models| !models.is_empty())
}

/// Models that callers of a route can name, as far as the configuration says.
fn listed(written: &schema::Route, targets: &[Target]) -> Vec<ListedModel> {
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
            TargetKind::Model(model) => {
                add(model.name(), model.created());
                let others = written.model_alias.iter().filter(|(_, name)| name.as_str() == model.name());
                others.for_each(|(alias, _)| add(alias, model.created()));
            }
            TargetKind::Backend(backend) => {
                let serves = backend.serves.iter().flatten().filter_map(ModelPattern::exact);
                serves.for_each(|model| add(model, 0));
                if let Some(model) = backend.model.as_deref().filter(|_| backend.serves.is_none()) {
                    add(model, 0);
                }
            }
        }
    }
    models
}
