//! Signals of saturation. Each signal limits the requests in flight at an endpoint, or knows no limit. The least limit
//! counts, and a slot is acquired against it in one atomic step. Stale evidence is `Unknown`, never "full": then the other
//! signals decide.

mod adaptive;
mod load;

use std::num::NonZeroU32;
use std::time::Duration;

use spillway_config::schema::Capacity;

pub(crate) use self::adaptive::{Adaptive, LimiterState};
pub use self::load::LoadReport;
pub(crate) use self::load::{KvCache, LoadState, QueueDepth};
use super::EndpointState;
use super::latency::Class;
use crate::connect::MAX_STREAMS;

/// Limit that one signal sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotLimit {
    /// No evidence, or none that is fresh.
    Unknown,
    /// Most requests in flight.
    UpTo(u32),
}

/// Signal by which an endpoint is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// `capacity.maxInFlight`.
    MaxInFlight,
    /// `capacity.maxConnections`.
    MaxConnections,
    /// `capacity.adaptive`.
    Adaptive,
    /// `capacity.queueDepth`.
    QueueDepth,
    /// `capacity.kvCache`.
    KvCache,
    /// `capacity.statuses`.
    Status,
    /// Probation after an ejection: one request at a time until one succeeds.
    Probation,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Self; 7] = [
        Self::MaxInFlight,
        Self::MaxConnections,
        Self::Adaptive,
        Self::QueueDepth,
        Self::KvCache,
        Self::Status,
        Self::Probation,
    ];

    /// Name, as in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MaxInFlight => "maxInFlight",
            Self::MaxConnections => "maxConnections",
            Self::Adaptive => "adaptive",
            Self::QueueDepth => "queueDepth",
            Self::KvCache => "kvCache",
            Self::Status => "status",
            Self::Probation => "probation",
        }
    }
}

/// Limits the requests in flight at an endpoint from one kind of evidence, and learns from outcomes. Learnt values are kept
/// in the state of the endpoint, so that they outlive a reload.
pub trait SaturationSignal: Send + Sync {
    /// Reason that the signal gives.
    fn reason(&self) -> Reason;
    /// Limit on requests in flight at `now`.
    fn room(&self, e: &EndpointState, now: u64) -> SlotLimit;
    /// Records a first token or head, `took` after its attempt began with `at_start` requests in flight.
    fn observe(&self, _e: &EndpointState, _class: Class, _took: Duration, _at_start: u32, _now: u64) {}
    /// Time until the present limit does not count any more, if time alone ends it.
    fn expires_in(&self, _e: &EndpointState, _now: u64) -> Option<Duration> {
        None
    }
    /// Records an attempt that failed, or was answered with "full".
    fn failed(&self, _e: &EndpointState, _now: u64) {}
}

/// Age at which a report of load no longer counts.
pub(super) fn stale_after(capacity: &Capacity) -> Duration {
    capacity.queue_depth.as_ref().map_or(load::REPORT_STALE_AFTER, |queue| queue.stale_after.0)
}

/// Signals for the capacity of a backend.
pub fn signals(capacity: &Capacity) -> Vec<Box<dyn SaturationSignal>> {
    let mut signals: Vec<Box<dyn SaturationSignal>> = Vec::new();
    if let Some(max) = capacity.max_in_flight {
        signals.push(Box::new(MaxInFlight(max)));
    }
    if let Some(adaptive) = &capacity.adaptive {
        signals.push(Box::new(Adaptive::new(adaptive)));
    }
    let stale_after = stale_after(capacity);
    if let Some(queue) = &capacity.queue_depth {
        signals.push(Box::new(QueueDepth::new(queue.max, stale_after)));
    }
    if let Some(kv) = &capacity.kv_cache {
        signals.push(Box::new(KvCache::new(kv.max, stale_after)));
    }
    signals
}

/// `capacity.maxConnections` as a limit on requests: HTTP/1.1 needs a connection for each, HTTP/2 puts many on one. Where a
/// server takes fewer of them than we ask for, the connection that is one too many is refused when it is opened.
pub(super) fn connection_limit(most: NonZeroU32, http2: bool) -> Box<dyn SaturationSignal> {
    Box::new(MaxConnections(most.get().saturating_mul(if http2 { MAX_STREAMS } else { 1 })))
}

struct MaxConnections(u32);

impl SaturationSignal for MaxConnections {
    fn reason(&self) -> Reason {
        Reason::MaxConnections
    }
    fn room(&self, _: &EndpointState, _: u64) -> SlotLimit {
        SlotLimit::UpTo(self.0)
    }
}

/// A fixed limit.
pub(crate) struct MaxInFlight(NonZeroU32);

impl SaturationSignal for MaxInFlight {
    fn reason(&self) -> Reason {
        Reason::MaxInFlight
    }
    fn room(&self, _: &EndpointState, _: u64) -> SlotLimit {
        SlotLimit::UpTo(self.0.get())
    }
}
