//! Reports of backends and endpoints for the admin address and for metrics, read from the atomics that admission uses.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use crate::balancing::{Closed, Endpoint, UnresolvedEndpoint};
use crate::clock::now_millis;
use crate::telemetry::{BackendSample, EndpointSample, rfc3339_millis};
use crate::topology::Backend;

/// Age up to which figures of servers are shown, in milliseconds: older ones mislead more than they tell.
const SHOWN_FOR: u64 = 60_000;

/// Report of a backend.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct BackendReport {
    name: String,
    policy: &'static str,
    /// True if an endpoint may have traffic.
    available: bool,
    /// True if ejections are ignored because too few endpoints are left.
    panic: bool,
    in_flight: u32,
    /// Most requests in flight at all endpoints together; absent without a limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_in_flight: Option<u32>,
    /// Requests that wait for the backend, in the queues of all routes.
    pending: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_pending: Option<u32>,
    /// Retries and hedges in flight.
    retries: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_retries: Option<u32>,
    endpoints: Vec<EndpointReport>,
}

/// Limit as operators see it: none for the largest number.
fn known(limit: u32) -> Option<u32> {
    (limit != u32::MAX).then_some(limit)
}

/// Report of an endpoint.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EndpointReport {
    endpoint: String,
    url: String,
    /// Address for connections; absent while the name is not resolved.
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    weight: u32,
    priority: u32,
    /// `open`, or the reason why the endpoint gets no further request.
    state: &'static str,
    /// False while the active check fails, or where all of the last attempts did.
    healthy: bool,
    ejected: bool,
    drained: bool,
    /// Milliseconds until the end of an ejection, or until the end of the pause after a 429 or 503.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_in_ms: Option<u64>,
    in_flight: u32,
    /// Open connections, idle ones included.
    connections: u32,
    /// Most requests in flight; absent without a limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waiting: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kv_cache: Option<f64>,
    ejections: u64,
    /// Last failure of an attempt or a check; absent where there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_error: Option<LastErrorReport>,
    /// Attempts since the process began, by outcome.
    attempts: BTreeMap<&'static str, u64>,
}

/// Last failure of an endpoint.
#[derive(Debug, Serialize)]
pub(crate) struct LastErrorReport {
    /// RFC 3339.
    time: String,
    cause: String,
}

/// Reports of all backends, in the order of their names.
pub(super) fn reports(backends: &[Arc<Backend>]) -> Vec<BackendReport> {
    let now = now_millis();
    let mut reports: Vec<BackendReport> = backends
        .iter()
        .map(|backend| {
            let set = backend.balancer.endpoints();
            let panic = backend.balancer.is_in_panic(now);
            let endpoints = set.all().iter().map(|e| report(backend, e, now, panic));
            let endpoints = endpoints.chain(set.unresolved().iter().map(unresolved_report)).collect();
            BackendReport {
                name: backend.name.to_string(),
                policy: backend.policy.as_str(),
                available: backend.balancer.is_available(now),
                panic,
                in_flight: backend.balancer.in_flight(),
                max_in_flight: known(backend.balancer.max_in_flight()),
                pending: backend.room.pending(),
                max_pending: known(backend.max_pending),
                retries: backend.retries.running(),
                max_retries: known(backend.max_retries),
                endpoints,
            }
        })
        .collect();
    reports.sort_by(|a, b| a.name.cmp(&b.name));
    reports
}

fn report(backend: &Backend, e: &Endpoint, now: u64, panic: bool) -> EndpointReport {
    let closed = e.closed(now, panic);
    let facts = e.state.facts(now, SHOWN_FOR);
    let wait = match closed {
        Some(Closed::Ejected) => facts.ejected_for,
        _ => e.state.full_for(now),
    };
    EndpointReport {
        endpoint: e.address.clone(),
        url: e.url.to_string(),
        address: Some(e.socket.to_string()),
        weight: e.weight,
        priority: e.priority,
        state: closed.map_or("open", Closed::as_str),
        healthy: e.state.is_healthy() && !backend.balancer.is_failing(e),
        ejected: facts.is_ejected,
        drained: e.state.is_drained(),
        retry_in_ms: (!wait.is_zero()).then(|| crate::clock::millis(wait)),
        in_flight: e.state.in_flight(),
        connections: facts.connections,
        limit: known(e.room(now, panic).0),
        latency_ms: facts.latency.map(|micros| micros.round() / 1e3),
        waiting: facts.waiting,
        kv_cache: facts.kv_cache,
        ejections: e.state.metrics.ejections.get(),
        last_error: e
            .state
            .last_error()
            .map(|last| LastErrorReport { time: rfc3339_millis(last.at), cause: last.cause }),
        attempts: e.state.metrics.attempts().collect(),
    }
}

/// Report of an endpoint without an address.
fn unresolved_report(e: &UnresolvedEndpoint) -> EndpointReport {
    EndpointReport {
        endpoint: e.url.to_string(),
        url: e.url.to_string(),
        weight: e.weight,
        priority: e.priority,
        state: "unresolved",
        ..EndpointReport::default()
    }
}

/// State of all endpoints, for metrics.
pub(super) fn samples(backends: &[Arc<Backend>]) -> Vec<EndpointSample> {
    let now = now_millis();
    let mut samples = Vec::new();
    for backend in backends {
        let panic = backend.balancer.is_in_panic(now);
        for e in backend.balancer.endpoints().all() {
            let report = report(backend, e, now, panic);
            samples.push(EndpointSample {
                backend: backend.name.to_string(),
                endpoint: report.endpoint,
                limit: report.limit,
                connections: report.connections,
                ejected: report.ejected,
                drained: report.drained,
                full: match e.closed(now, panic) {
                    Some(Closed::Full(reason)) => Some(reason.as_str()),
                    _ => None,
                },
                latency: e
                    .state
                    .facts(now, SHOWN_FOR)
                    .latency
                    .map(|micros| std::time::Duration::from_secs_f64(micros / 1e6)),
                waiting: report.waiting,
                kv_cache: report.kv_cache,
            });
        }
    }
    samples
}

/// State of all backends, for metrics.
pub(super) fn backend_samples(backends: &[Arc<Backend>]) -> Vec<BackendSample> {
    let now = now_millis();
    let sample = |backend: &Arc<Backend>| {
        let balancer = &backend.balancer;
        let (pending, retries) = (backend.room.pending(), backend.retries.running());
        BackendSample {
            backend: backend.name.to_string(),
            is_in_panic: balancer.is_in_panic(now),
            pending,
            retries,
            at_limit: [
                ("maxInFlight", balancer.in_flight() >= balancer.max_in_flight()),
                ("maxPending", pending >= backend.max_pending),
                ("maxRetries", retries >= backend.max_retries),
            ],
        }
    };
    backends.iter().map(sample).collect()
}

/// Drains endpoints, or puts them back: those that `named` matches, which is an address (`10.0.0.1:8000`), or a URL or its
/// `HOST:PORT` for all of its addresses. Returns the names of the matching endpoints, each with true if its state changed.
pub(super) fn drain(backend: &Backend, named: &str, drained: bool) -> Vec<(String, bool)> {
    let now = now_millis();
    let set = backend.balancer.endpoints();
    let mut found = Vec::new();
    for e in set.all() {
        let url = e.url.to_string();
        let authority = url.split_once("://").map(|(_, authority)| authority);
        let is = named == e.socket.to_string() || named == url || authority == Some(named);
        if is || named == e.address {
            found.push((e.address.clone(), e.state.set_drained(drained, now)));
        }
    }
    found
}
