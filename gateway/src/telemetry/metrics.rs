//! Metrics in OpenMetrics text. Handles are looked up at reload; a request touches only atomics. No label value comes
//! from a caller: routes, backends and models are names of the configuration, methods and statuses are bounded.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::Method;
use parking_lot::RwLock;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

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
    registry: RwLock<Registry>,
    families: Arc<Families>,
    /// Reloads that were taken.
    pub reloads_ok: Counter,
    /// Reloads that were kept out.
    pub reloads_failed: Counter,
    /// When the running configuration was taken, Unix seconds.
    pub reloaded_at: Gauge<f64, AtomicU64>,
    /// Refused credentials.
    pub authentication_failures: Counter,
    /// Bytes of request bodies that are held.
    pub buffered_bytes: Gauge,
    /// Spans that no collector took.
    pub spans_dropped: Arc<AtomicU64>,
    spans_dropped_shown: Counter,
    log_dropped_shown: Counter,
    resident_bytes: Gauge,
}

struct Families {
    requests: Histograms,
    requests_in_flight: Gauges,
    retries: Counters,
    spills: Counters,
    sheds: Counters,
    filter_refusals: Counters,
    endpoint_in_flight: Gauges,
    endpoint_healthy: Gauges,
    endpoint_full: Counters,
    endpoint_attempts: Counters,
    connections: Gauges,
    connections_refused: Counters,
    tokens: Histograms,
    operation: Histograms,
    first_chunk: Histograms,
    engine_first_token: Histograms,
    engine_per_token: Histograms,
    engine: EngineFamilies,
}

struct EngineFamilies {
    active: Gauges,
    waiting: Gauges,
    kv_used: Gauges,
    kv_capacity: Gauges,
    estimated_wait: FloatGauges,
    generated: Counters,
    prompt: Counters,
}

/// What a model inside says of itself when the metrics are read.
#[derive(Debug, Clone, Default)]
pub struct EngineSample {
    /// The model's name.
    pub model: String,
    /// Sequences that are written.
    pub active: u64,
    /// Requests that wait.
    pub waiting: u64,
    /// Tokens in the KV cache.
    pub kv_used: u64,
    /// Tokens that fit.
    pub kv_capacity: u64,
    /// Estimated wait for a first token.
    pub estimated_wait: Duration,
    /// Tokens written since load.
    pub generated: u64,
    /// Tokens read since load.
    pub prompt: u64,
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
                "Connections over the listener's limit",
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
            engine: EngineFamilies {
                active: family(
                    &mut r,
                    "spillway_engine_active_sequences",
                    "Answers that are written",
                    Gauges::default(),
                ),
                waiting: family(
                    &mut r,
                    "spillway_engine_waiting_sequences",
                    "Requests that wait for a place",
                    Gauges::default(),
                ),
                kv_used: family(&mut r, "spillway_engine_kv_used_tokens", "Tokens in the KV cache", Gauges::default()),
                kv_capacity: family(
                    &mut r,
                    "spillway_engine_kv_capacity_tokens",
                    "Tokens that fit the KV cache",
                    Gauges::default(),
                ),
                estimated_wait: family(
                    &mut r,
                    "spillway_engine_estimated_wait_seconds",
                    "Estimated wait for a first token",
                    FloatGauges::default(),
                ),
                generated: family(&mut r, "spillway_engine_generated_tokens", "Tokens written", Counters::default()),
                prompt: family(&mut r, "spillway_engine_prompt_tokens", "Tokens read", Counters::default()),
            },
        };
        let reloads =
            family(&mut r, "spillway_config_reloads", "Edits of the configuration by result", Counters::default());
        let info = family(&mut r, "spillway_build", "1, with the version as label", Gauges::default());
        info.get_or_create(&labels([("version", env!("CARGO_PKG_VERSION"))])).set(1);
        Self {
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
            buffered_bytes: family(
                &mut r,
                "spillway_buffered_body_bytes",
                "Request bodies that are held",
                Gauge::default(),
            ),
            spans_dropped: Arc::default(),
            spans_dropped_shown: family(
                &mut r,
                "spillway_spans_dropped",
                "Spans that no collector took",
                Counter::default(),
            ),
            log_dropped_shown: family(
                &mut r,
                "spillway_log_lines_dropped",
                "Log lines that found the queue full",
                Counter::default(),
            ),
            resident_bytes: family(&mut r, "process_resident_memory_bytes", "Memory of the process", Gauge::default()),
            registry: RwLock::new(r),
            families: Arc::new(families),
        }
    }

    /// The series of a route.
    pub fn route(&self, name: &str) -> Arc<RouteMetrics> {
        let f = &self.families;
        let of =
            |family: &Counters, key, value| family.get_or_create_owned(&labels([("http_route", name), (key, value)]));
        Arc::new(RouteMetrics {
            name: name.to_owned(),
            families: Some(f.clone()),
            in_flight: f.requests_in_flight.get_or_create_owned(&labels([("http_route", name)])),
            retries: f.retries.get_or_create_owned(&labels([("http_route", name)])),
            spilled: [of(&f.spills, "reason", "saturated"), of(&f.spills, "reason", "unavailable")],
            shed: [of(&f.sheds, "reason", "saturated"), of(&f.sheds, "reason", "unavailable")],
            durations: RwLock::default(),
        })
    }

    /// The series of an endpoint; they disappear with the handle.
    pub fn endpoint(&self, backend: &str, url: &str) -> Arc<EndpointMetrics> {
        let f = &self.families;
        let own = labels([("backend", backend), ("endpoint", url)]);
        Arc::new(EndpointMetrics {
            in_flight: f.endpoint_in_flight.get_or_create_owned(&own),
            healthy: f.endpoint_healthy.get_or_create_owned(&own),
            full: f.endpoint_full.get_or_create_owned(&own),
            attempts: OUTCOMES.map(|outcome| {
                let labels = labels([("backend", backend), ("endpoint", url), ("outcome", outcome)]);
                f.endpoint_attempts.get_or_create_owned(&labels)
            }),
            series: Some((f.clone(), own)),
        })
    }

    /// The series of a listener.
    pub fn listener(&self, name: &str) -> Arc<ListenerMetrics> {
        let own = labels([("listener", name)]);
        Arc::new(ListenerMetrics {
            connections: self.families.connections.get_or_create_owned(&own),
            refused: self.families.connections_refused.get_or_create_owned(&own),
        })
    }

    /// The series of model calls that go to `name`, a backend or a model inside.
    pub fn model(&self, provider: &str, name: &str) -> Arc<ModelMetrics> {
        let f = &self.families;
        let base =
            [("gen_ai_operation_name", "chat"), ("gen_ai_provider_name", provider), ("gen_ai_request_model", name)];
        let tokens = |kind: &str| {
            let mut labels = labels(base);
            labels.push(("gen_ai_token_type", kind.to_owned()));
            f.tokens.get_or_create_owned(&labels)
        };
        let base = labels(base);
        Arc::new(ModelMetrics {
            input: tokens("input"),
            output: tokens("output"),
            duration: f.operation.get_or_create_owned(&base),
            first_chunk: f.first_chunk.get_or_create_owned(&base),
            engine_first_token: (provider == "spillway").then(|| f.engine_first_token.get_or_create_owned(&base)),
            engine_per_token: (provider == "spillway").then(|| f.engine_per_token.get_or_create_owned(&base)),
        })
    }

    /// The text for a scrape. Values that others keep are read now.
    pub fn encode(&self, engines: &[EngineSample], log_dropped: u64) -> String {
        let catch_up = |shown: &Counter, now: u64| {
            shown.inc_by(now.saturating_sub(shown.get()));
        };
        let gauge = |gauges: &Gauges, own: &Labels, value: u64| {
            gauges.get_or_create(own).set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        let e = &self.families.engine;
        for sample in engines {
            let own = labels([("model", &sample.model)]);
            gauge(&e.active, &own, sample.active);
            gauge(&e.waiting, &own, sample.waiting);
            gauge(&e.kv_used, &own, sample.kv_used);
            gauge(&e.kv_capacity, &own, sample.kv_capacity);
            e.estimated_wait.get_or_create(&own).set(sample.estimated_wait.as_secs_f64());
            catch_up(&e.generated.get_or_create(&own), sample.generated);
            catch_up(&e.prompt.get_or_create(&own), sample.prompt);
        }
        catch_up(&self.spans_dropped_shown, self.spans_dropped.load(Ordering::Relaxed));
        catch_up(&self.log_dropped_shown, log_dropped);
        self.resident_bytes.set(resident_bytes());
        let mut text = String::with_capacity(16 << 10);
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry.read());
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Resident memory of this process; 0 where `/proc` is not there.
fn resident_bytes() -> i64 {
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|statm| statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<i64>().ok()));
    pages.map_or(0, |pages| pages.saturating_mul(4096))
}

const METHODS: [Method; 7] =
    [Method::GET, Method::POST, Method::PUT, Method::DELETE, Method::HEAD, Method::OPTIONS, Method::PATCH];

/// How an attempt may end.
const OUTCOMES: [&str; 4] = ["answered", "full", "failed", "client_gone"];

/// Series of a route.
#[derive(Default)]
pub struct RouteMetrics {
    name: String,
    families: Option<Arc<Families>>,
    /// Requests that run.
    pub in_flight: Gauge,
    /// Attempts after a failed one.
    pub retries: Counter,
    spilled: [Counter; 2],
    shed: [Counter; 2],
    /// Histograms that were used before, by method and status: a handful.
    durations: RwLock<Vec<(Method, u16, Histogram)>>,
}

impl RouteMetrics {
    /// A request was answered by the model inside.
    pub fn spilled(&self, reason: &str) {
        let [saturated, unavailable] = &self.spilled;
        if reason == "saturated" {
            saturated.inc()
        } else {
            unavailable.inc()
        };
    }

    /// A request was refused because nothing could take it.
    pub fn shed(&self, reason: &str) {
        let [saturated, unavailable] = &self.shed;
        if reason == "saturated" {
            saturated.inc()
        } else {
            unavailable.inc()
        };
    }

    /// A filter ended a request.
    pub fn refused_by(&self, filter: &str) {
        if let Some(families) = &self.families {
            families.filter_refusals.get_or_create(&labels([("http_route", &self.name), ("filter", filter)])).inc();
        }
    }

    /// A request has ended.
    pub fn ended(&self, method: &Method, status: u16, took: Duration) {
        let Some(families) = &self.families else { return };
        let method = METHODS.iter().find(|known| *known == method);
        let seconds = took.as_secs_f64();
        let known = self.durations.read();
        let is_it = |(m, s, _): &&(Method, u16, Histogram)| *s == status && method.is_none_or(|method| method == m);
        if method.is_some()
            && let Some((_, _, histogram)) = known.iter().find(is_it)
        {
            histogram.observe(seconds);
            return;
        }
        drop(known);
        let histogram = families.requests.get_or_create_owned(&labels([
            ("http_request_method", method.map_or("_OTHER", Method::as_str)),
            ("http_route", &self.name),
            ("http_response_status_code", http::StatusCode::from_u16(status).as_ref().map_or("none", |s| s.as_str())),
        ]));
        histogram.observe(seconds);
        if let Some(method) = method {
            let mut durations = self.durations.write();
            if durations.len() < 64 {
                durations.push((method.clone(), status, histogram));
            }
        }
    }
}

/// Series of an endpoint.
#[derive(Default)]
pub struct EndpointMetrics {
    /// Requests at it.
    pub in_flight: Gauge,
    healthy: Gauge,
    /// Answers that meant full.
    pub full: Counter,
    attempts: [Counter; 4],
    series: Option<(Arc<Families>, Labels)>,
}

impl EndpointMetrics {
    /// What the active check found.
    pub fn set_healthy(&self, healthy: bool) {
        self.healthy.set(i64::from(healthy));
    }

    /// An attempt has ended as `answered`, `full`, `failed` or `client_gone`.
    pub fn attempted(&self, outcome: &str) {
        if let Some((_, counter)) = OUTCOMES.iter().zip(&self.attempts).find(|(name, _)| **name == outcome) {
            counter.inc();
        }
    }
}

impl Drop for EndpointMetrics {
    fn drop(&mut self) {
        let Some((families, own)) = self.series.take() else { return };
        families.endpoint_in_flight.remove(&own);
        families.endpoint_healthy.remove(&own);
        families.endpoint_full.remove(&own);
        for outcome in OUTCOMES {
            let mut labels = own.clone();
            labels.push(("outcome", outcome.to_owned()));
            families.endpoint_attempts.remove(&labels);
        }
    }
}

/// Series of a listener.
pub struct ListenerMetrics {
    /// Open connections.
    pub connections: Gauge,
    /// Connections over the limit.
    pub refused: Counter,
}

/// Tokens and times of one model call.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tokens {
    /// Tokens read.
    pub input: Option<u64>,
    /// Tokens written.
    pub output: Option<u64>,
    /// Arrival to the first content.
    pub first: Option<Duration>,
}

/// Series of model calls.
pub struct ModelMetrics {
    input: Histogram,
    output: Histogram,
    duration: Histogram,
    first_chunk: Histogram,
    engine_first_token: Option<Histogram>,
    engine_per_token: Option<Histogram>,
}

impl ModelMetrics {
    /// A call has ended.
    #[allow(clippy::cast_precision_loss, reason = "token counts are far below 2^52")]
    pub fn called(&self, tokens: Tokens, took: Duration) {
        if let Some(input) = tokens.input {
            self.input.observe(input as f64);
        }
        if let Some(output) = tokens.output {
            self.output.observe(output as f64);
        }
        if let Some(first) = tokens.first {
            self.first_chunk.observe(first.as_secs_f64());
        }
        self.duration.observe(took.as_secs_f64());
    }

    /// The engine has written an answer of `tokens` tokens, `first` after its submission and `rest` for the others.
    #[allow(clippy::cast_precision_loss, reason = "token counts are far below 2^52")]
    pub fn generated(&self, first: Duration, rest: Duration, tokens: u64) {
        if let Some(histogram) = &self.engine_first_token {
            histogram.observe(first.as_secs_f64());
        }
        if let (Some(histogram), Some(further)) = (&self.engine_per_token, tokens.checked_sub(1).filter(|n| *n > 0)) {
            histogram.observe(rest.as_secs_f64() / further as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_shows_what_happened_and_forgets_endpoints_that_are_gone() {
        let metrics = Metrics::new();
        let route = metrics.route("chat");
        route.ended(&Method::POST, 200, Duration::from_millis(20));
        route.ended(&Method::from_bytes(b"BREW").unwrap(), 404, Duration::from_millis(20));
        route.spilled("saturated");
        let endpoint = metrics.endpoint("b", "http://127.0.0.1:1");
        endpoint.attempted("answered");
        let text = metrics.encode(&[EngineSample { model: "m".into(), generated: 7, ..EngineSample::default() }], 3);
        for line in [
            r#"http_server_request_duration_seconds_count{http_request_method="POST",http_route="chat",http_response_status_code="200"} 1"#,
            r#"http_server_request_duration_seconds_count{http_request_method="_OTHER",http_route="chat",http_response_status_code="404"} 1"#,
            r#"spillway_spills_total{http_route="chat",reason="saturated"} 1"#,
            r#"spillway_endpoint_attempts_total{backend="b",endpoint="http://127.0.0.1:1",outcome="answered"} 1"#,
            r#"spillway_engine_generated_tokens_total{model="m"} 7"#,
            "spillway_log_lines_dropped_total 3",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
        drop(endpoint);
        assert!(!metrics.encode(&[], 3).contains("127.0.0.1:1"));
    }
}
