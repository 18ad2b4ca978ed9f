//! The rate at which waiters get slots: over the recent past, and measured only while somebody waits, because an idle queue
//! says nothing about its servers.

use std::time::Duration;

use tokio::time::Instant;

/// Memory of the rate: events of this age have a weight of 1/e.
const MEMORY: Duration = Duration::from_secs(10);

/// Least weight of evidence, in admissions, that may turn a request away.
const ENOUGH: f64 = 3.0;

/// Admissions, and seconds in which somebody waited, both decayed exponentially.
#[derive(Debug, Default)]
pub(super) struct DrainRate {
    admitted: f64,
    /// Seconds in which somebody waited.
    waited: f64,
    /// Time up to which both are counted.
    at: Option<Instant>,
}

impl DrainRate {
    /// Counts the time up to `now`, in which somebody waited or nobody did.
    pub(super) fn pass(&mut self, now: Instant, somebody_waited: bool) {
        let Some(at) = self.at.replace(now) else { return };
        let passed = now.saturating_duration_since(at).as_secs_f64() / MEMORY.as_secs_f64();
        let kept = (-passed).exp();
        self.admitted *= kept;
        self.waited *= kept;
        if somebody_waited {
            // The integral of the decay over the time that passed.
            self.waited += MEMORY.as_secs_f64() * (1.0 - kept);
        }
    }

    /// Counts a waiter that was admitted.
    pub(super) fn admitted(&mut self) {
        self.admitted += 1.0;
    }

    /// Time until `count` waiters are admitted, if anything is known.
    pub(super) fn time_for(&self, count: usize) -> Option<Duration> {
        // Less than half an admission left of the past is no knowledge.
        if self.admitted < 0.5 || self.waited <= 0.0 {
            return None;
        }
        #[allow(clippy::cast_precision_loss, reason = "a queue has some thousand waiters")]
        let seconds = count as f64 * self.waited / self.admitted;
        Duration::try_from_secs_f64(seconds).ok()
    }

    /// Time until `count` waiters are admitted, where enough is known to turn a request away.
    pub(super) fn sure_time_for(&self, count: usize) -> Option<Duration> {
        if self.admitted < ENOUGH { None } else { self.time_for(count) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    #[test]
    fn the_rate_counts_only_time_with_waiters() {
        let start = Instant::now();
        let mut rate = DrainRate::default();
        rate.pass(start, false);
        assert_eq!(rate.time_for(1), None, "nothing is known");
        for n in 1..=50 {
            rate.pass(at(start, n * 100), true);
            rate.admitted();
        }
        // Idle time changes the weight of the evidence, not what it says.
        for millis in [5_000, 7_000, 9_000] {
            rate.pass(at(start, millis), false);
            let ten = rate.time_for(10).unwrap().as_secs_f64();
            assert!((0.98..1.02).contains(&ten), "ten a second: {ten}");
            assert!(rate.sure_time_for(10).is_some());
        }
        rate.pass(at(start, 90_000), false);
        assert_eq!((rate.time_for(1), rate.sure_time_for(1)), (None, None), "the past is forgotten");
    }

    #[test]
    fn a_rate_that_changes_is_followed() {
        let start = Instant::now();
        let mut rate = DrainRate::default();
        rate.pass(start, false);
        let mut now = 0;
        for (step, count) in [(10, 1_000), (500, 120)] {
            for _ in 0..count {
                now += step;
                rate.pass(at(start, now), true);
                rate.admitted();
            }
        }
        let one = rate.time_for(1).unwrap().as_secs_f64();
        assert!((0.35..0.51).contains(&one), "two a second after a minute of it: {one}");
    }

    #[test]
    fn a_queue_without_free_slots_is_known_to_be_slow() {
        let start = Instant::now();
        let mut rate = DrainRate::default();
        rate.pass(start, false);
        for n in 1..=20 {
            rate.pass(at(start, n * 100), true);
            rate.admitted();
        }
        let before = rate.time_for(1).unwrap();
        rate.pass(at(start, 12_000), true);
        assert!(rate.time_for(1).unwrap() > before * 3, "{:?} after {before:?}", rate.time_for(1));
    }
}
