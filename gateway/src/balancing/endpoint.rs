//! One server of a backend: what is fixed by the snapshot, and the state that outlives it.
//! State has one owner, the table of endpoints by key; snapshots hold references, so that a reload keeps the counts of
//! whatever did not change. Time is read from [`Clock`], so that tests need not wait.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use spillway_config::values::ServerUrl;

use crate::telemetry::EndpointMetrics;
use crate::upstream::Peer;

/// What an endpoint is known by across reloads.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EndpointKey {
    /// The backend's name.
    pub backend: String,
    /// Where the server is.
    pub url: ServerUrl,
}

/// Milliseconds since the first reading in this process: a clock that fits an atomic.
pub fn now_millis() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let start = START.get_or_init(Instant::now);
    // One above zero, so that zero can mean "never".
    u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
}

/// The state of an endpoint that outlives snapshots.
pub struct EndpointState {
    in_flight: AtomicU32,
    /// Until when an answer said that the endpoint is full, in [`now_millis`]; 0 for never.
    full_until: AtomicU64,
    healthy: AtomicBool,
    /// Its series at the metrics address.
    pub metrics: Arc<EndpointMetrics>,
}

impl EndpointState {
    /// A state without requests; `healthy` is false for an endpoint that must pass a check first.
    pub fn new(metrics: Arc<EndpointMetrics>, healthy: bool) -> Self {
        metrics.set_healthy(healthy);
        Self { in_flight: AtomicU32::new(0), full_until: AtomicU64::new(0), healthy: AtomicBool::new(healthy), metrics }
    }

    /// Requests in flight, until the last byte of their answers.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Whether the active check lets it have traffic.
    pub fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Relaxed)
    }

    /// Sets what the active check found.
    pub fn set_healthy(&self, healthy: bool) {
        self.healthy.store(healthy, Ordering::Relaxed);
        self.metrics.set_healthy(healthy);
    }

    /// Whether an answer said "full" not long ago.
    pub fn said_full(&self, now: u64) -> bool {
        self.full_until.load(Ordering::Relaxed) > now
    }

    /// Notes an answer that said "full". A shorter notice does not cut a longer one.
    pub fn mark_full(&self, time: Duration) {
        let until = now_millis().saturating_add(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        self.full_until.fetch_max(until, Ordering::Relaxed);
        self.metrics.full.inc();
    }

    /// How long it will still count as full; zero when it does not.
    pub fn full_for(&self, now: u64) -> Duration {
        Duration::from_millis(self.full_until.load(Ordering::Relaxed).saturating_sub(now))
    }

    /// Takes a slot in one atomic step, so that `limit` is never passed.
    pub fn try_acquire(self: &Arc<Self>, limit: Option<NonZeroU32>) -> Option<Slot> {
        let limit = limit.map_or(u32::MAX, NonZeroU32::get);
        let taken = self
            .in_flight
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |n| if n < limit { n.checked_add(1) } else { None });
        taken.ok().map(|_| {
            self.metrics.in_flight.inc();
            Slot { state: self.clone() }
        })
    }
}

/// A place at an endpoint; given back when dropped.
pub struct Slot {
    state: Arc<EndpointState>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.state.in_flight.fetch_sub(1, Ordering::AcqRel);
        self.state.metrics.in_flight.dec();
    }
}

/// One server of a backend, as a snapshot sees it.
pub struct Endpoint {
    /// Where the server is.
    pub url: ServerUrl,
    /// The same as text, for logs and spans.
    pub address: String,
    /// Share of the requests; 0 takes none.
    pub weight: u32,
    /// In-flight requests at which it is full.
    pub max_in_flight: Option<NonZeroU32>,
    /// State that outlives the snapshot.
    pub state: Arc<EndpointState>,
    /// How it is connected to.
    pub peer: Peer,
}

impl Endpoint {
    /// Whether it may have traffic at all.
    pub fn is_available(&self) -> bool {
        self.weight > 0 && self.state.is_healthy()
    }

    /// Whether a further request fits, as far as is known without taking a slot.
    pub fn has_room(&self, now: u64) -> bool {
        self.max_in_flight.is_none_or(|max| self.state.in_flight() < max.get()) && !self.state.said_full(now)
    }
}

/// The states of all endpoints of the process, found again by key while a snapshot holds them.
#[derive(Default)]
pub struct Endpoints {
    states: Mutex<HashMap<EndpointKey, Weak<EndpointState>>>,
}

impl Endpoints {
    /// The state kept for `key`, or a new one.
    pub fn get_or_insert(&self, key: &EndpointKey, make: impl FnOnce() -> EndpointState) -> Arc<EndpointState> {
        let mut states = self.states.lock();
        states.retain(|_, state| state.strong_count() > 0);
        if let Some(state) = states.get(key).and_then(Weak::upgrade) {
            return state;
        }
        let state = Arc::new(make());
        states.insert(key.clone(), Arc::downgrade(&state));
        state
    }
}
