//! Budget for retries and hedges, as a share of the requests. Without a budget, a backend that fails gets a multiple of the
//! load that made it fail. Each backend has one bucket, over all routes and snapshots, as in Finagle's `RetryBudget`. Each
//! request adds its route's share, each retry or hedge removes one. One per second is added too, so that a retry is
//! possible where requests are rare.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};

/// Units of one retry: shares are whole thousandths.
const ONE: i64 = 1_000;
/// Most units that are kept, 100 retries: savings of quiet times must not become a storm.
const MOST: i64 = 100 * ONE;
/// Units at the beginning, 10 retries.
const AT_FIRST: i64 = 10 * ONE;
/// Retries that a second adds, whatever the requests.
const PER_SECOND: u64 = 1;

/// Budget of a backend for retries and hedges.
pub struct RetryBudget {
    left: AtomicI64,
    /// Time up to which the seconds were counted, milliseconds.
    refilled: AtomicU64,
    /// Retries and hedges in flight.
    running: AtomicU32,
}

/// Permit for a retry or hedge in flight, until it is dropped.
pub struct Retrying(Arc<RetryBudget>);

impl Drop for Retrying {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { left: AtomicI64::new(AT_FIRST), refilled: AtomicU64::new(0), running: AtomicU32::new(0) }
    }
}

impl RetryBudget {
    /// Adds the share of a request: `thousandths` of a retry.
    pub fn request(&self, thousandths: i64) {
        self.add(thousandths);
    }

    /// Begins a retry or hedge, if one is left and fewer than `most` are in flight. `now` is in milliseconds, as
    /// [`crate::clock::now_millis`] reads it.
    pub fn begin(self: &Arc<Self>, now: u64, most: u32) -> Option<Retrying> {
        let more = |running: u32| if running < most { running.checked_add(1) } else { None };
        self.running.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        let retrying = Retrying(self.clone());
        self.take(now).then_some(retrying)
    }

    /// Retries and hedges in flight.
    pub fn running(&self) -> u32 {
        self.running.load(Ordering::Relaxed)
    }

    /// Removes one retry or hedge, if one is left. `now` is in milliseconds.
    fn take(&self, now: u64) -> bool {
        self.refill(now);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| (left >= ONE).then(|| left - ONE)).is_ok()
    }

    fn add(&self, amount: i64) {
        let _ = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            let more = left.saturating_add(amount).min(MOST);
            (more != left).then_some(more)
        });
    }

    fn refill(&self, now: u64) {
        let last = self.refilled.load(Ordering::Relaxed);
        let earned = now.saturating_sub(last).saturating_mul(PER_SECOND);
        // Only one of several that come at once counts the time.
        if earned > 0
            && self.refilled.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
            && last > 0
        {
            self.add(i64::try_from(earned).unwrap_or(MOST));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn retries_are_a_share_of_the_requests_beside_a_few() {
        let budget = RetryBudget::default();
        let now = 5_000;
        let taken = (0..1_000).filter(|_| {
            budget.request(200);
            budget.take(now)
        });
        assert_eq!(taken.count(), 10 + 200, "ten at first, a fifth of a thousand");
        assert!(!budget.take(now));
        assert!(!budget.take(now + 999) && budget.take(now + 1_000), "and one a second");
    }

    #[test]
    fn retries_in_flight_are_bounded_and_a_refused_one_spends_nothing() {
        let budget = Arc::new(RetryBudget::default());
        let first = budget.begin(1_000, 2);
        let second = budget.begin(1_000, 2);
        assert!(first.is_some() && second.is_some() && budget.begin(1_000, 2).is_none());
        drop(first);
        assert!(budget.begin(1_000, 2).is_some());
        assert!(budget.begin(1_000, 0).is_none(), "none at all");
        assert_eq!((0..100).filter(|_| budget.begin(1_000, 2).is_some()).count(), 10 - 3);
    }

    #[test]
    fn quiet_times_leave_a_bounded_rest() {
        let budget = RetryBudget::default();
        assert!(budget.take(1_000));
        for _ in 0..100_000 {
            budget.request(200);
        }
        assert_eq!((0..1_000).filter(|_| budget.take(1_000)).count(), 100);
    }

    proptest! {
        #[test]
        fn never_more_is_taken_than_was_put_in(steps in proptest::collection::vec((0i64..1_000, any::<bool>(), 0u64..500), 0..300)) {
            let budget = RetryBudget::default();
            let (mut put, mut taken, mut now) = (AT_FIRST, 0, 1_000);
            for (share, takes, passed) in steps {
                now += passed;
                budget.request(share);
                put += share + i64::try_from(passed).unwrap();
                if takes && budget.take(now) {
                    taken += ONE;
                }
                prop_assert!(taken <= put);
            }
        }
    }
}
