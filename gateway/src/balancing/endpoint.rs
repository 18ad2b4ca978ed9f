//! A server of a backend: the part that a snapshot fixes, and the state that outlives snapshots.
//!
//! State has one owner, the table of endpoints by key. Snapshots hold references, so that a reload keeps the counts of
//! endpoints that did not change. Callers read time from [`now_millis`] and pass it in, so that tests need not wait.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use spillway_config::values::ServerUrl;

use super::health::ServedModels;
use super::latency::{Class, Ewma};
use super::outlier::Record;
use super::signal::{LimiterState, LoadState, Reason, SaturationSignal, SlotLimit};
use crate::batch::{LineCount, Seat};
use crate::clock::{millis, now_millis};
use crate::connect::{Connections, EndpointKey, Peer};
use crate::telemetry::{EndpointMetrics, LogThrottle};

/// Listener for changes of what the endpoints of a backend accept, other than the release of a slot.
pub trait RoomListener: Send + Sync {
    /// There may be room for one request or more; or no endpoint is available any more, which waiters notice as they look
    /// for one.
    fn may_have_room(&self);

    /// An endpoint is not available any more, which every waiter must check.
    fn lost(&self) {
        self.may_have_room();
    }
}

/// State that the endpoints of a backend share.
#[derive(Default)]
pub struct Siblings {
    in_flight: AtomicU32,
    /// Lines of batches at all endpoints.
    lines: LineCount,
    /// Listener that wakes waiters.
    listener: Option<Arc<dyn RoomListener>>,
}

impl Siblings {
    /// State of a backend that may have waiters.
    pub fn new(listener: Arc<dyn RoomListener>) -> Self {
        Self { in_flight: AtomicU32::new(0), lines: LineCount::default(), listener: Some(listener) }
    }
}

/// The state of an endpoint that outlives snapshots.
pub struct EndpointState {
    in_flight: AtomicU32,
    /// Lines of batches among them.
    lines: LineCount,
    siblings: Arc<Siblings>,
    /// Open connections to the endpoint.
    pub(super) connections: Arc<Connections>,
    /// End of the time for which an answer said that the endpoint is full, in [`now_millis`]; 0 for never.
    full_until: AtomicU64,
    healthy: AtomicBool,
    drained: AtomicBool,
    /// Begin of its slow start, in [`now_millis`]; 0 for none.
    since: AtomicU64,
    /// Errors and ejections.
    pub(super) record: Record,
    /// Smoothed latency.
    pub(super) latency: Ewma,
    /// State of the adaptive limit.
    pub(super) limiter: LimiterState,
    /// Load that the server reported: its queue and its KV cache.
    pub(super) load: LoadState,
    /// Models that the server said it has; `None` where it was not asked, or has not answered yet.
    models: ArcSwapOption<ServedModels>,
    /// Last failure.
    last_error: Mutex<Option<LastError>>,
    /// Bounds the log lines about failures.
    failures: LogThrottle,
    /// Metrics of the endpoint.
    pub metrics: Arc<EndpointMetrics>,
}

/// Last failure of an endpoint.
#[derive(Debug, Clone)]
pub struct LastError {
    /// Time of the failure.
    pub at: SystemTime,
    /// Cause, with its details.
    pub cause: String,
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
    /// Facts at `now`, without figures that the server reported more than `shown_for` milliseconds ago.
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

    /// State without requests; `healthy` is false for an endpoint that must pass a check first.
    pub fn new(metrics: Arc<EndpointMetrics>, healthy: bool, siblings: Arc<Siblings>) -> Self {
        metrics.set_healthy(healthy);
        Self {
            in_flight: AtomicU32::new(0),
            lines: LineCount::default(),
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
            models: ArcSwapOption::empty(),
            last_error: Mutex::default(),
            failures: LogThrottle::default(),
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

    /// Takes a place for a line of a batch that has a slot already: at the endpoint, which has room for `here`, and in its
    /// backend, which has room for `all`. `None` where lines have their `share` of the free slots.
    pub fn seat(&self, here: u32, all: u32, share: f64) -> Option<[Seat; 2]> {
        let seat = self.lines.take(here, self.in_flight(), share)?;
        Some([seat, self.siblings.lines.take(all, self.in_backend(), share)?])
    }

    /// True if the active check succeeds, or there is none.
    pub fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Relaxed)
    }

    /// Sets the result of the active check.
    pub fn set_healthy(&self, healthy: bool, now: u64) {
        let was = self.healthy.swap(healthy, Ordering::Relaxed);
        self.metrics.set_healthy(healthy);
        match (was, healthy) {
            (false, true) => self.returned(now),
            (true, false) => self.lost(),
            _ => {}
        }
    }

    /// True if an operator drained the endpoint.
    pub fn is_drained(&self) -> bool {
        self.drained.load(Ordering::Relaxed)
    }

    /// Drains the endpoint or returns it. False if that changes nothing.
    pub fn set_drained(&self, drained: bool, now: u64) -> bool {
        let was = self.drained.swap(drained, Ordering::Relaxed);
        match (was, drained) {
            (true, false) => self.returned(now),
            (false, true) => self.lost(),
            _ => {}
        }
        was != drained
    }

    /// Begins the slow start of an endpoint that is available again, and wakes waiters.
    pub(super) fn returned(&self, now: u64) {
        self.since.store(now, Ordering::Relaxed);
        self.may_have_room();
    }

    fn lost(&self) {
        if let Some(listener) = &self.siblings.listener {
            listener.lost();
        }
    }

    /// Wakes waiters: the endpoint may accept more, although no slot was released.
    pub(super) fn may_have_room(&self) {
        if let Some(listener) = &self.siblings.listener {
            listener.may_have_room();
        }
    }

    /// Models that the server said it has; `None` where it was not asked, or has not answered yet.
    pub fn models(&self) -> Option<Arc<ServedModels>> {
        self.models.load_full()
    }

    /// Replaces the list of the server's models.
    pub(super) fn set_models(&self, models: Option<Arc<ServedModels>>) {
        self.models.store(models);
    }

    /// Last failure; `None` where there was none.
    pub fn last_error(&self) -> Option<LastError> {
        self.last_error.lock().clone()
    }

    /// Records a failure for operators, without a judgement.
    pub fn note_error(&self, cause: String) {
        *self.last_error.lock() = Some(LastError { at: SystemTime::now(), cause });
    }

    /// Records the load that the server reported at `now`.
    pub(super) fn reported(&self, report: &super::LoadReport, now: u64) {
        self.load.set(report, self.in_flight(), now);
        self.may_have_room();
    }

    /// Begin of the slow start; 0 for none.
    pub fn since(&self) -> u64 {
        self.since.load(Ordering::Relaxed)
    }

    /// Records an answer that means full, for `time`. A shorter time does not cut a longer one.
    pub fn mark_full(&self, time: Duration) {
        self.full_until.fetch_max(now_millis().saturating_add(millis(time)), Ordering::Relaxed);
        self.metrics.full.inc();
    }

    /// Time for which the endpoint still counts as full by its answers; zero if it does not.
    pub fn full_for(&self, now: u64) -> Duration {
        Duration::from_millis(self.full_until.load(Ordering::Relaxed).saturating_sub(now))
    }

    /// Acquires a slot in one atomic step, so that `limit` is never passed.
    pub fn try_acquire(self: &Arc<Self>, limit: u32) -> Option<Slot> {
        self.try_acquire_within(limit, u32::MAX)
    }

    /// Acquires a slot where all endpoints of the backend together may have `in_backend` requests.
    pub(super) fn try_acquire_within(self: &Arc<Self>, limit: u32, in_backend: u32) -> Option<Slot> {
        one_more(&self.siblings.in_flight, in_backend)?;
        let Some(before) = one_more(&self.in_flight, limit) else {
            // A request that found the backend full meanwhile tries again when it has entered the queue.
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

/// Slot of a request at an endpoint, released when dropped.
pub struct Slot {
    state: Arc<EndpointState>,
    at_start: u32,
}

impl Slot {
    /// Requests in flight at the endpoint at the acquisition, this one included.
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

/// Reason for which an endpoint accepts no further request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// Drained by an operator.
    Drained,
    /// The active check fails.
    Unhealthy,
    /// Ejected by outlier detection.
    Ejected,
    /// No room.
    Full(Reason),
}

impl Closed {
    /// Name for spans and operators.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Drained => "drained",
            Self::Unhealthy => "unhealthy",
            Self::Ejected => "ejected",
            Self::Full(reason) => reason.as_str(),
        }
    }
}

/// A server of a backend, as a snapshot sees it.
pub struct Endpoint {
    /// Name of its backend.
    pub backend: Arc<str>,
    /// URL of the server.
    pub url: ServerUrl,
    /// Name for logs, metrics and operators: the URL, with the address where the URL has a name.
    pub address: String,
    /// Address for connections.
    pub socket: SocketAddr,
    /// Weight of its share of the requests.
    pub weight: u32,
    /// Tier: the lowest gets requests first.
    pub priority: u32,
    /// Signals that limit the requests in flight.
    pub signals: Arc<[Box<dyn SaturationSignal>]>,
    /// Time for which its share rises after a return, milliseconds; 0 for none.
    pub slow_start: u64,
    /// State that outlives snapshots.
    pub state: Arc<EndpointState>,
    /// Prepared target of connections.
    pub peer: Peer,
}

/// Least part of its share that an endpoint gets during slow start (as Envoy's `min_weight_percent`).
const LEAST_SHARE: f64 = 0.1;

impl Endpoint {
    /// True if the endpoint is available. In panic, ejections are ignored.
    pub fn is_available(&self, now: u64, panic: bool) -> bool {
        self.state.is_healthy() && !self.state.is_drained() && (panic || !self.state.record.is_ejected(now))
    }

    /// Limit on requests in flight now, and the signal that sets it; `u32::MAX` without one.
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
            if let SlotLimit::UpTo(limit) = signal.room(&self.state, now) {
                at_most(limit, signal.reason());
            }
        }
        room
    }

    /// Reason for which the endpoint accepts no further request, if there is one.
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

    /// True if the endpoint may be picked: available and with room, before a slot is acquired.
    pub fn is_open(&self, now: u64, panic: bool) -> bool {
        self.is_available(now, panic) && self.state.in_flight() < self.room(now, panic).0
    }

    /// Part of its share that the endpoint gets: less than 1 during slow start.
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

    /// Records a first token, or the head of an answer that is no stream, `took` after its attempt began with `at_start`
    /// requests in flight.
    pub fn answered_in(&self, class: Class, took: Duration, at_start: u32, now: u64) {
        self.state.latency.observe(took, now);
        self.state.record.took(took, now);
        for signal in self.signals.iter() {
            signal.observe(&self.state, class, took, at_start, now);
        }
    }

    /// Records and logs a failed attempt; a log line at most once a minute.
    pub fn failed(&self, cause: String) {
        self.state.failures.add(1, |times| {
            tracing::warn!(
                event = "endpoint_failed",
                backend = %self.backend,
                endpoint = %self.address,
                cause = %cause,
                times
            );
        });
        self.state.note_error(cause);
    }

    /// Records the load that the server reported in an answer.
    pub fn reported(&self, report: &super::LoadReport, now: u64) {
        self.state.reported(report, now);
    }
}

/// States of all endpoints of the process, found again by key while a snapshot holds them.
#[derive(Default)]
pub struct Endpoints {
    states: Mutex<Kept<EndpointKey, EndpointState>>,
    backends: Mutex<Kept<String, Siblings>>,
}

/// State that snapshots hold, by key.
struct Kept<K, T> {
    by_key: HashMap<K, Weak<T>>,
    /// Number of entries at which those that no snapshot holds are removed: twice what was left the last time, so that an
    /// entry costs the same however many there are.
    sweep_at: usize,
}

impl<K, T> Default for Kept<K, T> {
    fn default() -> Self {
        Self { by_key: HashMap::new(), sweep_at: LEAST_SWEPT }
    }
}

/// Number of entries up to which none is removed.
const LEAST_SWEPT: usize = 64;

impl<K: Eq + Hash + Clone, T> Kept<K, T> {
    fn get_or_insert<Q>(&mut self, key: &Q, make: impl FnOnce() -> T) -> Arc<T>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ToOwned<Owned = K> + ?Sized,
    {
        if let Some(kept) = self.by_key.get(key).and_then(Weak::upgrade) {
            return kept;
        }
        if self.by_key.len() >= self.sweep_at {
            self.by_key.retain(|_, kept| kept.strong_count() > 0);
            self.sweep_at = self.by_key.len().saturating_mul(2).max(LEAST_SWEPT);
        }
        let made = Arc::new(make());
        self.by_key.insert(key.to_owned(), Arc::downgrade(&made));
        made
    }

    fn sweep(&mut self) {
        self.by_key.retain(|_, kept| kept.strong_count() > 0);
        self.by_key.shrink_to_fit();
    }
}

impl Endpoints {
    /// Removes the entries whose states nobody holds any more: after a configuration was replaced.
    pub fn sweep(&self) {
        self.states.lock().sweep();
        self.backends.lock().sweep();
    }

    /// State kept for `key`, or a new one. `listener` wakes the waiters of the backend.
    pub fn get_or_insert(
        &self,
        key: &EndpointKey,
        listener: &Arc<dyn RoomListener>,
        make: impl FnOnce(Arc<Siblings>) -> EndpointState,
    ) -> Arc<EndpointState> {
        self.states.lock().get_or_insert(key, || make(self.siblings(&key.backend, listener)))
    }

    fn siblings(&self, backend: &str, listener: &Arc<dyn RoomListener>) -> Arc<Siblings> {
        self.backends.lock().get_or_insert(backend, || Siblings::new(listener.clone()))
    }
}
