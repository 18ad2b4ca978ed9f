//! What may happen at any rate is told at a bounded one, with how often it happened since.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Nothing is told again sooner.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Something that is told at once and then once a minute at most.
#[derive(Debug, Default)]
pub struct Seldom(Mutex<Told>);

#[derive(Debug, Default)]
struct Told {
    at: Option<Instant>,
    times: u64,
}

impl Seldom {
    /// It has happened so often. `tell` is called where it is time, with how often it has happened since it was told.
    pub fn add(&self, times: u64, tell: impl FnOnce(u64)) {
        // Whoever else is telling has told enough.
        let Some(mut told) = self.0.try_lock() else { return };
        told.times = told.times.saturating_add(times);
        if told.at.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
            tell(told.times);
            *told = Told { at: Some(Instant::now()), times: 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_told_at_once_and_the_others_together() {
        let seldom = Seldom::default();
        let told = Mutex::new(Vec::new());
        let add = |times| seldom.add(times, |times| told.lock().push(times));
        (1..=4).for_each(add);
        seldom.0.lock().at = Instant::now().checked_sub(TELL_EVERY);
        (5..=6).for_each(add);
        assert_eq!(*told.lock(), [1, 2 + 3 + 4 + 5]);
    }
}
