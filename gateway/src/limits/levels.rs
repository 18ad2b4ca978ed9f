//! Levels of one rule by key, in a fixed number of shards, under governor's arithmetic (GCRA with a weight for each
//! request, which is a token bucket). A level is the time at which the bucket of its key is full again. Settling moves
//! it, also below empty: then the key waits until the debt is paid off. Beyond the bound of keys, those that are full
//! soonest are forgotten. The module knows no request; inputs are keys and amounts.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use ahash::RandomState;
use arc_swap::ArcSwap;
use governor::clock::{Clock, DefaultClock, QuantaInstant, Reference};
use governor::middleware::StateInformationMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::{Quota, RateLimiter};
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;

/// Shards of a rule with many keys, each with a lock of its own: more than the threads that commonly meet at one rule.
const SHARDS: usize = 16;
/// Furthest that a level may be moved into the future, nanoseconds: some 36 years, far below the overflow of governor's
/// arithmetic.
const FURTHEST: u64 = 1 << 60;

/// Clock of all levels. To make one asks the processor what it has, for which a virtual machine leaves the guest: tens of
/// microseconds, which each limit of each consumer would take.
static CLOCK: LazyLock<DefaultClock> = LazyLock::new(DefaultClock::default);

/// Rate and burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limit {
    pub(super) every: Duration,
    pub(super) burst: NonZeroU32,
}

impl Limit {
    /// Grants one unit in each `every`, `burst` at once; `None` for an interval below a nanosecond.
    pub(super) fn new(every: Duration, burst: NonZeroU32) -> Option<Self> {
        (!every.is_zero()).then_some(Self { every, burst })
    }

    fn full(self) -> u128 {
        self.every.as_nanos().saturating_mul(u128::from(self.burst.get()))
    }
}

/// Answer to an amount that is asked of a level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LevelOutcome {
    /// The amount is taken.
    Granted {
        /// Rest of the burst.
        remaining: u32,
        /// Time until the level is full.
        reset: Duration,
    },
    /// Nothing is taken.
    Refused {
        /// Time until the amount would be granted.
        wait: Duration,
        /// Time until the level is full.
        reset: Duration,
    },
    /// The amount is more than the level ever holds.
    TooMuch,
}

type LevelShard = Mutex<HashMap<u128, u64, RandomState>>;

/// Levels in nanoseconds since the start of the active limit.
struct Table {
    shards: Box<[LevelShard]>,
    /// Most keys of a shard.
    most: usize,
    forgotten: Counter,
}

impl Table {
    fn shard(&self, key: u128) -> Option<&LevelShard> {
        let place = usize::try_from(key >> 64 & 0xFFFF).unwrap_or(0);
        self.shards.get(place.checked_rem(self.shards.len())?)
    }

    /// Makes room for a key: forgets the eighth of the keys that is full soonest, most of which are full by now.
    fn make_room(&self, levels: &mut HashMap<u128, u64, RandomState>) {
        if levels.len() < self.most {
            return;
        }
        let mut times: Vec<u64> = levels.values().copied().collect();
        let (_, middle, _) = times.select_nth_unstable(self.most / 8);
        let bound = *middle;
        let before = levels.len();
        levels.retain(|_, level| *level > bound);
        self.forgotten.inc_by(u64::try_from(before - levels.len()).unwrap_or(0));
    }

    fn get(&self, key: u128) -> u64 {
        self.shard(key).and_then(|shard| shard.lock().get(&key).copied()).unwrap_or(0)
    }
}

/// Levels as governor reads and writes them.
#[derive(Clone)]
struct SharedTable(Arc<Table>);

impl StateStore for SharedTable {
    type Key = u128;
    fn measure_and_replace<T, F, E>(&self, key: &u128, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let Some(shard) = self.0.shard(*key) else { return f(None).map(|(value, _)| value) };
        let mut levels = shard.lock();
        let level = levels.get(key).copied();
        f(level.map(Nanos::from)).map(|(value, next)| {
            if level.is_none() {
                self.0.make_room(&mut levels);
            }
            levels.insert(*key, next.into());
            value
        })
    }
}

type Limiter = RateLimiter<u128, SharedTable, DefaultClock, StateInformationMiddleware>;

/// Limit with the time origin of its levels.
struct ActiveLimit {
    limit: Limit,
    start: QuantaInstant,
    limiter: Limiter,
}

/// Levels of one rule with the active limit.
pub(super) struct Levels {
    clock: DefaultClock,
    table: SharedTable,
    active: ArcSwap<ActiveLimit>,
}

impl Levels {
    /// Makes levels of at most `keys` keys, all full.
    pub(super) fn new(limit: Limit, keys: usize, forgotten: Counter) -> Self {
        let clock = CLOCK.clone();
        let count = keys.clamp(1, SHARDS);
        let shards = (0..count).map(|_| Mutex::new(HashMap::with_hasher(RandomState::new()))).collect();
        let table = SharedTable(Arc::new(Table { shards, most: keys.div_ceil(count).max(8), forgotten }));
        let active = ArcSwap::from_pointee(active_limit(limit, &table, &clock));
        Self { clock, table, active }
    }

    /// Changes the limit and scales the levels: a key that had half left has half left.
    pub(super) fn adopt(&self, limit: Limit) {
        let old = self.active.load_full();
        if old.limit == limit {
            return;
        }
        let new = active_limit(limit, &self.table, &self.clock);
        let passed: u64 = new.start.duration_since(old.start).into();
        for shard in self.table.0.shards.iter() {
            for level in shard.lock().values_mut() {
                let used = u128::from(level.saturating_sub(passed));
                let scaled = used.saturating_mul(limit.full()) / old.limit.full().max(1);
                *level = u64::try_from(scaled).unwrap_or(FURTHEST).min(FURTHEST);
            }
        }
        self.active.store(Arc::new(new));
    }

    /// Takes `amount` for `key`, if the limit allows all of it.
    pub(super) fn take(&self, key: u128, amount: NonZeroU32) -> LevelOutcome {
        let active = self.active.load();
        let verdict = active.limiter.check_key_n(&key, amount);
        let now = self.clock.now();
        let passed: u64 = now.duration_since(active.start).into();
        let reset = Duration::from_nanos(self.table.0.get(key).saturating_sub(passed));
        match verdict {
            Ok(Ok(state)) => LevelOutcome::Granted { remaining: state.remaining_burst_capacity(), reset },
            Ok(Err(refused)) => LevelOutcome::Refused { wait: refused.wait_time_from(now), reset },
            Err(_) => LevelOutcome::TooMuch,
        }
    }

    /// Time until `key` could take one, without taking it; `None` if it could now.
    pub(super) fn wait(&self, key: u128) -> Option<Duration> {
        let active = self.active.load();
        let level = self.table.0.get(key);
        let passed: u64 = self.clock.now().duration_since(active.start).into();
        let every = u64::try_from(active.limit.every.as_nanos()).unwrap_or(FURTHEST);
        let room = every.saturating_mul(u64::from(active.limit.burst.get() - 1));
        let wait = level.saturating_sub(passed).checked_sub(room)?;
        (wait > 0).then(|| Duration::from_nanos(wait))
    }

    /// Time until the level of `key` is full.
    pub(super) fn reset(&self, key: u128) -> Duration {
        let passed: u64 = self.clock.now().duration_since(self.active.load().start).into();
        Duration::from_nanos(self.table.0.get(key).saturating_sub(passed))
    }

    /// Moves a level by the difference of what was used and what was taken.
    pub(super) fn settle(&self, key: u128, more: i64) {
        let active = self.active.load();
        let every = u64::try_from(active.limit.every.as_nanos()).unwrap_or(FURTHEST);
        let moved = every.saturating_mul(more.unsigned_abs()).min(FURTHEST);
        let Some(shard) = self.table.0.shard(key) else { return };
        let mut levels = shard.lock();
        if more < 0 {
            if let Some(level) = levels.get_mut(&key) {
                *level = level.saturating_sub(moved);
            }
            return;
        }
        let now: u64 = self.clock.now().duration_since(active.start).into();
        let level = levels.get(&key).copied().unwrap_or(0).max(now);
        if !levels.contains_key(&key) {
            self.table.0.make_room(&mut levels);
        }
        levels.insert(key, level.saturating_add(moved).min(now.saturating_add(FURTHEST)));
    }

    /// Number of keys.
    pub(super) fn keys(&self) -> usize {
        self.table.0.shards.iter().map(|shard| shard.lock().len()).sum()
    }
}

fn active_limit(limit: Limit, table: &SharedTable, clock: &DefaultClock) -> ActiveLimit {
    // `Limit::new` has refused the only period that has no quota.
    let quota = Quota::with_period(limit.every).unwrap_or(Quota::per_second(NonZeroU32::MIN)).allow_burst(limit.burst);
    let start = clock.now();
    let limiter = Limiter::new(quota, table.clone(), clock.clone());
    ActiveLimit { limit, start, limiter }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ONE: NonZeroU32 = NonZeroU32::MIN;

    fn n(n: u32) -> NonZeroU32 {
        NonZeroU32::new(n).unwrap()
    }

    fn levels(every: Duration, burst: u32, keys: usize) -> Levels {
        Levels::new(Limit::new(every, n(burst)).unwrap(), keys, Counter::default())
    }

    fn left(levels: &Levels, key: u128) -> u32 {
        match levels.take(key, ONE) {
            LevelOutcome::Granted { remaining, .. } => {
                levels.settle(key, -1);
                remaining + 1
            }
            _ => 0,
        }
    }

    #[test]
    fn callers_without_end_take_bounded_memory_and_a_spent_one_is_not_forgotten() {
        let keys = 4096;
        let levels = levels(Duration::from_secs(60), 2, keys);
        let spent = 7;
        assert!(matches!(levels.take(spent, ONE), LevelOutcome::Granted { remaining: 1, .. }));
        assert!(matches!(levels.take(spent, ONE), LevelOutcome::Granted { remaining: 0, .. }));
        for key in 0..keys as u128 * 4 {
            levels.take((key + 100).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835), ONE);
        }
        assert!(levels.keys() <= keys);
        assert!(levels.table.0.forgotten.get() > 0);
        assert!(matches!(levels.take(spent, ONE), LevelOutcome::Refused { .. }));
    }

    #[test]
    fn what_was_used_beyond_the_estimate_is_owed() {
        let levels = levels(Duration::from_secs(1), 100, 64);
        assert!(matches!(levels.take(1, n(40)), LevelOutcome::Granted { remaining: 60, .. }));
        levels.settle(1, 110);
        // 150 of 100 were used: 51 seconds until one passes, 150 until it is full.
        let LevelOutcome::Refused { wait, reset } = levels.take(1, ONE) else { panic!("it owes 50") };
        assert!(wait > Duration::from_secs(50) && wait <= Duration::from_secs(51), "{wait:?}");
        assert!(reset > Duration::from_secs(149) && reset <= Duration::from_secs(150), "{reset:?}");
        assert!(matches!(levels.take(1, n(101)), LevelOutcome::TooMuch));
        levels.settle(1, i64::MAX);
        levels.settle(1, i64::MAX);
        assert!(matches!(levels.take(1, ONE), LevelOutcome::Refused { .. }), "no arithmetic runs over");
    }

    #[test]
    fn what_was_not_used_comes_back_and_never_more_than_all() {
        let levels = levels(Duration::from_secs(3600), 100, 64);
        assert!(matches!(levels.take(1, n(100)), LevelOutcome::Granted { remaining: 0, .. }));
        levels.settle(1, -70);
        assert_eq!(left(&levels, 1), 70);
        levels.settle(1, -1000);
        assert_eq!(left(&levels, 1), 100);
        levels.settle(2, -5);
        assert_eq!(left(&levels, 2), 100, "nothing comes back to who took nothing");
    }

    #[test]
    fn another_limit_keeps_the_level_in_proportion() {
        let levels = levels(Duration::from_secs(3600), 4, 64);
        levels.take(1, n(2));
        levels.adopt(Limit::new(Duration::from_secs(3600), n(8)).unwrap());
        assert_eq!(left(&levels, 1), 4, "half of 8 is left");
    }

    proptest! {
        /// With an hour for each unit, time plays no part: the level is what was taken and settled, whatever the order.
        #[test]
        fn taking_and_settling_add_up(steps in prop::collection::vec((1u32..50, -50i64..200), 1..40)) {
            let levels = levels(Duration::from_secs(3600), 200, 64);
            let mut used = 0i64;
            for (amount, more) in steps {
                match levels.take(9, n(amount)) {
                    LevelOutcome::Granted { remaining, .. } => {
                        prop_assert!(used + i64::from(amount) <= 200);
                        used += i64::from(amount);
                        prop_assert_eq!(i64::from(remaining), 200 - used);
                        let more = more.max(-i64::from(amount));
                        levels.settle(9, more);
                        used += more;
                    }
                    LevelOutcome::Refused { .. } => prop_assert!(used + i64::from(amount) > 200),
                    LevelOutcome::TooMuch => prop_assert!(false),
                }
            }
        }
    }
}
