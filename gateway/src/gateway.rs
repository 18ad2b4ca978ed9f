//! State that all requests share: the running snapshot, upstream connections, memory for bodies, metrics and logs.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use spillway_config::schema::LogFormat;
use tokio::time::Instant;

use crate::audit::Audit;
use crate::batch::Batches;
use crate::connect::Connector;
use crate::downstream::Downstream;
use crate::exchange::BodyBudget;
#[cfg(feature = "gpu")]
use crate::gpus::Gpus;
use crate::identity::IssuedKeys;
use crate::off_loop::OffLoop;
use crate::quality::Quality;
use crate::rollout::Rollouts;
use crate::snapshot::Snapshot;
use crate::telemetry::{LogWriter, Metrics, RecentHeads, SocketEnd, Tail};
use crate::tls::Acme;
use crate::tunnel::{SocketFacts, caller_end, earlier};
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
    /// Rollouts.
    pub rollouts: Rollouts,
    /// Keys of consumers that are made at run time.
    pub issued_keys: Arc<IssuedKeys>,
    /// Certificates from ACME.
    pub acme: Arc<Acme>,
    /// Watch over what callers ask and targets answer.
    pub quality: Arc<Quality>,
    /// Files and batches.
    pub batches: Arc<Batches>,
    /// Graphics processors of the machine.
    #[cfg(feature = "gpu")]
    pub gpus: Gpus,
    /// Audit log.
    pub audit: Arc<Audit>,
    /// Live tail of requests.
    pub tail: Arc<Tail>,
    /// Heads of requests that have ended lately; `None` without an admin address, which alone shows them.
    pub recent: Option<RecentHeads>,
    /// Writer of log lines.
    pub log: LogWriter,
    /// Format of log lines.
    pub log_format: LogFormat,
    /// Phase of the process; the admin address and listeners report a drain.
    pub phase: Arc<Phase>,
    /// Running requests and open connections.
    pub counts: RunningCounts,
}

impl Gateway {
    /// Counts a request until the returned guard is dropped.
    pub fn enter(&self) -> impl Drop + use<'_> {
        CountGuard::new(&self.counts.running)
    }

    /// Ends the sockets that the running configuration, with these `listeners`, has no place for: those of a listener, route,
    /// backend or endpoint that is gone end when the time of a drain is over, those of a caller that is gone at once, and those
    /// of a key that expires at that time.
    pub fn judge_sockets(&self, listeners: &[SocketAddr]) {
        let snapshot = self.snapshot.load_full();
        let drained = Instant::now() + snapshot.drain_timeout;
        let (generation, listeners) = (snapshot.generation, listeners.to_vec());
        // The sockets keep no snapshot: one that was replaced has a successor, which judges too.
        let running = Arc::downgrade(&snapshot);
        self.downstream.sockets.judge(generation, move |facts| {
            let snapshot = running.upgrade()?;
            let caller = facts.caller.as_ref();
            let caller_ends = caller_end(caller.and_then(|(name, proof)| snapshot.identity.ends(proof, name)));
            // One that asks for any free port keeps the port that it got.
            let is_at = |listener: &SocketAddr| {
                (listener.port() == facts.listener.port() || listener.port() == 0)
                    && (listener.ip() == facts.listener.ip() || listener.ip().is_unspecified())
            };
            let is_here = listeners.iter().any(is_at)
                && snapshot.routes.has(&facts.route)
                && snapshot.backends.iter().any(|backend| backend.name == facts.backend && backend.has_url(&facts.url));
            earlier(caller_ends, (!is_here).then_some((drained, SocketEnd::Drained)))
        });
    }

    /// Ends the sockets of an endpoint that an operator drains when the time of a drain is over, or lets them go on.
    pub fn drain_sockets(&self, backend: &str, endpoint: &str, drained: bool) {
        let at = drained.then(|| Instant::now() + self.snapshot.load().drain_timeout);
        let is_concerned = |facts: &SocketFacts| *facts.backend == *backend && facts.endpoint == endpoint;
        self.downstream.sockets.drain_where(at, is_concerned);
    }

    /// Counts a client's connection until the returned guard is dropped.
    pub fn connect(self: &Arc<Self>) -> OpenConnection {
        self.counts.connections.fetch_add(1, Ordering::AcqRel);
        OpenConnection(self.clone())
    }

    /// True from SIGTERM on.
    pub fn is_draining(&self) -> bool {
        self.phase.is_draining()
    }

    /// True from SIGTERM or a hand-over on: connections end with the answer to their next request.
    pub fn is_leaving(&self) -> bool {
        self.phase.is_leaving()
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

/// Phase of the process: it serves, has handed over to a new process, or drains. Read once for each request.
#[derive(Debug, Default)]
pub struct Phase(AtomicU8);

impl Phase {
    const HANDED_OVER: u8 = 1;
    const DRAINING: u8 = 2;

    /// A new process takes the connections from now on. Nobody is told to send no more: they get there by themselves.
    pub fn hand_over(&self) {
        self.0.fetch_max(Self::HANDED_OVER, Ordering::AcqRel);
    }

    /// The process tells load balancers that it ends.
    pub fn drain(&self) {
        self.0.fetch_max(Self::DRAINING, Ordering::AcqRel);
    }

    /// True from SIGTERM on.
    pub fn is_draining(&self) -> bool {
        self.0.load(Ordering::Acquire) == Self::DRAINING
    }

    /// True from SIGTERM or a hand-over on.
    pub fn is_leaving(&self) -> bool {
        self.0.load(Ordering::Acquire) != 0
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
