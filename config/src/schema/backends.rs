//! `backends`: groups of servers, how their health and room are known, and how one of them is picked.

use std::num::NonZeroU32;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::CertificateFiles;
use crate::values::{Duration, Secret, ServerUrl, Status};

/// A named group of servers that answer alike.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Backend {
    /// Name that routes refer to; one namespace with the models.
    pub name: String,
    /// What the servers speak.
    #[serde(default)]
    pub protocol: BackendProtocol,
    /// The servers.
    pub endpoints: Vec<Endpoint>,
    /// The model name that the servers know, when it differs from the one that clients send.
    #[serde(default)]
    pub model: Option<String>,
    /// Credentials that replace those of the caller.
    #[serde(default)]
    pub credentials: Option<Credentials>,
    /// How an endpoint is picked.
    #[serde(default)]
    pub load_balancing: LoadBalancing,
    /// Active health check; none when left out.
    #[serde(default)]
    pub health_check: Option<HealthCheck>,
    /// When an endpoint counts as full.
    #[serde(default)]
    pub capacity: Capacity,
    /// Time limits of one attempt.
    #[serde(default)]
    pub timeouts: BackendTimeouts,
    /// TLS towards endpoints whose URL says https.
    #[serde(default)]
    pub tls: BackendTls,
    /// HTTP/2 towards the endpoints: over TLS where the server chooses it by ALPN, else without asking.
    #[serde(default)]
    pub http2: bool,
}

/// TLS towards the endpoints of a backend. Their certificates are always verified, name included.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BackendTls {
    /// The name that is asked for (SNI) and must stand in the certificate; the host of the URL when left out.
    pub sni: Option<String>,
    /// The authorities that may have signed it, in PEM; those of the system when left out.
    pub ca_file: Option<PathBuf>,
    /// What the gateway shows of itself.
    pub client_certificate: Option<CertificateFiles>,
}

/// What the servers of a backend speak.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum BackendProtocol {
    /// The OpenAI API.
    Openai,
    /// Plain HTTP.
    #[default]
    Http,
}

/// One server of a backend.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Endpoint {
    /// Scheme, host and port.
    pub url: ServerUrl,
    /// Share of the requests relative to its neighbours; 0 takes none.
    #[serde(default = "one")]
    pub weight: u32,
}

fn one() -> u32 {
    1
}

/// Credentials that are sent upstream.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Credentials {
    /// Sent as `Authorization: Bearer …`.
    pub bearer: Secret,
}

/// How an endpoint is picked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LoadBalancing {
    /// The policy.
    pub policy: PolicyName,
}

/// A load-balancing policy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum PolicyName {
    /// Smooth weighted round robin.
    RoundRobin,
    /// The endpoint with the fewest requests in flight for its weight.
    #[default]
    LeastRequest,
}

/// A request sent to each endpoint at an interval; those that fail it get no traffic.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HealthCheck {
    /// What is asked.
    pub http: HttpProbe,
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

/// When an endpoint counts as full.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Capacity {
    /// Requests in flight (until the last byte of the answer) at which the endpoint is full.
    #[serde(default)]
    pub max_in_flight: Option<NonZeroU32>,
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
        Self { max_in_flight: None, statuses: None, max_full_for: Self::default_max_full_for() }
    }
}

/// Time limits of one attempt at an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BackendTimeouts {
    /// To open a connection.
    pub connect: Duration,
    /// From the end of the request to the head of the answer.
    pub first_byte: Duration,
    /// Between two reads of the answer's body.
    pub idle: Duration,
}

impl Default for BackendTimeouts {
    fn default() -> Self {
        Self { connect: Duration::seconds(1), first_byte: Duration::seconds(60), idle: Duration::seconds(60) }
    }
}
