//! Schema of the file: one module for each top-level key, decoded by serde and described by JSON Schema from the same
//! types. Doc comments become the descriptions that editors show, so they are written for operators. References between
//! parts are checked in `validate`, never here; nothing here has run-time state.

mod acme;
mod admin;
mod backends;
mod balancing;
mod batch;
mod consumers;
mod discovery;
mod dns;
mod feedback;
mod limits;
mod listeners;
mod models;
mod notifications;
mod quality;
mod rollouts;
mod routes;
mod signals;
mod telemetry;

pub use acme::{Acme, AcmeChallenge, AcmeRetry, ExternalAccount};
pub use admin::{Admin, AdminLogin, AllowedClaim, LoginSessions};
pub use backends::{
    Backend, BackendProtocol, BackendTimeouts, BackendTls, CallerCredentials, Credentials, Endpoint, MaxTokensField,
    ModelList, NoReasoning, OpenAiApi, PemAuthorities,
};
pub use balancing::{
    Adaptive, Capacity, CircuitBreaker, CompletionProbe, GrpcProbe, HashOn, HealthCheck, HttpProbe, KvCache,
    LoadBalancing, OutlierDetection, PolicyName, QueueDepth, TcpProbe,
};
pub use batch::Batch;
pub use consumers::{
    ApiKeyHeaders, Authentication, CertificateIdentity, Claims, Consumer, ConsumerCertificates, ConsumerKey,
    ConsumerToken, FailureLimit, IdentityHeaders, Jwks, JwtAlgorithm, JwtIssuer, KeysByApi, Mtls, Tenant,
};
pub use discovery::{Discovery, Kubernetes, LeaderElection};
pub use dns::Dns;
pub use feedback::{Feedback, Remember};
pub use limits::{
    Budget, BudgetState, CacheRedis, CacheState, ConsumerLimits, LimitState, OnExceeded, OnStoreFailure, Period, Price,
    RedisState, SharedStore, State, StateStore,
};
pub use listeners::{
    CertificateFiles, ClientAddress, ClientAddressHeader, ClientCertificateMode, ClientCertificates, EncodedSlashes,
    Listener, ListenerLimits, ListenerProtocol, ListenerTls, PemPair, ProxyProtocol, TlsVersion,
};
pub use models::{Device, Model, ModelTask, ModelWeights, UnknownFields};
pub use notifications::{Notification, NotificationEvent, Webhook, WebhookRetry};
pub use quality::{DriftLimits, KeepExamples, Probes, Quality, QualityReference, QualityState};
pub use rollouts::{
    AbortWhen, OnInconclusive, Rollout, RolloutGate, RolloutHold, RolloutHours, RolloutMetric, RolloutStep,
    RolloutStrategy, Shadow, Weekday,
};
pub use routes::{
    Access, BackendRef, Backoff, BodyLimits, CallerProtocol, FilterEntry, HeaderMatch, Hedge, Match, PathMatch,
    QueryMatch, Queue, Reject, Retry, RetryOn, Route, RouteAuthentication, RouteTimeouts, SpillLimits, Sticky,
    TargetFilter, UnknownCalls, WhenSaturated, WhenUnavailable,
};
pub use signals::{Examples, Signal, SignalClassifier, SignalText};
pub use telemetry::{
    AuditLog, CallersDecide, ComputedField, Keep, LogFormat, Logs, LogsOtlp, MetricsPage, Otlp, OtlpProtocol,
    Telemetry, Tracing,
};

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::values::{Duration, Size};

/// A Spillway configuration. Keys that begin with `x-` are for parts that several places share: `x-limits: &limits {...}` is
/// used by `*limits`, or by `<<: *limits` within a mapping.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// Further files, by paths relative to this one; `*` stands for any characters of a name, as in `routes.d/*.yaml`. Their
    /// lists are added to those of this file, in the order of the names; every other key stands in one file. Files that come
    /// and go are noticed.
    #[serde(default)]
    pub include: Vec<String>,
    /// Addresses that clients connect to.
    pub listeners: Vec<Listener>,
    /// Address for operators: metrics, health, configuration.
    #[serde(default)]
    pub admin: Option<Admin>,
    /// Groups of servers that answer requests.
    #[serde(default)]
    pub backends: Vec<Backend>,
    /// Built-in models, which the gateway runs itself.
    #[serde(default)]
    pub models: Vec<Model>,
    /// Identities that may call.
    #[serde(default)]
    pub consumers: Vec<Consumer>,
    /// Tenants that consumers belong to, and the limits of all consumers of each together.
    #[serde(default)]
    pub tenants: Vec<Tenant>,
    /// Credentials that identify callers.
    #[serde(default)]
    pub authentication: Option<Authentication>,
    /// Prices of models, for budgets in money and the costs of callers.
    #[serde(default)]
    pub prices: Vec<Price>,
    /// Prices of the catalogue that ships with the program, for models that no entry of `prices` fits: those that makers of models
    /// publish. On where there are no `prices`, off where there are some: a model without an entry costs nothing there. A built-in
    /// model has no price of the catalogue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price_catalogue: Option<bool>,
    /// Facts about conversations, by the names under which `matches[].when` of routes reads them (`signals.NAME`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub signals: BTreeMap<String, Signal>,
    /// Routes from requests to backends and models.
    pub routes: Vec<Route>,
    /// Labels of answers.
    #[serde(default)]
    pub feedback: Option<Feedback>,
    /// Files of requests that are answered when there is room.
    #[serde(default)]
    pub batch: Option<Batch>,
    /// Stores of budgets, of the levels of limits, of rollouts, and of sketches.
    #[serde(default)]
    pub state: State,
    /// Receivers of events of the gateway.
    #[serde(default)]
    pub notifications: Vec<Notification>,
    /// Traces and logs.
    #[serde(default)]
    pub telemetry: Telemetry,
    /// Resolution of the names of endpoints.
    #[serde(default)]
    pub dns: Dns,
    /// Sources of listeners, routes and endpoints beside this file.
    #[serde(default)]
    pub discovery: Discovery,
    /// Limits of the whole process.
    #[serde(default)]
    pub limits: ProcessLimits,
    /// End of the process.
    #[serde(default)]
    pub shutdown: Shutdown,
}

impl Config {
    /// True if listeners and routes may come from elsewhere than the file.
    pub fn has_discovery(&self) -> bool {
        self.discovery.kubernetes.is_some()
    }

    /// True if models that no entry of `prices` fits have the price of the catalogue.
    pub fn uses_price_catalogue(&self) -> bool {
        self.price_catalogue.unwrap_or(self.prices.is_empty())
    }

    /// True if a model may have a price.
    pub fn has_prices(&self) -> bool {
        !self.prices.is_empty() || self.uses_price_catalogue()
    }

    /// True if a route spills when it is saturated.
    pub fn spills(&self) -> bool {
        self.routes.iter().any(|route| route.when_saturated.as_ref().is_some_and(|rule| rule.spill_to.is_some()))
    }
}

/// Limits of the whole process.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ProcessLimits {
    /// Memory for request bodies that are held for routing, limits, retries or spilling, counted as their bytes arrive. A
    /// request that finds none left is refused with 503. It may be changed while the gateway runs.
    pub buffered_bodies: Size,
    /// Memory of `bufferedBodies` that one caller may use: a consumer, or the address of a client while nothing else is
    /// known of it (of IPv6 the first 64 bits). A request that would use more is refused with 429, and one whose body alone
    /// is longer with 413. It may be changed while the gateway runs.
    pub buffered_bodies_per_caller: Size,
    /// Memory for answers that clients have not read yet, over all requests. While it lasts, a server's answer is read
    /// to its end and the server is free for others, however slowly the client reads. When it is spent, servers are
    /// read as fast as clients take. Memory that is held counts, in pieces of 1 KiB to 64 KiB and 128 bytes for each. Answers
    /// that filters change are read whole within it: one that finds none left is 503.
    pub buffered_answers: Size,
    /// The share of one request in `bufferedAnswers`.
    pub buffered_answers_per_request: Size,
    /// Callers whose level is kept for each rule of limits; past it those that are full soonest are forgotten.
    #[schemars(range(min = 1024, max = 16_777_216))]
    pub limit_keys: u32,
    /// Memory for all built-in models together, of any device; three quarters of what the process may use (its control
    /// group counts) when left out. A GPU with more memory than that needs this key. For a model that does not fit
    /// beside the others, models are unloaded that are not kept warm and not in use, the least recently used first;
    /// without such, it is not loaded. Memory counts until it is released; a model that is kept warm keeps its share
    /// while it is not loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_memory: Option<Size>,
    /// File descriptors that neither connections of clients nor of servers may take: for the admin address, files,
    /// names and stores. Connections to servers stop at the limit of open files (`ulimit -n`) less this number. New
    /// connections of clients stop at the limit less twice this number. An eighth of the limit when left out, at least
    /// 16 and at most 1024; never more than a quarter of the limit. `spillway_descriptor_shortages_total` counts
    /// connections that were closed for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reserved_descriptors: Option<NonZeroU32>,
}

impl Default for ProcessLimits {
    fn default() -> Self {
        Self {
            buffered_bodies: Size::mib(512),
            buffered_bodies_per_caller: Size::mib(64),
            buffered_answers: Size::mib(256),
            buffered_answers_per_request: Size::mib(1),
            limit_keys: 65_536,
            model_memory: None,
            reserved_descriptors: None,
        }
    }
}

/// End of the process.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Shutdown {
    /// Time after SIGTERM for which requests are still taken, while `/readyz` and `healthPath` say `draining`: load
    /// balancers learn of it before connections are refused. Then the drain begins.
    pub delay: Duration,
    /// Time for running requests once the drain has begun.
    pub drain_timeout: Duration,
    /// Hand-over to a new process.
    pub hand_over: HandOver,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { delay: Duration::seconds(0), drain_timeout: Duration::seconds(30), hand_over: HandOver::default() }
    }
}

/// Hand-over to a new process, which SIGQUIT and `spillway upgrade` begin.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HandOver {
    /// Longest wait for the new process to be ready, the loading of its models included. Past it the new process is ended, and
    /// this one goes on.
    pub start_timeout: Duration,
    /// Time after a hand-over for which idle connections of clients are kept: the next request on each is answered, with
    /// `Connection: close`. Longer than the pause of most clients between two requests.
    pub idle_timeout: Duration,
    /// Time after a hand-over for running requests and sockets of the old process. SIGTERM to the old process shortens it to
    /// `shutdown.drainTimeout`.
    pub drain_timeout: Duration,
}

impl Default for HandOver {
    fn default() -> Self {
        Self {
            start_timeout: Duration::seconds(600),
            idle_timeout: Duration::seconds(30),
            drain_timeout: Duration::seconds(3_600),
        }
    }
}
