//! Spans: started here, exported by OpenTelemetry's batch processor on a thread of its own. A tracer that is switched
//! off costs a request one comparison, and still passes the caller's trace on.

mod context;
mod export;
mod plan;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::SystemTime;

use http::{HeaderMap, HeaderValue};
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt, TraceId, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Array, Context, KeyValue, StringValue, Value};
use opentelemetry_sdk::trace::SdkTracer;
use spillway_config::schema::Tracing;
use spillway_filter::Headers;

use self::context::{TRACEPARENT, TRACESTATE, decided, parent_of, trace_of};
use self::export::Pipeline;
use self::plan::Plan;
use super::names;

/// Longest text of an attribute or event, bytes. Paths and agents are the caller's; what waits for a collector must not
/// grow with them.
const MAX_TEXT: usize = 1024;
/// Longest name of a span, bytes.
const MAX_NAME: usize = 256;

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
    plan: Plan,
    pipeline: Pipeline,
    tracer: SdkTracer,
}

impl Active {
    fn new(plan: Plan, pipeline: Pipeline) -> Self {
        let tracer = pipeline.provider.tracer("spillway");
        Self { plan, pipeline, tracer }
    }
}

impl Tracer {
    /// A tracer for what was configured, else for what the standard variables say, else none. An unchanged `previous`
    /// is kept; a changed one sends its last spans by itself. `dropped` counts the spans that no collector took.
    pub fn new(
        config: Option<&Tracing>,
        previous: Option<&Self>,
        dropped: &Arc<AtomicU64>,
    ) -> Result<Self, TraceError> {
        let Some(plan) = Plan::new(config, |name| std::env::var(name).ok()) else { return Ok(Self::default()) };
        if let Some(active) = previous.and_then(|p| p.active.as_ref())
            && active.plan == plan
        {
            return Ok(Self { active: Some(active.clone()) });
        }
        let pipeline = Pipeline::to_collector(&plan, dropped)?;
        Ok(Self { active: Some(Arc::new(Active::new(plan, pipeline))) })
    }

    /// The span of a request that has just arrived: a child of the caller's, where it sent one. `from_trusted_proxy` says
    /// whether a proxy sent it whose word counts.
    pub fn server_span(&self, headers: &HeaderMap, from_trusted_proxy: bool, start: SystemTime) -> Span {
        let Some(active) = &self.active else {
            return Span { span: trace_of(headers).map_or(Inner::None, Inner::Untouched), tracer: None };
        };
        let builder = SpanBuilder::from_name("request").with_kind(SpanKind::Server).with_start_time(start);
        let context = parent_of(headers).map_or_else(Context::new, |parent| {
            let is_sampled = active.plan.samples(parent.is_sampled(), from_trusted_proxy);
            Context::new().with_remote_span_context(decided(&parent, is_sampled))
        });
        let span = active.tracer.build_with_context(builder, &context);
        Span { span: Inner::Ours(Box::new(span)), tracer: Some(active.clone()) }
    }

    /// Sends what is waiting, for a bounded time; what ends later is not sent. For the end of the process.
    pub fn flush(&self) {
        if let Some(active) = &self.active {
            active.pipeline.flush();
        }
    }
}

/// The longest beginning of `text` that has at most `max` bytes.
fn clipped(mut text: Cow<'static, str>, max: usize) -> Cow<'static, str> {
    if text.len() > max {
        let end = text.floor_char_boundary(max);
        match &mut text {
            Cow::Borrowed(text) => *text = text.get(..end).unwrap_or_default(),
            // Without what was cut off; a `String` that was truncated would keep it.
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

enum Inner {
    None,
    /// Tracing is off: the caller's headers go upstream as they came. Its trace is known for the log.
    Untouched(TraceId),
    /// Not sampled: the decision goes upstream.
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

    /// True of a span that belongs to no trace.
    pub fn is_none(&self) -> bool {
        matches!(self.span, Inner::None)
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
                let mut builder = SpanBuilder::from_name(clipped(name, MAX_NAME)).with_kind(kind);
                if let Some(start) = start {
                    builder = builder.with_start_time(start);
                }
                let context = Context::new().with_remote_span_context(parent.span_context().clone());
                let span = active.tracer.build_with_context(builder, &context);
                Self { span: Inner::Ours(Box::new(span)), tracer: Some(active.clone()) }
            }
            (Inner::Ours(parent), _) => Self { span: Inner::Passed(parent.span_context().clone()), tracer: None },
            (Inner::Passed(context), _) => Self { span: Inner::Passed(context.clone()), tracer: None },
            (Inner::Untouched(trace), _) => Self { span: Inner::Untouched(*trace), tracer: None },
            (Inner::None, _) => Self::none(),
        }
    }

    /// Sets an attribute.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        if let Inner::Ours(span) = &mut self.span
            && span.is_recording()
        {
            span.set_attribute(KeyValue::new(key, clipped_value(value.into())));
        }
    }

    /// Notes that something happened.
    pub fn event(&mut self, name: &'static str, what: &str) {
        if let Inner::Ours(span) = &mut self.span
            && span.is_recording()
        {
            span.add_event(name, vec![KeyValue::new("name", clipped(what.to_owned().into(), MAX_TEXT))]);
        }
    }

    /// Gives it another name.
    pub fn rename(&mut self, name: String) {
        if let Inner::Ours(span) = &mut self.span {
            span.update_name(clipped(name.into(), MAX_NAME));
        }
    }

    /// Marks it as failed.
    pub fn error(&mut self, kind: impl Into<Cow<'static, str>>) {
        if let Inner::Ours(span) = &mut self.span
            && span.is_recording()
        {
            let kind = clipped(kind.into(), MAX_TEXT);
            span.set_attribute(KeyValue::new(names::ERROR_TYPE, kind.clone()));
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
            Inner::None | Inner::Untouched(_) => None,
            Inner::Passed(context) => Some(context),
            Inner::Ours(span) => Some(span.span_context()),
        }
    }

    /// The trace it belongs to.
    pub fn trace_id(&self) -> Option<TraceId> {
        match &self.span {
            Inner::Untouched(trace) => Some(*trace),
            _ => self.context().map(SpanContext::trace_id),
        }
    }

    /// Puts its context into a header that goes upstream. Where tracing is off, the caller's own stays in it.
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
