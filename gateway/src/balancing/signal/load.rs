//! Load that servers report in their metrics or answers: waiting requests, and use of the KV cache. A figure is as old as
//! its reading, and by an old figure every request would go to the same server. So requests that were sent since the
//! reading are added to it.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::{Reason, SaturationSignal, SlotLimit};
use crate::balancing::EndpointState;
use crate::clock::millis;

/// Age from which on a report does not count, where `queueDepth.staleAfter` is not set: three scrapes at the default interval
/// of one second.
pub(super) const REPORT_STALE_AFTER: Duration = Duration::from_secs(3);

/// Load that a server reports.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LoadReport {
    /// Waiting requests.
    pub waiting: Option<u32>,
    /// Used share of the KV cache, 0 to 1.
    pub kv_cache: Option<f64>,
}

/// The last figures of an endpoint. Each is one word with its age, so that no reader sees half of a change.
#[derive(Debug, Default)]
pub(crate) struct LoadState {
    waiting: Figure,
    /// Used share in hundredths of a percent.
    kv_cache: Figure,
    /// Requests of this gateway in flight at the last reading of `waiting`.
    in_flight_then: AtomicU32,
    /// Most requests of this gateway in flight while none waited.
    without_wait: AtomicU32,
}

/// 24 bits of value and 40 bits of milliseconds (34 years); all zero is none.
#[derive(Debug, Default)]
struct Figure(AtomicU64);

const TIME_BITS: u32 = 40;
const MAX_VALUE: u32 = (1 << (64 - TIME_BITS)) - 1;

impl Figure {
    fn set(&self, value: u32, now: u64) {
        let time = now & ((1 << TIME_BITS) - 1);
        self.0.store((u64::from(value.min(MAX_VALUE)) << TIME_BITS) | time, Ordering::Relaxed);
    }

    /// Time for which the figure still counts.
    fn fresh_for(&self, now: u64, stale_after: u64) -> Duration {
        let at = self.0.load(Ordering::Relaxed) & ((1 << TIME_BITS) - 1);
        Duration::from_millis((at + stale_after + 1).saturating_sub(now))
    }

    fn get(&self, now: u64, stale_after: u64) -> Option<u32> {
        let word = self.0.load(Ordering::Relaxed);
        let at = word & ((1 << TIME_BITS) - 1);
        let fresh = word != 0 && now.saturating_sub(at) <= stale_after;
        fresh.then(|| u32::try_from(word >> TIME_BITS).unwrap_or(MAX_VALUE))
    }
}

impl LoadState {
    /// Records a report of `now`, with `in_flight` requests of this gateway at the server.
    pub(crate) fn set(&self, report: &LoadReport, in_flight: u32, now: u64) {
        if let Some(waiting) = report.waiting {
            self.in_flight_then.store(in_flight, Ordering::Relaxed);
            let known = self.without_wait.load(Ordering::Relaxed);
            // A limit that was good once is forgotten gradually where requests wait at less.
            let known = if waiting == 0 { known.max(in_flight) } else { known.min(in_flight.saturating_mul(2)) };
            self.without_wait.store(known, Ordering::Relaxed);
            self.waiting.set(waiting, now);
        }
        if let Some(share) = report.kv_cache {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
            self.kv_cache.set((share.clamp(0.0, 1.0) * 10_000.0) as u32, now);
        }
    }

    /// Waiting requests at the last reading, if that is fresh.
    pub(crate) fn waiting(&self, now: u64, stale_after: u64) -> Option<u32> {
        self.waiting.get(now, stale_after)
    }

    /// Used share of the KV cache at the last reading, if that is fresh.
    pub(crate) fn kv_cache(&self, now: u64, stale_after: u64) -> Option<f64> {
        self.kv_cache.get(now, stale_after).map(|share| f64::from(share) / 10_000.0)
    }

    /// Waiting requests, with those that were sent since the last reading, if that is fresh.
    pub(crate) fn backlog(&self, in_flight: u32, now: u64, stale_after: u64) -> Option<u32> {
        let waiting = self.waiting(now, stale_after)?;
        Some(waiting.saturating_add(in_flight).saturating_sub(self.in_flight_then.load(Ordering::Relaxed)))
    }

    /// Requests of this gateway that may be in flight while about `max` wait.
    fn room(&self, max: u32, now: u64, stale_after: u64) -> Option<u32> {
        let waiting = self.waiting(now, stale_after)?;
        let then = self.in_flight_then.load(Ordering::Relaxed);
        Some(if waiting == 0 {
            // The server does not report how many more it could run: at least as many as once. Beyond that the limit
            // doubles with each reading without waiting requests.
            let known = self.without_wait.load(Ordering::Relaxed);
            known.max(then.saturating_mul(2)).saturating_add(max)
        } else {
            then.saturating_add(max).saturating_sub(waiting)
        })
    }
}

/// `capacity.queueDepth`.
pub(crate) struct QueueDepth {
    max: u32,
    stale_after: u64,
}

impl QueueDepth {
    /// Signal that is full when `max` requests wait.
    pub(crate) fn new(max: NonZeroU32, stale_after: Duration) -> Self {
        Self { max: max.get(), stale_after: millis(stale_after) }
    }
}

impl SaturationSignal for QueueDepth {
    fn reason(&self) -> Reason {
        Reason::QueueDepth
    }
    fn room(&self, e: &EndpointState, now: u64) -> SlotLimit {
        e.load.room(self.max, now, self.stale_after).map_or(SlotLimit::Unknown, SlotLimit::UpTo)
    }
    fn expires_in(&self, e: &EndpointState, now: u64) -> Option<Duration> {
        Some(e.load.waiting.fresh_for(now, self.stale_after))
    }
}

/// `capacity.kvCache`.
pub(crate) struct KvCache {
    max: f64,
    stale_after: u64,
}

impl KvCache {
    /// Signal that is full at this share.
    pub(crate) fn new(max: f64, stale_after: Duration) -> Self {
        Self { max, stale_after: millis(stale_after) }
    }
}

impl SaturationSignal for KvCache {
    fn reason(&self) -> Reason {
        Reason::KvCache
    }
    fn room(&self, e: &EndpointState, now: u64) -> SlotLimit {
        match e.load.kv_cache(now, self.stale_after) {
            Some(share) if share >= self.max => SlotLimit::UpTo(0),
            _ => SlotLimit::Unknown,
        }
    }
    fn expires_in(&self, e: &EndpointState, now: u64) -> Option<Duration> {
        Some(e.load.kv_cache.fresh_for(now, self.stale_after))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(count: u32) -> LoadReport {
        LoadReport { waiting: Some(count), kv_cache: None }
    }

    #[test]
    fn a_stale_figure_says_nothing() {
        let load = LoadState::default();
        assert_eq!(load.room(4, 1_000, 3_000), None, "none was read yet");
        load.set(&waiting(9), 5, 1_000);
        assert_eq!(load.room(4, 4_000, 3_000), Some(0));
        assert_eq!(load.room(4, 4_001, 3_000), None);
        assert_eq!(load.kv_cache(1_000, 3_000), None, "the one does not stand for the other");
    }

    #[test]
    fn what_was_sent_since_the_reading_counts() {
        let load = LoadState::default();
        load.set(&waiting(1), 10, 1_000);
        assert_eq!(load.room(4, 1_000, 3_000), Some(13), "three more may wait");
        assert_eq!(load.backlog(12, 1_000, 3_000), Some(3));
        assert_eq!(load.backlog(2, 1_000, 3_000), Some(0));
    }

    #[test]
    fn an_idle_server_is_filled_by_doubling_and_remembers_what_it_could() {
        let load = LoadState::default();
        let mut in_flight = 0;
        let mut history = Vec::new();
        for reading in 1..8 {
            load.set(&waiting(u32::try_from((in_flight as i64 - 64).max(0)).unwrap()), in_flight, reading * 1_000);
            in_flight = load.room(4, reading * 1_000, 3_000).unwrap();
            history.push(in_flight);
        }
        // 64 fit; the eighth reading finds more than four waiting and lets no further one in.
        assert_eq!(history, [4, 12, 28, 60, 124, 68, 68]);
        load.set(&waiting(0), 1, 20_000);
        assert!(load.room(4, 20_000, 3_000).unwrap() >= 64, "no second slow ascent");
    }

    #[test]
    fn a_full_kv_cache_is_full_whatever_waits() {
        let load = LoadState::default();
        load.set(&LoadReport { waiting: Some(0), kv_cache: Some(0.955) }, 1, 1_000);
        assert_eq!(load.kv_cache(1_000, 3_000), Some(0.955));
        load.set(&LoadReport { waiting: None, kv_cache: Some(7.0) }, 1, 1_000);
        assert_eq!(load.kv_cache(1_000, 3_000), Some(1.0), "what a server says is bounded");
    }
}
