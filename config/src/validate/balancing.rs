//! Checks of load balancing, health checks, outlier detection, capacity and the circuit breaker of a backend.

use super::{Context, at};
use crate::schema::{Backend, BackendProtocol, HashOn, PolicyName};

/// Longest prefix of a prompt that is hashed, bytes.
const MAX_PREFIX: u64 = 64 << 10;
/// Longest name of a gRPC service, bytes.
const MAX_SERVICE: usize = 512;
/// Longest name of a metric with its labels, bytes.
const MAX_METRIC: usize = 512;

pub(super) fn all(cx: &mut Context<'_>, n: usize, backend: &Backend) {
    load_balancing(cx, n, backend);
    health_check(cx, n, backend);
    outlier_detection(cx, n, backend);
    capacity(cx, n, backend);
    circuit_breaker(cx, n, backend);
}

fn load_balancing(cx: &mut Context<'_>, n: usize, backend: &Backend) {
    let lb = &backend.load_balancing;
    let is_hash = lb.policy == PolicyName::Hash;
    if is_hash && lb.hash_on.is_none() {
        cx.error(
            at!["backends", n, "loadBalancing", "policy"],
            "the policy `hash` needs `hashOn`, which says what is hashed: add it",
        );
    }
    if let Some(hash_on) = &lb.hash_on {
        let place = |key: &str| at!["backends", n, "loadBalancing", "hashOn", key];
        if !is_hash {
            let place = at!["backends", n, "loadBalancing", "hashOn"];
            cx.error(place, "`hashOn` has no effect without `policy: hash`: add that, or remove it");
        }
        match hash_on {
            HashOn::Header(name) if !is_token(name) => {
                cx.error(place("header"), format!("`{name}` is not a header name"))
            }
            HashOn::Cookie(name) if !is_token(name) => {
                cx.error(place("cookie"), format!("`{name}` is not a cookie name"))
            }
            HashOn::ClientAddress(false) => {
                cx.error(place("clientAddress"), "`false` has no effect; expected only `true`: remove `hashOn` instead")
            }
            HashOn::PromptPrefix(_) if backend.protocol == BackendProtocol::Http => {
                cx.error(
                    place("promptPrefix"),
                    "there is a prompt only where `protocol` is a model protocol: set `protocol: openai`",
                );
            }
            HashOn::PromptPrefix(size) if !(1..=MAX_PREFIX).contains(&size.0) => {
                cx.error(place("promptPrefix"), format!("found {size}; expected 1B to 64KiB"));
            }
            _ => {}
        }
    }
    if let Some(time) = lb.slow_start {
        let place = at!["backends", n, "loadBalancing", "slowStart"];
        if is_hash {
            cx.error(
                place,
                "`slowStart` has no effect with `policy: hash`, which keeps requests where they are: remove it",
            );
        } else if time.0.is_zero() {
            cx.error(place, "0s is no slow start; expected a longer time, or leave it out");
        }
    }
}

/// RFC 9110, 5.6.2.
fn is_token(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

fn health_check(cx: &mut Context<'_>, n: usize, backend: &Backend) {
    let Some(check) = &backend.health_check else { return };
    let place = |keys: &[&str]| {
        let mut place = at!["backends", n, "healthCheck"];
        place.extend(keys.iter().map(|key| super::Segment::from(*key)));
        place
    };
    let kinds = [check.http.is_some(), check.tcp.is_some(), check.grpc.is_some(), check.completion.is_some()];
    let count = kinds.iter().filter(|given| **given).count();
    if count != 1 {
        cx.error(
            place(&[]),
            format!("found {count} probes; expected exactly one of `http`, `tcp`, `grpc` and `completion`"),
        );
    }
    if let Some(http) = &check.http {
        if !http.path.starts_with('/') {
            cx.error(place(&["http", "path"]), format!("`{0}` does not begin with `/`: write `/{0}`", http.path));
        }
        if http.expected_statuses.is_empty() {
            cx.error(
                place(&["http", "expectedStatuses"]),
                "an empty list makes every endpoint unhealthy; expected a status such as 200",
            );
        }
    }
    if let Some(grpc) = &check.grpc {
        if !backend.http2 {
            cx.error(
                place(&["grpc"]),
                "gRPC needs HTTP/2, and the backend does not have it: it must say `http2: true`",
            );
        }
        if grpc.service.len() > MAX_SERVICE {
            cx.error(
                place(&["grpc", "service"]),
                format!("{} bytes; expected at most {MAX_SERVICE}", grpc.service.len()),
            );
        }
    }
    if let Some(completion) = &check.completion {
        if backend.protocol != BackendProtocol::Openai {
            cx.error(
                place(&["completion"]),
                "no effect: a completion can be asked for only where `protocol` is `openai`",
            );
        } else if completion.model.is_none() && backend.model.is_none() {
            cx.error(place(&["completion"]), "no model to ask: give `model` here or for the backend");
        }
    }
    if check.interval.0.is_zero() || check.timeout.0.is_zero() {
        cx.error(place(&[]), "`interval` or `timeout` is 0s; expected both longer than zero");
    }
}

fn outlier_detection(cx: &mut Context<'_>, n: usize, backend: &Backend) {
    let o = &backend.outlier_detection;
    let place = |key: &str| at!["backends", n, "outlierDetection", key];
    let is_share = |share: f64| (0.0..=1.0).contains(&share);
    let share = |found: f64| format!("{found} is not a share; expected a number from 0 to 1");
    if !is_share(o.error_rate) {
        cx.error(place("errorRate"), share(o.error_rate));
    }
    if o.latency_factor.is_some_and(|factor| !(factor > 1.0 && factor.is_finite())) {
        cx.error(
            place("latencyFactor"),
            "not above 1; expected a factor above 1, because an endpoint as slow as its neighbours is no outlier",
        );
    }
    if !is_share(o.max_ejected) {
        cx.error(place("maxEjected"), share(o.max_ejected));
    }
    if !is_share(o.panic_threshold) {
        cx.error(place("panicThreshold"), share(o.panic_threshold));
    }
    for (key, time) in [("window", o.window), ("ejectionTime", o.ejection_time)] {
        if time.0.is_zero() {
            cx.error(place(key), "found 0s; expected longer than zero");
        }
    }
}

fn capacity(cx: &mut Context<'_>, n: usize, backend: &Backend) {
    let c = &backend.capacity;
    let place = |keys: &[&str]| {
        let mut place = at!["backends", n, "capacity"];
        place.extend(keys.iter().map(|key| super::Segment::from(*key)));
        place
    };
    if let (Some(connections), Some(requests)) = (c.max_connections, c.max_in_flight)
        && connections >= requests
        && !backend.http2
    {
        let message = format!(
            "no effect: `maxInFlight` ({requests}) requests need no more connections; expected fewer than that"
        );
        cx.error(place(&["maxConnections"]), message);
    }
    if let Some(adaptive) = &c.adaptive {
        if adaptive.min_limit > adaptive.max_limit {
            let message =
                format!("{} is above `maxLimit` ({}); expected at most that", adaptive.min_limit, adaptive.max_limit);
            cx.error(place(&["adaptive", "minLimit"]), message);
        }
        if c.max_in_flight.is_some_and(|max| max < adaptive.min_limit) {
            cx.error(
                place(&["maxInFlight"]),
                "the limit is below `adaptive.minLimit`, which could then never be reached; expected at least that",
            );
        }
        if !(adaptive.latency_tolerance > 1.0 && adaptive.latency_tolerance <= 100.0) {
            cx.error(
                place(&["adaptive", "latencyTolerance"]),
                format!("found {}; expected above 1 and at most 100", adaptive.latency_tolerance),
            );
        }
    }
    if let Some(queue) = &c.queue_depth {
        if queue.metrics_path.as_ref().is_some_and(|path| !path.starts_with('/')) {
            cx.error(place(&["queueDepth", "metricsPath"]), "the path does not begin with `/`: write it as `/metrics`");
        }
        if let Some(metric) = &queue.metric {
            metric_name(cx, place(&["queueDepth", "metric"]), metric);
        }
        if queue.interval.0 < std::time::Duration::from_millis(100) {
            cx.error(
                place(&["queueDepth", "interval"]),
                format!(
                    "{} is too short; expected at least 100ms, because servers work on each reading",
                    queue.interval
                ),
            );
        }
        if queue.stale_after <= queue.interval {
            let message =
                format!("every reading would be stale; it must be longer than `interval` ({})", queue.interval);
            cx.error(place(&["queueDepth", "staleAfter"]), message);
        }
    }
    if let Some(kv) = &c.kv_cache {
        if !(kv.max > 0.0 && kv.max <= 1.0) {
            cx.error(
                place(&["kvCache", "max"]),
                format!("{} is not valid; expected a share above 0 and at most 1", kv.max),
            );
        }
        if let Some(metric) = &kv.metric {
            metric_name(cx, place(&["kvCache", "metric"]), metric);
        }
        if !c.load_reports && c.queue_depth.is_none() {
            let message = "no figures would come: it needs `loadReports: true` or `queueDepth`, which scrapes them";
            cx.error(place(&["kvCache"]), message);
        }
    }
    let by_depth = backend.load_balancing.policy == PolicyName::QueueDepth;
    if c.load_reports && c.queue_depth.is_none() && c.kv_cache.is_none() && !by_depth {
        let message = "nothing uses the reports: give `queueDepth`, `kvCache` or `loadBalancing: {policy: queueDepth}`";
        cx.error(place(&["loadReports"]), message);
    }
    if by_depth && !c.load_reports && c.queue_depth.is_none() {
        let message = "no figures would come: `capacity` needs `queueDepth` or `loadReports: true`";
        cx.error(at!["backends", n, "loadBalancing", "policy"], message);
    }
}

/// Limits on a backend that its endpoints and routes never reach.
fn circuit_breaker(cx: &mut Context<'_>, n: usize, backend: &Backend) {
    let breaker = &backend.circuit_breaker;
    let place = |key: &str| at!["backends", n, "circuitBreaker", key];
    // A name, and a file, may have any number of servers.
    let is_address = |e: &crate::schema::Endpoint| e.url.host.parse::<std::net::IpAddr>().is_ok();
    let is_counted = backend.endpoints_file.is_none() && backend.endpoints.iter().all(is_address);
    let count = u32::try_from(backend.endpoints.iter().filter(|e| e.weight > 0).count()).unwrap_or(u32::MAX);
    if let (Some(together), Some(each)) = (breaker.max_in_flight, backend.capacity.max_in_flight)
        && is_counted
        && each.get().saturating_mul(count) <= together.get()
    {
        let message = format!("no effect: {count} endpoints with {each} requests each take no more; expected less");
        cx.error(place("maxInFlight"), message);
    }
    let Some(pending) = breaker.max_pending else { return };
    let all = cx.index.queued.get(backend.name.as_str()).copied().unwrap_or(0);
    if all == 0 {
        let message = "no request ever waits for this backend, because none of its routes has `whenSaturated.queue`: add one, or remove this";
        cx.error(place("maxPending"), message);
    } else if all <= pending.get().into() {
        let message =
            format!("no effect: the queues of its routes hold no more than {all} (`maxDepth`); expected less");
        cx.error(place("maxPending"), message);
    }
}

/// `name` or `name{label="value"}` as Prometheus writes them.
fn metric_name(cx: &mut Context<'_>, place: Vec<super::Segment>, text: &str) {
    let (name, labels) = text.split_once('{').unwrap_or((text, "}"));
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_' || b == b':');
    let rest = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':');
    if text.len() > MAX_METRIC || !first || !rest || !labels.ends_with('}') {
        cx.error(
            place,
            "not the name of a metric; expected one such as vllm:num_requests_waiting or name{label=\"value\"}",
        );
    }
}
