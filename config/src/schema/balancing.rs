//! Load balancing over the endpoints of a backend, and signals of their health and capacity.

use std::num::{NonZeroU16, NonZeroU32};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::values::{Duration, Size, Status};

/// Choice of an endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LoadBalancing {
    /// Policy of the choice.
    pub policy: PolicyName,
    /// Part of a request that is hashed; for `hash` only, which needs it.
    pub hash_on: Option<HashOn>,
    /// Time in which the share of an endpoint that is new or has recovered rises to its full share; not for `hash`.
    pub slow_start: Option<Duration>,
}

/// A load-balancing policy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum PolicyName {
    /// Smooth weighted round robin.
    RoundRobin,
    /// The endpoint with the fewest requests in flight for its weight; of many endpoints, the better of two drawn ones.
    #[default]
    LeastRequest,
    /// The better of two drawn ones by latency times requests in flight. Latency is the time to the first token, or to
    /// the head of an answer that is no stream. A slow answer counts at once, a fast one only by and by.
    PeakEwma,
    /// Endpoint by the value of `hashOn`, always the same while it has no more than 1.25 times its share of the requests.
    Hash,
    /// The endpoint with the fewest requests that wait, as its metrics or load reports say, and fewest in flight of
    /// those; without fresh figures by requests in flight.
    QueueDepth,
}

impl PolicyName {
    /// Name in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RoundRobin => "roundRobin",
            Self::LeastRequest => "leastRequest",
            Self::PeakEwma => "peakEwma",
            Self::Hash => "hash",
            Self::QueueDepth => "queueDepth",
        }
    }
}

/// Part of a request that is hashed. A request without it goes to the endpoint with the fewest requests in flight.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum HashOn {
    /// The value of this header.
    Header(String),
    /// The value of this cookie.
    Cookie(String),
    /// The address of the client.
    ClientAddress(bool),
    /// The first bytes of the prompt, so that requests that share them find them in the server's KV cache; for model
    /// protocols. A prompt is looked for in the first 256 KiB of a body.
    PromptPrefix(Size),
}

/// Probe of each endpoint at an interval; endpoints that fail it get no traffic. One of `http`, `tcp`, `grpc` and
/// `completion`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HealthCheck {
    /// `GET` that must be answered with one of some statuses.
    #[serde(default)]
    pub http: Option<HttpProbe>,
    /// Connection that must be accepted.
    #[serde(default)]
    pub tcp: Option<TcpProbe>,
    /// A call of `grpc.health.v1.Health/Check` that must be answered with `SERVING`; for backends with `http2: true`.
    #[serde(default)]
    pub grpc: Option<GrpcProbe>,
    /// A completion that must be written; one that is answered with a status of `capacity.statuses` is healthy and full.
    #[serde(default)]
    pub completion: Option<CompletionProbe>,
    /// Time between two checks of an endpoint.
    #[serde(default = "HealthCheck::default_interval")]
    pub interval: Duration,
    /// Time for one check.
    #[serde(default = "HealthCheck::default_timeout")]
    pub timeout: Duration,
    /// Good checks in a row until an unhealthy endpoint gets traffic again.
    #[serde(default = "HealthCheck::default_healthy")]
    pub healthy_threshold: NonZeroU32,
    /// Bad checks in a row until a healthy endpoint gets no more traffic.
    #[serde(default = "HealthCheck::default_unhealthy")]
    pub unhealthy_threshold: NonZeroU32,
}

impl HealthCheck {
    fn default_interval() -> Duration {
        Duration::seconds(5)
    }
    fn default_timeout() -> Duration {
        Duration::seconds(1)
    }
    fn default_healthy() -> NonZeroU32 {
        NonZeroU32::MIN.saturating_add(1)
    }
    fn default_unhealthy() -> NonZeroU32 {
        NonZeroU32::MIN.saturating_add(2)
    }
}

/// `GET path` that must answer with one of the statuses.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpProbe {
    /// Path, such as /health.
    pub path: String,
    /// Statuses that mean healthy.
    #[serde(default = "HttpProbe::default_statuses")]
    pub expected_statuses: Vec<Status>,
}

impl HttpProbe {
    fn default_statuses() -> Vec<Status> {
        vec![Status(200)]
    }
}

/// Connection that must be accepted; nothing is sent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpProbe {}

/// A call of the gRPC health protocol.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct GrpcProbe {
    /// Service in the request, such as `inference.GRPCInferenceService`; the server as a whole when left out.
    pub service: String,
}

/// `POST /v1/chat/completions` that must be answered with 200.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CompletionProbe {
    /// Tokens in the request (`max_tokens`).
    pub max_tokens: NonZeroU32,
    /// Model in the request; the backend's `model` when left out.
    pub model: Option<String>,
}

impl Default for CompletionProbe {
    fn default() -> Self {
        Self { max_tokens: NonZeroU32::MIN, model: None }
    }
}

/// Ejection of endpoints for a while, by their answers.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct OutlierDetection {
    /// Errors in a row (no connection, reset, time limit, status 5xx that does not mean full) that eject an endpoint;
    /// 0 for never.
    pub consecutive_errors: u32,
    /// Share of errors in `window` that ejects an endpoint whose neighbours together have less than half of it; 0 for never.
    /// Where all fail alike it is the requests or something behind the servers that is wrong.
    pub error_rate: f64,
    /// How many times the median latency of its neighbours ejects an endpoint; never when left out. Needs three
    /// endpoints with `minimumRequests` each.
    pub latency_factor: Option<f64>,
    /// Requests of an endpoint in `window` below which neither share nor latency ejects it.
    pub minimum_requests: NonZeroU32,
    /// The time that share and latency look back.
    pub window: Duration,
    /// Length of the first ejection; each further one is longer by as much, up to ten times. Afterwards the endpoint
    /// gets one request at a time until one succeeds.
    pub ejection_time: Duration,
    /// Share of the endpoints that may be ejected together, rounded down.
    pub max_ejected: f64,
    /// When less than this share of the endpoints is left, ejections are ignored: then it is more likely the requests
    /// that are wrong. Checks and drains still count. 0 for never.
    pub panic_threshold: f64,
}

impl Default for OutlierDetection {
    fn default() -> Self {
        Self {
            consecutive_errors: 5,
            error_rate: 0.5,
            latency_factor: None,
            minimum_requests: NonZeroU32::MIN.saturating_add(19),
            window: Duration::seconds(30),
            ejection_time: Duration::seconds(15),
            max_ejected: 0.5,
            panic_threshold: 0.5,
        }
    }
}

/// Limits on all that goes to a backend together, whatever its endpoints have room for, so that systems behind them are
/// not flooded. Requests beyond them wait in the queue, spill or are refused like a request that finds no room. The
/// limit on connections to an endpoint is `capacity.maxConnections`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CircuitBreaker {
    /// Requests in flight at all endpoints together, those of all routes, retries, hedges and mirrored copies.
    pub max_in_flight: Option<NonZeroU32>,
    /// Requests that wait for it at a time, in the queues of all routes, besides the `maxDepth` of each. A request that
    /// could go to several backends waits while one of them lets it.
    pub max_pending: Option<NonZeroU32>,
    /// Retries and hedges on their way at a time, of all routes, besides the share that `retry.budget` sets; 0 for none.
    pub max_retries: Option<u32>,
}

/// Limits at which an endpoint counts as full. Every signal that is given counts; the first that is reached wins.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Capacity {
    /// Requests in flight (until the last byte of the answer) at which the endpoint is full.
    #[serde(default)]
    pub max_in_flight: Option<NonZeroU32>,
    /// Connections open to the endpoint together, idle ones too. HTTP/1.1 needs one for each request in flight; HTTP/2 puts
    /// up to 100 requests on one.
    #[serde(default)]
    pub max_connections: Option<NonZeroU32>,
    /// A limit on requests in flight that is found from latency.
    #[serde(default)]
    pub adaptive: Option<Adaptive>,
    /// Requests that wait at the server.
    #[serde(default)]
    pub queue_depth: Option<QueueDepth>,
    /// Use of the server's KV cache.
    #[serde(default)]
    pub kv_cache: Option<KvCache>,
    /// Ask each answer for its load (ORCA; vLLM and Triton have it): figures for `queueDepth`, `kvCache` and the policy
    /// `queueDepth` that are as fresh as the last answer. Callers do not see the header.
    #[serde(default)]
    pub load_reports: bool,
    /// Answers that mean full; [429, 503] for model protocols and none for http when left out.
    #[serde(default)]
    pub statuses: Option<Vec<Status>>,
    /// Longest time that one such answer keeps an endpoint out, whatever its Retry-After says.
    #[serde(default = "Capacity::default_max_full_for")]
    pub max_full_for: Duration,
}

impl Capacity {
    fn default_max_full_for() -> Duration {
        Duration::seconds(10)
    }
}

impl Default for Capacity {
    fn default() -> Self {
        Self {
            max_in_flight: None,
            max_connections: None,
            adaptive: None,
            queue_depth: None,
            kv_cache: None,
            load_reports: false,
            statuses: None,
            max_full_for: Self::default_max_full_for(),
        }
    }
}

/// A limit that grows while answers come as fast as without load, and shrinks when they do not or fail.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Adaptive {
    /// The least that the limit becomes, and where it begins.
    pub min_limit: NonZeroU32,
    /// The most.
    pub max_limit: NonZeroU32,
    /// How many times the latency without load is still good; the limit settles where it is half way there.
    pub latency_tolerance: f64,
}

impl Default for Adaptive {
    fn default() -> Self {
        Self {
            min_limit: NonZeroU32::MIN.saturating_add(1),
            max_limit: NonZeroU32::MIN.saturating_add(199),
            latency_tolerance: 2.0,
        }
    }
}

/// How many requests may wait at a server.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct QueueDepth {
    /// Path of the server's metrics (Prometheus text); /metrics when left out. With `loadReports` nothing is scraped
    /// unless this, `metricsPort` or `metric` is given.
    #[serde(default)]
    pub metrics_path: Option<String>,
    /// Port of the server's metrics, where it is not that of the endpoint: 8002 for Triton. It is asked without the
    /// `credentials` of the backend, with TLS where the endpoint has it, and without that over HTTP/1.1.
    #[serde(default)]
    pub metrics_port: Option<NonZeroU16>,
    /// Name of the gauge, with labels to tell series apart (`name{label="value"}`); several series are added up. When
    /// left out, the one of vLLM, SGLang, llama.cpp, TGI, TensorRT-LLM or Triton that is there.
    #[serde(default)]
    pub metric: Option<String>,
    /// Waiting requests at which the server is full; between two readings those sent since are counted in.
    pub max: NonZeroU32,
    /// Time between two readings.
    #[serde(default = "QueueDepth::default_interval")]
    pub interval: Duration,
    /// Age at which a reading counts no more. What is stale never means full: then the other signals decide.
    #[serde(default = "QueueDepth::default_stale_after")]
    pub stale_after: Duration,
}

impl QueueDepth {
    fn default_interval() -> Duration {
        Duration::seconds(1)
    }
    fn default_stale_after() -> Duration {
        Duration::seconds(3)
    }
}

/// How full the KV cache of a server may be.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KvCache {
    /// Share at which the server is full, above 0 and at most 1.
    pub max: f64,
    /// Name of the gauge in the server's metrics; the one of vLLM, SGLang or TensorRT-LLM when left out.
    #[serde(default)]
    pub metric: Option<String>,
}
