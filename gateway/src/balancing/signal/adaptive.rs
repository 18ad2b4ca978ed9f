//! A limit on requests in flight that is found from latency, for each endpoint by itself.
//!
//! Below the knee of a server latency does not depend on load; above it requests wait, and latency grows with each one
//! more. A limit is aimed at that lets latency grow half way to `latencyTolerance`: for a server that works on `c` requests
//! at a time and a tolerance of 2 that is 1.5 `c`, a short queue that keeps the server busy. Well below the aim the limit
//! grows by its square root for each window, near it by one; above it it gives back a quarter of what is too much, and
//! beyond the tolerance all of it, by the gradient `aim * baseline / latency` (the gradient limiters of Netflix,
//! github.com/Netflix/concurrency-limits, and of Envoy's adaptive concurrency filter, with a target between the two
//! sides instead of a growth that never ends: `limit * gradient + sqrt(limit)` ends far above the knee of a small server).
//!
//! A baseline that is learnt under load creeps upwards until every latency seems good. So it is only ever lowered by
//! what is measured under load, and measured anew where there is none: in windows with so few requests in flight that a
//! server whose limit is right has no queue. When no such window came for a while, one is made by holding the limit down:
//! to two thirds of what fills the server, for one window in fifty.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use spillway_config::schema;

use super::{Reason, Room, SaturationSignal};
use crate::balancing::EndpointState;
use crate::balancing::endpoint::millis;
use crate::balancing::latency::Class;

/// Samples of a window: enough that one slow answer does not decide.
const WINDOW_SAMPLES: u32 = 10;
/// Part of the way that one window under load lowers a baseline.
const LOWERED_BY: f64 = 0.125;
/// Shortest window, so that a fast server is not judged by some milliseconds.
const WINDOW_TIME: u64 = 50;
/// Windows after which a baseline that nothing confirmed is measured on purpose.
const CONFIRM_WITHIN: u32 = 50;
/// A window with at most `limit / (tolerance * DEPTH)` in flight is one without load. At a depth of 1 any limit would
/// confirm itself: twice too many in flight, half of them for the measurement, and the same ratio between the two.
const DEPTH: f64 = 1.5;
/// Least factor that a window shrinks the limit by.
const MOST_SHRINK: f64 = 0.5;
/// What a window shrinks the limit by that is above the aim and within the tolerance: the part of what is too much.
const GIVE_BACK: f64 = 0.25;
/// What a window with failures shrinks the limit by (AIMD).
const ON_FAILURE: f64 = 0.9;

/// `capacity.adaptive`.
pub(crate) struct Adaptive {
    min: f64,
    max: f64,
    tolerance: f64,
}

/// What is learnt of an endpoint. `limit` is for readers; who cannot have the lock at once loses a sample and waits for
/// nothing.
#[derive(Debug, Default)]
pub(crate) struct LimiterState {
    /// 0 while nothing was learnt.
    limit: AtomicU32,
    learnt: Mutex<Learnt>,
}

#[derive(Debug, Default)]
struct Learnt {
    limit: f64,
    /// Mean latency without load for each class, in seconds; 0 while unknown.
    baseline: [f64; 2],
    unconfirmed: u32,
    /// Whether the limit is held down to measure a baseline.
    probing: bool,
    window: Window,
}

#[derive(Debug, Default)]
struct Window {
    opened: u64,
    /// For each class: samples, and the sum of the logarithms of their seconds. The geometric mean keeps a few long
    /// prompts from looking like a queue.
    samples: [(u32, f64); 2],
    in_flight: u64,
    failures: u32,
}

impl LimiterState {
    /// The limit, once something was learnt.
    pub(crate) fn limit(&self) -> Option<u32> {
        Some(self.limit.load(Ordering::Relaxed)).filter(|limit| *limit > 0)
    }
}

impl Adaptive {
    /// A limiter with these bounds.
    pub(crate) fn new(written: &schema::Adaptive) -> Self {
        let min = f64::from(written.min_limit.get());
        Self { min, max: f64::from(written.max_limit.get()).max(min), tolerance: written.latency_tolerance }
    }

    fn clamp(&self, limit: f64) -> f64 {
        limit.clamp(self.min, self.max)
    }

    /// How many times the latency without load is aimed at.
    fn aim(&self) -> f64 {
        f64::midpoint(1.0, self.tolerance)
    }

    /// Requests in flight at which a server with this limit has no queue; below the least limit nothing can be measured.
    fn unloaded(&self, limit: f64) -> f64 {
        self.clamp(limit / (self.tolerance * DEPTH))
    }

    /// Closes a window that has seen enough.
    fn judge(&self, learnt: &mut Learnt, now: u64) {
        let window = &learnt.window;
        let count: u32 = window.samples.iter().map(|(count, _)| count).sum();
        let wanted = WINDOW_SAMPLES.max(f64_to_u32(learnt.limit));
        if count + window.failures < wanted || now.saturating_sub(window.opened) < WINDOW_TIME {
            return;
        }
        let window = std::mem::replace(&mut learnt.window, Window { opened: now, ..Window::default() });
        let failed = window.failures * 10 > count;
        if count == 0 {
            learnt.limit = self.clamp(learnt.limit * ON_FAILURE);
            return;
        }
        #[allow(clippy::cast_precision_loss, reason = "sums of small counts")]
        let in_flight = window.in_flight as f64 / f64::from(count);
        let without_load = in_flight <= self.unloaded(learnt.limit);
        // The worst ratio of the classes that were seen often enough decides.
        let mut ratio: f64 = 0.0;
        for ((samples, logs), baseline) in window.samples.iter().zip(&mut learnt.baseline) {
            if *samples == 0 {
                continue;
            }
            let mean = (logs / f64::from(*samples)).exp();
            if *baseline == 0.0 {
                *baseline = mean;
            } else if mean < *baseline && !without_load {
                // By chance, or because the server has become faster: a little each time, or noise would be a baseline.
                *baseline += (mean - *baseline) * LOWERED_BY;
            } else if without_load {
                // Half way: one window without load may have had the longer prompts.
                *baseline = f64::midpoint(*baseline, mean);
            }
            if samples * 4 >= count {
                ratio = ratio.max(mean / *baseline);
            }
        }
        if without_load {
            learnt.unconfirmed = 0;
        } else {
            learnt.unconfirmed = learnt.unconfirmed.saturating_add(1);
        }
        if learnt.probing {
            learnt.probing = false;
            learnt.unconfirmed = 0;
            return;
        }
        if failed {
            learnt.limit = self.clamp(learnt.limit * ON_FAILURE);
        } else if ratio > self.tolerance {
            learnt.limit = self.clamp(learnt.limit * (self.aim() / ratio).max(MOST_SHRINK));
        } else if ratio > self.aim() {
            let too_much = learnt.limit * (1.0 - self.aim() / ratio);
            learnt.limit = self.clamp(learnt.limit - too_much * GIVE_BACK);
        } else if in_flight * 2.0 >= learnt.limit {
            // A limit that nobody reaches tells nothing about a higher one.
            let step = if ratio > f64::midpoint(1.0, self.aim()) { 1.0 } else { learnt.limit.sqrt() };
            learnt.limit = self.clamp(learnt.limit + step);
        }
        learnt.probing = learnt.unconfirmed >= CONFIRM_WITHIN;
    }

    fn with(&self, state: &LimiterState, now: u64, take: impl FnOnce(&mut Learnt)) {
        let Some(mut learnt) = state.learnt.try_lock() else { return };
        if learnt.limit == 0.0 {
            learnt.limit = self.min;
            learnt.window.opened = now;
        }
        // The bounds may have been changed by a reload.
        learnt.limit = self.clamp(learnt.limit);
        take(&mut learnt);
        self.judge(&mut learnt, now);
        let shown = if learnt.probing { self.unloaded(learnt.limit) } else { learnt.limit };
        state.limit.store(f64_to_u32(shown).max(1), Ordering::Relaxed);
    }

    fn sample(&self, state: &LimiterState, class: Class, took: Duration, at_start: u32, now: u64) {
        self.with(state, now, |learnt| {
            // What began before the window did met another limit.
            if now.saturating_sub(millis(took)) < learnt.window.opened {
                return;
            }
            let place = match class {
                Class::FirstToken => 0,
                Class::Head => 1,
            };
            if let Some((count, logs)) = learnt.window.samples.get_mut(place) {
                *count += 1;
                *logs += took.as_secs_f64().max(1e-6).ln();
                learnt.window.in_flight += u64::from(at_start);
            }
        });
    }

    fn failure(&self, state: &LimiterState, now: u64) {
        self.with(state, now, |learnt| learnt.window.failures += 1);
    }

    fn limit(&self, state: &LimiterState) -> u32 {
        let limit = state.limit().map_or(self.min, f64::from);
        f64_to_u32(self.clamp(limit))
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturating is what is wanted")]
fn f64_to_u32(value: f64) -> u32 {
    value as u32
}

impl SaturationSignal for Adaptive {
    fn reason(&self) -> Reason {
        Reason::Adaptive
    }
    fn room(&self, e: &EndpointState, _: u64) -> Room {
        Room::UpTo(self.limit(&e.limiter))
    }
    fn observe(&self, e: &EndpointState, class: Class, took: Duration, at_start: u32, now: u64) {
        let before = self.limit(&e.limiter);
        self.sample(&e.limiter, class, took, at_start, now);
        if self.limit(&e.limiter) > before {
            e.may_have_room();
        }
    }
    fn failed(&self, e: &EndpointState, now: u64) {
        self.failure(&e.limiter, now);
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;
    use std::collections::{BinaryHeap, VecDeque};

    use rand::{RngExt, SeedableRng};

    use super::*;

    /// A server that works on `slots` requests at a time, first come first served.
    struct Server {
        slots: usize,
        service: f64,
        /// Share of the requests whose service takes twenty times as long.
        long: f64,
        /// How far the service of the others differs, to both sides.
        noise: f64,
        waiting: VecDeque<(u64, u32)>,
        running: BinaryHeap<Reverse<(u64, u64, u32)>>,
        rng: rand_chacha::ChaCha8Rng,
    }

    impl Server {
        fn new(slots: usize, service: f64) -> Self {
            let rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
            Self { slots, service, long: 0.0, noise: 0.3, waiting: VecDeque::new(), running: BinaryHeap::new(), rng }
        }
        fn in_flight(&self) -> u32 {
            u32::try_from(self.waiting.len() + self.running.len()).unwrap()
        }
        fn begin(&mut self, now: u64) {
            while self.running.len() < self.slots
                && let Some((arrived, at_start)) = self.waiting.pop_front()
            {
                let long = if self.rng.random::<f64>() < self.long { 20.0 } else { 1.0 };
                let took = self.service * self.rng.random_range(1.0 - self.noise..1.0 + self.noise) * long;
                self.running.push(Reverse((now + took as u64, arrived, at_start)));
            }
        }
    }

    /// Offers requests without end, as many as the limit lets in (or `offered`), for some milliseconds. Gives the limits
    /// as they were every 100 ms, and how many requests were answered.
    fn run(
        limiter: &Adaptive,
        state: &LimiterState,
        server: &mut Server,
        time: std::ops::Range<u64>,
        offered: u32,
    ) -> (Vec<u32>, usize) {
        let (mut limits, mut answered) = (Vec::new(), 0);
        for now in time {
            while server.running.peek().is_some_and(|Reverse((end, _, _))| *end <= now) {
                let Reverse((_, arrived, at_start)) = server.running.pop().unwrap();
                answered += 1;
                limiter.sample(state, Class::Head, Duration::from_millis(now - arrived), at_start, now);
                server.begin(now);
            }
            while server.in_flight() < limiter.limit(state).min(offered) {
                let at_start = server.in_flight() + 1;
                server.waiting.push_back((now, at_start));
                server.begin(now);
            }
            if now % 100 == 0 {
                limits.push(limiter.limit(state));
            }
        }
        (limits, answered)
    }

    fn limiter(tolerance: f64) -> Adaptive {
        Adaptive { min: 2.0, max: 1_000.0, tolerance }
    }

    fn typical(limits: &[u32]) -> f64 {
        let mut half = limits[limits.len() / 2..].to_vec();
        half.sort_unstable();
        f64::from(half[half.len() / 2])
    }

    #[test]
    fn it_finds_the_knee_and_keeps_the_server_busy() {
        for (slots, tolerance) in [(4, 2.0), (16, 2.0), (16, 1.3), (100, 2.0), (100, 1.5)] {
            let mut server = Server::new(slots, 40.0);
            let (limits, answered) = run(&limiter(tolerance), &LimiterState::default(), &mut server, 1..120_000, 5_000);
            let knee = slots as f64;
            let found = typical(&limits);
            assert!((knee * 0.9..=knee * tolerance).contains(&found), "{slots} {tolerance}: {found}");
            let best = knee * 120_000.0 / 40.0;
            assert!(answered as f64 > best * 0.9, "{slots} {tolerance}: {answered} of {best}");
        }
    }

    #[test]
    fn the_baseline_does_not_creep_under_load_that_never_ends() {
        let mut server = Server::new(16, 40.0);
        let (limits, _) = run(&limiter(2.0), &LimiterState::default(), &mut server, 1..1_200_000, 5_000);
        for (n, part) in limits.chunks(2_000).enumerate() {
            let found = typical(part);
            assert!((14.0..=45.0).contains(&found), "after {} s: {found}", n * 200);
        }
    }

    #[test]
    fn it_follows_a_server_that_becomes_slower_or_smaller() {
        let (limiter, state) = (limiter(2.0), LimiterState::default());
        let mut server = Server::new(64, 40.0);
        let (limits, _) = run(&limiter, &state, &mut server, 1..60_000, 5_000);
        assert!((58.0..=170.0).contains(&typical(&limits)), "{}", typical(&limits));
        server.slots = 8;
        let (limits, _) = run(&limiter, &state, &mut server, 60_000..180_000, 5_000);
        assert!((7.0..=24.0).contains(&typical(&limits)), "{}", typical(&limits));
        // Longer answers are no queue: the limit comes back to where they do not wait.
        server.service = 160.0;
        server.slots = 64;
        let (limits, answered) = run(&limiter, &state, &mut server, 180_000..600_000, 5_000);
        assert!((58.0..=170.0).contains(&typical(&limits)), "{}", typical(&limits));
        assert!(answered as f64 > 0.7 * 64.0 * 420_000.0 / 160.0, "{answered}");
    }

    #[test]
    fn a_small_server_has_a_small_queue_whatever_the_noise() {
        for (slots, noise, long) in
            [4, 16, 64].into_iter().flat_map(|slots| [(slots, 0.05, 0.0), (slots, 0.9, 0.0), (slots, 0.3, 0.05)])
        {
            for seed in 0..4 {
                let rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
                let mut server = Server { noise, long, rng, ..Server::new(slots, 40.0) };
                let (limits, answered) = run(&limiter(2.0), &LimiterState::default(), &mut server, 1..240_000, 5_000);
                let (knee, found) = (slots as f64, typical(&limits));
                assert!((knee..=knee * 2.0).contains(&found), "{slots} {noise} {long} {seed}: {found}");
                let mean = 40.0 * (1.0 - long + long * 20.0);
                let best = knee * 240_000.0 / mean;
                assert!(answered as f64 > best * 0.85, "{slots} {noise} {long} {seed}: {answered} of {best}");
            }
        }
    }

    #[test]
    fn heavy_tails_do_not_look_like_a_queue() {
        let mut server = Server::new(32, 40.0);
        server.long = 0.05;
        let (limits, answered) = run(&limiter(2.0), &LimiterState::default(), &mut server, 1..300_000, 5_000);
        assert!(typical(&limits) >= 28.0, "{}", typical(&limits));
        let best = 32.0 * 300_000.0 / (40.0 * (0.95 + 0.05 * 20.0));
        assert!(answered as f64 > best * 0.85, "{answered} of {best}");
    }

    #[test]
    fn it_does_not_grow_where_nobody_asks_and_shrinks_where_answers_fail() {
        let (limiter, state) = (limiter(2.0), LimiterState::default());
        let mut server = Server::new(64, 40.0);
        let (limits, _) = run(&limiter, &state, &mut server, 1..30_000, 6);
        assert!(typical(&limits) <= 16.0, "{}", typical(&limits));
        let before = limiter.limit(&state);
        for n in 0..200 {
            limiter.failure(&state, 40_000 + n * 20);
        }
        assert!(limiter.limit(&state) < before);
        assert_eq!(limiter.limit(&state), 2, "and no further than the least");
    }

    #[test]
    fn it_is_the_same_for_the_same_seed() {
        let once = || run(&limiter(2.0), &LimiterState::default(), &mut Server::new(16, 40.0), 1..20_000, 5_000).0;
        assert_eq!(once(), once());
    }

    proptest::proptest! {
        #[test]
        fn it_stays_within_its_bounds_whatever_is_seen(
            seen in proptest::collection::vec((0u64..100_000, 0u64..2_000, 0u32..5_000, proptest::bool::ANY), 1..400)
        ) {
            let limiter = Adaptive { min: 3.0, max: 40.0, tolerance: 1.5 };
            let state = LimiterState::default();
            let mut now = 1;
            for (took, passed, at_start, good) in seen {
                now += passed;
                if good {
                    limiter.sample(&state, Class::FirstToken, Duration::from_millis(took), at_start, now);
                } else {
                    limiter.failure(&state, now);
                }
                proptest::prop_assert!((3..=40).contains(&limiter.limit(&state)));
            }
        }
    }
}
