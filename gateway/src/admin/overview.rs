//! Report of the process as a whole and of its built-in models, for the dashboard.

use std::collections::HashMap;
use std::time::SystemTime;

use serde::Serialize;

use super::history::{History, Rates};
use crate::clock::unix_seconds;
use crate::gateway::Gateway;
use crate::listener::{ListenerReport, ListenerSet};
use crate::telemetry::{EngineSample, Metrics};

/// Most routes in a report: those with the most requests come first.
const MAX_ROUTES: usize = 200;

/// Report of the process.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct OverviewReport {
    now: f64,
    version: &'static str,
    uptime_seconds: f64,
    state: &'static str,
    generation: Option<u64>,
    in_flight: usize,
    connections: usize,
    requests_per_second: f64,
    errors_per_second: f64,
    spills_per_second: f64,
    tokens_per_second: f64,
    listeners: Vec<ListenerReport>,
    routes: Vec<RouteReport>,
    more_routes: usize,
    traces_url: Option<String>,
    playground: bool,
}

/// Report of a route.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RouteReport {
    name: String,
    in_flight: i64,
    requests_per_second: f64,
    errors_per_second: f64,
}

/// Report of a built-in model.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ModelReport {
    name: String,
    loaded: bool,
    ready: bool,
    device: Option<String>,
    device_kind: Option<&'static str>,
    tokens_per_second: f64,
    measured_tokens_per_second: f64,
    running: u64,
    waiting: u64,
    wait_seconds: f64,
    kv_used: u64,
    kv_idle: u64,
    kv_total: u64,
    memory_bytes: u64,
    generated_tokens: u64,
    prompt_tokens: u64,
    cached_tokens: u64,
    preemptions: u64,
    faults: u64,
    evictions: u64,
    no_room: u64,
}

/// Settings of the admin address that a report shows.
pub(super) struct Shown {
    /// `ready`, `starting` or `draining`.
    pub(super) state: &'static str,
    /// Address of a trace, with `{trace_id}`.
    pub(super) traces_url: Option<String>,
    /// True if the playground is allowed.
    pub(super) playground: bool,
}

/// Reports the process.
pub(super) fn overview(
    metrics: &Metrics,
    history: &History,
    gateway: Option<&Gateway>,
    listeners: Option<&ListenerSet>,
    shown: Shown,
) -> OverviewReport {
    let (all, by_route) = history.rates();
    let mut routes: Vec<RouteReport> = metrics
        .routes()
        .into_iter()
        .map(|handle| {
            let rates: Rates = by_route.get(handle.route()).copied().unwrap_or_default();
            RouteReport {
                name: handle.route().to_string(),
                in_flight: handle.in_flight.get(),
                requests_per_second: rates.requests,
                errors_per_second: rates.errors,
            }
        })
        .collect();
    routes.sort_by(|a, b| {
        let by_use = b.requests_per_second.total_cmp(&a.requests_per_second);
        by_use.then(b.in_flight.cmp(&a.in_flight)).then_with(|| a.name.cmp(&b.name))
    });
    let more_routes = routes.len().saturating_sub(MAX_ROUTES);
    routes.truncate(MAX_ROUTES);
    OverviewReport {
        now: unix_seconds(),
        version: env!("CARGO_PKG_VERSION"),
        uptime_seconds: SystemTime::now().duration_since(metrics.started()).unwrap_or_default().as_secs_f64(),
        state: shown.state,
        generation: gateway.map(|gateway| gateway.snapshot.load().generation),
        in_flight: gateway.map_or(0, Gateway::running),
        connections: gateway.map_or(0, Gateway::connections),
        requests_per_second: all.requests,
        errors_per_second: all.errors,
        spills_per_second: all.spills,
        tokens_per_second: all.tokens,
        listeners: listeners.map(ListenerSet::reports).unwrap_or_default(),
        routes,
        more_routes,
        traces_url: shown.traces_url,
        playground: shown.playground,
    }
}

/// Reports built-in models; `rates` are the tokens that each writes in a second.
pub(super) fn models(samples: Vec<EngineSample>, rates: &HashMap<String, f64>) -> Vec<ModelReport> {
    let report = |sample: EngineSample| ModelReport {
        loaded: sample.is_loaded,
        ready: sample.is_ready,
        device_kind: sample.device.as_ref().map(|device| device.kind),
        device: sample.device.map(|device| device.name),
        tokens_per_second: rates.get(&sample.model).copied().unwrap_or(0.0),
        measured_tokens_per_second: sample.rate,
        running: sample.active,
        waiting: sample.waiting,
        wait_seconds: sample.estimated_wait.as_secs_f64(),
        kv_used: sample.kv_used,
        kv_idle: sample.kv_idle,
        kv_total: sample.kv_capacity,
        memory_bytes: sample.memory,
        generated_tokens: sample.generated,
        prompt_tokens: sample.prompt,
        cached_tokens: sample.cached,
        preemptions: sample.preemptions,
        faults: sample.faults,
        evictions: sample.evictions,
        no_room: sample.no_room,
        name: sample.model,
    };
    samples.into_iter().map(report).collect()
}
