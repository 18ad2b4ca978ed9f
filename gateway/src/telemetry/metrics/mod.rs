//! Metrics in OpenMetrics text. Handles are found at reload; a request updates only atomics. No label value comes from a
//! caller: routes, backends and models are names of the configuration, methods and statuses are bounded.

mod batches;
mod filters;
mod handles;
mod held;
mod histogram;
mod latency;
mod limits;
mod live;
mod now;
mod plain;
mod receivers;
mod signals;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

pub use self::batches::BatchMetrics;
pub use self::handles::{
    CallStats, EndpointMetrics, ListenerMetrics, ModelCounts, ModelMetrics, QueueMetrics, RouteCounts, RouteMetrics,
};
pub use self::held::{Count, Running};
pub use self::histogram::{BUCKETS, HTTP_SECONDS, MODEL_SECONDS};
use self::histogram::{Histogram, STORE_SECONDS, TOKEN_COUNTS};
use self::latency::{LatencyHistograms, latencies};
pub use self::limits::LimitMetrics;
use self::live::Live;
pub use self::now::{
    BackendSample, BudgetSample, CertificateSample, ClassSample, CostSample, EndpointSample, EngineSample,
    FeedbackSample, FeedbackSamples, GpuSample, ProbeSample, ProbeTargetSample, QualityFeatureSample, QualitySample,
    RolloutSample, Samples,
};
pub use self::receivers::ReceiverMetrics;
pub use self::signals::SignalMetrics;
use super::label::{BodyRefusal, ByLabel, CacheLookup, CacheWrite, Label, RolloutEnd};

/// Provider name of built-in models.
const ENGINE: &str = "spillway";

/// Form of the text for a scrape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricsFormat {
    /// OpenMetrics 1.0, with exemplars.
    OpenMetrics,
    /// Text format 0.0.4 of Prometheus.
    Text,
}

impl MetricsFormat {
    /// Media type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Label names with their values.
type Labels = Vec<(&'static str, String)>;
type Counters = Family<Labels, Counter>;
type Gauges = Family<Labels, Gauge>;
type FloatGauges = Family<Labels, Gauge<f64, AtomicU64>>;
type Histograms = Family<Labels, Histogram, fn() -> Histogram>;

/// Histograms with labels, on one scale.
fn histograms(scale: fn() -> Histogram) -> Histograms {
    Histograms::new_with_constructor(scale)
}

fn http_seconds() -> Histogram {
    Histogram::new(&HTTP_SECONDS)
}

fn model_seconds() -> Histogram {
    Histogram::new(&MODEL_SECONDS)
}

fn token_counts() -> Histogram {
    Histogram::new(&TOKEN_COUNTS)
}

/// Declares series: field, type, metric name and first value. The doc of a field is the help text of its metric. Fields of
/// a second block belong to no metric and begin with their default.
macro_rules! series {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident {
            $(
                #[doc = $help:literal]
                $field_vis:vis $field:ident: $type:ty = $metric:literal, $first:expr;
            )+
        }
        $({ $($beside:ident: $beside_type:ty,)+ })?
    ) => {
        $(#[$meta])*
        $vis struct $name {
            $(#[doc = $help] $field_vis $field: $type,)+
            $($($beside: $beside_type,)+)?
        }

        impl $name {
            fn register(registry: &mut Registry) -> Self {
                Self {
                    $($field: {
                        let series: $type = $first;
                        registry.register($metric, $help.trim(), series.clone());
                        series
                    },)+
                    $($($beside: Default::default(),)+)?
                }
            }
        }
    };
}

latencies! {
    /// Metrics of durations whose buckets lead to traces.
    struct Latencies {
        /// Arrival to last byte
        requests: LatencyHistograms = "http_server_request_duration_seconds", &HTTP_SECONDS;
        /// Duration of a model call
        operation: LatencyHistograms = "gen_ai_client_operation_duration_seconds", &MODEL_SECONDS;
        /// Arrival to the first content
        first_chunk: LatencyHistograms = "gen_ai_client_operation_time_to_first_chunk_seconds", &MODEL_SECONDS;
    }
}

series! {
    /// Series with labels, for what a configuration names, and the handles on them that are in use.
    struct Families {
        /// Requests in the queue
        queue_depth: Gauges = "spillway_queue_depth", Gauges::default();
        /// Time in the queue by outcome
        queue_wait: Histograms = "spillway_queue_wait_seconds", histograms(http_seconds);
        /// Requests that a filter ended
        filter_refusals: Counters = "spillway_filter_refusals", Counters::default();
        /// Requests in flight at an endpoint
        endpoint_in_flight: Gauges = "spillway_endpoint_in_flight", Gauges::default();
        /// 1 while the active check finds the endpoint healthy
        endpoint_healthy: Gauges = "spillway_endpoint_healthy", Gauges::default();
        /// Answers that report the endpoint as full
        endpoint_full: Counters = "spillway_endpoint_full", Counters::default();
        /// Ejections of an endpoint for its errors
        endpoint_ejections: Counters = "spillway_endpoint_ejections", Counters::default();
        /// Failed scrapes of an endpoint's own metrics
        endpoint_scrape_failures: Counters = "spillway_endpoint_scrape_failures", Counters::default();
        /// Failed questions to an endpoint for its models
        endpoint_model_list_failures: Counters = "spillway_endpoint_model_list_failures", Counters::default();
        /// Attempts by outcome
        endpoint_attempts: Counters = "spillway_endpoint_attempts", Counters::default();
        /// Open client connections
        connections: Gauges = "spillway_connections", Gauges::default();
        /// Connections closed before they carried a request, by reason
        connections_refused: Counters = "spillway_connections_refused", Counters::default();
        /// Requests that are no HTTP/1 or break a limit of its framing, by reason; their connections are closed
        malformed: Counters = "spillway_malformed_requests", Counters::default();
        /// Tokens of a call
        tokens: Histograms = "gen_ai_client_token_usage", histograms(token_counts);
        /// Submission to the last token of a built-in model
        engine_request: Histograms = "gen_ai_server_request_duration_seconds", histograms(model_seconds);
        /// Submission to the first token of a built-in model
        engine_first_token: Histograms = "gen_ai_server_time_to_first_token_seconds", histograms(model_seconds);
        /// Time for each further token of a built-in model
        engine_per_token: Histograms = "gen_ai_server_time_per_output_token_seconds", histograms(model_seconds);
        /// Edits of the configuration by result
        reloads: Counters = "spillway_config_reloads", Counters::default();
        /// Ended rollouts by result
        rollout_ends: Counters = "spillway_rollout_ends", Counters::default();
        /// Orders of certificates by result
        orders: Counters = "spillway_acme_orders", Counters::default();
        /// Tries of lines of batches, by their end
        batch_lines: Counters = "spillway_batch_lines", Counters::default();
        /// Stored batches, by their state
        batches: Gauges = "spillway_batches", Gauges::default();
        /// Looks into the shared store of answers, by result
        cache_lookups: Counters = "spillway_cache_store_lookups", Counters::default();
        /// Answers on their way to the shared store of answers, by result
        cache_writes: Counters = "spillway_cache_store_writes", Counters::default();
        /// Request bodies refused, by the spent resource: memory of the caller, of the process, time to read them
        bodies: Counters = "spillway_request_bodies_refused", Counters::default();
    }
    {
        latencies: Latencies,
        live_limits: Arc<Live<LimitMetrics>>,
        live_routes: Arc<Live<RouteMetrics>>,
        live_queues: Live<QueueMetrics>,
        live_endpoints: Live<EndpointMetrics>,
        live_listeners: Live<ListenerMetrics>,
        live_models: Live<ModelMetrics>,
        live_receivers: Arc<Live<ReceiverMetrics>>,
        live_signals: Arc<Live<SignalMetrics>>,
    }
}

series! {
    /// Series of the process as a whole.
    pub struct ProcessMetrics {
        /// Failed attempts to store a certificate
        pub acme_unstored: Counter = "spillway_acme_storage_failures", Counter::default();
        /// Time at which the running configuration was accepted
        pub reloaded_at: Gauge<f64, AtomicU64> = "spillway_config_last_reload_success_timestamp_seconds", Gauge::default();
        /// Refused credentials
        pub authentication_failures: Counter = "spillway_authentication_failures", Counter::default();
        /// Requests refused because their address had sent too many bad credentials
        pub authentication_throttled: Counter = "spillway_authentication_throttled", Counter::default();
        /// Verified tokens that are remembered
        pub token_cache_entries: Gauge = "spillway_token_cache_entries", Gauge::default();
        /// API keys that were made at run time and exist
        pub api_keys: Gauge = "spillway_api_keys", Gauge::default();
        /// API keys that may be made at run time (authentication.keysByApi.maxKeys)
        pub api_keys_limit: Gauge = "spillway_api_keys_limit", Gauge::default();
        /// 1 while the store of API keys that are made at run time answers
        pub api_key_store_up: Gauge = "spillway_api_key_store_up", Gauge::default();
        /// Fetches of an issuer's keys that failed
        pub jwks_failures: Counter = "spillway_jwks_failures", Counter::default();
        /// Connections of the admin address that were closed to make room for others
        pub admin_connections_dropped: Counter = "spillway_admin_connections_dropped", Counter::default();
        /// Levels that were forgotten to make room
        pub limit_keys_forgotten: Counter = "spillway_limit_keys_forgotten", Counter::default();
        /// Requests of a rollout whose observation found no room
        pub rollout_observations_lost: Counter = "spillway_rollout_observations_lost", Counter::default();
        /// Answers of rollouts that were not read for their metrics: longer than maxAnswer, or too many at a time
        pub rollout_answers_unread: Counter = "spillway_rollout_answers_unread", Counter::default();
        /// Batches of budgets that could not be written
        pub budget_write_failures: Counter = "spillway_budget_write_failures", Counter::default();
        /// 1 while the shared store of limits answers
        pub limit_store_up: Gauge = "spillway_limit_store_up", Gauge::default();
        /// Gateways that share the limits, as of the last answer of the store
        pub limit_store_gateways: Gauge = "spillway_limit_store_gateways", Gauge::default();
        /// Requests limited without the shared store of limits
        pub limit_store_fallbacks: Counter = "spillway_limit_store_fallbacks", Counter::default();
        /// Corrections that did not reach the shared store of limits
        pub limit_settlements_lost: Counter = "spillway_limit_settlements_lost", Counter::default();
        /// Lines of batches that are being answered
        batch_lines_in_flight: Gauge = "spillway_batch_lines_in_flight", Gauge::default();
        /// Stored files of batches
        batch_files: Gauge = "spillway_batch_files", Gauge::default();
        /// Bytes of the stored files of batches
        batch_file_bytes: Gauge = "spillway_batch_file_bytes", Gauge::default();
        /// 1 while the shared store of answers answers
        pub cache_store_up: Gauge = "spillway_cache_store_up", Gauge::default();
        /// Time of a look into the shared store of answers
        cache_store_lookup: Histogram = "spillway_cache_store_lookup_duration_seconds", Histogram::new(&STORE_SECONDS);
        /// Lines that the audit log left out
        pub audit_dropped: Counter = "spillway_audit_dropped", Counter::default();
        /// Request bodies that are held
        pub buffered_bytes: Gauge = "spillway_buffered_body_bytes", Gauge::default();
        /// Answers that wait for their clients
        pub buffered_answer_bytes: Gauge = "spillway_buffered_answer_bytes", Gauge::default();
        /// Connections closed because the client did not read its answer within writeTimeout
        pub write_timeouts: Counter = "spillway_client_write_timeouts", Counter::default();
        /// Hand-overs to a new process that failed
        pub hand_overs_failed: Counter = "spillway_hand_overs_failed", Counter::default();
        /// Workers that stand still
        pub workers_stalled: Gauge = "spillway_workers_stalled", Gauge::default();
        /// Objects of Kubernetes that are kept
        pub kubernetes_objects: Gauge = "spillway_kubernetes_objects", Gauge::default();
        /// Listeners, backends and routes of Kubernetes that the running configuration had to leave out
        pub kubernetes_refused: Gauge = "spillway_kubernetes_parts_refused", Gauge::default();
        /// 1 while this gateway writes the statuses of its class
        pub kubernetes_leader: Gauge = "spillway_kubernetes_leader", Gauge::default();
        /// Changes of objects of Kubernetes that could not be applied
        pub kubernetes_rejected: Counter = "spillway_kubernetes_changes_rejected", Counter::default();
        /// Failed watches of the API server
        pub kubernetes_watch_failures: Counter = "spillway_kubernetes_watch_failures", Counter::default();
        /// Statuses that could not be written
        pub kubernetes_status_failures: Counter = "spillway_kubernetes_status_failures", Counter::default();
    }
}

/// All metrics of the process.
pub struct Metrics {
    registry: Registry,
    families: Arc<Families>,
    /// Series of the process as a whole.
    pub process: ProcessMetrics,
    /// Reloads that were accepted.
    pub reloads_ok: Counter,
    /// Reloads that were rejected.
    pub reloads_failed: Counter,
    /// Certificates that an authority issued.
    pub acme_ok: Counter,
    /// Orders of certificates that failed.
    pub acme_failed: Counter,
    /// Request bodies that were refused.
    pub bodies_refused: ByLabel<BodyRefusal, Counter>,
    /// Series of batches.
    pub batches: Arc<BatchMetrics>,
    /// Looks into the shared store of answers.
    cache_lookups: ByLabel<CacheLookup, Counter>,
    /// Answers on their way to the shared store of answers.
    cache_writes: ByLabel<CacheWrite, Counter>,
    /// Counters of filters.
    pub filters: spillway_filter::Counters,
    /// Spans that no collector took.
    pub spans_dropped: Arc<AtomicU64>,
    /// Records of the log that no collector took.
    pub log_records_dropped: Arc<AtomicU64>,
    started: SystemTime,
}

fn labels<const N: usize>(pairs: [(&'static str, &str); N]) -> Labels {
    pairs.into_iter().map(|(name, value)| (name, value.to_owned())).collect()
}

impl Metrics {
    /// Creates the metrics of a new process.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let families = Families::register(&mut registry);
        handles::register_routes(&mut registry, &families.live_routes);
        limits::register_limits(&mut registry, &families.live_limits);
        receivers::register_receivers(&mut registry, &families.live_receivers);
        signals::register_signals(&mut registry, &families.live_signals);
        let process = ProcessMetrics::register(&mut registry);
        let version = Info::new(labels([("version", env!("CARGO_PKG_VERSION"))]));
        registry.register("spillway_build", "The version that runs", version);
        let of = |family: &Counters, label, value| family.get_or_create_owned(&labels([(label, value)]));
        Self {
            reloads_ok: of(&families.reloads, "result", "ok"),
            reloads_failed: of(&families.reloads, "result", "failed"),
            acme_ok: of(&families.orders, "result", "ok"),
            acme_failed: of(&families.orders, "result", "failed"),
            bodies_refused: ByLabel::new(|reason: BodyRefusal| of(&families.bodies, "reason", reason.as_str())),
            batches: Arc::new(BatchMetrics::new(&families, &process)),
            cache_lookups: ByLabel::new(|result: CacheLookup| of(&families.cache_lookups, "result", result.as_str())),
            cache_writes: ByLabel::new(|result: CacheWrite| of(&families.cache_writes, "result", result.as_str())),
            filters: spillway_filter::Counters::default(),
            spans_dropped: Arc::default(),
            log_records_dropped: Arc::default(),
            started: SystemTime::now(),
            families: Arc::new(families),
            process,
            registry,
        }
    }

    /// Handle on the series of a route.
    pub fn route(&self, name: &str) -> Arc<RouteMetrics> {
        self.families.live_routes.get(name, |name| RouteMetrics::new(&self.families, name))
    }

    /// Counts a look into the shared store of answers; `took` is the time that the store had for it.
    pub fn cache_lookup(&self, result: CacheLookup, took: Option<Duration>) {
        if let Some(counter) = self.cache_lookups.get(result) {
            counter.inc();
        }
        if let Some(took) = took {
            self.process.cache_store_lookup.observe(took.as_secs_f64());
        }
    }

    /// Counts answers on their way to the shared store of answers.
    pub fn cache_writes(&self, result: CacheWrite, times: u64) {
        if let Some(counter) = self.cache_writes.get(result) {
            counter.inc_by(times);
        }
    }

    /// Counts the end of a rollout. A route that an edit removes keeps its counts, of which there is one for each end.
    pub fn rollout_ended(&self, route: &str, end: RolloutEnd) {
        self.families
            .rollout_ends
            .get_or_create_owned(&labels([("http_route", route), ("result", end.as_str())]))
            .inc();
    }

    /// Handle on the series of a receiver of notifications.
    pub fn receiver(&self, server: &str) -> Arc<ReceiverMetrics> {
        self.families.live_receivers.get(server, |name| ReceiverMetrics::new(&self.families, name))
    }

    /// Handle on the series of a signal of conversations.
    pub fn signal(&self, name: &str) -> Arc<SignalMetrics> {
        self.families.live_signals.get(name, |name| SignalMetrics::new(&self.families, name))
    }

    /// Handle on the series of a limit rule.
    pub fn limit(&self, name: &str) -> Arc<LimitMetrics> {
        self.families.live_limits.get(name, |name| LimitMetrics::new(&self.families, name))
    }

    /// Handle on the series of the queue of a route.
    pub fn queue(&self, route: &str) -> Arc<QueueMetrics> {
        self.families.live_queues.get(route, |route| QueueMetrics::new(&self.families, route))
    }

    /// Handle on the series of an endpoint.
    pub fn endpoint(&self, backend: &str, url: &str) -> Arc<EndpointMetrics> {
        self.families.live_endpoints.get(&key(backend, url), |key| {
            let (backend, url) = parts(key);
            EndpointMetrics::new(&self.families, key, backend, url)
        })
    }

    /// Handle on the series of a listener.
    pub fn listener(&self, name: &str) -> Arc<ListenerMetrics> {
        self.families.live_listeners.get(name, |name| ListenerMetrics::new(&self.families, name))
    }

    /// Handle on the series of model calls to `name`, a backend or a built-in model (whose provider is `spillway`).
    pub fn model(&self, provider: &str, name: &str) -> Arc<ModelMetrics> {
        self.families.live_models.get(&key(provider, name), |key| {
            let (provider, name) = parts(key);
            ModelMetrics::new(&self.families, key, provider, name)
        })
    }

    /// Time at which the process began.
    pub fn started(&self) -> SystemTime {
        self.started
    }

    /// Handles on the series of all routes.
    pub fn routes(&self) -> Vec<Arc<RouteMetrics>> {
        self.families.live_routes.all()
    }

    /// Handles on the series of all model calls.
    pub fn models(&self) -> Vec<Arc<ModelMetrics>> {
        self.families.live_models.all()
    }

    /// Text for a scrape; reads the samples that other rooms keep.
    pub fn encode(&self, samples: &Samples<'_>, format: MetricsFormat) -> String {
        let mut now = Registry::default();
        now::backends(&mut now, samples.backends);
        now::endpoints(&mut now, samples.endpoints);
        now::engines(&mut now, samples.engines);
        now::model_memory(&mut now, samples.model_memory);
        now::gpus(&mut now, samples.gpus);
        now::certificates(&mut now, samples.certificates);
        now::budgets(&mut now, samples.budgets);
        now::costs(&mut now, samples.costs);
        now::rollouts(&mut now, samples.rollouts);
        if let Some(samples) = samples.feedback {
            now::feedback(&mut now, samples);
        }
        now::quality(&mut now, samples.quality, samples.quality_write_failures, samples.quality_panics);
        let spans = self.spans_dropped.load(Ordering::Relaxed);
        now::counter(&mut now, "spillway_spans_dropped", "Spans that no collector took", spans);
        let records = self.log_records_dropped.load(Ordering::Relaxed);
        now::counter(&mut now, "spillway_log_records_dropped", "Records of the log that no collector took", records);
        now::counter(
            &mut now,
            "spillway_log_lines_dropped",
            "Log lines that found the queue full",
            samples.log_dropped,
        );
        filters::register_filters(&mut now, self.filters.samples());
        now::process(&mut now, self.started);
        let mut text = String::with_capacity(16 << 10);
        // Writing to a string does not fail.
        let _ = encode_registry(&mut text, &self.registry)
            .and_then(|()| self.families.latencies.encode(&mut text, format == MetricsFormat::OpenMetrics))
            .and_then(|()| encode_registry(&mut text, &now))
            .and_then(|()| encode_eof(&mut text));
        match format {
            MetricsFormat::OpenMetrics => text,
            MetricsFormat::Text => plain::written(&text),
        }
    }
}

/// Key of a handle with two names.
fn key(first: &str, second: &str) -> String {
    format!("{first}\n{second}")
}

/// Names of a key; for the shared key of names above the limit, that key twice. A line break in the first name would only
/// move its rest to the second label.
fn parts(key: &str) -> (&str, &str) {
    key.split_once('\n').unwrap_or((key, key))
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
