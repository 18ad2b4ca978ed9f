//! Loads: each drives one peer for some seconds and says what came of it.

mod bodies;
mod events;
mod idle;
mod open;
mod programs;
mod wire;

use std::path::Path;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::workload::{Ask, Load};
use crate::process::Process;

pub(super) use programs::{answers, closed_rate};

/// Outcome of one run.
#[derive(Default)]
pub(super) struct Done {
    /// Requests, events or megabytes; connections that are held.
    pub(super) amount: f64,
    /// Time of the run.
    pub(super) seconds: f64,
    /// Requests without a right answer.
    pub(super) errors: u64,
    /// Latencies in microseconds, where they are measured.
    pub(super) latency: Option<Histogram<u64>>,
    /// Bytes of memory for each connection that is held.
    pub(super) held: Option<f64>,
}

/// Run against a peer.
pub(super) struct Run<'a> {
    pub(super) ask: &'a Ask,
    pub(super) port: u16,
    pub(super) tls: bool,
    pub(super) seconds: u32,
    /// Requests a second of nginx in a closed loop, for `Load::Open`.
    pub(super) most: f64,
    /// Folder for scripts.
    pub(super) folder: &'a Path,
    /// The peer; none where the origin itself is driven.
    pub(super) process: Option<&'a Process>,
}

impl Run<'_> {
    /// Applies the load.
    pub(super) fn drive(&self, load: Load) -> Done {
        let length = Duration::from_secs(self.seconds.into());
        match load {
            Load::Closed { connections } => programs::wrk(self, connections),
            Load::Http2 { connections, streams } => programs::h2load(self, connections, streams),
            Load::Open { percent } => open::drive(self, self.most * f64::from(percent) / 100.0, length),
            Load::Events { streams } => asynchronous(events::drive(self, streams)),
            Load::Down { connections } => asynchronous(bodies::down(self, connections, length)),
            Load::Up { connections } => asynchronous(bodies::up(self, connections, length)),
            Load::Idle { connections } => asynchronous(idle::drive(self, connections)),
        }
    }
}

fn asynchronous(load: impl Future<Output = Done>) -> Done {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(load)
}

/// Histogram of microseconds up to a minute, three digits; longer waits count as a minute.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("the bounds are valid")
}

fn record(histogram: &mut Histogram<u64>, latency: Duration) {
    histogram.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(1));
}
