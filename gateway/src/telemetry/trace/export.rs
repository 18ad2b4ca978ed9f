//! The way of ended spans to the collector: a bounded queue, OpenTelemetry's batch processor on its thread, and a small
//! runtime of our own for the connection, so that neither waits for requests nor requests for them.
//! Every span that does not reach the collector while the process runs is counted, and told once a minute.

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
use super::plan::Plan;
use crate::telemetry::Seldom;

/// Spans that wait for the collector; further ones are dropped. With at most some kilobytes a span (`MAX_TEXT`) these
/// are some 20 MB in the worst case.
pub(super) const QUEUE: usize = 4096;
/// Longest time for one export, from the connection to the collector's answer.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a span waits for others to be sent with it.
const EXPORT_EVERY: Duration = Duration::from_millis(500);
/// Longest time that the end of a tracer waits for its last spans.
const FLUSH: Duration = Duration::from_secs(2);

/// Provider and runtime of one plan. Dropping it sends what waits, in the background.
pub(super) struct Pipeline {
    pub(super) provider: SdkTracerProvider,
    runtime: Option<Running>,
}

/// A runtime that may be dropped anywhere: it does not wait for its tasks.
struct Running(Option<Runtime>);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Pipeline {
    pub(super) fn to_collector(plan: &Plan, dropped: &Arc<AtomicU64>) -> Result<Self, TraceError> {
        Self::build(plan, dropped, || {
            opentelemetry_otlp::SpanExporter::builder()
                .with_tonic()
                .with_endpoint(plan.endpoint.clone())
                .with_timeout(EXPORT_TIMEOUT)
                .build()
                .map_err(|e| TraceError(e.to_string()))
        })
    }

    /// `exporter` is called inside the runtime that will carry its connection.
    pub(super) fn build<E: SpanExporter + 'static>(
        plan: &Plan,
        dropped: &Arc<AtomicU64>,
        exporter: impl FnOnce() -> Result<E, TraceError>,
    ) -> Result<Self, TraceError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("traces")
            .enable_all()
            .build()
            .map_err(|e| TraceError(format!("the thread that sends traces cannot be started: {e}")))?;
        let handle = runtime.handle().clone();
        let runtime = Running(Some(runtime));
        let exporter = {
            let _inside = handle.enter();
            exporter()?
        };
        let waiting = Arc::new(AtomicUsize::new(0));
        let lost = Arc::new(Lost { dropped: dropped.clone(), told: Seldom::default() });
        let bounded = Bounded { exporter, handle, waiting: waiting.clone(), lost: lost.clone() };
        let batch = BatchConfigBuilder::default().with_max_queue_size(QUEUE).with_scheduled_delay(EXPORT_EVERY).build();
        let batches = BatchSpanProcessor::builder(bounded).with_batch_config(batch).build();
        let ratio = Sampler::TraceIdRatioBased(plan.ratio);
        let provider = SdkTracerProvider::builder()
            .with_span_processor(Counting { batches, waiting, lost })
            // What a caller has decided is judged before (`Tracer::server_span`): its trace id must not decide either.
            .with_sampler(Sampler::ParentBased(Box::new(ratio)))
            .with_resource(resource())
            .build();
        Ok(Self { provider, runtime: Some(runtime) })
    }

    /// Sends what waits, for a bounded time. Nothing is sent afterwards.
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
        // Waiting for a collector is nothing for the thread that swaps snapshots. Where no thread can be had the last
        // spans are lost; `Running` may be dropped here too.
        let flusher = std::thread::Builder::new().name("trace-flush".into()).spawn(move || {
            flush(&provider);
            drop(runtime);
        });
        if let Err(e) = flusher {
            tracing::warn!(event = "traces_not_sent", error = %e, "the last spans of a replaced tracer are lost");
        }
    }
}

/// Who sends: this process, for its whole life. What the standard variables say of it goes first.
fn resource() -> Resource {
    static INSTANCE: OnceLock<String> = OnceLock::new();
    let instance = INSTANCE.get_or_init(|| uuid::Uuid::new_v4().to_string());
    let said = Resource::builder().build();
    let mut ours = vec![KeyValue::new("service.version", env!("CARGO_PKG_VERSION"))];
    let name = said.get(&Key::from_static_str("service.name")).map(|name| name.as_str().into_owned());
    if name.is_none_or(|name| name.starts_with("unknown_service")) {
        ours.push(KeyValue::new("service.name", "spillway"));
    }
    if said.get(&Key::from_static_str("service.instance.id")).is_none() {
        ours.push(KeyValue::new("service.instance.id", instance.clone()));
    }
    Resource::builder().with_attributes(ours).build()
}

/// Counts what is lost and tells of it, seldom.
#[derive(Debug)]
struct Lost {
    dropped: Arc<AtomicU64>,
    told: Seldom,
}

impl Lost {
    fn add(&self, spans: usize, why: &dyn std::fmt::Display) {
        let spans = u64::try_from(spans).unwrap_or(u64::MAX);
        self.dropped.fetch_add(spans, Ordering::Relaxed);
        self.told.add(spans, |spans| {
            tracing::warn!(
                event = "traces_not_sent", spans, error = %why,
                "the collector does not take spans; they are dropped and counted in spillway_spans_dropped_total"
            );
        });
    }
}

/// Keeps the queue in front of the batch processor, which would drop without telling anybody.
#[derive(Debug)]
struct Counting {
    batches: BatchSpanProcessor,
    waiting: Arc<AtomicUsize>,
    lost: Arc<Lost>,
}

impl SpanProcessor for Counting {
    fn on_start(&self, span: &mut Span, cx: &Context) {
        self.batches.on_start(span, cx);
    }
    fn on_end(&self, span: SpanData) {
        // A span is counted as waiting until the processor has taken it off its queue, which therefore never is full.
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

/// An exporter with an end: OpenTelemetry's own limit does not cover a connection that is never made.
struct Bounded<E> {
    exporter: E,
    handle: Handle,
    waiting: Arc<AtomicUsize>,
    lost: Arc<Lost>,
}

impl<E: Debug> Debug for Bounded<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Bounded").field(&self.exporter).finish()
    }
}

impl<E: SpanExporter + 'static> SpanExporter for Bounded<E> {
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
