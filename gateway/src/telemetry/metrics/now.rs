//! Figures that are read at a scrape: those that built-in models, the process and other rooms keep themselves. Each scrape
//! fills a new registry, so that no series of a removed model remains.

use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use spillway_engine::DeviceInfo;

use crate::descriptors::{self, Side};

use super::{Counters, FloatGauges, Gauges, labels};

type FloatGauge = Gauge<f64, AtomicU64>;
type FloatCounter = Counter<f64, AtomicU64>;

/// State of a built-in model at a scrape.
#[derive(Debug, Clone, Default)]
pub struct EngineSample {
    /// Name of the model.
    pub model: String,
    /// Sequences that are being written.
    pub active: u64,
    /// Requests that wait.
    pub waiting: u64,
    /// Tokens in the KV cache.
    pub kv_used: u64,
    /// Tokens that fit the KV cache.
    pub kv_capacity: u64,
    /// Estimated wait for a first token.
    pub estimated_wait: Duration,
    /// Tokens of the KV cache that no sequence uses and that a prompt may begin with.
    pub kv_idle: u64,
    /// Prompt tokens since load that the KV cache already held.
    pub cached: u64,
    /// Sequences since load that gave up their part of the KV cache.
    pub preemptions: u64,
    /// Faults of the device since load.
    pub faults: u64,
    /// Number of times that the model was unloaded for another.
    pub evictions: u64,
    /// Number of times that the model could not be loaded for want of memory.
    pub no_room: u64,
    /// True if the model is loaded.
    pub is_loaded: bool,
    /// True if the model can run now.
    pub is_ready: bool,
    /// Tokens written since load.
    pub generated: u64,
    /// Tokens read since load.
    pub prompt: u64,
    /// Device of the model, while it is loaded.
    pub device: Option<DeviceInfo>,
    /// Memory of the model on its device, in bytes.
    pub memory: u64,
    /// Tokens per second, measured when the model was loaded.
    pub rate: f64,
    /// Bytes of weights per second that a step of one row reads, measured when the model was loaded.
    pub bandwidth: f64,
}

/// State of an endpoint at a scrape.
#[derive(Debug, Clone, Default)]
pub struct EndpointSample {
    /// Name of the backend.
    pub backend: String,
    /// Name of the endpoint in metrics.
    pub endpoint: String,
    /// Requests that may be in flight; `None` without a limit.
    pub limit: Option<u32>,
    /// Open connections to the endpoint.
    pub connections: u32,
    /// True if the endpoint is ejected.
    pub ejected: bool,
    /// True if an operator drained the endpoint.
    pub drained: bool,
    /// Signal by which the endpoint is full.
    pub full: Option<&'static str>,
    /// Smoothed latency.
    pub latency: Option<Duration>,
    /// Requests that wait at the server, as the server reports.
    pub waiting: Option<u32>,
    /// Used share of its KV cache, as the server reports, from 0 to 1.
    pub kv_cache: Option<f64>,
}

/// State of a backend at a scrape.
#[derive(Debug, Clone, Default)]
pub struct BackendSample {
    /// Name of the backend.
    pub backend: String,
    /// True if ejections are ignored because too few endpoints are left.
    pub is_in_panic: bool,
    /// Requests that wait for the backend.
    pub pending: u32,
    /// Retries and hedges in flight.
    pub retries: u32,
    /// Limits of `circuitBreaker` by their keys; true for each that is reached.
    pub at_limit: [(&'static str, bool); 3],
}

/// Certificate that the gateway presents to clients or backends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CertificateSample {
    /// Listener that presents it, or `backend NAME` for one that is presented to servers.
    pub place: String,
    /// First name of the certificate.
    pub certificate: String,
    /// End of its validity, in Unix seconds.
    pub ends: i64,
}

/// Budget of the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BudgetSample {
    /// `consumer NAME` or `tenant NAME`.
    pub whose: String,
    /// `day` or `month`.
    pub per: &'static str,
    /// Unit (`tokens` or `nanodollars`), amount spent in the current day or month, and limit.
    pub units: Vec<(&'static str, u64, u64)>,
}

/// State of other rooms that a scrape shows.
#[derive(Debug, Clone, Copy, Default)]
pub struct Samples<'s> {
    /// Built-in models.
    pub engines: &'s [EngineSample],
    /// Memory of all built-in models in bytes, used and allowed.
    pub model_memory: (u64, u64),
    /// Backends.
    pub backends: &'s [BackendSample],
    /// Endpoints.
    pub endpoints: &'s [EndpointSample],
    /// Certificates.
    pub certificates: &'s [CertificateSample],
    /// Budgets.
    pub budgets: &'s [BudgetSample],
    /// Dropped log lines.
    pub log_dropped: u64,
}

pub(super) fn certificates(r: &mut Registry, samples: &[CertificateSample]) {
    let family = Gauges::default();
    for sample in samples {
        let series = labels([("listener", &sample.place), ("certificate", &sample.certificate)]);
        let gauge = family.get_or_create(&series);
        // Certificates of one name, one for each kind of key, show the earliest end.
        let other = gauge.get();
        gauge.set(if other == 0 { sample.ends } else { other.min(sample.ends) });
    }
    let help = "When a certificate ends, in seconds since 1970";
    r.register("spillway_tls_certificate_expiry_seconds", help, family);
}

/// Most budgets with series, so that a scrape stays small; the file of budgets holds the figures of all.
const MAX_BUDGETS: usize = 2_000;

#[allow(clippy::cast_precision_loss, reason = "a budget of 2^53 is none")]
pub(super) fn budgets(r: &mut Registry, samples: &[BudgetSample]) {
    let (spent, limit) = (FloatGauges::default(), FloatGauges::default());
    for sample in samples.iter().take(MAX_BUDGETS) {
        for (unit, used, most) in &sample.units {
            let (unit, parts) = if *unit == "nanodollars" { ("usd", 1e9) } else { (*unit, 1.0) };
            let series = labels([("budget", &sample.whose), ("per", sample.per), ("unit", unit)]);
            spent.get_or_create(&series).set(*used as f64 / parts);
            limit.get_or_create(&series).set(*most as f64 / parts);
        }
    }
    r.register("spillway_budget_spent", "Amount of a budget spent in its day or month, through this gateway", spent);
    r.register("spillway_budget_limit", "Limit of a budget", limit);
}

/// Most endpoints with series here: as many as have counters.
const MAX_ENDPOINTS: usize = 10_000;

pub(super) fn endpoints(r: &mut Registry, samples: &[EndpointSample]) {
    let samples = samples.get(..samples.len().min(MAX_ENDPOINTS)).unwrap_or_default();
    let own = |s: &EndpointSample| labels([("backend", &s.backend), ("endpoint", &s.endpoint)]);
    let mut gauge = |name: &str, help: &str, value: fn(&EndpointSample) -> Option<f64>| {
        let family = FloatGauges::default();
        for sample in samples {
            if let Some(value) = value(sample) {
                family.get_or_create(&own(sample)).set(value);
            }
        }
        r.register(name, help, family);
    };
    gauge("spillway_endpoint_limit", "Limit of requests in flight, as of now", |s| s.limit.map(f64::from));
    gauge("spillway_endpoint_ejected", "1 while the endpoint is ejected for its errors", |s| {
        Some(f64::from(u8::from(s.ejected)))
    });
    gauge("spillway_endpoint_drained", "1 while an operator has drained the endpoint", |s| {
        Some(f64::from(u8::from(s.drained)))
    });
    gauge("spillway_endpoint_latency_seconds", "Smoothed time to the first token or head", |s| {
        s.latency.map(|latency| latency.as_secs_f64())
    });
    gauge("spillway_endpoint_connections", "Open connections, idle ones included", |s| Some(f64::from(s.connections)));
    gauge("spillway_endpoint_waiting", "Requests that wait at the server, as the server reports", |s| {
        s.waiting.map(f64::from)
    });
    gauge("spillway_endpoint_kv_cache", "Used share of the server's KV cache, as the server reports", |s| s.kv_cache);
    let full = Gauges::default();
    for sample in samples {
        if let Some(reason) = sample.full {
            let series = own(sample).into_iter().chain([("reason", reason.to_owned())]).collect();
            full.get_or_create(&series).set(1);
        }
    }
    r.register("spillway_endpoint_saturated", "1 while the endpoint is full, by the signal that reports it", full);
}

pub(super) fn backends(r: &mut Registry, samples: &[BackendSample]) {
    let mut gauge = |name: &str, help: &str, value: fn(&BackendSample) -> i64| {
        let family = Gauges::default();
        for sample in samples {
            family.get_or_create(&labels([("backend", &sample.backend)])).set(value(sample));
        }
        r.register(name, help, family);
    };
    gauge("spillway_backend_pending", "Requests that wait for the backend, in the queues of all routes", |s| {
        s.pending.into()
    });
    gauge("spillway_backend_retries_in_flight", "Retries and hedges in flight", |s| s.retries.into());
    gauge("spillway_backend_panic", "1 while ejections are ignored, because too few endpoints are left", |s| {
        s.is_in_panic.into()
    });
    let open = Gauges::default();
    for sample in samples {
        for (limit, is_reached) in sample.at_limit {
            let series = labels([("backend", &sample.backend), ("limit", limit)]);
            open.get_or_create(&series).set(is_reached.into());
        }
    }
    r.register("spillway_backend_circuit_open", "1 while a limit of `circuitBreaker` is reached", open);
}

pub(super) fn counter(r: &mut Registry, name: &str, help: &str, value: u64) {
    let counter: Counter = Counter::default();
    counter.inc_by(value);
    r.register(name, help, counter);
}

pub(super) fn model_memory(r: &mut Registry, (taken, limit): (u64, u64)) {
    for (name, help, value) in [
        ("spillway_models_memory_bytes", "Memory that all built-in models hold", taken),
        ("spillway_models_memory_limit_bytes", "Memory that all built-in models may hold", limit),
    ] {
        let gauge: Gauge = Gauge::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        r.register(name, help, gauge);
    }
}

pub(super) fn engines(r: &mut Registry, samples: &[EngineSample]) {
    let mut gauge = |name: &str, help: &str, value: fn(&EngineSample) -> u64| {
        let family = Gauges::default();
        for sample in samples {
            let value = i64::try_from(value(sample)).unwrap_or(i64::MAX);
            family.get_or_create(&labels([("model", &sample.model)])).set(value);
        }
        r.register(name, help, family);
    };
    gauge("spillway_engine_active_sequences", "Answers that are being written", |s| s.active);
    gauge("spillway_engine_waiting_sequences", "Requests that wait for the engine", |s| s.waiting);
    gauge("spillway_engine_kv_used_tokens", "Tokens in the KV cache", |s| s.kv_used);
    gauge("spillway_engine_kv_capacity_tokens", "Tokens that fit the KV cache", |s| s.kv_capacity);
    gauge(
        "spillway_engine_kv_idle_tokens",
        "Tokens in the KV cache that no sequence uses and that a prompt may begin with",
        |s| s.kv_idle,
    );
    gauge("spillway_engine_memory_bytes", "Device memory of a model", |s| s.memory);
    gauge("spillway_engine_loaded", "1 while the model is loaded, 0 until a request needs it", |s| s.is_loaded.into());
    gauge("spillway_engine_ready", "1 while the model can run, 0 while its device is set up again", |s| {
        s.is_ready.into()
    });
    let devices = Gauges::default();
    for EngineSample { model, device, .. } in samples {
        let Some(DeviceInfo { name, kind, driver, .. }) = device else { continue };
        let labels = labels([("model", model), ("device", name), ("kind", kind), ("driver", driver)]);
        devices.get_or_create(&labels).set(1);
    }
    r.register("spillway_engine_device_info", "Device of a model", devices);
    let mut float = |name: &str, help: &str, value: fn(&EngineSample) -> f64| {
        let family = FloatGauges::default();
        for sample in samples {
            family.get_or_create(&labels([("model", &sample.model)])).set(value(sample));
        }
        r.register(name, help, family);
    };
    float("spillway_engine_estimated_wait_seconds", "Estimated wait for a first token", |s| {
        s.estimated_wait.as_secs_f64()
    });
    float(
        "spillway_engine_load_tokens_per_second",
        "Tokens written by one sequence, or read by an encoder, as measured at load",
        |s| s.rate,
    );
    float("spillway_engine_load_bytes_per_second", "Weights that a step of one row reads, as measured at load", |s| {
        s.bandwidth
    });
    let mut counter = |name: &str, help: &str, value: fn(&EngineSample) -> u64| {
        let family = Counters::default();
        for sample in samples {
            family.get_or_create(&labels([("model", &sample.model)])).inc_by(value(sample));
        }
        r.register(name, help, family);
    };
    counter("spillway_engine_generated_tokens", "Tokens written since the model was loaded", |s| s.generated);
    counter("spillway_engine_cached_prompt_tokens", "Prompt tokens that the KV cache already held", |s| s.cached);
    counter("spillway_engine_preemptions", "Answers that lost their part of the KV cache and were read again", |s| {
        s.preemptions
    });
    counter("spillway_engine_device_faults", "Faults of the device, after each of which it is set up again", |s| {
        s.faults
    });
    counter("spillway_engine_evictions", "Times that a model was unloaded for another", |s| s.evictions);
    counter("spillway_engine_loads_refused", "Times that a model was not loaded for want of memory", |s| s.no_room);
    counter("spillway_engine_prompt_tokens", "Tokens read since the model was loaded", |s| s.prompt);
}

/// Usual figures of a process (Prometheus, "Writing client libraries", process metrics), without those that the system does
/// not report.
pub(super) fn process(r: &mut Registry, started: SystemTime) {
    let mut gauge = |name: &str, help: &str, value: Option<i64>| {
        if let Some(value) = value {
            let gauge: Gauge = Gauge::default();
            gauge.set(value);
            r.register(name, help, gauge);
        }
    };
    gauge("process_resident_memory_bytes", "Memory of the process", resident_bytes());
    gauge("process_open_fds", "Open file descriptors", open_files());
    gauge("process_max_fds", "File descriptors that may be open", file_limit());
    let short = Counters::default();
    for side in Side::ALL {
        short.get_or_create(&labels([("side", side.as_str())])).inc_by(side.shortages_so_far());
    }
    let help = "Connections that were closed because no file descriptor was left for them";
    r.register("spillway_descriptor_shortages", help, short);
    let start = FloatGauge::default();
    start.set(crate::clock::unix_fraction(started));
    r.register("process_start_time_seconds", "Start of the process, Unix time", start);
    if let Some(seconds) = processor_time() {
        let counter = FloatCounter::default();
        counter.inc_by(seconds.as_secs_f64());
        r.register("process_cpu_seconds", "Processor time of all threads", counter);
    }
}

fn resident_bytes() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kibibytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(kibibytes.trim().strip_suffix(" kB")?.parse::<i64>().ok()?.saturating_mul(1024))
}

fn open_files() -> Option<i64> {
    // The descriptor of the folder that is read does not count.
    i64::try_from(std::fs::read_dir("/proc/self/fd").ok()?.count()).ok()?.checked_sub(1)
}

fn file_limit() -> Option<i64> {
    descriptors::limit().map(|limit| i64::try_from(limit).unwrap_or(i64::MAX))
}

fn processor_time() -> Option<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call gets a pointer to a `timespec` that lives until it returns.
    let ok = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) } == 0;
    let (seconds, nanos) = (u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?);
    ok.then(|| Duration::new(seconds, nanos))
}
