//! Export of the log to a collector (OTLP): records of requests, of audited actions and of the process's own events, each
//! with what its line shows and no more. Records are gathered in bounded memory, and a thread of its own sends them in
//! batches: a collector that hangs costs records, which are counted, and never requests.

mod events;
pub mod names;
mod queue;
mod record;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use opentelemetry::InstrumentationScope;
use opentelemetry::logs::{Logger, LoggerProvider};
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::error::OTelSdkError;
use opentelemetry_sdk::logs::{LogBatch, LogExporter, SdkLogger, SdkLoggerProvider};
use spillway_config::schema::LogsOtlp;

pub(super) use self::events::EventExport;
use self::queue::{RecordQueue, Waiting};
pub use self::record::Record;
use super::otlp::{EXPORT_TIMEOUT, FLUSH, resource};

thread_local! {
    /// True on threads that export: what they log is not exported, which would never end.
    static EXPORTS: Cell<bool> = const { Cell::new(false) };
}

/// The log cannot be exported as configured.
#[derive(Debug, thiserror::Error)]
#[error("telemetry.logs.otlp: {0}")]
pub struct LogExportError(String);

/// Sends records to a collector. Clones share the queue.
#[derive(Clone, Default)]
pub struct LogExport(Option<Arc<ActiveExport>>);

/// Export of one configuration. Dropping it sends what waits in the background, for a bounded time.
struct ActiveExport {
    config: LogsOtlp,
    /// Makes empty records: OpenTelemetry has no other source of them.
    logger: SdkLogger,
    queue: Arc<RecordQueue>,
}

impl LogExport {
    /// Creates an export from the configuration, else one that is off. An unchanged `previous` is kept; a changed one sends
    /// its last records by itself. `dropped` counts records that no collector took.
    pub fn new(
        config: Option<&LogsOtlp>,
        previous: Option<&Self>,
        dropped: &Arc<AtomicU64>,
    ) -> Result<Self, LogExportError> {
        let Some(config) = config else { return Ok(Self::default()) };
        if let Some(active) = previous.and_then(|previous| previous.0.as_ref())
            && active.config == *config
        {
            return Ok(Self(Some(active.clone())));
        }
        Self::start(config, dropped, || {
            opentelemetry_otlp::LogExporter::builder()
                .with_tonic()
                .with_endpoint(config.endpoint.clone())
                .with_timeout(EXPORT_TIMEOUT)
                .build()
                .map_err(|e| LogExportError(e.to_string()))
        })
    }

    /// Starts the thread that exports; `exporter` is called inside the runtime that will carry its connection.
    fn start<E: LogExporter + 'static>(
        config: &LogsOtlp,
        dropped: &Arc<AtomicU64>,
        exporter: impl FnOnce() -> Result<E, LogExportError>,
    ) -> Result<Self, LogExportError> {
        let failed = |e: std::io::Error| LogExportError(format!("the thread that exports it cannot be started: {e}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let mut exporter = {
            let _inside = runtime.enter();
            exporter()?
        };
        exporter.set_resource(&resource());
        let queue = Arc::new(RecordQueue::new(config.buffered.0, dropped.clone()));
        let sending = queue.clone();
        // The thread drives the connection as long as it waits for records, and drops the runtime at its end.
        std::thread::Builder::new()
            .name("log-export".into())
            .spawn(move || {
                EXPORTS.set(true);
                runtime.block_on(send_all(&sending, &exporter));
            })
            .map_err(failed)?;
        let logger = SdkLoggerProvider::builder().build().logger("spillway");
        Ok(Self(Some(Arc::new(ActiveExport { config: config.clone(), logger, queue }))))
    }

    /// True where records are exported.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Queues the record that `fill` fills, unless nothing is exported. Never waits for the collector.
    pub fn send(&self, fill: impl FnOnce(&mut Record)) {
        let Some(active) = &self.0 else { return };
        let mut record = Record::new(active.logger.create_log_record());
        fill(&mut record);
        active.queue.push(record.finished());
    }

    /// Waits, for a bounded time, until all earlier records are sent or lost. Not for a runtime's thread.
    pub fn flush(&self) {
        if let Some(active) = &self.0
            && !active.queue.flush(FLUSH)
        {
            tracing::warn!(event = "logs_not_sent", "the last records of the log were not sent");
        }
    }
}

impl Drop for ActiveExport {
    fn drop(&mut self) {
        self.queue.end();
    }
}

/// Sends batch after batch until the queue ends.
async fn send_all(queue: &RecordQueue, exporter: &impl LogExporter) {
    let scope = InstrumentationScope::builder("spillway").with_version(env!("CARGO_PKG_VERSION")).build();
    while let Some(batch) = queue.next().await {
        let records: Vec<_> = batch.iter().map(|Waiting { record, .. }| (record, &scope)).collect();
        // OpenTelemetry's own limit does not cover a connection that is never made.
        let sent = tokio::time::timeout(EXPORT_TIMEOUT, exporter.export(LogBatch::new(&records))).await;
        let sent = sent.unwrap_or(Err(OTelSdkError::Timeout(EXPORT_TIMEOUT)));
        queue.sent(&batch, sent.err());
    }
}
