//! `telemetry`: traces and logs. Metrics are always at the admin address.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::values::Rate;

/// Traces and logs.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Telemetry {
    /// Traces; the standard OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_TRACES_SAMPLER_ARG work where this is silent.
    pub tracing: Option<Tracing>,
    /// Logs, on standard output.
    pub logs: Logs,
    /// The audit log: refused credentials, and what is changed through the admin address.
    pub audit: AuditLog,
}

/// Limits on the audit log, so that refused callers cannot fill a disk. Lines beyond them are counted.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AuditLog {
    /// Lines about one address, of IPv6 the first 64 bits.
    pub per_address: Rate,
    /// Lines about all of them together.
    pub total: Rate,
}

impl Default for AuditLog {
    fn default() -> Self {
        let in_a_minute = |lines: u32| Rate {
            count: std::num::NonZeroU32::MIN.saturating_add(lines - 1),
            period: std::time::Duration::from_secs(60),
        };
        Self { per_address: in_a_minute(60), total: in_a_minute(6_000) }
    }
}

/// Export of traces, and their share.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tracing {
    /// Collector that receives the traces.
    pub otlp: Otlp,
    /// Share of the requests that are traced, 0 to 1, where no trusted caller has decided it (`callersDecide`). A trace
    /// of the caller is continued under its id either way.
    #[serde(default = "Tracing::all")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub sample_ratio: f64,
    /// Callers whose `traceparent` decides that a request is traced.
    #[serde(default)]
    pub callers_decide: CallersDecide,
}

/// Callers whose `traceparent` decides that a request is traced. That a request is not traced may be decided by any caller,
/// since that costs nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum CallersDecide {
    /// Proxies of `clientAddress.trustedProxies`. Requests of others are traced by `sampleRatio`, drawn at random.
    #[default]
    TrustedProxies,
    /// Every caller, as with OpenTelemetry's sampler `ParentBased`: for gateways that no stranger reaches.
    Everyone,
}

impl Tracing {
    fn all() -> f64 {
        1.0
    }
}

/// An OpenTelemetry collector.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Otlp {
    /// URL of the collector, such as http://127.0.0.1:4317.
    pub endpoint: String,
    /// Protocol of the collector.
    #[serde(default)]
    pub protocol: OtlpProtocol,
}

/// Protocol of a collector.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum OtlpProtocol {
    /// OTLP over gRPC.
    #[default]
    Grpc,
}

/// Logs, on standard output.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Logs {
    /// Format of a line.
    pub format: LogFormat,
    /// Logs a line for each request.
    pub access: bool,
}

impl Default for Logs {
    fn default() -> Self {
        Self { format: LogFormat::Json, access: true }
    }
}

/// Format of a line of the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum LogFormat {
    /// JSON object.
    #[default]
    Json,
    /// Words for a terminal.
    Text,
}
