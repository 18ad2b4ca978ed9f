//! Handles on the series that a request updates: those of its route, endpoint, listener and model, found when the
//! configuration was compiled. Only a route's first request with a method and status, or a filter's first refusal, look up
//! a series.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use opentelemetry::trace::TraceId;
use parking_lot::RwLock;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

use super::held::{Count, Holder, Running, held};
use super::histogram::{BUCKETS, Histogram};
use super::latency::Latency;
use super::live::OTHER;
use super::{Families, Labels, labels};
use crate::telemetry::label::{
    AttemptEnd, ByLabel, ConnectionRefusal, Label, MalformedReason, MirrorEnd, NotSpilled, PairEnd, QueueEnd,
    SocketEnd, SpillReason,
};

/// Methods with a label value of their own (semantic conventions, `http.request.method`); the others are `_OTHER`.
const METHODS: [Method; 9] = [
    Method::GET,
    Method::POST,
    Method::PUT,
    Method::DELETE,
    Method::HEAD,
    Method::OPTIONS,
    Method::PATCH,
    Method::CONNECT,
    Method::TRACE,
];
/// Most pairs of method and status of a route. An upstream may send any status; further pairs count as `other`.
const MAX_PAIRS: usize = 64;
/// Most filters of a route whose refusals have series of their own; further ones count as `other`.
const MAX_FILTERS: usize = 64;

/// Series of a route.
#[derive(Default)]
pub struct RouteMetrics {
    name: Arc<str>,
    families: Option<Arc<Families>>,
    /// Requests that run.
    pub in_flight: Running,
    /// Open sockets.
    pub open_sockets: Running,
    sockets: ByLabel<SocketEnd, Count>,
    /// Attempts after a failed one.
    pub retries: Count,
    /// Attempts beside a slow one.
    pub hedges: Count,
    /// Retries and hedges that the budget did not allow.
    pub retries_denied: Count,
    /// Streams that died and were continued.
    pub resumed: Count,
    /// Answers that were too long to be translated.
    pub answers_too_large: Count,
    /// Filters whose calls of another server failed.
    pub filter_failures: Count,
    spilled: ByLabel<SpillReason, Count>,
    unspilled: ByLabel<NotSpilled, Count>,
    shed: ByLabel<SpillReason, Count>,
    mirrored: ByLabel<MirrorEnd, Count>,
    paired: ByLabel<PairEnd, Count>,
    /// Durations by method and status, added as they occur.
    durations: RwLock<Vec<(MethodStatus, Labels, Latency)>>,
    refusals: RwLock<Vec<(String, Labels, Counter)>>,
}

impl Holder for RouteMetrics {
    const LABEL: &'static str = "http_route";

    fn name(&self) -> &str {
        &self.name
    }
}

held! {
    register_routes(RouteMetrics) {
        /// Requests in flight
        in_flight: Gauge = "spillway_requests_in_flight", |route, values| values.running(&route.in_flight);
        /// Open sockets, which are connections behind an upgrade
        open_sockets: Gauge = "spillway_open_sockets", |route, values| values.running(&route.open_sockets);
        /// Sockets that have ended, by the reason
        sockets: Counter = "spillway_sockets", |route, values| values.counts("end", &route.sockets);
        /// Attempts after a failed one
        retries: Counter = "spillway_retries", |route, values| values.count(&route.retries);
        /// Attempts beside a slow one
        hedges: Counter = "spillway_hedges", |route, values| values.count(&route.hedges);
        /// Retries and hedges that the budget did not allow
        denied: Counter = "spillway_retries_denied", |route, values| values.count(&route.retries_denied);
        /// Streams that died and were continued by a built-in model
        resumed: Counter = "spillway_streams_resumed", |route, values| values.count(&route.resumed);
        /// Answers refused or cut because they were too long to be translated for their callers
        too_large: Counter = "spillway_translated_answers_too_large", |route, values| values.count(&route.answers_too_large);
        /// Copies of requests by outcome
        mirrors: Counter = "spillway_mirrors", |route, values| values.counts("outcome", &route.mirrored);
        /// Requests that were drawn for the shadow of a rollout, by outcome
        pairs: Counter = "spillway_rollout_pairs", |route, values| values.counts("outcome", &route.paired);
        /// Requests answered by a built-in model or another backend instead of the route's own
        spills: Counter = "spillway_spills", |route, values| values.counts("reason", &route.spilled);
        /// Requests that a configured spill did not take
        unspilled: Counter = "spillway_unspilled", |route, values| values.counts("reason", &route.unspilled);
        /// Requests refused because no target could answer them
        sheds: Counter = "spillway_sheds", |route, values| values.counts("reason", &route.shed);
        /// Requests for which a filter failed: a server that it asked did not answer, or its module failed
        failures: Counter = "spillway_filter_failures", |route, values| values.count(&route.filter_failures);
    }
}

/// Counts of a route's requests that have ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RouteCounts {
    /// Requests with a status from 500 on, or without an answer.
    pub errors: u64,
    /// Requests by the buckets of their durations, which are those of [`super::HTTP_SECONDS`].
    pub latency: [u64; BUCKETS],
    /// Requests that a fallback answered, by reason.
    pub spills: Vec<(&'static str, u64)>,
    /// Requests refused because no target could answer them, by reason.
    pub sheds: Vec<(&'static str, u64)>,
    /// Requests that a filter ended, by its name.
    pub refusals: Vec<(String, u64)>,
}

/// Counts of the model calls of a backend or a built-in model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ModelCounts {
    /// Tokens of prompts.
    pub input: u64,
    /// Tokens of answers.
    pub output: u64,
    /// Calls by the buckets of the time to their first content, which are those of [`super::MODEL_SECONDS`].
    pub first_token: [u64; BUCKETS],
}

/// Method (its index in `METHODS`) and status; `None` counts as `other`.
type MethodStatus = Option<(Option<usize>, u16)>;

impl RouteMetrics {
    pub(super) fn new(families: &Arc<Families>, name: &Arc<str>) -> Self {
        Self {
            name: name.clone(),
            families: Some(families.clone()),
            spilled: ByLabel::new(|_| Count::default()),
            unspilled: ByLabel::new(|_| Count::default()),
            shed: ByLabel::new(|_| Count::default()),
            mirrored: ByLabel::new(|_| Count::default()),
            paired: ByLabel::new(|_| Count::default()),
            in_flight: Running::default(),
            open_sockets: Running::default(),
            sockets: ByLabel::new(|_| Count::default()),
            retries: Count::default(),
            hedges: Count::default(),
            retries_denied: Count::default(),
            resumed: Count::default(),
            answers_too_large: Count::default(),
            filter_failures: Count::default(),
            durations: RwLock::default(),
            refusals: RwLock::default(),
        }
    }

    /// Name of the route.
    pub fn route(&self) -> &Arc<str> {
        &self.name
    }

    /// Counts of the requests that have ended, since the process began or the route was added.
    pub fn counts(&self) -> RouteCounts {
        let mut counts = RouteCounts::default();
        for (pair, _, histogram) in self.durations.read().iter() {
            let ended = histogram.counts();
            // A request without a status has ended without an answer.
            if pair.is_some_and(|(_, status)| status == 0 || status >= 500) {
                counts.errors += ended.iter().sum::<u64>();
            }
            for (all, ended) in counts.latency.iter_mut().zip(ended) {
                *all += ended;
            }
        }
        counts.spills = self.spilled.iter().map(|(reason, count)| (reason.as_str(), count.get())).collect();
        counts.sheds = self.shed.iter().map(|(reason, count)| (reason.as_str(), count.get())).collect();
        let refusals = self.refusals.read();
        counts.refusals = refusals.iter().map(|(filter, _, count)| (filter.clone(), count.get())).collect();
        counts
    }

    /// Counts a request that a fallback answered instead of the route's own backends.
    pub fn spilled(&self, reason: SpillReason) {
        note(&self.spilled, reason);
    }

    /// Counts a request that the spill of the route did not take.
    pub fn not_spilled(&self, reason: NotSpilled) {
        note(&self.unspilled, reason);
    }

    /// Counts a request that was refused because no target could answer it.
    pub fn shed(&self, reason: SpillReason) {
        note(&self.shed, reason);
    }

    /// Counts the copy of a request.
    pub fn mirrored(&self, end: MirrorEnd) {
        note(&self.mirrored, end);
    }

    /// Counts a request that was drawn for the shadow of a rollout.
    pub fn paired(&self, end: PairEnd) {
        note(&self.paired, end);
    }

    /// Counts a socket that has ended.
    pub fn socket_ended(&self, end: SocketEnd) {
        note(&self.sockets, end);
    }

    /// Counts a request that a filter ended.
    pub fn refused_by(&self, filter: &str) {
        let Some(families) = &self.families else { return };
        if let Some((_, _, counter)) = self.refusals.read().iter().find(|(known, _, _)| known == filter) {
            counter.inc();
            return;
        }
        let mut refusals = self.refusals.write();
        let filter = if refusals.len() < MAX_FILTERS { filter } else { OTHER };
        let counter = match refusals.iter().find(|(known, _, _)| known == filter) {
            Some((_, _, counter)) => counter.clone(),
            None => {
                let own = labels([("http_route", &self.name), ("filter", filter)]);
                let counter = families.filter_refusals.get_or_create_owned(&own);
                refusals.push((filter.to_owned(), own, counter.clone()));
                counter
            }
        };
        counter.inc();
    }

    /// Records a request that has ended, with its trace if that is sent.
    pub fn ended(&self, method: &Method, status: u16, took: Duration, trace: Option<TraceId>) {
        let Some(families) = &self.families else { return };
        let seconds = took.as_secs_f64();
        let pair = (METHODS.iter().position(|known| known == method), status);
        if let Some((_, _, histogram)) = self.durations.read().iter().find(|(known, _, _)| *known == Some(pair)) {
            histogram.observe(seconds, trace);
            return;
        }
        let mut durations = self.durations.write();
        let pair = (durations.len() < MAX_PAIRS).then_some(pair);
        let histogram = match durations.iter().find(|(known, _, _)| *known == pair) {
            Some((_, _, histogram)) => histogram.clone(),
            None => {
                let own = self.duration_labels(pair);
                let histogram = families.latencies.requests.get_or_create_owned(&own);
                durations.push((pair, own, histogram.clone()));
                histogram
            }
        };
        histogram.observe(seconds, trace);
    }

    fn duration_labels(&self, pair: MethodStatus) -> Labels {
        let status = pair.map(|(_, status)| StatusCode::from_u16(status));
        labels([
            (
                "http_request_method",
                match pair {
                    Some((Some(method), _)) => METHODS.get(method).map_or("_OTHER", Method::as_str),
                    Some((None, _)) | None => "_OTHER",
                },
            ),
            ("http_route", &self.name),
            (
                "http_response_status_code",
                match &status {
                    Some(Ok(status)) => status.as_str(),
                    // Nothing was sent.
                    Some(Err(_)) => "none",
                    None => OTHER,
                },
            ),
        ])
    }
}

impl Drop for RouteMetrics {
    fn drop(&mut self) {
        let Some(f) = self.families.take() else { return };
        f.live_routes.gone(&self.name, || {
            for (_, own, _) in self.durations.get_mut().iter() {
                f.latencies.requests.remove(own);
            }
            for (_, own, _) in self.refusals.get_mut().iter() {
                f.filter_refusals.remove(own);
            }
        });
    }
}

/// Series of the queue of a route.
#[derive(Default)]
pub struct QueueMetrics {
    /// Requests in the queue.
    pub depth: Gauge,
    /// Time in the queue.
    waits: ByLabel<QueueEnd, Histogram>,
    series: Option<(Arc<Families>, String)>,
}

impl QueueMetrics {
    pub(super) fn new(families: &Arc<Families>, route: &str) -> Self {
        let own = labels([("http_route", route)]);
        let wait = |end: QueueEnd| families.queue_wait.get_or_create_owned(&with(&own, "outcome", end.as_str()));
        Self {
            depth: families.queue_depth.get_or_create_owned(&own),
            waits: ByLabel::new(wait),
            series: Some((families.clone(), route.to_owned())),
        }
    }

    /// Records a request that has left the queue, or was not let in.
    pub fn left(&self, end: QueueEnd, waited: Duration) {
        if let Some(wait) = self.waits.get(end) {
            wait.observe(waited.as_secs_f64());
        }
    }
}

impl Drop for QueueMetrics {
    fn drop(&mut self) {
        let Some((f, route)) = self.series.take() else { return };
        f.live_queues.gone(&route, || {
            let own = labels([("http_route", &route)]);
            f.queue_depth.remove(&own);
            for end in QueueEnd::ALL {
                f.queue_wait.remove(&with(&own, "outcome", end.as_str()));
            }
        });
    }
}

/// Series of an endpoint.
#[derive(Default)]
pub struct EndpointMetrics {
    /// Requests in flight.
    pub in_flight: Gauge,
    healthy: Gauge,
    /// Answers that meant full.
    pub full: Counter,
    /// Number of ejections.
    pub ejections: Counter,
    /// Failed scrapes of its own metrics.
    pub scrape_failures: Counter,
    /// Failed questions for its models.
    pub model_list_failures: Counter,
    attempts: ByLabel<AttemptEnd, Counter>,
    series: Option<(Arc<Families>, String, Labels)>,
}

impl EndpointMetrics {
    /// Creates the handles; `key` names them among the live ones.
    pub(super) fn new(families: &Arc<Families>, key: &str, backend: &str, url: &str) -> Self {
        let own = labels([("backend", backend), ("endpoint", url)]);
        Self {
            in_flight: families.endpoint_in_flight.get_or_create_owned(&own),
            healthy: families.endpoint_healthy.get_or_create_owned(&own),
            full: families.endpoint_full.get_or_create_owned(&own),
            ejections: families.endpoint_ejections.get_or_create_owned(&own),
            scrape_failures: families.endpoint_scrape_failures.get_or_create_owned(&own),
            model_list_failures: families.endpoint_model_list_failures.get_or_create_owned(&own),
            attempts: ByLabel::new(|end: AttemptEnd| {
                families.endpoint_attempts.get_or_create_owned(&with(&own, "outcome", end.as_str()))
            }),
            series: Some((families.clone(), key.to_owned(), own)),
        }
    }

    /// Records the result of an active check.
    pub fn set_healthy(&self, healthy: bool) {
        self.healthy.set(i64::from(healthy));
    }

    /// Numbers of attempts by how they ended.
    pub fn attempts(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.attempts.iter().map(|(end, counter)| (end.as_str(), counter.get()))
    }

    /// Counts an attempt that has ended.
    pub fn attempted(&self, end: AttemptEnd) {
        count(&self.attempts, end);
    }
}

impl Drop for EndpointMetrics {
    fn drop(&mut self) {
        let Some((f, key, own)) = self.series.take() else { return };
        f.live_endpoints.gone(&key, || {
            f.endpoint_in_flight.remove(&own);
            f.endpoint_healthy.remove(&own);
            f.endpoint_full.remove(&own);
            f.endpoint_ejections.remove(&own);
            f.endpoint_scrape_failures.remove(&own);
            f.endpoint_model_list_failures.remove(&own);
            for end in AttemptEnd::ALL {
                f.endpoint_attempts.remove(&with(&own, "outcome", end.as_str()));
            }
        });
    }
}

/// Series of a listener.
pub struct ListenerMetrics {
    /// Open connections.
    pub connections: Gauge,
    families: Arc<Families>,
    name: String,
}

impl ListenerMetrics {
    pub(super) fn new(families: &Arc<Families>, name: &str) -> Self {
        let own = labels([("listener", name)]);
        Self {
            connections: families.connections.get_or_create_owned(&own),
            families: families.clone(),
            name: name.to_owned(),
        }
    }

    /// Counts a connection that was closed before it carried a request.
    pub fn refused(&self, reason: ConnectionRefusal) {
        self.families.connections_refused.get_or_create_owned(&self.with_reason(reason.as_str())).inc();
    }

    /// Counts a request that breaks the grammar of HTTP/1 or a limit of its framing.
    pub fn malformed(&self, reason: MalformedReason) {
        self.families.malformed.get_or_create_owned(&self.with_reason(reason.as_str())).inc();
    }

    fn with_reason(&self, reason: &str) -> Labels {
        labels([("listener", self.name.as_str()), ("reason", reason)])
    }
}

impl Drop for ListenerMetrics {
    fn drop(&mut self) {
        let f = &self.families;
        f.live_listeners.gone(&self.name, || {
            let own = labels([("listener", &self.name)]);
            f.connections.remove(&own);
            for reason in ConnectionRefusal::ALL {
                f.connections_refused.remove(&self.with_reason(reason.as_str()));
            }
            for reason in MalformedReason::ALL {
                f.malformed.remove(&self.with_reason(reason.as_str()));
            }
        });
    }
}

/// Tokens and times of one model call.
#[derive(Debug, Clone, Copy, Default)]
pub struct CallStats {
    /// Prompt tokens.
    pub input: Option<u64>,
    /// Prompt tokens that a cache had.
    pub cached: Option<u64>,
    /// Prompt tokens that were written to a cache.
    pub cache_written: Option<u64>,
    /// Tokens of the answer.
    pub output: Option<u64>,
    /// Time from arrival to the first content.
    pub first: Option<Duration>,
    /// Trace of the request, if that is sent.
    pub trace: Option<TraceId>,
}

/// Further series of a built-in model.
struct EngineMetrics {
    request: Histogram,
    first_token: Histogram,
    per_token: Histogram,
}

/// Values of `gen_ai_token_type`. `input` and `output` are those of OpenTelemetry's conventions. The tokens that a cache had or
/// got are among `input`, and named like the attributes of spans (`gen_ai.usage.cache_read.input_tokens`).
const INPUT: &str = "input";
const CACHED_INPUT: &str = "cache_read_input";
const CACHE_CREATION_INPUT: &str = "cache_creation_input";
const OUTPUT: &str = "output";

/// Series of model calls.
pub struct ModelMetrics {
    input: Histogram,
    cached: Histogram,
    cache_written: Histogram,
    output: Histogram,
    duration: Latency,
    first_chunk: Latency,
    engine: Option<EngineMetrics>,
    families: Arc<Families>,
    key: String,
    own: Labels,
}

impl ModelMetrics {
    /// Creates the handles; `key` names them among the live ones. The provider of built-in models is `spillway`.
    pub(super) fn new(families: &Arc<Families>, key: &str, provider: &str, name: &str) -> Self {
        let own = labels([
            ("gen_ai_operation_name", "chat"),
            ("gen_ai_provider_name", provider),
            ("gen_ai_request_model", name),
        ]);
        let tokens = |kind| families.tokens.get_or_create_owned(&with(&own, "gen_ai_token_type", kind));
        Self {
            input: tokens(INPUT),
            cached: tokens(CACHED_INPUT),
            cache_written: tokens(CACHE_CREATION_INPUT),
            output: tokens(OUTPUT),
            duration: families.latencies.operation.get_or_create_owned(&own),
            first_chunk: families.latencies.first_chunk.get_or_create_owned(&own),
            engine: (provider == super::ENGINE).then(|| EngineMetrics {
                request: families.engine_request.get_or_create_owned(&own),
                first_token: families.engine_first_token.get_or_create_owned(&own),
                per_token: families.engine_per_token.get_or_create_owned(&own),
            }),
            families: families.clone(),
            key: key.to_owned(),
            own,
        }
    }

    /// Name of the provider and of the backend or model, unique among all.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Counts of the calls that have ended.
    pub fn counts(&self) -> ModelCounts {
        ModelCounts { input: self.input.sum(), output: self.output.sum(), first_token: self.first_chunk.counts() }
    }

    /// Records a call that has ended.
    #[allow(clippy::cast_precision_loss, reason = "token counts are far below 2^52")]
    pub fn called(&self, call: CallStats, took: Duration) {
        for (count, series) in [
            (call.input, &self.input),
            (call.cached, &self.cached),
            (call.cache_written, &self.cache_written),
            (call.output, &self.output),
        ] {
            if let Some(count) = count {
                series.observe(count as f64);
            }
        }
        if let Some(first) = call.first {
            self.first_chunk.observe(first.as_secs_f64(), call.trace);
        }
        self.duration.observe(took.as_secs_f64(), call.trace);
    }

    /// Records answers that the engine has written, of `tokens` tokens each: the first token `first` after submission, the
    /// others within `rest`.
    #[allow(clippy::cast_precision_loss, reason = "token counts are far below 2^52")]
    pub fn generated(&self, first: Duration, rest: Duration, tokens: u64) {
        let Some(EngineMetrics { request, first_token, per_token }) = &self.engine else { return };
        request.observe((first + rest).as_secs_f64());
        first_token.observe(first.as_secs_f64());
        if let Some(further) = tokens.checked_sub(1).filter(|n| *n > 0) {
            per_token.observe(rest.as_secs_f64() / further as f64);
        }
    }
}

impl Drop for ModelMetrics {
    fn drop(&mut self) {
        let (f, own) = (&self.families, &self.own);
        f.live_models.gone(&self.key, || {
            for kind in [INPUT, CACHED_INPUT, CACHE_CREATION_INPUT, OUTPUT] {
                f.tokens.remove(&with(own, "gen_ai_token_type", kind));
            }
            for family in [&f.latencies.operation, &f.latencies.first_chunk] {
                family.remove(own);
            }
            for family in [&f.engine_request, &f.engine_first_token, &f.engine_per_token] {
                family.remove(own);
            }
        });
    }
}

fn note<L: Label>(counts: &ByLabel<L, Count>, label: L) {
    if let Some(count) = counts.get(label) {
        count.inc();
    }
}

fn count<L: Label>(counters: &ByLabel<L, Counter>, label: L) {
    if let Some(counter) = counters.get(label) {
        counter.inc();
    }
}

fn with(own: &Labels, name: &'static str, value: &str) -> Labels {
    own.iter().cloned().chain([(name, value.to_owned())]).collect()
}
