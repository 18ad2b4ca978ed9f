//! Bounded queue of records, by their bytes. Pushing never waits; what finds no room is counted as lost.

use std::collections::VecDeque;
use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use opentelemetry_sdk::logs::SdkLogRecord;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::telemetry::LogThrottle;
use crate::telemetry::otlp::{EXPORT_EVERY, FLUSH};

/// Most records of a batch, as OpenTelemetry's batch processor has it.
const MOST_OF_BATCH: usize = 512;
/// Bytes at which a batch is full: collectors refuse messages above 4 MiB (the default of gRPC), and one record more fits.
const BYTES_OF_BATCH: u64 = 1 << 20;

/// Record on its way to the collector.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) record: SdkLogRecord,
    /// Bytes of memory, at most some more than it has.
    pub(super) bytes: u64,
}

/// Records on their way from those who log to the thread that exports.
pub(super) struct RecordQueue {
    state: Mutex<QueueState>,
    wake: Notify,
    most_bytes: u64,
    dropped: Arc<AtomicU64>,
    log: LogThrottle,
}

#[derive(Default)]
struct QueueState {
    waiting: VecDeque<Waiting>,
    waiting_bytes: u64,
    /// Bytes of the batch that is being sent.
    in_sending: u64,
    /// Signals for callers of `flush` that wait until all earlier records are sent.
    flushing: Vec<SyncSender<()>>,
    /// Time at which what still waits is given up.
    ends: Option<Instant>,
}

impl QueueState {
    fn is_full_batch(&self) -> bool {
        self.waiting.len() >= MOST_OF_BATCH || self.waiting_bytes >= BYTES_OF_BATCH
    }

    fn take(&mut self) -> Vec<Waiting> {
        let (mut count, mut bytes) = (0, 0);
        for waiting in &self.waiting {
            if count >= MOST_OF_BATCH || bytes >= BYTES_OF_BATCH {
                break;
            }
            count += 1;
            bytes += waiting.bytes;
        }
        self.waiting_bytes -= bytes;
        self.in_sending = bytes;
        self.waiting.drain(..count).collect()
    }
}

impl RecordQueue {
    pub(super) fn new(most_bytes: u64, dropped: Arc<AtomicU64>) -> Self {
        let (state, wake) = (Mutex::default(), Notify::new());
        Self { state, wake, most_bytes, dropped, log: LogThrottle::default() }
    }

    /// Queues a record, or counts it as lost.
    pub(super) fn push(&self, waiting: Waiting) {
        let mut state = self.state.lock();
        if state.waiting_bytes + state.in_sending + waiting.bytes > self.most_bytes {
            drop(state);
            self.lost(1, &"too many records wait");
            return;
        }
        let (was_empty, was_full) = (state.waiting.is_empty(), state.is_full_batch());
        state.waiting_bytes += waiting.bytes;
        state.waiting.push_back(waiting);
        let wakes = was_empty || (!was_full && state.is_full_batch());
        drop(state);
        if wakes {
            self.wake.notify_one();
        }
    }

    /// Next batch, once it is full or has waited for others; `None` after the end.
    pub(super) async fn next(&self) -> Option<Vec<Waiting>> {
        let mut due: Option<Instant> = None;
        loop {
            {
                let mut state = self.state.lock();
                let now = Instant::now();
                if state.ends.is_some_and(|ends| ends <= now) {
                    let left = std::mem::take(&mut state.waiting).len();
                    state.waiting_bytes = 0;
                    drop(state);
                    if left > 0 {
                        self.lost(left, &"the last records of a replaced exporter were not sent in time");
                    }
                    return None;
                }
                let is_urgent = state.ends.is_some() || !state.flushing.is_empty();
                if state.waiting.is_empty() {
                    for done in state.flushing.drain(..) {
                        // Who waited may have given up.
                        let _ = done.send(());
                    }
                    if state.ends.is_some() {
                        return None;
                    }
                    due = None;
                } else if is_urgent || state.is_full_batch() || due.is_some_and(|due| due <= now) {
                    return Some(state.take());
                } else {
                    due.get_or_insert(now + EXPORT_EVERY);
                }
            }
            match due {
                None => self.wake.notified().await,
                Some(due) => {
                    let _ = tokio::time::timeout_at(due, self.wake.notified()).await;
                }
            }
        }
    }

    /// Takes note of the end of a batch.
    pub(super) fn sent(&self, batch: &[Waiting], error: Option<impl Display>) {
        self.state.lock().in_sending = 0;
        if let Some(e) = error {
            self.lost(batch.len(), &e);
        }
    }

    /// Waits until all earlier records are sent or lost; false where that takes longer.
    pub(super) fn flush(&self, longest: Duration) -> bool {
        let (done, wait) = sync_channel(1);
        self.state.lock().flushing.push(done);
        self.wake.notify_one();
        wait.recv_timeout(longest).is_ok()
    }

    /// Ends the queue: what waits is sent for a bounded time.
    pub(super) fn end(&self) {
        self.state.lock().ends = Some(Instant::now() + FLUSH);
        self.wake.notify_one();
    }

    /// Counts lost records and logs them, at most once a minute.
    fn lost(&self, records: usize, why: &dyn Display) {
        let records = u64::try_from(records).unwrap_or(u64::MAX);
        self.dropped.fetch_add(records, Ordering::Relaxed);
        self.log.add(records, |records| {
            tracing::warn!(
                event = "logs_not_sent", records, error = %why,
                "the collector does not take the log; its records are dropped and counted in spillway_log_records_dropped_total"
            );
        });
    }
}
