//! Scrapes of a server's own metrics: waiting requests, and use of the KV cache. The text is foreign: its length is bounded,
//! unreadable lines are skipped, and impossible figures count as none.

use std::num::NonZeroU16;
use std::sync::Weak;
use std::time::Duration;

use spillway_config::schema::Capacity;

use super::Server;
use super::error::ProbeError;
use crate::balancing::{EndpointState, LoadReport};
use crate::clock::now_millis;
use crate::connect::EndpointKey;

/// Most bytes of a page of metrics. Pages of vLLM have some 100 KB.
const MAX_PAGE: usize = 4 << 20;

/// Gauges of waiting requests, looked for where the configuration names none (vLLM, SGLang, llama.cpp, TGI,
/// TensorRT-LLM, Triton).
const WAITING: [&str; 7] = [
    "vllm:num_requests_waiting",
    "sglang:num_queue_reqs",
    "llamacpp:requests_deferred",
    "tgi_queue_size",
    "trtllm_num_requests_waiting",
    "nv_trt_llm_request_metrics{request_type=\"waiting\"}",
    "nv_inference_pending_request_count",
];
/// Gauges of the used share of the KV cache.
const KV_CACHE: [&str; 5] = [
    "vllm:kv_cache_usage_perc",
    "vllm:gpu_cache_usage_perc",
    "sglang:token_usage",
    "trtllm_kv_cache_utilization",
    "nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=\"fraction\"}",
];

/// Plan of the scrape of an endpoint.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ScrapePlan {
    path: String,
    /// Port of the metrics, where it is not that of the endpoint.
    port: Option<u16>,
    interval: Duration,
    timeout: Duration,
    waiting: Vec<Selector>,
    kv_cache: Vec<Selector>,
}

impl ScrapePlan {
    /// Plan for a capacity as configured; `None` where nothing is to be scraped.
    pub(crate) fn new(capacity: &Capacity) -> Option<Self> {
        let queue = capacity.queue_depth.as_ref()?;
        let is_named = queue.metrics_path.is_some() || queue.metrics_port.is_some() || queue.metric.is_some();
        if capacity.load_reports && !is_named {
            return None;
        }
        let selectors = |named: Option<&String>, known: &[&str]| match named {
            Some(name) => vec![Selector::new(name)],
            None => known.iter().map(|name| Selector::new(name)).collect(),
        };
        let kv_metric = capacity.kv_cache.as_ref().and_then(|kv| kv.metric.as_ref());
        Some(Self {
            path: queue.metrics_path.clone().unwrap_or_else(|| "/metrics".to_owned()),
            port: queue.metrics_port.map(NonZeroU16::get),
            interval: queue.interval.0,
            // An answer that is stale when it arrives is of no use.
            timeout: queue.stale_after.0.min(Duration::from_secs(5)),
            waiting: selectors(queue.metric.as_ref(), &WAITING),
            kv_cache: selectors(kv_metric, &KV_CACHE),
        })
    }

    /// The server of an endpoint as its metrics are asked for. What listens on another port is another program as far as
    /// credentials and HTTP/2 go.
    pub(in crate::balancing) fn server_of(&self, mut server: Server) -> Server {
        if let Some(port) = self.port.filter(|port| *port != server.socket.port()) {
            server.socket.set_port(port);
            server.url.port = port;
            server.credentials = None;
            // Over TLS the server says which version it speaks.
            server.http2 &= server.url.https;
        }
        server
    }

    fn read(&self, page: &str) -> LoadReport {
        let waiting = self.waiting.iter().find_map(|selector| selector.sum(page));
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturating is what is wanted")]
        let waiting = waiting.filter(|count| *count >= 0.0).map(|count| count as u32);
        let kv_cache = self.kv_cache.iter().find_map(|selector| selector.greatest(page)).filter(|share| *share >= 0.0);
        LoadReport { waiting, kv_cache }
    }
}

/// Scrapes the metrics of an endpoint until it is gone.
pub(in crate::balancing) async fn scrape(
    key: EndpointKey,
    plan: ScrapePlan,
    server: Server,
    state: Weak<EndpointState>,
) {
    let mut well = true;
    let mut wait = plan.interval.mul_f64(rand::random_range(0.0..0.2));
    loop {
        tokio::time::sleep(wait).await;
        wait = plan.interval.mul_f64(rand::random_range(0.9..1.1));
        let asked_at = now_millis();
        let read = match tokio::time::timeout(plan.timeout, server.send(&plan.path, None, MAX_PAGE)).await {
            Err(_) => Err(ProbeError::TimedOut(plan.timeout)),
            Ok(Err(e)) => Err(e),
            Ok(Ok((status, _))) if !status.is_success() => Err(ProbeError::Status(status.as_u16())),
            Ok(Ok((_, Err(e)))) => Err(e),
            Ok(Ok((_, Ok(page)))) => {
                let report = plan.read(&String::from_utf8_lossy(&page));
                if report == LoadReport::default() { Err(ProbeError::NoMetrics) } else { Ok(report) }
            }
        };
        let Some(state) = state.upgrade() else { return };
        match read {
            Ok(report) => {
                // The report is as old as the request: the server may have counted at once and answered late.
                state.reported(&report, asked_at);
                if !well {
                    tracing::info!(event = "endpoint_metrics_read", backend = %key.backend, endpoint = %key.url);
                }
                well = true;
            }
            Err(reason) => {
                state.metrics.scrape_failures.inc();
                // Once, not each second.
                if well {
                    tracing::warn!(event = "endpoint_metrics_not_read", backend = %key.backend, endpoint = %key.url, %reason);
                }
                well = false;
            }
        }
    }
}

/// A metric's name, and labels that its series must have.
#[derive(Debug, Clone, PartialEq)]
struct Selector {
    name: String,
    labels: Vec<(String, String)>,
}

impl Selector {
    fn new(text: &str) -> Self {
        let (name, labels) = text.split_once('{').unwrap_or((text, ""));
        let labels = LabelPairs(labels.trim_end_matches('}')).map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
        Self { name: name.to_owned(), labels }
    }

    fn values<'p>(&'p self, page: &'p str) -> impl Iterator<Item = f64> + 'p {
        page.lines().filter_map(|line| self.value(line))
    }

    /// The value of a line that is a sample of this metric (Prometheus text format 0.0.4 and OpenMetrics).
    fn value(&self, line: &str) -> Option<f64> {
        let rest = line.trim_start().strip_prefix(self.name.as_str())?;
        let (labels, rest) = match rest.strip_prefix('{') {
            Some(inside) => {
                let end = end_of_labels(inside)?;
                inside.split_at_checked(end).and_then(|(labels, rest)| Some((labels, rest.strip_prefix('}')?)))?
            }
            None if rest.starts_with([' ', '\t']) => ("", rest),
            None => return None,
        };
        let has = |name: &str, value: &str| LabelPairs(labels).any(|(n, v)| n == name && v == value);
        if !self.labels.iter().all(|(name, value)| has(name, value)) {
            return None;
        }
        let value: f64 = rest.split_ascii_whitespace().next()?.parse().ok()?;
        value.is_finite().then_some(value)
    }

    fn sum(&self, page: &str) -> Option<f64> {
        self.values(page).fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
    }

    /// The greatest value: of several engines behind one address the fullest counts.
    fn greatest(&self, page: &str) -> Option<f64> {
        self.values(page).fold(None, |most: Option<f64>, value| Some(most.map_or(value, |most| most.max(value))))
    }
}

/// Position of the end of the labels: the first `}` outside quotes.
fn end_of_labels(text: &str) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'}' if !quoted => return Some(at),
            _ => {}
        }
    }
    None
}

/// Iterator over `name="value"` pairs. Escapes in values are not decoded.
struct LabelPairs<'t>(&'t str);

impl<'t> Iterator for LabelPairs<'t> {
    type Item = (&'t str, &'t str);
    fn next(&mut self) -> Option<Self::Item> {
        let (name, rest) = self.0.split_once('=')?;
        let rest = rest.trim_start().strip_prefix('"')?;
        let mut escaped = false;
        let end = rest.bytes().position(|byte| {
            let ends = byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
            ends
        })?;
        let (value, rest) = rest.split_at_checked(end)?;
        self.0 = rest.get(1..)?;
        Some((name.trim_matches([',', ' ', '\t']), value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(capacity: serde_json::Value) -> ScrapePlan {
        ScrapePlan::new(&serde_json::from_value(capacity).unwrap()).unwrap()
    }

    #[test]
    fn the_gauges_of_the_common_servers_are_found() {
        let plan = plan(serde_json::json!({"queueDepth": {"max": 4}}));
        let pages = [
            (
                "# HELP vllm:num_requests_waiting Waiting\n# TYPE vllm:num_requests_waiting gauge\n\
                 vllm:num_requests_waiting{engine=\"0\",model_name=\"a\"} 3.0\nvllm:num_requests_waiting{engine=\"1\",model_name=\"a\"} 2.0\n\
                 vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"a\"} 0.25\nvllm:kv_cache_usage_perc{engine=\"1\",model_name=\"a\"} 0.75\n",
                (Some(5), Some(0.75)),
            ),
            (
                "sglang:num_queue_reqs{model_name=\"m\",pid=\"1\"} 7.0\nsglang:token_usage{model_name=\"m\"} 0.5\n",
                (Some(7), Some(0.5)),
            ),
            ("# TYPE llamacpp:requests_deferred gauge\nllamacpp:requests_deferred 2\n", (Some(2), None)),
            ("tgi_queue_size 1\n", (Some(1), None)),
            ("trtllm_num_requests_waiting{engine_type=\"x\"} 9 1700000000000\n", (Some(9), None)),
            (
                "nv_trt_llm_request_metrics{model=\"m\",request_type=\"active\",version=\"1\"} 40\n\
                 nv_trt_llm_request_metrics{model=\"m\",request_type=\"waiting\",version=\"1\"} 6\n\
                 nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=\"tokens_per\",model=\"m\",version=\"1\"} 64\n\
                 nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=\"fraction\",model=\"m\",version=\"1\"} 0.5\n",
                (Some(6), Some(0.5)),
            ),
            (
                "nv_inference_pending_request_count{model=\"m\",version=\"1\"} 3\nnv_inference_pending_request_count{model=\"n\",version=\"1\"} 1\n",
                (Some(4), None),
            ),
        ];
        for (page, (waiting, kv_cache)) in pages {
            assert_eq!(plan.read(page), LoadReport { waiting, kv_cache }, "{page}");
        }
    }

    #[test]
    fn a_metric_is_matched_by_its_whole_name_and_its_labels() {
        let plan = plan(serde_json::json!({"queueDepth": {"max": 4, "metric": "q{pool=\"a,b}\"}"}}));
        let page = "q_total{pool=\"a,b}\"} 1\nq{pool=\"a\"} 2\nq{x=\"\\\"}\", pool=\"a,b}\",} 4\nqq 8\nq 16\n";
        assert_eq!(plan.read(page).waiting, Some(4));
    }

    #[test]
    fn nonsense_is_no_figure() {
        let plan = plan(serde_json::json!({"queueDepth": {"max": 4, "metric": "q"}}));
        for page in ["", "q", "q ", "q NaN", "q -3", "q{", "q{a=\"", "q{} ", "q{a=b} x", "\0q 1", "q\u{a0}1"] {
            assert_eq!(plan.read(page).waiting, None, "{page:?}");
        }
        assert_eq!(plan.read("q 1e300").waiting, Some(u32::MAX));
    }

    #[test]
    fn with_load_reports_nothing_is_scraped_unless_it_is_named() {
        let written = |json| ScrapePlan::new(&serde_json::from_value(json).unwrap()).is_some();
        assert!(!written(serde_json::json!({"loadReports": true, "queueDepth": {"max": 4}})));
        assert!(written(serde_json::json!({"loadReports": true, "queueDepth": {"max": 4, "metricsPath": "/m"}})));
        assert!(written(serde_json::json!({"loadReports": true, "queueDepth": {"max": 4, "metricsPort": 8002}})));
        assert!(!written(serde_json::json!({"maxInFlight": 4})));
    }

    proptest::proptest! {
        #[test]
        fn any_page_is_read(page in "[q{}=\"\\\\,a 0-9\n.e+-]{0,200}") {
            let plan = plan(serde_json::json!({"queueDepth": {"max": 4, "metric": "q{a=\"a\"}"}}));
            let _ = plan.read(&page);
        }
    }
}
