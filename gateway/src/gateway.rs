//! State that all requests share: the running snapshot, upstream connections, memory for bodies, metrics and logs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use spillway_config::schema::LogFormat;

use crate::audit::Audit;
use crate::connect::Connector;
use crate::downstream::Downstream;
use crate::exchange::BodyBudget;
use crate::off_loop::OffLoop;
use crate::snapshot::Snapshot;
use crate::telemetry::{LogWriter, Metrics};
use crate::tls::Acme;
use crate::upstream::Via;

/// State that all requests share.
pub struct Gateway {
    /// The running configuration.
    pub snapshot: ArcSwap<Snapshot>,
    /// Upstream connections.
    pub connector: Connector,
    /// Name of this process in `Via`.
    pub via: Via,
    /// Memory for bodies.
    pub bodies: Arc<BodyBudget>,
    /// Worker for large bodies.
    pub off_loop: Arc<OffLoop>,
    /// State of all answers to clients.
    pub downstream: Arc<Downstream>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Certificates from ACME.
    pub acme: Arc<Acme>,
    /// Audit log.
    pub audit: Arc<Audit>,
    /// Writer of log lines.
    pub log: LogWriter,
    /// Format of log lines.
    pub log_format: LogFormat,
    /// True from SIGTERM on; the admin address and listeners report it.
    pub draining: Arc<AtomicBool>,
    /// Running requests and open connections.
    pub counts: RunningCounts,
}

impl Gateway {
    /// Counts a request until the returned guard is dropped.
    pub fn enter(&self) -> impl Drop + use<'_> {
        CountGuard::new(&self.counts.running)
    }

    /// Counts a client's connection until the returned guard is dropped.
    pub fn connect(self: &Arc<Self>) -> OpenConnection {
        self.counts.connections.fetch_add(1, Ordering::AcqRel);
        OpenConnection(self.clone())
    }

    /// True from SIGTERM on.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Number of requests in flight.
    pub fn running(&self) -> usize {
        self.counts.running.load(Ordering::Acquire)
    }

    /// Number of open client connections.
    pub fn connections(&self) -> usize {
        self.counts.connections.load(Ordering::Acquire)
    }
}

/// Numbers of running requests and open connections.
#[derive(Default)]
pub struct RunningCounts {
    running: AtomicUsize,
    connections: AtomicUsize,
}

/// Count of a client's connection, released on drop.
pub struct OpenConnection(Arc<Gateway>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.counts.connections.fetch_sub(1, Ordering::AcqRel);
    }
}

struct CountGuard<'g>(&'g AtomicUsize);

impl<'g> CountGuard<'g> {
    fn new(count: &'g AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for CountGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
