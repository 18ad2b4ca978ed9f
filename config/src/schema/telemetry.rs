//! `telemetry`: traces, metrics, logs, and what answers say of their times. Metrics are always at the admin address too.

use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::values::{Duration, ListenAddress, Rate, Size};

/// Traces, metrics and logs.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Telemetry {
    /// Traces; the standard OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_TRACES_SAMPLER_ARG work where this is silent.
    pub tracing: Option<Tracing>,
    /// Form of the metrics, and a further address for them.
    pub metrics: MetricsPage,
    /// Logs, on standard output and at a collector.
    pub logs: Logs,
    /// The audit log: refused credentials, and what is changed through the admin address.
    pub audit: AuditLog,
    /// Sends a header `Server-Timing` with each answer: milliseconds in the queue, with servers and built-in models, and in
    /// the gateway itself, until the head of the answer. Callers so learn how loaded servers are.
    pub server_timing: bool,
}

/// Form of the metrics, and a further address for them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MetricsPage {
    /// True for OpenMetrics text, whose histograms of durations lead to traces (exemplars). False for the text format 0.0.4 of
    /// Prometheus, without them, for programs that read nothing else.
    pub open_metrics: bool,
    /// Address that serves `/metrics` alone, and asks for no token. Needs a restart to change.
    pub address: Option<ListenAddress>,
    /// Most open connections at that address, as `admin.maxConnections`. Needs a restart to change.
    pub max_connections: NonZeroU32,
}

impl Default for MetricsPage {
    fn default() -> Self {
        Self { open_metrics: true, address: None, max_connections: super::admin::max_connections() }
    }
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
    /// Requests whose traces are sent whatever `sampleRatio` and the caller say. The decision is made at the end of a request,
    /// so servers behind the gateway are told that it is not sampled.
    #[serde(default)]
    pub keep: Keep,
    /// Adds the texts of model calls to their spans, as `gen_ai.input.messages`, `gen_ai.output.messages` and
    /// `gen_ai.system_instructions`. What looks like personal data or a credential is redacted, as in kept examples. Not for
    /// consumers with `keepExamples: false`.
    #[serde(default)]
    pub capture_content: bool,
    /// Attributes of the span of each request that expressions make when it has ended, at most 16. A name has dots in it and none of
    /// the namespaces that the gateway uses itself, such as `http.`. An expression may write what it reads: of headers only those that
    /// are no credentials and that `logs.redactHeaders` does not name.
    #[serde(default)]
    pub attributes: Vec<ComputedField>,
}

/// Field of a line, or attribute of a span, that an expression makes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ComputedField {
    /// Name: at most 64 letters, digits, `_`, `.` and `-`, the first a letter.
    pub name: String,
    /// CEL expression: text, a number, or true or false. Texts are cut after 1,024 bytes. Without a value there is no field.
    pub value: String,
}

impl ComputedField {
    /// Most of them in one list: each is evaluated for each request.
    pub const MOST: usize = 16;
    /// Namespaces of attributes that the gateway sets itself.
    pub const OWN_NAMESPACES: [&'static str; 10] =
        ["client.", "error.", "gen_ai.", "http.", "log.", "network.", "server.", "spillway.", "url.", "user_agent."];
}

/// Requests whose traces are always sent.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Keep {
    /// Requests that end with an error: a status of 500 or more, an error inside an answer, an answer that breaks off.
    pub errors: bool,
    /// Requests that a built-in model or another backend answers in place of the route's own.
    pub spilled: bool,
    /// Requests that take longer than this, from arrival to last byte; of sockets, to the answer that opens them.
    pub slower_than: Option<Duration>,
}

impl Keep {
    /// True if some requests are kept.
    #[must_use]
    pub fn is_some(&self) -> bool {
        self.errors || self.spilled || self.slower_than.is_some()
    }
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

/// Logs, on standard output and at a collector.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Logs {
    /// Format of a line.
    pub format: LogFormat,
    /// Logs a line for each request.
    pub access: bool,
    /// Headers of requests that its line shows, under `requestHeaders`; `"*"` stands for all of them. At most 8 KiB of a request.
    pub headers: Vec<String>,
    /// Names among `headers` whose values are replaced by `[redacted]`. Headers that may hold credentials always are:
    /// `authorization`, `cookie`, key headers, and names with words such as `token` or `secret`.
    pub redact_headers: Vec<String>,
    /// Fields that expressions make when a request has ended, at most 16. Its line shows them under `fields`. An expression may write
    /// what it reads: of headers only those that are no credentials and that `redactHeaders` does not name.
    pub fields: Vec<ComputedField>,
    /// Collector that receives the log as well, with the same lines for requests, audited actions and events.
    pub otlp: Option<LogsOtlp>,
}

/// An OpenTelemetry collector that receives the log.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LogsOtlp {
    /// URL of the collector, such as http://127.0.0.1:4317.
    pub endpoint: String,
    /// Protocol of the collector.
    #[serde(default)]
    pub protocol: OtlpProtocol,
    /// Most bytes of records that wait for the collector, at least 64KiB. Further ones are dropped and counted in
    /// `spillway_log_records_dropped_total`.
    #[serde(default = "LogsOtlp::buffered")]
    pub buffered: Size,
}

impl LogsOtlp {
    /// Least size of `buffered`: any record fits into it.
    pub const LEAST_BUFFERED: u64 = 64 << 10;

    fn buffered() -> Size {
        Size::mib(16)
    }
}

impl Default for Logs {
    fn default() -> Self {
        Self {
            format: LogFormat::Json,
            access: true,
            headers: Vec::new(),
            redact_headers: Vec::new(),
            fields: Vec::new(),
            otlp: None,
        }
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
