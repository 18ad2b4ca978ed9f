//! Levels of one rule by key, in a bounded number of shards, under governor's arithmetic. A level is the time at which
//! its key is full again. Keys that are full are forgotten first; past the bound the one that is full soonest is.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use ahash::RandomState;
use arc_swap::ArcSwap;
use governor::clock::{Clock, DefaultClock, QuantaInstant, Reference};
use governor::middleware::StateInformationMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::{Quota, RateLimiter};
use parking_lot::Mutex;

const SHARDS: usize = 16;
/// Keys of a shard: 65,536 callers for each rule, some four megabytes.
const KEYS: usize = 4096;

/// A rate and a burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limit {
    every: Duration,
    burst: NonZeroU32,
}

impl Limit {
    /// One request each `every`, `burst` at once; `None` for an interval below a nanosecond.
    pub(super) fn new(every: Duration, burst: NonZeroU32) -> Option<Self> {
        (!every.is_zero()).then_some(Self { every, burst })
    }

    fn full(self) -> u128 {
        self.every.as_nanos().saturating_mul(u128::from(self.burst.get()))
    }
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It took one.
    Taken {
        /// What is left now.
        remaining: u32,
        /// Time until all is back.
        reset: Duration,
    },
    /// It took nothing.
    Refused {
        /// Time until it would pass.
        wait: Duration,
        /// Time until all is back.
        reset: Duration,
    },
}

type Shard = Mutex<HashMap<u64, u64, RandomState>>;

/// Levels in nanoseconds since the limiter that counts them was made.
struct Levels([Shard; SHARDS]);

impl Levels {
    fn shard(&self, key: u64) -> Option<&Shard> {
        self.0.get(usize::try_from(key >> 32).unwrap_or(0) % SHARDS)
    }

    fn get(&self, key: u64) -> u64 {
        self.shard(key).and_then(|shard| shard.lock().get(&key).copied()).unwrap_or(0)
    }
}

/// The levels, as governor reads and writes them.
#[derive(Clone)]
struct Shared(Arc<Levels>);

impl StateStore for Shared {
    type Key = u64;
    fn measure_and_replace<T, F, E>(&self, key: &u64, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let Some(shard) = self.0.shard(*key) else { return f(None).map(|(value, _)| value) };
        let mut levels = shard.lock();
        let level = levels.get(key).copied();
        f(level.map(Nanos::from)).map(|(value, next)| {
            if level.is_none() && levels.len() >= KEYS {
                forget(&mut levels);
            }
            levels.insert(*key, next.into());
            value
        })
    }
}

/// Makes room: forgets the eighth of the keys that is full soonest, most of which are full by now.
fn forget(levels: &mut HashMap<u64, u64, RandomState>) {
    let mut times: Vec<u64> = levels.values().copied().collect();
    let (_, middle, _) = times.select_nth_unstable(KEYS / 8);
    let bound = *middle;
    levels.retain(|_, level| *level > bound);
}

type Limiter = RateLimiter<u64, Shared, DefaultClock, StateInformationMiddleware>;

struct Rule {
    limit: Limit,
    start: QuantaInstant,
    limiter: Limiter,
}

/// The levels of one rule with the limit that holds now.
pub(super) struct Store {
    clock: DefaultClock,
    levels: Shared,
    rule: ArcSwap<Rule>,
}

impl Store {
    pub(super) fn new(limit: Limit) -> Self {
        let clock = DefaultClock::default();
        let shards = std::array::from_fn(|_| Mutex::new(HashMap::with_hasher(RandomState::new())));
        let levels = Shared(Arc::new(Levels(shards)));
        let rule = ArcSwap::from_pointee(rule(limit, &levels, &clock));
        Self { clock, levels, rule }
    }

    /// Brings the levels to another limit, in proportion: who had half left has half left.
    pub(super) fn adopt(&self, limit: Limit) {
        let old = self.rule.load_full();
        if old.limit == limit {
            return;
        }
        let new = rule(limit, &self.levels, &self.clock);
        let passed: u64 = new.start.duration_since(old.start).into();
        for shard in &self.levels.0.0 {
            for level in shard.lock().values_mut() {
                let used = u128::from(level.saturating_sub(passed));
                let scaled = used.saturating_mul(limit.full()) / old.limit.full().max(1);
                *level = u64::try_from(scaled).unwrap_or(u64::MAX);
            }
        }
        self.rule.store(Arc::new(new));
    }

    /// Takes one for `key`, if the limit allows it.
    pub(super) fn take(&self, key: u64) -> Verdict {
        let rule = self.rule.load();
        let verdict = rule.limiter.check_key(&key);
        let now = self.clock.now();
        let passed: u64 = now.duration_since(rule.start).into();
        let reset = Duration::from_nanos(self.levels.0.get(key).saturating_sub(passed));
        match verdict {
            Ok(state) => Verdict::Taken { remaining: state.remaining_burst_capacity(), reset },
            Err(refused) => Verdict::Refused { wait: refused.wait_time_from(now), reset },
        }
    }

    /// Gives back one that was taken.
    pub(super) fn give_back(&self, key: u64) {
        let every = u64::try_from(self.rule.load().limit.every.as_nanos()).unwrap_or(u64::MAX);
        if let Some(shard) = self.levels.0.shard(key)
            && let Some(level) = shard.lock().get_mut(&key)
        {
            *level = level.saturating_sub(every);
        }
    }
}

fn rule(limit: Limit, levels: &Shared, clock: &DefaultClock) -> Rule {
    // `Limit::new` has refused the only period that has no quota.
    let quota = Quota::with_period(limit.every).unwrap_or(Quota::per_second(NonZeroU32::MIN)).allow_burst(limit.burst);
    let start = clock.now();
    let limiter = Limiter::new(quota, levels.clone(), clock.clone());
    Rule { limit, start, limiter }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_without_end_take_bounded_memory_and_a_spent_one_is_not_forgotten() {
        let store = Store::new(Limit::new(Duration::from_secs(60), NonZeroU32::new(2).unwrap()).unwrap());
        let spent = 7;
        assert!(matches!(store.take(spent), Verdict::Taken { remaining: 1, .. }));
        assert!(matches!(store.take(spent), Verdict::Taken { remaining: 0, .. }));
        for key in 0..(SHARDS * KEYS * 2) as u64 {
            store.take((key + 100).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        }
        let kept: usize = store.levels.0.0.iter().map(|shard| shard.lock().len()).sum();
        assert!(kept <= SHARDS * KEYS);
        assert!(matches!(store.take(spent), Verdict::Refused { .. }));
    }
}
