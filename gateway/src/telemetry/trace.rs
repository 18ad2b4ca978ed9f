//! Spans: started here, exported by OpenTelemetry's batch processor on a thread of its own. A tracer that is switched
//! off costs a request one comparison, and still passes the caller's trace on.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState,
    Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider, SpanData,
};
use spillway_config::schema::Tracing;
use spillway_filter::Headers;

use super::names;

/// Spans that wait for the collector; further ones are dropped.
const QUEUE: usize = 4096;
/// Longest time for one export.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a span waits for others to be sent with it.
const EXPORT_EVERY: Duration = Duration::from_millis(500);
/// Longest time that the end of the process waits for the last spans.
const FLUSH: Duration = Duration::from_secs(2);

static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Traces cannot be sent as configured.
#[derive(Debug, thiserror::Error)]
#[error("telemetry.tracing.otlp: {0}")]
pub struct TraceError(String);

/// Whose view a span tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A call to a server.
    Client,
    /// Work inside the gateway.
    Internal,
}

/// Starts spans. Clones share the exporter.
#[derive(Clone, Default)]
pub struct Tracer {
    active: Option<Arc<Active>>,
}

struct Active {
    config: Tracing,
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Drop for Active {
    fn drop(&mut self) {
        let provider = self.provider.clone();
        // The last spans of a replaced tracer; waiting for a collector is nothing for the thread that swaps snapshots.
        let _ = std::thread::Builder::new().name("trace-flush".into()).spawn(move || {
            let _ = provider.shutdown_with_timeout(FLUSH);
        });
    }
}

impl Tracer {
    /// A tracer for what was configured, else for what the standard variables say, else none. An unchanged `previous`
    /// is kept. Needs a tokio runtime.
    pub fn new(
        config: Option<&Tracing>,
        previous: Option<&Self>,
        dropped: &Arc<AtomicU64>,
    ) -> Result<Self, TraceError> {
        let Some(config) = config.cloned().or_else(from_environment) else { return Ok(Self::default()) };
        if let Some(active) = previous.and_then(|p| p.active.as_ref())
            && active.config == config
        {
            return Ok(Self { active: Some(active.clone()) });
        }
        let exporter = SpanExporter::builder()
            .with_tonic()
            .with_endpoint(config.otlp.endpoint.clone())
            .with_timeout(EXPORT_TIMEOUT)
            .build()
            .map_err(|e| TraceError(e.to_string()))?;
        let batch = BatchConfigBuilder::default().with_max_queue_size(QUEUE).with_scheduled_delay(EXPORT_EVERY).build();
        let processor = BatchSpanProcessor::builder(Counting { exporter, dropped: dropped.clone() })
            .with_batch_config(batch)
            .build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor)
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.sample_ratio))))
            .with_resource(resource())
            .build();
        let tracer = provider.tracer("spillway");
        Ok(Self { active: Some(Arc::new(Active { config, provider, tracer })) })
    }

    /// The span of a request that has just arrived: a child of the caller's, where it sent one.
    pub fn server_span(&self, headers: &HeaderMap, start: SystemTime) -> Span {
        let parent = parent_of(headers);
        let Some(active) = &self.active else {
            return Span { span: parent.map_or(Inner::None, Inner::Passed), tracer: None };
        };
        let builder = SpanBuilder::from_name("request").with_kind(SpanKind::Server).with_start_time(start);
        let context = parent.map_or_else(Context::new, |p| Context::new().with_remote_span_context(p));
        let span = active.tracer.build_with_context(builder, &context);
        Span { span: Inner::Ours(Box::new(span)), tracer: Some(active.clone()) }
    }

    /// Sends what is waiting, for a bounded time.
    pub fn flush(&self) {
        if let Some(active) = &self.active {
            let _ = active.provider.shutdown_with_timeout(FLUSH);
        }
    }
}

fn resource() -> Resource {
    Resource::builder()
        .with_service_name("spillway")
        .with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", uuid::Uuid::new_v4().to_string()),
        ])
        .build()
}

fn from_environment() -> Option<Tracing> {
    let variable = |name| std::env::var(name).ok().filter(|v| !v.is_empty());
    let endpoint =
        variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").or_else(|| variable("OTEL_EXPORTER_OTLP_ENDPOINT"))?;
    let sample_ratio = variable("OTEL_TRACES_SAMPLER_ARG").and_then(|v| v.parse().ok()).unwrap_or(1.0);
    let otlp = spillway_config::schema::Otlp { endpoint, protocol: spillway_config::schema::OtlpProtocol::Grpc };
    Some(Tracing { otlp, sample_ratio })
}

/// W3C Trace Context, section 3.2: `00-TRACE-PARENT-FLAGS`. Anything malformed begins a new trace.
fn parent_of(headers: &HeaderMap) -> Option<SpanContext> {
    let mut values = headers.get_all(&TRACEPARENT).iter();
    let text = values.next()?.to_str().ok()?;
    if values.next().is_some() {
        return None;
    }
    let mut parts = text.split('-');
    let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |s: &str, n| s.len() == n && s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if !hex(version, 2) || version == "ff" || (version == "00" && parts.next().is_some()) || !hex(flags, 2) {
        return None;
    }
    if !hex(trace, 32) || !hex(parent, 16) {
        return None;
    }
    let flags = u8::from_str_radix(flags, 16).ok()? & 1;
    let state = headers.get(&TRACESTATE).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<TraceState>().ok());
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(parent).ok()?,
        TraceFlags::new(flags),
        true,
        state.unwrap_or_default(),
    );
    context.is_valid().then_some(context)
}

enum Inner {
    None,
    /// Tracing is off: the caller's context goes upstream as it came.
    Passed(SpanContext),
    Ours(Box<opentelemetry_sdk::trace::Span>),
}

/// A span; ends when dropped. One that is not recorded takes every call and does nothing.
pub struct Span {
    span: Inner,
    tracer: Option<Arc<Active>>,
}

impl Span {
    /// A span that records nothing.
    pub const fn none() -> Self {
        Self { span: Inner::None, tracer: None }
    }

    /// Whether what is set is told to anybody; costly values are computed only then.
    pub fn is_recording(&self) -> bool {
        matches!(&self.span, Inner::Ours(span) if span.is_recording())
    }

    /// A part of this span's work that begins now.
    pub fn child(&self, name: impl Into<Cow<'static, str>>, kind: Kind) -> Self {
        self.child_of(name.into(), kind, None)
    }

    /// A part of this span's work that began earlier.
    pub fn child_at(&self, name: impl Into<Cow<'static, str>>, kind: Kind, start: SystemTime) -> Self {
        self.child_of(name.into(), kind, Some(start))
    }

    fn child_of(&self, name: Cow<'static, str>, kind: Kind, start: Option<SystemTime>) -> Self {
        match (&self.span, &self.tracer) {
            (Inner::Ours(parent), Some(active)) if parent.is_recording() => {
                let kind = match kind {
                    Kind::Client => SpanKind::Client,
                    Kind::Internal => SpanKind::Internal,
                };
                let mut builder = SpanBuilder::from_name(name).with_kind(kind);
                if let Some(start) = start {
                    builder = builder.with_start_time(start);
                }
                let context = Context::new().with_remote_span_context(parent.span_context().clone());
                let span = active.tracer.build_with_context(builder, &context);
                Self { span: Inner::Ours(Box::new(span)), tracer: Some(active.clone()) }
            }
            // Not sampled: the decision still has to reach the upstream.
            (Inner::Ours(parent), _) => Self { span: Inner::Passed(parent.span_context().clone()), tracer: None },
            (Inner::Passed(context), _) => Self { span: Inner::Passed(context.clone()), tracer: None },
            (Inner::None, _) => Self::none(),
        }
    }

    /// Sets an attribute.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        if let Inner::Ours(span) = &mut self.span
            && span.is_recording()
        {
            span.set_attribute(KeyValue::new(key, value));
        }
    }

    /// Notes that something happened.
    pub fn event(&mut self, name: &'static str, what: &str) {
        if let Inner::Ours(span) = &mut self.span
            && span.is_recording()
        {
            span.add_event(name, vec![KeyValue::new("name", what.to_owned())]);
        }
    }

    /// Gives it another name.
    pub fn rename(&mut self, name: String) {
        if let Inner::Ours(span) = &mut self.span {
            span.update_name(name);
        }
    }

    /// Marks it as failed.
    pub fn error(&mut self, kind: impl Into<Cow<'static, str>>) {
        if let Inner::Ours(span) = &mut self.span
            && span.is_recording()
        {
            let kind: Cow<'static, str> = kind.into();
            span.set_attribute(KeyValue::new(names::ERROR_TYPE, kind.to_string()));
            span.set_status(Status::error(kind));
        }
    }

    /// Ends it at another time than now.
    pub fn end_at(mut self, end: SystemTime) {
        if let Inner::Ours(span) = &mut self.span {
            span.end_with_timestamp(end);
        }
    }

    fn context(&self) -> Option<&SpanContext> {
        match &self.span {
            Inner::None => None,
            Inner::Passed(context) => Some(context),
            Inner::Ours(span) => Some(span.span_context()),
        }
    }

    /// The trace it belongs to.
    pub fn trace_id(&self) -> Option<TraceId> {
        self.context().map(SpanContext::trace_id)
    }

    /// Puts its context into a header that goes upstream.
    pub fn inject(&self, headers: &mut dyn Headers) {
        let Some(context) = self.context() else { return };
        let text = format!("00-{}-{}-{:02x}", context.trace_id(), context.span_id(), context.trace_flags().to_u8() & 1);
        if let Ok(value) = HeaderValue::from_str(&text) {
            headers.set(&TRACEPARENT, value);
        }
        match HeaderValue::from_str(&context.trace_state().header()) {
            Ok(state) if !state.is_empty() => headers.set(&TRACESTATE, state),
            _ => headers.remove(&TRACESTATE),
        }
    }
}

/// Counts spans that the collector did not take.
#[derive(Debug)]
struct Counting {
    exporter: SpanExporter,
    dropped: Arc<AtomicU64>,
}

impl opentelemetry_sdk::trace::SpanExporter for Counting {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = u64::try_from(batch.len()).unwrap_or(0);
        let result = self.exporter.export(batch).await;
        if let Err(e) = &result {
            let before = self.dropped.fetch_add(spans, Ordering::Relaxed);
            if before == 0 && !matches!(e, OTelSdkError::AlreadyShutdown) {
                tracing::warn!(
                    event = "traces_not_sent", error = %e,
                    "the collector does not take spans; they are dropped and counted in spillway_spans_dropped_total"
                );
            }
        }
        result
    }
    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }
    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(traceparent: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT.clone(), HeaderValue::from_str(traceparent).unwrap());
        headers
    }

    #[test]
    fn only_a_well_formed_parent_is_continued() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert!(parent_of(&headers(good)).unwrap().is_sampled());
        assert!(parent_of(&headers("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00-more")).is_some());
        for bad in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
        ] {
            assert!(parent_of(&headers(bad)).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_trace_passes_through_a_gateway_that_does_not_trace() {
        let sent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let span = Tracer::default().server_span(&headers(sent), SystemTime::now());
        let mut out = HeaderMap::new();
        span.child("attempt", Kind::Client).inject(&mut out);
        assert_eq!(out.get(&TRACEPARENT).unwrap(), sent);
    }
}
