//! Export of ended spans to the collector: a bounded queue, OpenTelemetry's batch processor on its thread, and a small
//! separate runtime for the connection. Export and requests never wait for each other.
//! Every span that does not reach the collector while the process runs is counted, and logged once a minute.

use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use opentelemetry::{Context, Key, KeyValue};
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, Span, SpanData, SpanExporter, SpanProcessor,
};
use tokio::runtime::{Handle, Runtime};

use super::TraceError;
use super::plan::TracePlan;
use crate::telemetry::LogThrottle;

/// Most spans that wait for the collector; further ones are dropped. With at most some kilobytes a span (`MAX_TEXT`) these
/// are some 20 MB in the worst case.
pub(super) const QUEUE: usize = 4096;
/// Longest time for one export, from the connection to the collector's answer: batches behind it wait as long.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time between two batches: spans wait this long for others to be sent with them.
const EXPORT_EVERY: Duration = Duration::from_millis(500);
/// Longest wait for the last spans when a tracer ends.
const FLUSH: Duration = Duration::from_secs(2);

/// Provider and runtime of one plan. Dropping the pipeline sends its waiting spans in the background.
pub(super) struct Pipeline {
    pub(super) provider: SdkTracerProvider,
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
        let bounded = BoundedExporter { exporter, handle, waiting: waiting.clone(), lost: lost.clone() };
        let batch = BatchConfigBuilder::default().with_max_queue_size(QUEUE).with_scheduled_delay(EXPORT_EVERY).build();
        let batches = BatchSpanProcessor::builder(bounded).with_batch_config(batch).build();
        let ratio = Sampler::TraceIdRatioBased(plan.ratio);
        let provider = SdkTracerProvider::builder()
            .with_span_processor(CountingProcessor { batches, waiting, lost })
            // `Tracer::server_span` has applied the decision of the caller: its trace id must not decide again.
            .with_sampler(Sampler::ParentBased(Box::new(ratio)))
            .with_resource(resource())
            .build();
        Ok(Self { provider, runtime: Some(runtime) })
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

/// Identity of this process in its spans, for its whole life. Values of the standard variables take precedence.
fn resource() -> Resource {
    static INSTANCE: OnceLock<String> = OnceLock::new();
    let instance = INSTANCE.get_or_init(|| uuid::Uuid::new_v4().to_string());
    let given = Resource::builder().build();
    let mut ours = vec![KeyValue::new("service.version", env!("CARGO_PKG_VERSION"))];
    let name = given.get(&Key::from_static_str("service.name")).map(|name| name.as_str().into_owned());
    if name.is_none_or(|name| name.starts_with("unknown_service")) {
        ours.push(KeyValue::new("service.name", "spillway"));
    }
    if given.get(&Key::from_static_str("service.instance.id")).is_none() {
        ours.push(KeyValue::new("service.instance.id", instance.clone()));
    }
    Resource::builder().with_attributes(ours).build()
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

/// Bounds the queue in front of the batch processor, which would drop spans without counting them.
#[derive(Debug)]
struct CountingProcessor {
    batches: BatchSpanProcessor,
    waiting: Arc<AtomicUsize>,
    lost: Arc<LostSpans>,
}

impl SpanProcessor for CountingProcessor {
    fn on_start(&self, span: &mut Span, cx: &Context) {
        self.batches.on_start(span, cx);
    }
    fn on_end(&self, span: SpanData) {
        // A span counts as waiting until the processor has taken it off its queue, so that the queue is never full.
        if self.waiting.fetch_add(1, Ordering::AcqRel) >= QUEUE {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            self.lost.add(1, &"too many spans wait");
        } else {
            self.batches.on_end(span);
        }
    }
    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }
    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.batches.shutdown_with_timeout(timeout)
    }
    fn set_resource(&mut self, resource: &Resource) {
        self.batches.set_resource(resource);
    }
}

/// Exporter with a timeout: OpenTelemetry's own limit does not cover a connection that is never made.
struct BoundedExporter<E> {
    exporter: E,
    handle: Handle,
    waiting: Arc<AtomicUsize>,
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
