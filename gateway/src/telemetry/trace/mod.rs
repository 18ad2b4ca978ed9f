//! Spans: started here, exported by OpenTelemetry's batch processor on its own thread. A tracer that is switched off costs a
//! request one comparison, and still passes the caller's trace on.

mod context;
mod export;
mod plan;
mod tail;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime};

use http::HeaderValue;
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanId, SpanKind as OtelSpanKind, Status, TraceContextExt, TraceFlags,
    TraceId, TraceState, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Array, Context, KeyValue, StringValue, Value};
use opentelemetry_sdk::trace::SdkTracer;
use spillway_cel::Scalar;
use spillway_config::schema::Tracing;
use spillway_filter::{Fields, Headers};

use self::context::{TRACEPARENT, TRACESTATE, decided, parent_of, trace_of};
use self::export::Pipeline;
use self::plan::TracePlan;
use self::tail::Tail;
use super::{FieldValues, names};

/// Longest text of an attribute or event, in bytes. Callers choose paths and agents; spans that wait for a collector must
/// not grow with them.
const MAX_TEXT: usize = 1024;
/// Longest name of a span, in bytes.
const MAX_NAME: usize = 256;

/// Traces cannot be exported as configured.
#[derive(Debug, thiserror::Error)]
#[error("telemetry.tracing.otlp: {0}")]
pub struct TraceError(String);

/// Side of the work that a span describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanKind {
    /// A call to a server.
    Client,
    /// Work inside the gateway.
    Internal,
}

/// Starts spans. Clones share the exporter.
#[derive(Clone, Default)]
pub struct Tracer {
    active: Option<Arc<ActiveTracer>>,
}

struct ActiveTracer {
    plan: TracePlan,
    pipeline: Pipeline,
    tracer: SdkTracer,
}

impl ActiveTracer {
    fn new(plan: TracePlan, pipeline: Pipeline) -> Self {
        let tracer = pipeline.provider.tracer("spillway");
        Self { plan, pipeline, tracer }
    }
}

impl Tracer {
    /// Creates a tracer from the configuration, else from the standard variables, else one that is off. An unchanged
    /// `previous` is kept; a changed one sends its last spans by itself. `dropped` counts spans that no collector took.
    pub fn new(
        config: Option<&Tracing>,
        previous: Option<&Self>,
        dropped: &Arc<AtomicU64>,
    ) -> Result<Self, TraceError> {
        let Some(plan) = TracePlan::new(config, |name| std::env::var(name).ok()) else { return Ok(Self::default()) };
        if let Some(active) = previous.and_then(|p| p.active.as_ref())
            && active.plan == plan
        {
            return Ok(Self { active: Some(active.clone()) });
        }
        let pipeline = Pipeline::to_collector(&plan, dropped)?;
        Ok(Self { active: Some(Arc::new(ActiveTracer::new(plan, pipeline))) })
    }

    /// Starts the span of a request that has just arrived: a child of the caller's span, if the caller sent one.
    /// `from_trusted_proxy` is true if a trusted proxy sent the request.
    pub fn server_span(&self, headers: &Fields, from_trusted_proxy: bool, start: SystemTime) -> Span {
        let Some(active) = &self.active else {
            return Span { span: trace_of(headers).map_or(SpanState::None, SpanState::Untouched), tracer: None };
        };
        let builder = SpanBuilder::from_name("request").with_kind(OtelSpanKind::Server).with_start_time(start);
        let context = parent_of(headers).map_or_else(Context::new, |parent| {
            let is_sampled = active.plan.samples(parent.is_sampled(), from_trusted_proxy);
            Context::new().with_remote_span_context(decided(&parent, is_sampled))
        });
        let span = active.tracer.build_with_context(builder, &context);
        // Recorded without being sampled: its end decides.
        let may_be_kept = span.is_recording() && !span.span_context().is_sampled();
        let tail = may_be_kept.then(|| Tail::new(active.pipeline.queue.clone()));
        Span { span: SpanState::Ours(Box::new(OurSpan { span, tail })), tracer: Some(active.clone()) }
    }

    /// Starts a span of a series that makes up one trace: the first 24 bytes of `series` are the ids of the trace and of what its
    /// spans belong to, so that spans of different times and gateways come together. It is always sampled.
    pub fn span_of_series(&self, series: &[u8], name: &str, start: SystemTime) -> Span {
        let Some(active) = &self.active else { return Span::none() };
        let (Some(trace), Some(parent)) = (series.first_chunk(), series.get(16..).and_then(|rest| rest.first_chunk()))
        else {
            return Span::none();
        };
        let ids = (TraceId::from_bytes(*trace), SpanId::from_bytes(*parent));
        let parent = SpanContext::new(ids.0, ids.1, TraceFlags::SAMPLED, true, TraceState::default());
        let name = clipped(name.to_owned().into(), MAX_NAME);
        let builder = SpanBuilder::from_name(name).with_kind(OtelSpanKind::Internal).with_start_time(start);
        let span = active.tracer.build_with_context(builder, &Context::new().with_remote_span_context(parent));
        Span { span: SpanState::Ours(Box::new(OurSpan { span, tail: None })), tracer: Some(active.clone()) }
    }

    /// Sends waiting spans, for a bounded time, at the end of the process. Spans that end later are not sent.
    pub fn flush(&self) {
        if let Some(active) = &self.active {
            active.pipeline.flush();
        }
    }
}

/// Cuts `text` to at most `max` bytes, at a boundary of characters.
fn clipped(mut text: Cow<'static, str>, max: usize) -> Cow<'static, str> {
    if text.len() > max {
        let end = text.floor_char_boundary(max);
        match &mut text {
            Cow::Borrowed(text) => *text = text.get(..end).unwrap_or_default(),
            // A new `String`: a truncated one would keep the memory of the rest.
            Cow::Owned(text) => *text = text.get(..end).unwrap_or_default().to_owned(),
        }
    }
    text
}

fn clipped_value(value: Value) -> Value {
    let short = |text: StringValue| {
        if text.as_str().len() > MAX_TEXT { clipped(String::from(text).into(), MAX_TEXT).into() } else { text }
    };
    match value {
        Value::String(text) => Value::String(short(text)),
        Value::Array(Array::String(texts)) => Value::Array(Array::String(texts.into_iter().map(short).collect())),
        other => other,
    }
}

enum SpanState {
    None,
    /// Tracing is off: the caller's headers go upstream unchanged. The log shows the caller's trace.
    Untouched(TraceId),
    /// Not sampled: the decision is passed upstream.
    Passed(SpanContext),
    Ours(Box<OurSpan>),
}

/// Span that is recorded, or whose context is passed on.
struct OurSpan {
    span: opentelemetry_sdk::trace::Span,
    /// Spans of its request, where the end of that decides whether they are sent.
    tail: Option<Arc<Tail>>,
}

impl OurSpan {
    fn end(&mut self, end: Option<SystemTime>) {
        let Self { span, tail } = self;
        let mut end = || match end {
            Some(end) => span.end_with_timestamp(end),
            None => span.end(),
        };
        match tail {
            Some(tail) => tail.collect(end),
            None => end(),
        }
    }
}

impl Drop for OurSpan {
    fn drop(&mut self) {
        self.end(None);
    }
}

impl Deref for OurSpan {
    type Target = opentelemetry_sdk::trace::Span;
    fn deref(&self) -> &Self::Target {
        &self.span
    }
}

impl DerefMut for OurSpan {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.span
    }
}

/// Facts of a request that has ended, by which its trace may be kept.
#[derive(Debug, Clone, Copy)]
pub struct TraceEnd {
    /// True if it ended with an error.
    pub is_error: bool,
    /// True if a built-in model or another backend answered in place of the route's own.
    pub is_spilled: bool,
    /// Time from its arrival to the last byte of its answer, or until its socket was open.
    pub took: Duration,
}

/// Ids of a span, by which lines of the log find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanIds {
    /// Id of its trace.
    pub trace: TraceId,
    /// Id of the span; `None` where tracing is off, and only the caller's trace is known.
    pub span: Option<SpanId>,
    /// True if the spans of the trace are sent.
    pub is_sampled: bool,
}

/// Span that ends when dropped. Calls on a span that is not recorded do nothing.
pub struct Span {
    span: SpanState,
    tracer: Option<Arc<ActiveTracer>>,
}

impl Span {
    /// Creates a span that records nothing.
    pub const fn none() -> Self {
        Self { span: SpanState::None, tracer: None }
    }

    /// True for a span that belongs to no trace.
    pub fn is_none(&self) -> bool {
        matches!(self.span, SpanState::None)
    }

    /// True if attributes are exported; costly values are computed only then.
    pub fn is_recording(&self) -> bool {
        matches!(&self.span, SpanState::Ours(span) if span.is_recording())
    }

    /// Starts a child span now.
    pub fn child(&self, name: impl Into<Cow<'static, str>>, kind: SpanKind) -> Self {
        self.child_of(name.into(), kind, None)
    }

    /// Starts a child span at an earlier time.
    pub fn child_at(&self, name: impl Into<Cow<'static, str>>, kind: SpanKind, start: SystemTime) -> Self {
        self.child_of(name.into(), kind, Some(start))
    }

    fn child_of(&self, name: Cow<'static, str>, kind: SpanKind, start: Option<SystemTime>) -> Self {
        match (&self.span, &self.tracer) {
            (SpanState::Ours(parent), Some(active)) if parent.is_recording() => {
                let kind = match kind {
                    SpanKind::Client => OtelSpanKind::Client,
                    SpanKind::Internal => OtelSpanKind::Internal,
                };
                let mut builder = SpanBuilder::from_name(clipped(name, MAX_NAME)).with_kind(kind);
                if let Some(start) = start {
                    builder = builder.with_start_time(start);
                }
                let context = Context::new().with_remote_span_context(parent.span_context().clone());
                let span = active.tracer.build_with_context(builder, &context);
                let tail = parent.tail.clone();
                Self { span: SpanState::Ours(Box::new(OurSpan { span, tail })), tracer: Some(active.clone()) }
            }
            (SpanState::Ours(parent), _) => {
                Self { span: SpanState::Passed(parent.span_context().clone()), tracer: None }
            }
            (SpanState::Passed(context), _) => Self { span: SpanState::Passed(context.clone()), tracer: None },
            (SpanState::Untouched(trace), _) => Self { span: SpanState::Untouched(*trace), tracer: None },
            (SpanState::None, _) => Self::none(),
        }
    }

    /// Sets an attribute.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        if let SpanState::Ours(span) = &mut self.span
            && span.is_recording()
        {
            span.set_attribute(KeyValue::new(key, clipped_value(value.into())));
        }
    }

    /// Sets attributes that expressions made.
    #[cold]
    pub fn set_fields(&mut self, fields: FieldValues<'_>) {
        if let SpanState::Ours(span) = &mut self.span
            && span.is_recording()
        {
            for (name, value) in fields {
                let value = match value {
                    Scalar::Text(text) => Value::from(text),
                    Scalar::Int(n) => Value::from(n),
                    Scalar::Double(n) => Value::from(n),
                    Scalar::Bool(is) => Value::from(is),
                };
                span.set_attribute(KeyValue::new(name.clone(), value));
            }
        }
    }

    /// Sets an attribute to a text that may be longer than others. The caller bounds it.
    pub fn set_long(&mut self, key: &'static str, text: String) {
        if let SpanState::Ours(span) = &mut self.span
            && span.is_recording()
        {
            span.set_attribute(KeyValue::new(key, text));
        }
    }

    /// Adds an event.
    pub fn event(&mut self, name: &'static str, what: &str) {
        if let SpanState::Ours(span) = &mut self.span
            && span.is_recording()
        {
            span.add_event(name, vec![KeyValue::new("name", clipped(what.to_owned().into(), MAX_TEXT))]);
        }
    }

    /// Replaces the name.
    pub fn rename(&mut self, name: String) {
        if let SpanState::Ours(span) = &mut self.span {
            span.update_name(clipped(name.into(), MAX_NAME));
        }
    }

    /// Marks the span as failed.
    pub fn error(&mut self, kind: impl Into<Cow<'static, str>>) {
        if let SpanState::Ours(span) = &mut self.span
            && span.is_recording()
        {
            let kind = clipped(kind.into(), MAX_TEXT);
            span.set_attribute(KeyValue::new(names::ERROR_TYPE, kind.clone()));
            span.set_status(Status::error(kind));
        }
    }

    /// Ends the span at a time other than now.
    pub fn end_at(mut self, end: SystemTime) {
        if let SpanState::Ours(span) = &mut self.span {
            span.end(Some(end));
        }
    }

    /// Decides whether the spans of a request are sent that was not sampled when it began. Called on its server span.
    pub fn decide(&self, end: TraceEnd) {
        let (SpanState::Ours(span), Some(active)) = (&self.span, &self.tracer) else { return };
        let Some(tail) = &span.tail else { return };
        let keep = &active.plan.keep;
        let is_slow = keep.slower_than.is_some_and(|limit| end.took > limit.0);
        tail.decide((keep.errors && end.is_error) || (keep.spilled && end.is_spilled) || is_slow);
    }

    /// Id of the trace, if its spans are sent.
    pub fn sent_trace(&self) -> Option<TraceId> {
        let SpanState::Ours(span) = &self.span else { return None };
        let context = span.span_context();
        let is_sent = context.is_sampled() || span.tail.as_ref().is_some_and(|tail| tail.is_kept());
        is_sent.then(|| context.trace_id())
    }

    fn context(&self) -> Option<&SpanContext> {
        match &self.span {
            SpanState::None | SpanState::Untouched(_) => None,
            SpanState::Passed(context) => Some(context),
            SpanState::Ours(span) => Some(span.span_context()),
        }
    }

    /// Ids of the span and its trace.
    pub fn ids(&self) -> Option<SpanIds> {
        if let SpanState::Untouched(trace) = &self.span {
            return Some(SpanIds { trace: *trace, span: None, is_sampled: false });
        }
        let context = self.context()?;
        let span = Some(context.span_id()).filter(|id| *id != SpanId::INVALID);
        Some(SpanIds { trace: context.trace_id(), span, is_sampled: self.sent_trace().is_some() })
    }

    /// Writes the span's context into the headers that go upstream. With tracing off, the caller's headers stay.
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
