//! What all requests share: the running snapshot, connections upstream, memory for bodies, series and logs.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

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

/// What all requests share.
pub struct Gateway {
    /// The running configuration.
    pub snapshot: ArcSwap<Snapshot>,
    /// Upstream connections.
    pub connector: Connector,
    /// How this process signs.
    pub via: Via,
    /// Memory for bodies.
    pub bodies: Arc<BodyBudget>,
    /// Where large bodies are read.
    pub off_loop: Arc<OffLoop>,
    /// State of all answers to clients.
    pub downstream: Arc<Downstream>,
    /// Series.
    pub metrics: Arc<Metrics>,
    /// Certificates that are obtained.
    pub acme: Arc<Acme>,
    /// Refused credentials and changes by operators.
    pub audit: Arc<Audit>,
    /// Where lines go.
    pub log: LogWriter,
    /// How they are written.
    pub log_format: LogFormat,
    /// Running requests and open connections.
    pub counts: Counts,
}

impl Gateway {
    /// Counts a request until what is returned is dropped.
    pub fn enter(&self) -> impl Drop + use<'_> {
        Counted::new(&self.counts.running)
    }

    /// Counts a client's connection until what is returned is dropped.
    pub fn connect(&self) -> impl Drop + use<'_> {
        Counted::new(&self.counts.connections)
    }

    /// Requests that run.
    pub fn running(&self) -> usize {
        self.counts.running.load(Ordering::Acquire)
    }

    /// Open connections of clients.
    pub fn connections(&self) -> usize {
        self.counts.connections.load(Ordering::Acquire)
    }
}

/// Counts that end with what is counted.
#[derive(Default)]
pub struct Counts {
    running: AtomicUsize,
    connections: AtomicUsize,
}

struct Counted<'g>(&'g AtomicUsize);

impl<'g> Counted<'g> {
    fn new(count: &'g AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
