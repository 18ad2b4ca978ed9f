//! Series of batches.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

use super::{Families, ProcessMetrics, labels};
use crate::telemetry::label::{BatchStatus, ByLabel, Label, LineEnded};

/// Series of the batches of a process.
pub struct BatchMetrics {
    /// Lines that are being answered.
    pub in_flight: Gauge,
    lines: ByLabel<LineEnded, Counter>,
    batches: ByLabel<BatchStatus, Gauge>,
    files: Gauge,
    bytes: Gauge,
}

impl BatchMetrics {
    pub(super) fn new(families: &Families, process: &ProcessMetrics) -> Self {
        let ended = |end: LineEnded| families.batch_lines.get_or_create_owned(&labels([("end", end.as_str())]));
        let state = |status: BatchStatus| families.batches.get_or_create_owned(&labels([("status", status.as_str())]));
        Self {
            lines: ByLabel::new(ended),
            batches: ByLabel::new(state),
            in_flight: process.batch_lines_in_flight.clone(),
            files: process.batch_files.clone(),
            bytes: process.batch_file_bytes.clone(),
        }
    }

    /// Counts the end of a try of a line.
    pub fn ended(&self, end: LineEnded) {
        if let Some(series) = self.lines.get(end) {
            series.inc();
        }
    }

    /// Shows what is stored: batches by their states, files, and the bytes of these.
    pub fn show(&self, batches: &[(String, u64)], files: u64, bytes: u64) {
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        for (status, series) in self.batches.iter() {
            let stored = batches.iter().find(|(name, _)| name == status.as_str());
            series.set(stored.map_or(0, |(_, count)| signed(*count)));
        }
        self.files.set(signed(files));
        self.bytes.set(signed(bytes));
    }
}
