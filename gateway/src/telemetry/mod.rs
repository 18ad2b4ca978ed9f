//! Spans, metrics, the access log and the process log, with their exporters and writers. Reporting never blocks or fails a
//! request; a span or line that cannot be kept is dropped and counted.
//! Inputs are the ends of requests and the `telemetry` part of the configuration.

mod access_log;
mod fields;
mod json;
mod label;
mod log;
mod log_export;
mod log_throttle;
mod metrics;
pub mod names;
mod otlp;
mod recent;
mod tail;
mod time;
mod trace;

pub use access_log::{AccessRecord, LoggedHeaders};
pub use fields::{ComputedFields, Field, FieldValues, values as field_values};
pub use json::write_line;
pub use label::{
    AttemptEnd, BatchStatus, BodyRefusal, ByLabel, CacheLookup, CacheWrite, ConnectionRefusal, FeedbackEnd, Label,
    LineEnded, MalformedReason, MirrorEnd, NotSpilled, NotificationEnd, PairEnd, ProbeChange, ProbeResult, QueueEnd,
    RolloutEnd, RolloutFinding, SignalOutcome, SocketEnd, SpillReason,
};
pub use log::{LogError, LogWriter, init as init_log};
pub use log_export::{LogExport, LogExportError, Record, names as log_names};
pub use log_throttle::LogThrottle;
pub use metrics::{
    BUCKETS, BackendSample, BatchMetrics, BudgetSample, CallStats, CertificateSample, ClassSample, CostSample, Count,
    EndpointMetrics, EndpointSample, EngineSample, FeedbackSample, FeedbackSamples, GpuSample, HTTP_SECONDS,
    LimitMetrics, ListenerMetrics, MODEL_SECONDS, Metrics, MetricsFormat, ModelCounts, ModelMetrics, ProbeSample,
    ProbeTargetSample, QualityFeatureSample, QualitySample, QueueMetrics, ReceiverMetrics, RolloutSample, RouteCounts,
    RouteMetrics, Running, Samples, SignalMetrics,
};
pub use recent::{MAX_HEADS, MAX_PER_SECOND as HEADS_PER_SECOND, RecentHead, RecentHeader, RecentHeads};
pub use tail::{NoStatus, Tail, TailFilter, TailReader};
pub use time::rfc3339_millis;
pub use trace::{Span, SpanIds, SpanKind, TraceEnd, TraceError, Tracer};
