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
