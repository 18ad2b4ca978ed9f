//! Bound on repeated log lines: a repeating event is logged at most once a minute, with its count.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Shortest time between two lines of one event. A minute shows that the event goes on and fills no disk.
const INTERVAL: Duration = Duration::from_secs(60);

/// Logs a repeating event: the first at once, further ones at most once a minute with their count.
#[derive(Debug, Default)]
pub struct LogThrottle(Mutex<PendingReport>);

/// Events since the last line.
#[derive(Debug, Default)]
struct PendingReport {
    logged_at: Option<Instant>,
    times: u64,
}

impl LogThrottle {
    /// Counts `times` events. Calls `log` with the count since the last line, unless that line is less than a minute old.
    pub fn add(&self, times: u64, log: impl FnOnce(u64)) {
        // Another thread is logging the same event: one line is enough.
        let Some(mut pending) = self.0.try_lock() else { return };
        pending.times = pending.times.saturating_add(times);
        if pending.logged_at.is_none_or(|at| at.elapsed() >= INTERVAL) {
            log(pending.times);
            *pending = PendingReport { logged_at: Some(Instant::now()), times: 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_event_is_logged_at_once_and_the_others_together() {
        let throttle = LogThrottle::default();
        let logged = Mutex::new(Vec::new());
        let add = |times| throttle.add(times, |times| logged.lock().push(times));
        (1..=4).for_each(add);
        throttle.0.lock().logged_at = Instant::now().checked_sub(INTERVAL);
        (5..=6).for_each(add);
        assert_eq!(*logged.lock(), [1, 2 + 3 + 4 + 5]);
    }
}
