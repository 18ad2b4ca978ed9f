//! What is told about requests: spans, metrics, the access log, the process log. It owns their exporters and writers;
//! telling never blocks or fails a request, and what cannot be told is dropped and counted.
//! Its inputs are the ends of requests and the `telemetry` part of the configuration.

mod access_log;
mod json;
mod label;
mod log;
mod metrics;
pub mod names;
mod seldom;
mod time;
mod trace;

pub use access_log::AccessRecord;
pub use json::write_line;
pub use label::{
    AttemptEnd, BodyRefusal, ByLabel, ConnectionRefusal, Label, MalformedReason, MirrorEnd, QueueEnd, SpillReason,
};
pub use log::{LogError, LogWriter, init as init_log};
pub use metrics::{
    BackendSample, BudgetSample, CertificateSample, EndpointMetrics, EndpointSample, EngineSample, LimitMetrics,
    ListenerMetrics, Metrics, ModelMetrics, QueueMetrics, RouteMetrics, Samples, Tokens,
};
pub use seldom::Seldom;
pub use time::rfc3339_millis;
pub use trace::{Kind, Span, TraceError, Tracer};
