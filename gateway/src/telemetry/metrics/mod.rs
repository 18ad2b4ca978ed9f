//! Metrics in OpenMetrics text. Handles are looked up at reload; a request touches only atomics. No label value comes
//! from a caller: routes, backends and models are names of the configuration, methods and statuses are bounded.

mod handles;
mod limits;
mod live;
mod now;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

pub use self::handles::{EndpointMetrics, ListenerMetrics, ModelMetrics, QueueMetrics, RouteMetrics, Tokens};
pub use self::limits::LimitMetrics;
use self::live::Live;
pub use self::now::{BackendSample, BudgetSample, CertificateSample, EndpointSample, EngineSample, Samples};

/// The provider of the models inside.
const ENGINE: &str = "spillway";

/// Label names with their values.
type Labels = Vec<(&'static str, String)>;
type Counters = Family<Labels, Counter>;
type Gauges = Family<Labels, Gauge>;
type FloatGauges = Family<Labels, Gauge<f64, AtomicU64>>;
type Histograms = Family<Labels, Histogram, fn() -> Histogram>;

/// Buckets of HTTP durations in seconds (OpenTelemetry semantic conventions, `http.server.request.duration`).
fn http_seconds() -> Histogram {
    Histogram::new([0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0])
}

/// Buckets of model durations in seconds (`gen_ai.client.operation.duration`).
fn model_seconds() -> Histogram {
    Histogram::new((0..14).map(|n| 0.01 * f64::from(1 << n)))
}

/// Buckets of token counts (`gen_ai.client.token.usage`): powers of four up to 4^13.
fn token_counts() -> Histogram {
    Histogram::new((0..14).map(|n| 4f64.powi(n)))
}

/// All metrics of the process.
pub struct Metrics {
    registry: Registry,
    families: Arc<Families>,
    /// Reloads that were taken.
    pub reloads_ok: Counter,
    /// Reloads that were kept out.
    pub reloads_failed: Counter,
    /// When the running configuration was taken, Unix seconds.
    pub reloaded_at: Gauge<f64, AtomicU64>,
    /// Refused credentials.
    pub authentication_failures: Counter,
    /// Requests refused because their address had shown too many bad credentials.
    pub authentication_throttled: Counter,
    /// Verified tokens that are remembered.
    pub token_cache_entries: Gauge,
    /// Fetches of an issuer's keys that failed.
    pub jwks_failures: Counter,
    /// Certificates that an authority issued.
    pub acme_ok: Counter,
    /// Orders of certificates that failed.
    pub acme_failed: Counter,
    /// Certificates that were obtained and could not be stored.
    pub acme_unstored: Counter,
    /// Connections of the admin address that were closed to make room for others.
    pub admin_connections_dropped: Counter,
    /// Levels that were forgotten to make room.
    pub limit_keys_forgotten: Counter,
    /// Batches of budgets that could not be written.
    pub budget_write_failures: Counter,
    /// 1 while the shared store answers.
    pub limit_store_up: Gauge,
    /// Gateways that share the limits.
    pub limit_store_gateways: Gauge,
    /// Requests that were judged here because the shared store was away.
    pub limit_store_fallbacks: Counter,
    /// Corrections that did not reach the shared store.
    pub limit_settlements_lost: Counter,
    /// Lines of the audit log that were left out.
    pub audit_dropped: Counter,
    /// Bytes of request bodies that are held.
    pub buffered_bytes: Gauge,
    /// Bodies refused because their caller held all that one may.
    pub bodies_refused_caller: Counter,
    /// Bodies refused because all requests together held all that they may.
    pub bodies_refused_process: Counter,
    /// Bodies given up because they arrived too slowly while memory was short.
    pub bodies_refused_slow: Counter,
    /// Bodies refused because too many large ones waited to be read.
    pub bodies_refused_busy: Counter,
    /// Bytes of answers that wait for their clients.
    pub buffered_answer_bytes: Gauge,
    /// Answers and connections that were cut because their client took nothing for `writeTimeout`.
    pub write_timeouts: Counter,
    /// Spans that no collector took.
    pub spans_dropped: Arc<AtomicU64>,
    started: SystemTime,
}

struct Families {
    requests: Histograms,
    requests_in_flight: Gauges,
    retries: Counters,
    hedges: Counters,
    retries_denied: Counters,
    resumed: Counters,
    filter_failures: Counters,
    mirrors: Counters,
    spills: Counters,
    sheds: Counters,
    queue_depth: Gauges,
    queue_wait: Histograms,
    filter_refusals: Counters,
    endpoint_in_flight: Gauges,
    endpoint_healthy: Gauges,
    endpoint_full: Counters,
    endpoint_ejections: Counters,
    endpoint_scrape_failures: Counters,
    endpoint_attempts: Counters,
    connections: Gauges,
    connections_refused: Counters,
    malformed: Counters,
    tokens: Histograms,
    operation: Histograms,
    first_chunk: Histograms,
    engine_request: Histograms,
    engine_first_token: Histograms,
    engine_per_token: Histograms,
    limit_refusals: Counters,
    limit_shadow_refusals: Counters,
    live_limits: Live<LimitMetrics>,
    live_routes: Live<RouteMetrics>,
    live_queues: Live<QueueMetrics>,
    live_endpoints: Live<EndpointMetrics>,
    live_listeners: Live<ListenerMetrics>,
    live_models: Live<ModelMetrics>,
}

fn labels<const N: usize>(pairs: [(&'static str, &str); N]) -> Labels {
    pairs.into_iter().map(|(name, value)| (name, value.to_owned())).collect()
}

impl Metrics {
    /// The metrics of a new process.
    #[allow(clippy::too_many_lines, reason = "one line for each metric")]
    pub fn new() -> Self {
        let mut r = Registry::default();
        fn family<M>(r: &mut Registry, name: &str, help: &str, family: M) -> M
        where
            M: prometheus_client::registry::Metric + Clone,
        {
            r.register(name, help, family.clone());
            family
        }
        let histogram = |make: fn() -> Histogram| Histograms::new_with_constructor(make);
        let families = Families {
            requests: family(
                &mut r,
                "http_server_request_duration_seconds",
                "Arrival to last byte",
                histogram(http_seconds),
            ),
            requests_in_flight: family(&mut r, "spillway_requests_in_flight", "Requests that run", Gauges::default()),
            retries: family(&mut r, "spillway_retries", "Attempts after a failed one", Counters::default()),
            hedges: family(&mut r, "spillway_hedges", "Attempts beside a slow one", Counters::default()),
            retries_denied: family(
                &mut r,
                "spillway_retries_denied",
                "Retries and hedges that the budget did not allow",
                Counters::default(),
            ),
            resumed: family(
                &mut r,
                "spillway_streams_resumed",
                "Streams that died and were continued by the model inside",
                Counters::default(),
            ),
            mirrors: family(
                &mut r,
                "spillway_mirrors",
                "Copies of requests by what became of them",
                Counters::default(),
            ),
            spills: family(
                &mut r,
                "spillway_spills",
                "Requests answered by the model inside instead of a backend",
                Counters::default(),
            ),
            sheds: family(
                &mut r,
                "spillway_sheds",
                "Requests refused because nothing could take them",
                Counters::default(),
            ),
            queue_depth: family(&mut r, "spillway_queue_depth", "Requests that wait for a place", Gauges::default()),
            queue_wait: family(
                &mut r,
                "spillway_queue_wait_seconds",
                "Time in the queue by what came of it",
                histogram(http_seconds),
            ),
            filter_failures: family(
                &mut r,
                "spillway_filter_failures",
                "Requests for which a filter asked another server that did not answer",
                Counters::default(),
            ),
            filter_refusals: family(
                &mut r,
                "spillway_filter_refusals",
                "Requests that a filter ended",
                Counters::default(),
            ),
            endpoint_in_flight: family(
                &mut r,
                "spillway_endpoint_in_flight",
                "Requests at an endpoint",
                Gauges::default(),
            ),
            endpoint_healthy: family(
                &mut r,
                "spillway_endpoint_healthy",
                "1 when the active check lets it have traffic",
                Gauges::default(),
            ),
            endpoint_full: family(&mut r, "spillway_endpoint_full", "Answers that meant full", Counters::default()),
            endpoint_ejections: family(
                &mut r,
                "spillway_endpoint_ejections",
                "Times that an endpoint was left alone for its errors",
                Counters::default(),
            ),
            endpoint_scrape_failures: family(
                &mut r,
                "spillway_endpoint_scrape_failures",
                "Readings of an endpoint's own metrics that failed",
                Counters::default(),
            ),
            endpoint_attempts: family(
                &mut r,
                "spillway_endpoint_attempts",
                "Attempts by how they ended",
                Counters::default(),
            ),
            connections: family(&mut r, "spillway_connections", "Open client connections", Gauges::default()),
            connections_refused: family(
                &mut r,
                "spillway_connections_refused",
                "Connections closed before they carried a request, by reason",
                Counters::default(),
            ),
            malformed: family(
                &mut r,
                "spillway_malformed_requests",
                "Requests that are no HTTP/1 or break a limit of its framing, by reason; their connections are closed",
                Counters::default(),
            ),
            tokens: family(&mut r, "gen_ai_client_token_usage", "Tokens of a call", histogram(token_counts)),
            operation: family(
                &mut r,
                "gen_ai_client_operation_duration_seconds",
                "Duration of a model call",
                histogram(model_seconds),
            ),
            first_chunk: family(
                &mut r,
                "gen_ai_client_operation_time_to_first_chunk_seconds",
                "Arrival to the first content",
                histogram(model_seconds),
            ),
            engine_request: family(
                &mut r,
                "gen_ai_server_request_duration_seconds",
                "Submission to the last token of the model inside",
                histogram(model_seconds),
            ),
            engine_first_token: family(
                &mut r,
                "gen_ai_server_time_to_first_token_seconds",
                "Submission to the first token of the model inside",
                histogram(model_seconds),
            ),
            engine_per_token: family(
                &mut r,
                "gen_ai_server_time_per_output_token_seconds",
                "Time for each further token of the model inside",
                histogram(model_seconds),
            ),
            limit_refusals: family(
                &mut r,
                "spillway_limit_refusals",
                "Requests that a limit refused",
                Counters::default(),
            ),
            limit_shadow_refusals: family(
                &mut r,
                "spillway_limit_shadow_refusals",
                "Requests that a limit on trial would have refused",
                Counters::default(),
            ),
            live_limits: Live::default(),
            live_routes: Live::default(),
            live_queues: Live::default(),
            live_endpoints: Live::default(),
            live_listeners: Live::default(),
            live_models: Live::default(),
        };
        let reloads =
            family(&mut r, "spillway_config_reloads", "Edits of the configuration by result", Counters::default());
        let orders = family(&mut r, "spillway_acme_orders", "Orders of certificates by result", Counters::default());
        let bodies = family(
            &mut r,
            "spillway_request_bodies_refused",
            "Request bodies refused by what was spent: memory of the caller, of the process, time to read them",
            Counters::default(),
        );
        let body_refused = |reason| bodies.get_or_create_owned(&labels([("reason", reason)]));
        r.register(
            "spillway_build",
            "The version that runs",
            Info::new(labels([("version", env!("CARGO_PKG_VERSION"))])),
        );
        Self {
            acme_ok: orders.get_or_create_owned(&labels([("result", "ok")])),
            acme_failed: orders.get_or_create_owned(&labels([("result", "failed")])),
            acme_unstored: family(
                &mut r,
                "spillway_acme_storage_failures",
                "Tries to store a certificate that failed",
                Counter::default(),
            ),
            reloads_ok: reloads.get_or_create_owned(&labels([("result", "ok")])),
            reloads_failed: reloads.get_or_create_owned(&labels([("result", "failed")])),
            reloaded_at: family(
                &mut r,
                "spillway_config_last_reload_success_timestamp_seconds",
                "When the running configuration was taken",
                Gauge::default(),
            ),
            authentication_failures: family(
                &mut r,
                "spillway_authentication_failures",
                "Refused credentials",
                Counter::default(),
            ),
            authentication_throttled: family(
                &mut r,
                "spillway_authentication_throttled",
                "Requests refused because their address had shown too many bad credentials",
                Counter::default(),
            ),
            token_cache_entries: family(
                &mut r,
                "spillway_token_cache_entries",
                "Verified tokens that are remembered",
                Gauge::default(),
            ),
            jwks_failures: family(
                &mut r,
                "spillway_jwks_failures",
                "Fetches of an issuer's keys that failed",
                Counter::default(),
            ),
            admin_connections_dropped: family(
                &mut r,
                "spillway_admin_connections_dropped",
                "Connections of the admin address that were closed to make room for others",
                Counter::default(),
            ),
            limit_keys_forgotten: family(
                &mut r,
                "spillway_limit_keys_forgotten",
                "Levels that were forgotten to make room",
                Counter::default(),
            ),
            budget_write_failures: family(
                &mut r,
                "spillway_budget_write_failures",
                "Batches of budgets that could not be written",
                Counter::default(),
            ),
            limit_store_up: family(
                &mut r,
                "spillway_limit_store_up",
                "1 while the shared store of limits answers",
                Gauge::default(),
            ),
            limit_store_gateways: family(
                &mut r,
                "spillway_limit_store_gateways",
                "Gateways that share the limits, as this one last saw them",
                Gauge::default(),
            ),
            limit_store_fallbacks: family(
                &mut r,
                "spillway_limit_store_fallbacks",
                "Requests judged without the shared store of limits",
                Counter::default(),
            ),
            limit_settlements_lost: family(
                &mut r,
                "spillway_limit_settlements_lost",
                "Corrections that did not reach the shared store of limits",
                Counter::default(),
            ),
            audit_dropped: family(
                &mut r,
                "spillway_audit_dropped",
                "Lines that the audit log left out",
                Counter::default(),
            ),
            buffered_bytes: family(
                &mut r,
                "spillway_buffered_body_bytes",
                "Request bodies that are held",
                Gauge::default(),
            ),
            bodies_refused_caller: body_refused("caller"),
            bodies_refused_process: body_refused("process"),
            bodies_refused_slow: body_refused("slow"),
            bodies_refused_busy: body_refused("busy"),
            buffered_answer_bytes: family(
                &mut r,
                "spillway_buffered_answer_bytes",
                "Answers that wait for their clients",
                Gauge::default(),
            ),
            write_timeouts: family(
                &mut r,
                "spillway_client_write_timeouts",
                "Clients that were cut because they did not take their answer within writeTimeout",
                Counter::default(),
            ),
            spans_dropped: Arc::default(),
            started: SystemTime::now(),
            registry: r,
            families: Arc::new(families),
        }
    }

    /// The series of a route.
    pub fn route(&self, name: &str) -> Arc<RouteMetrics> {
        self.families.live_routes.get(name, |name| RouteMetrics::new(&self.families, name))
    }

    /// The series of a rule of limits.
    pub fn limit(&self, name: &str) -> Arc<LimitMetrics> {
        self.families.live_limits.get(name, |name| LimitMetrics::new(&self.families, name))
    }

    /// The series of the queue of a route.
    pub fn queue(&self, route: &str) -> Arc<QueueMetrics> {
        self.families.live_queues.get(route, |route| QueueMetrics::new(&self.families, route))
    }

    /// The series of an endpoint.
    pub fn endpoint(&self, backend: &str, url: &str) -> Arc<EndpointMetrics> {
        self.families.live_endpoints.get(&key(backend, url), |key| {
            let (backend, url) = parts(key);
            EndpointMetrics::new(&self.families, key, backend, url)
        })
    }

    /// The series of a listener.
    pub fn listener(&self, name: &str) -> Arc<ListenerMetrics> {
        self.families.live_listeners.get(name, |name| ListenerMetrics::new(&self.families, name))
    }

    /// The series of model calls that go to `name`, a backend or a model inside (whose provider is `spillway`).
    pub fn model(&self, provider: &str, name: &str) -> Arc<ModelMetrics> {
        self.families.live_models.get(&key(provider, name), |key| {
            let (provider, name) = parts(key);
            ModelMetrics::new(&self.families, key, provider, name)
        })
    }

    /// The text for a scrape. Values that others keep are read now.
    pub fn encode(&self, samples: &Samples<'_>) -> String {
        let mut now = Registry::default();
        now::backends(&mut now, samples.backends);
        now::endpoints(&mut now, samples.endpoints);
        now::engines(&mut now, samples.engines);
        now::model_memory(&mut now, samples.model_memory);
        now::certificates(&mut now, samples.certificates);
        now::budgets(&mut now, samples.budgets);
        let spans = self.spans_dropped.load(Ordering::Relaxed);
        now::counter(&mut now, "spillway_spans_dropped", "Spans that no collector took", spans);
        now::counter(
            &mut now,
            "spillway_log_lines_dropped",
            "Log lines that found the queue full",
            samples.log_dropped,
        );
        now::process(&mut now, self.started);
        let mut text = String::with_capacity(16 << 10);
        // Writing to a string does not fail.
        let _ = encode_registry(&mut text, &self.registry)
            .and_then(|()| encode_registry(&mut text, &now))
            .and_then(|()| encode_eof(&mut text));
        text
    }
}

/// A handle's key of two names.
fn key(first: &str, second: &str) -> String {
    format!("{first}\n{second}")
}

/// The names of a key; of the one that all share when there are too many, twice that. A line break inside the first
/// name would only move the rest of it to the second label.
fn parts(key: &str) -> (&str, &str) {
    key.split_once('\n').unwrap_or((key, key))
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
