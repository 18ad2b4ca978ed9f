//! Export of ended spans to the collector: a bounded queue, OpenTelemetry's batch processor on its thread, and a small
//! separate runtime for the connection. Export and requests never wait for each other.
//! Every span that does not reach the collector while the process runs is counted, and logged once a minute.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use opentelemetry::trace::{Link, SpanKind, TraceId};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SamplingDecision, SamplingResult, SdkTracerProvider, ShouldSample,
    Span, SpanData, SpanExporter, SpanProcessor,
};
use parking_lot::RwLock;
use tokio::runtime::{Handle, Runtime};

use super::plan::TracePlan;
use super::tail::{HeldSpans, KeptSpans, Tail};
use super::{MAX_TEXT, TraceError};
use crate::telemetry::otlp::{EXPORT_EVERY, EXPORT_TIMEOUT, FLUSH, resource};
use crate::telemetry::{LogThrottle, names};

/// Most spans that wait for the collector; further ones are dropped. With at most some kilobytes a span (`MAX_TEXT`) these
/// are some 20 MB in the worst case.
pub(super) const QUEUE: usize = 4096;
/// Most bytes of the texts of model calls in spans that wait; further spans go without.
const MAX_LONG_TEXTS: usize = 16 << 20;

/// Provider and runtime of one plan. Dropping the pipeline sends its waiting spans in the background.
pub(super) struct Pipeline {
    pub(super) provider: SdkTracerProvider,
    pub(super) queue: Arc<SpanQueue>,
    runtime: Option<ExportRuntime>,
}

/// Runtime that may be dropped anywhere: dropping does not wait for its tasks.
struct ExportRuntime(Option<Runtime>);

impl Drop for ExportRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Pipeline {
    pub(super) fn to_collector(plan: &TracePlan, dropped: &Arc<AtomicU64>) -> Result<Self, TraceError> {
        Self::build(plan, dropped, || {
            opentelemetry_otlp::SpanExporter::builder()
                .with_tonic()
                .with_endpoint(plan.endpoint.clone())
                .with_timeout(EXPORT_TIMEOUT)
                .build()
                .map_err(|e| TraceError(e.to_string()))
        })
    }

    /// Builds a pipeline; `exporter` is called inside the runtime that will carry its connection.
    pub(super) fn build<E: SpanExporter + 'static>(
        plan: &TracePlan,
        dropped: &Arc<AtomicU64>,
        exporter: impl FnOnce() -> Result<E, TraceError>,
    ) -> Result<Self, TraceError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("traces")
            .enable_all()
            .build()
            .map_err(|e| TraceError(format!("the thread that exports traces cannot be started: {e}")))?;
        let handle = runtime.handle().clone();
        let runtime = ExportRuntime(Some(runtime));
        let exporter = {
            let _inside = handle.enter();
            exporter()?
        };
        let waiting = Arc::new(AtomicUsize::new(0));
        let lost = Arc::new(LostSpans { dropped: dropped.clone(), log: LogThrottle::default() });
        let long_texts = Arc::new(AtomicUsize::new(0));
        let (texts, of_exporter) = (long_texts.clone(), lost.clone());
        let bounded =
            BoundedExporter { exporter, handle, waiting: waiting.clone(), long_texts: texts, lost: of_exporter };
        let batch = BatchConfigBuilder::default().with_max_queue_size(QUEUE).with_scheduled_delay(EXPORT_EVERY).build();
        let batches = RwLock::new(BatchSpanProcessor::builder(bounded).with_batch_config(batch).build());
        let queue = Arc::new(SpanQueue { batches, waiting, long_texts, lost, held: HeldSpans::default() });
        let ratio = Sampler::TraceIdRatioBased(plan.ratio);
        // `Tracer::server_span` has applied the decision of the caller: its trace id must not decide again.
        let sampler = HeadSampler { sampler: Sampler::ParentBased(Box::new(ratio)), keeps: plan.keep.is_some() };
        let provider = SdkTracerProvider::builder()
            .with_span_processor(CountingProcessor(queue.clone()))
            .with_sampler(sampler)
            .with_resource(resource())
            .build();
        Ok(Self { provider, queue, runtime: Some(runtime) })
    }

    /// Sends waiting spans, for at most [`FLUSH`]. Spans that end later are not sent.
    pub(super) fn flush(&self) {
        flush(&self.provider);
    }
}

fn flush(provider: &SdkTracerProvider) {
    match provider.shutdown_with_timeout(FLUSH) {
        Ok(()) | Err(OTelSdkError::AlreadyShutdown) => {}
        Err(e) => tracing::warn!(event = "traces_not_sent", error = %e, "the last spans were not sent"),
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        let (provider, runtime) = (self.provider.clone(), self.runtime.take());
        // The thread that swaps snapshots must not wait for a collector. If no thread can be started, the last spans are
        // lost; `ExportRuntime` may be dropped here too.
        let flusher = std::thread::Builder::new().name("trace-flush".into()).spawn(move || {
            flush(&provider);
            drop(runtime);
        });
        if let Err(e) = flusher {
            tracing::warn!(event = "traces_not_sent", error = %e, "the last spans of a replaced tracer are lost");
        }
    }
}

/// Counts lost spans and logs them, at most once a minute.
#[derive(Debug)]
struct LostSpans {
    dropped: Arc<AtomicU64>,
    log: LogThrottle,
}

impl LostSpans {
    fn add(&self, spans: usize, why: &dyn std::fmt::Display) {
        let spans = u64::try_from(spans).unwrap_or(u64::MAX);
        self.dropped.fetch_add(spans, Ordering::Relaxed);
        self.log.add(spans, |spans| {
            tracing::warn!(
                event = "traces_not_sent", spans, error = %why,
                "the collector does not take spans; they are dropped and counted in spillway_spans_dropped_total"
            );
        });
    }
}

/// Samples requests when they begin. With `keeps`, the others are recorded, since their ends may decide otherwise.
#[derive(Debug, Clone)]
struct HeadSampler {
    sampler: Sampler,
    keeps: bool,
}

impl ShouldSample for HeadSampler {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let mut result = self.sampler.should_sample(parent, trace, name, kind, attributes, links);
        if self.keeps && result.decision == SamplingDecision::Drop {
            result.decision = SamplingDecision::RecordOnly;
        }
        result
    }
}

/// Bounded queue in front of the batch processor, which would drop spans without counting them.
#[derive(Debug)]
pub(super) struct SpanQueue {
    batches: RwLock<BatchSpanProcessor>,
    waiting: Arc<AtomicUsize>,
    /// Bytes of long texts in the spans that wait.
    long_texts: Arc<AtomicUsize>,
    lost: Arc<LostSpans>,
    /// Spans whose requests have not ended.
    pub(super) held: HeldSpans,
}

/// Bytes of the texts in a span that are longer than those that every span may have.
fn long_texts(span: &SpanData) -> usize {
    span.attributes.iter().map(long_text).sum()
}

fn long_text(attribute: &KeyValue) -> usize {
    match &attribute.value {
        Value::String(text) if text.as_str().len() > MAX_TEXT => text.as_str().len(),
        _ => 0,
    }
}

impl KeptSpans for SpanQueue {
    fn send(&self, mut span: SpanData) {
        // A span counts as waiting until the processor has taken it off its queue, so that the queue is never full.
        if self.waiting.fetch_add(1, Ordering::AcqRel) >= QUEUE {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            self.lost.add(1, &"too many spans wait");
            return;
        }
        let bytes = long_texts(&span);
        if bytes > 0 && self.long_texts.fetch_add(bytes, Ordering::AcqRel).saturating_add(bytes) > MAX_LONG_TEXTS {
            self.long_texts.fetch_sub(bytes, Ordering::AcqRel);
            span.attributes.retain(|attribute| long_text(attribute) == 0);
            span.attributes.push(KeyValue::new(names::SPILLWAY_CONTENT_DROPPED, true));
        }
        self.batches.read().on_end(span);
    }

    fn lost(&self, spans: usize, why: &dyn std::fmt::Display) {
        self.lost.add(spans, why);
    }

    fn held(&self) -> &HeldSpans {
        &self.held
    }
}

/// Gives the spans that end to the queue, or to the requests that they belong to.
#[derive(Debug)]
struct CountingProcessor(Arc<SpanQueue>);

impl SpanProcessor for CountingProcessor {
    fn on_start(&self, span: &mut Span, cx: &Context) {
        self.0.batches.read().on_start(span, cx);
    }
    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() {
            self.0.send(span);
        } else {
            Tail::take(span);
        }
    }
    fn force_flush(&self) -> OTelSdkResult {
        self.0.batches.read().force_flush()
    }
    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.batches.read().shutdown_with_timeout(timeout)
    }
    fn set_resource(&mut self, resource: &Resource) {
        self.0.batches.write().set_resource(resource);
    }
}

/// Exporter with a timeout: OpenTelemetry's own limit does not cover a connection that is never made.
struct BoundedExporter<E> {
    exporter: E,
    handle: Handle,
    waiting: Arc<AtomicUsize>,
    long_texts: Arc<AtomicUsize>,
    lost: Arc<LostSpans>,
}

impl<E: Debug> Debug for BoundedExporter<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("BoundedExporter").field(&self.exporter).finish()
    }
}

impl<E: SpanExporter + 'static> SpanExporter for BoundedExporter<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        self.waiting.fetch_sub(spans, Ordering::AcqRel);
        self.long_texts.fetch_sub(batch.iter().map(long_texts).sum(), Ordering::AcqRel);
        let limited = {
            let _inside = self.handle.enter();
            tokio::time::timeout(EXPORT_TIMEOUT, self.exporter.export(batch))
        };
        let result = limited.await.unwrap_or(Err(OTelSdkError::Timeout(EXPORT_TIMEOUT)));
        if let Err(e) = &result {
            self.lost.add(spans, e);
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
