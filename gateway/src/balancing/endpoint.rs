//! One server of a backend: what is fixed by the snapshot, and the state that outlives it.
//! State has one owner, the table of endpoints by key; snapshots hold references, so that a reload keeps the counts of
//! whatever did not change. Time is read from [`now_millis`] by callers and handed in, so that tests need not wait.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use spillway_config::values::ServerUrl;

use super::latency::{Class, Ewma};
use super::outlier::Record;
use super::signal::{LimiterState, LoadState, Reason, Room, SaturationSignal};
use crate::clock::{millis, now_millis};
use crate::connect::{Connections, EndpointKey, Peer};
use crate::telemetry::EndpointMetrics;

/// Is told when what an endpoint of a backend may take has changed, although nobody gave a slot back.
pub trait RoomListener: Send + Sync {
    /// There may be room for a request more, or for several; or nobody may have traffic any more, which those who wait
    /// find out as they look for it.
    fn may_have_room(&self);

    /// An endpoint may have no traffic any more, which everybody who waits must look at.
    fn lost(&self) {
        self.may_have_room();
    }
}

/// What the endpoints of a backend have in common.
#[derive(Default)]
pub struct Siblings {
    in_flight: AtomicU32,
    /// Who waits for room.
    listener: Option<Arc<dyn RoomListener>>,
}

impl Siblings {
    /// Of a backend whose room somebody may wait for.
    pub fn new(listener: Arc<dyn RoomListener>) -> Self {
        Self { in_flight: AtomicU32::new(0), listener: Some(listener) }
    }
}

/// The state of an endpoint that outlives snapshots.
pub struct EndpointState {
    in_flight: AtomicU32,
    siblings: Arc<Siblings>,
    /// Connections that are open to it.
    pub(super) connections: Arc<Connections>,
    /// Until when an answer said that the endpoint is full, in [`now_millis`]; 0 for never.
    full_until: AtomicU64,
    healthy: AtomicBool,
    drained: AtomicBool,
    /// Since when it has had traffic again, in [`now_millis`]; 0 for always.
    since: AtomicU64,
    /// Errors and ejections.
    pub(super) record: Record,
    /// Smoothed latency.
    pub(super) latency: Ewma,
    /// What the adaptive limit has learnt.
    pub(super) limiter: LimiterState,
    /// What the server said of its queue and its KV cache.
    pub(super) load: LoadState,
    /// Its series at the metrics address.
    pub metrics: Arc<EndpointMetrics>,
}

/// Facts of an endpoint for operators.
#[derive(Debug, Clone, Copy)]
pub struct EndpointFacts {
    /// Time until an ejection ends; zero where there is none.
    pub ejected_for: Duration,
    /// True while outlier detection keeps it out.
    pub is_ejected: bool,
    /// Open connections.
    pub connections: u32,
    /// Smoothed latency in microseconds.
    pub latency: Option<f64>,
    /// Requests that the server reports as waiting.
    pub waiting: Option<u32>,
    /// Share of its KV cache that the server reports as used, 0 to 1.
    pub kv_cache: Option<f64>,
}

impl EndpointState {
    /// Facts at `now`; figures that the server reported are left out when they are older than `shown_for` milliseconds.
    pub fn facts(&self, now: u64, shown_for: u64) -> EndpointFacts {
        EndpointFacts {
            ejected_for: self.record.ejected_for(now),
            is_ejected: self.record.is_ejected(now),
            connections: self.connections.open(),
            latency: self.latency.micros(now),
            waiting: self.load.waiting(now, shown_for),
            kv_cache: self.load.kv_cache(now, shown_for),
        }
    }

    /// A state without requests; `healthy` is false for an endpoint that must pass a check first.
    pub fn new(metrics: Arc<EndpointMetrics>, healthy: bool, siblings: Arc<Siblings>) -> Self {
        metrics.set_healthy(healthy);
        Self {
            in_flight: AtomicU32::new(0),
            siblings,
            connections: Arc::default(),
            full_until: AtomicU64::new(0),
            healthy: AtomicBool::new(healthy),
            drained: AtomicBool::new(false),
            since: AtomicU64::new(0),
            record: Record::default(),
            latency: Ewma::default(),
            limiter: LimiterState::default(),
            load: LoadState::default(),
            metrics,
        }
    }

    /// Requests in flight, until the last byte of their answers.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Requests in flight at all endpoints of its backend.
    pub fn in_backend(&self) -> u32 {
        self.siblings.in_flight.load(Ordering::Relaxed)
    }

    /// Whether the active check lets it have traffic.
    pub fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Relaxed)
    }

    /// Sets what the active check found.
    pub fn set_healthy(&self, healthy: bool, now: u64) {
        let was = self.healthy.swap(healthy, Ordering::Relaxed);
        self.metrics.set_healthy(healthy);
        match (was, healthy) {
            (false, true) => self.returned(now),
            (true, false) => self.lost(),
            _ => {}
        }
    }

    /// Whether an operator took it out.
    pub fn is_drained(&self) -> bool {
        self.drained.load(Ordering::Relaxed)
    }

    /// Takes it out or puts it back. False when it was so already.
    pub fn set_drained(&self, drained: bool, now: u64) -> bool {
        let was = self.drained.swap(drained, Ordering::Relaxed);
        match (was, drained) {
            (true, false) => self.returned(now),
            (false, true) => self.lost(),
            _ => {}
        }
        was != drained
    }

    /// It has traffic from now on: its slow start begins, and whoever waits for room is told.
    pub(super) fn returned(&self, now: u64) {
        self.since.store(now, Ordering::Relaxed);
        self.may_have_room();
    }

    fn lost(&self) {
        if let Some(listener) = &self.siblings.listener {
            listener.lost();
        }
    }

    /// What it may take has changed, although no slot was given back: tells whoever waits.
    pub(super) fn may_have_room(&self) {
        if let Some(listener) = &self.siblings.listener {
            listener.may_have_room();
        }
    }

    /// Takes in what the server said of its load at `now`.
    pub(super) fn reported(&self, report: &super::LoadReport, now: u64) {
        self.load.set(report, self.in_flight(), now);
        self.may_have_room();
    }

    /// Since when it has had traffic again; 0 for always.
    pub fn since(&self) -> u64 {
        self.since.load(Ordering::Relaxed)
    }

    /// Notes an answer that said "full". A shorter notice does not cut a longer one.
    pub fn mark_full(&self, time: Duration) {
        self.full_until.fetch_max(now_millis().saturating_add(millis(time)), Ordering::Relaxed);
        self.metrics.full.inc();
    }

    /// How long it will still count as full by its answers; zero when it does not.
    pub fn full_for(&self, now: u64) -> Duration {
        Duration::from_millis(self.full_until.load(Ordering::Relaxed).saturating_sub(now))
    }

    /// Takes a slot in one atomic step, so that `limit` is never passed.
    pub fn try_acquire(self: &Arc<Self>, limit: u32) -> Option<Slot> {
        self.try_acquire_within(limit, u32::MAX)
    }

    /// The same where all endpoints of the backend together may have so many.
    pub(super) fn try_acquire_within(self: &Arc<Self>, limit: u32, in_backend: u32) -> Option<Slot> {
        one_more(&self.siblings.in_flight, in_backend)?;
        let Some(before) = one_more(&self.in_flight, limit) else {
            // Who found the backend full meanwhile looks again when it has entered the queue.
            self.siblings.in_flight.fetch_sub(1, Ordering::AcqRel);
            return None;
        };
        self.metrics.in_flight.inc();
        Some(Slot { state: self.clone(), at_start: before.saturating_add(1) })
    }
}

fn one_more(count: &AtomicU32, limit: u32) -> Option<u32> {
    let more = |n: u32| if n < limit { n.checked_add(1) } else { None };
    count.fetch_update(Ordering::AcqRel, Ordering::Relaxed, more).ok()
}

/// A place at an endpoint; given back when dropped.
pub struct Slot {
    state: Arc<EndpointState>,
    at_start: u32,
}

impl Slot {
    /// Requests in flight at the endpoint when this one had been added.
    pub fn in_flight_at_start(&self) -> u32 {
        self.at_start
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.state.in_flight.fetch_sub(1, Ordering::AcqRel);
        self.state.siblings.in_flight.fetch_sub(1, Ordering::AcqRel);
        self.state.metrics.in_flight.dec();
    }
}

/// Why an endpoint takes no further request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// An operator took it out.
    Drained,
    /// Its active check fails.
    Unhealthy,
    /// Its answers were errors.
    Ejected,
    /// It has no room.
    Full(Reason),
}

impl Closed {
    /// In one word, for spans and operators.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Drained => "drained",
            Self::Unhealthy => "unhealthy",
            Self::Ejected => "ejected",
            Self::Full(reason) => reason.as_str(),
        }
    }
}

/// One server of a backend, as a snapshot sees it.
pub struct Endpoint {
    /// Where the server is.
    pub url: ServerUrl,
    /// The name that logs, metrics and operators know it by: its URL, and its address too where the URL has a name.
    pub address: String,
    /// Where connections go.
    pub socket: SocketAddr,
    /// Share of the requests; above zero.
    pub weight: u32,
    /// Its tier.
    pub priority: u32,
    /// What tells whether it is full.
    pub signals: Arc<[Box<dyn SaturationSignal>]>,
    /// How long its share rises after it returned, milliseconds; 0 for not at all.
    pub slow_start: u64,
    /// State that outlives the snapshot.
    pub state: Arc<EndpointState>,
    /// How it is connected to.
    pub peer: Peer,
}

/// Least part of its share that an endpoint takes while it starts slowly (as Envoy's `min_weight_percent`).
const LEAST_SHARE: f64 = 0.1;

impl Endpoint {
    /// Whether it may have traffic at all. In panic, ejections are not looked at.
    pub fn is_available(&self, now: u64, panic: bool) -> bool {
        self.state.is_healthy() && !self.state.is_drained() && (panic || !self.state.record.is_ejected(now))
    }

    /// How many requests may be in flight at it now, and which signal says so; `u32::MAX` where none does.
    pub fn room(&self, now: u64, panic: bool) -> (u32, Option<Reason>) {
        let mut room = (u32::MAX, None);
        let mut at_most = |limit: u32, reason: Reason| {
            if limit < room.0 {
                room = (limit, Some(reason));
            }
        };
        if self.state.full_until.load(Ordering::Relaxed) > now {
            at_most(0, Reason::Status);
        }
        if !panic && self.state.record.is_on_probation() {
            at_most(1, Reason::Probation);
        }
        for signal in self.signals.iter() {
            if let Room::UpTo(limit) = signal.room(&self.state, now) {
                at_most(limit, signal.reason());
            }
        }
        room
    }

    /// Why no further request may go to it, if that is so.
    pub fn closed(&self, now: u64, panic: bool) -> Option<Closed> {
        if self.state.is_drained() {
            return Some(Closed::Drained);
        }
        if !self.state.is_healthy() {
            return Some(Closed::Unhealthy);
        }
        if !panic && self.state.record.is_ejected(now) {
            return Some(Closed::Ejected);
        }
        match self.room(now, panic) {
            (room, Some(reason)) if self.state.in_flight() >= room => Some(Closed::Full(reason)),
            _ => None,
        }
    }

    /// Whether it may be picked: available and with room, as far as is known without taking a slot.
    pub fn is_open(&self, now: u64, panic: bool) -> bool {
        self.is_available(now, panic) && self.state.in_flight() < self.room(now, panic).0
    }

    /// The part of its share that it takes: less than 1 while it starts slowly.
    pub fn warmth(&self, now: u64) -> f64 {
        let since = self.state.since();
        let passed = now.saturating_sub(since);
        if since == 0 || passed >= self.slow_start {
            return 1.0;
        }
        #[allow(clippy::cast_precision_loss, reason = "both are far below 2^52 milliseconds")]
        let part = passed as f64 / self.slow_start as f64;
        part.max(LEAST_SHARE)
    }

    /// A first token, or the head of an answer that is no stream, has come `took` after its attempt began; `at_start`
    /// requests were in flight then.
    pub fn answered_in(&self, class: Class, took: Duration, at_start: u32, now: u64) {
        self.state.latency.observe(took, now);
        self.state.record.took(took, now);
        for signal in self.signals.iter() {
            signal.observe(&self.state, class, took, at_start, now);
        }
    }

    /// What the server said of itself in an answer.
    pub fn reported(&self, report: &super::LoadReport, now: u64) {
        self.state.reported(report, now);
    }
}

/// The states of all endpoints of the process, found again by key while a snapshot holds them.
#[derive(Default)]
pub struct Endpoints {
    states: Mutex<HashMap<EndpointKey, Weak<EndpointState>>>,
    backends: Mutex<HashMap<String, Weak<Siblings>>>,
}

impl Endpoints {
    /// The state kept for `key`, or a new one. `listener` waits for room at the backend.
    pub fn get_or_insert(
        &self,
        key: &EndpointKey,
        listener: &Arc<dyn RoomListener>,
        make: impl FnOnce(Arc<Siblings>) -> EndpointState,
    ) -> Arc<EndpointState> {
        let mut states = self.states.lock();
        if let Some(state) = states.get(key).and_then(Weak::upgrade) {
            return state;
        }
        states.retain(|_, state| state.strong_count() > 0);
        let state = Arc::new(make(self.siblings(&key.backend, listener)));
        states.insert(key.clone(), Arc::downgrade(&state));
        state
    }

    fn siblings(&self, backend: &str, listener: &Arc<dyn RoomListener>) -> Arc<Siblings> {
        let mut backends = self.backends.lock();
        if let Some(siblings) = backends.get(backend).and_then(Weak::upgrade) {
            return siblings;
        }
        backends.retain(|_, siblings| siblings.strong_count() > 0);
        let siblings = Arc::new(Siblings::new(listener.clone()));
        backends.insert(backend.to_owned(), Arc::downgrade(&siblings));
        siblings
    }
}
