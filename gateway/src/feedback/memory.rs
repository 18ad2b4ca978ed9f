//! Memory of concluded requests by their ids. It is bounded: each shard is a ring in which a new request overwrites the oldest.
//! Ids are kept as hashes with secret seeds, and found by chains through the ring, so that a request is added without a search.
//!
//! An id counts together with the consumer that made the request: callers choose request ids, and one consumer must neither
//! hide nor reach the requests of another by using its ids.

use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ahash::RandomState;
use parking_lot::Mutex;

use super::LabelledTarget;
use super::figures::Given;

/// Parts of the memory, each with its own lock: a request waits for the few others that end on as many threads.
const SHARDS: usize = 8;
/// Fewest requests for which the memory has several shards; a smaller one forgets in exact order.
const LEAST_SHARDED: u32 = 4096;
/// Keys of a request: three ids, each with its consumer and alone.
const KEYS: usize = 6;
/// Slots of a shard for the begins of chains, for each of its entries: a chain has few entries of other ids then.
const CHAINS: usize = 2;
/// Longest part of a chain that is searched. Longer ones come of callers that repeat an id.
const MAX_SEARCHED: usize = 64;

/// Ids of a request.
#[derive(Debug, Clone, Copy)]
pub struct Ids<'a> {
    /// Number of the consumer that made the request; `None` for a caller that was not known.
    pub consumer: Option<u128>,
    /// Id of the request.
    pub request: &'a [u8],
    /// Ids of the answer: as its server told it, and as the caller read it where that is another.
    pub responses: [Option<&'a str>; 2],
}

/// Request that may be labelled.
#[derive(Clone)]
pub struct Remembered {
    /// Target that answered.
    pub target: Arc<LabelledTarget>,
    /// Number of the sticky caller, or a random one.
    pub unit: u64,
    /// End of the request, as [`crate::clock::now_millis`] reads it.
    pub at: u64,
}

/// Request that was found, with what was said of it.
pub(super) struct Found {
    pub(super) request: Remembered,
    pub(super) given: Arc<Mutex<Given>>,
}

/// Requests of several consumers have an id.
#[derive(Debug)]
pub(super) struct Ambiguous;

/// Figures of the memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct State {
    /// Requests that are kept, those whose time is over included until they are overwritten.
    pub(super) remembered: u64,
    /// Most requests.
    pub(super) capacity: u64,
    /// Requests that were pushed out before their time was over.
    pub(super) evicted: u64,
}

/// Entry of a ring. Takes 120 bytes.
struct Entry {
    /// Hashes of the ids, 0 where there is none: first those with the consumer, then those of the ids alone.
    keys: [u64; KEYS],
    /// Link to the entry before this one in the chain of each key.
    next: [Link; KEYS],
    /// Number of the entry in its shard. Links lead to smaller numbers; an entry with a larger one was written over another.
    number: u64,
    /// Hash of the consumer.
    consumer: u64,
    request: Remembered,
    /// Label of the request, once it has one.
    given: Option<Arc<Mutex<Given>>>,
}

impl Entry {
    /// Key of the entry in a chain.
    fn key_in(&self, chain: usize, chains: usize) -> Option<usize> {
        self.keys.iter().position(|key| *key != 0 && chain_of(*key, chains) == chain)
    }
}

/// Index of an entry and 1; 0 is the end of a chain.
type Link = u32;

fn index(link: Link) -> Option<usize> {
    usize::try_from(link.checked_sub(1)?).ok()
}

/// Chain of a key among `chains`, a power of two.
fn chain_of(key: u64, chains: usize) -> usize {
    usize::try_from(key & u64::try_from(chains.saturating_sub(1)).unwrap_or(0)).unwrap_or(0)
}

fn number(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

#[derive(Default)]
struct Shard {
    /// Entries; full up to `capacity`, then the oldest one is overwritten.
    ring: Vec<Entry>,
    /// Most entries.
    capacity: usize,
    /// Index that is written next.
    at: usize,
    /// Number of the last entry.
    number: u64,
    /// First entry of each chain.
    chains: Vec<Link>,
    /// Requests that were pushed out before their time was over.
    evicted: u64,
}

impl Shard {
    /// Adds an entry and returns the one that it overwrites.
    fn add(&mut self, mut entry: Entry) -> Option<Entry> {
        if self.capacity == 0 {
            return None;
        }
        self.number += 1;
        entry.number = self.number;
        let link = Link::try_from(self.at + 1).unwrap_or(0);
        for place in 0..KEYS {
            let Some(key) = entry.keys.get(place).copied().filter(|key| *key != 0) else { continue };
            let chain = chain_of(key, self.chains.len());
            let Some(first) = self.chains.get_mut(chain) else { continue };
            let before = std::mem::replace(first, link);
            // The entry may have two keys in one chain. Otherwise a link to its own index led to the one that it overwrites.
            let other = entry.key_in(chain, self.chains.len()).filter(|other| *other < place);
            let next = match other {
                Some(other) => entry.next.get(other).copied().unwrap_or(0),
                None if before == link => 0,
                None => before,
            };
            if let Some(own) = entry.next.get_mut(place) {
                *own = next;
            }
        }
        let old = match self.ring.get_mut(self.at) {
            Some(old) => Some(std::mem::replace(old, entry)),
            None => {
                self.ring.push(entry);
                None
            }
        };
        self.at = (self.at + 1) % self.capacity;
        old
    }

    /// Latest entry, as its index, that has a key in one of `places` and is `wanted`.
    fn find(&self, key: u64, places: &Range<usize>, wanted: impl Fn(&Entry) -> bool) -> Option<usize> {
        let chain = chain_of(key, self.chains.len());
        let (mut link, mut younger) = (*self.chains.get(chain)?, u64::MAX);
        for _ in 0..MAX_SEARCHED {
            let at = index(link)?;
            let entry = self.ring.get(at).filter(|entry| entry.number < younger)?;
            let place = entry.key_in(chain, self.chains.len())?;
            if entry.keys.get(places.clone()).is_some_and(|keys| keys.contains(&key)) && wanted(entry) {
                return Some(at);
            }
            younger = entry.number;
            link = entry.next.get(place).copied().unwrap_or(0);
        }
        None
    }

    /// Changes the size, and keeps the latest entries that fit.
    fn resize(&mut self, capacity: usize) {
        let mut entries = std::mem::take(&mut self.ring);
        entries.sort_unstable_by_key(|entry| entry.number);
        let surplus = entries.len().saturating_sub(capacity);
        self.evicted = self.evicted.saturating_add(number(surplus));
        self.capacity = capacity;
        self.at = 0;
        // Untouched memory of a large ring takes no room.
        self.ring = Vec::with_capacity(capacity);
        self.chains = vec![0; if capacity == 0 { 0 } else { (CHAINS * capacity).next_power_of_two() }];
        for entry in entries.into_iter().skip(surplus) {
            self.add(entry);
        }
    }
}

/// Memory of concluded requests.
pub(super) struct Memory {
    seeds: RandomState,
    shards: [Mutex<Shard>; SHARDS],
    /// Number of shards in use, a power of two; 0 while nothing is remembered.
    used: AtomicU64,
    /// Time for labels, in milliseconds.
    keep: AtomicU64,
}

impl Default for Memory {
    fn default() -> Self {
        // Seeded anew in each process: nobody can choose ids that share a chain.
        let seeds = RandomState::new();
        Self { seeds, shards: Default::default(), used: AtomicU64::new(0), keep: AtomicU64::new(0) }
    }
}

impl Memory {
    /// Sets the bounds. The latest requests that still fit are kept; those of a shard that is no longer used are forgotten.
    pub(super) fn resize(&self, requests: u32, keep: Duration) {
        self.keep.store(u64::try_from(keep.as_millis()).unwrap_or(u64::MAX), Ordering::Release);
        let used = match requests {
            0 => 0,
            requests if requests < LEAST_SHARDED => 1,
            _ => SHARDS,
        };
        self.used.store(number(used), Ordering::Release);
        let requests = usize::try_from(requests).unwrap_or(usize::MAX);
        let (each, rest) = (requests.checked_div(used).unwrap_or(0), requests.checked_rem(used).unwrap_or(0));
        for (n, shard) in self.shards.iter().enumerate() {
            let capacity = if n < used { each + usize::from(n < rest) } else { 0 };
            let mut shard = shard.lock();
            if shard.capacity != capacity {
                shard.resize(capacity);
            }
        }
    }

    /// True if the time for labels of a request that ended `at` is over.
    pub(super) fn is_over(&self, at: u64, now: u64) -> bool {
        now.saturating_sub(at) > self.keep.load(Ordering::Acquire)
    }

    fn hash_of_consumer(&self, consumer: Option<u128>) -> u64 {
        self.seeds.hash_one(consumer)
    }

    /// Key of an id with the consumer that has the hash.
    fn key(&self, id: u64, consumer: u64) -> u64 {
        self.seeds.hash_one((id, consumer)).max(1)
    }

    /// Adds a request, in the place of the oldest one where there is no room. With `alone`, callers that may label any request
    /// find it without its consumer.
    pub(super) fn remember(&self, ids: Ids<'_>, alone: bool, request: Remembered) {
        thread_local! {
            /// Requests of a thread go to the shards in turn, so that all fill alike.
            static TURN: Cell<u64> = const { Cell::new(0) };
        }
        let used = self.used.load(Ordering::Acquire);
        if used == 0 {
            return;
        }
        let consumer = self.hash_of_consumer(ids.consumer);
        let (mut keys, [first, second]) = ([0; KEYS], ids.responses.map(|id| id.map(str::as_bytes)));
        let (own, others) = keys.split_at_mut(KEYS / 2);
        for ((own, other), id) in own.iter_mut().zip(others).zip([Some(ids.request), first, second]) {
            let Some(id) = id else { continue };
            let hash = self.seeds.hash_one(id).max(1);
            *own = self.key(hash, consumer);
            *other = if alone { hash } else { 0 };
        }
        let at = request.at;
        let turn = TURN.with(|turn| turn.replace(turn.get().wrapping_add(1)));
        let Some(shard) = usize::try_from(turn & (used - 1)).ok().and_then(|place| self.shards.get(place)) else {
            return;
        };
        let mut shard = shard.lock();
        let old = shard.add(Entry { keys, next: [0; KEYS], number: 0, consumer, request, given: None });
        if old.as_ref().is_some_and(|old| !self.is_over(old.request.at, at)) {
            shard.evicted = shard.evicted.saturating_add(1);
        }
        // What the old entry held is freed without the lock.
        drop(shard);
        drop(old);
    }

    /// Latest request of a consumer with an id.
    pub(super) fn find(&self, id: &str, consumer: Option<u128>) -> Option<Found> {
        let key = self.key(self.seeds.hash_one(id.as_bytes()).max(1), self.hash_of_consumer(consumer));
        self.take(self.latest(key, &(0..KEYS / 2), |_| true)?)
    }

    /// Latest request with an id, of whichever caller.
    pub(super) fn find_of_anyone(&self, id: &str) -> Result<Option<Found>, Ambiguous> {
        let key = self.seeds.hash_one(id.as_bytes()).max(1);
        let places = KEYS / 2..KEYS;
        let Some(latest) = self.latest(key, &places, |_| true) else { return Ok(None) };
        let seen = Cell::new(0_usize);
        let other = self.latest(key, &places, |entry| {
            seen.set(seen.get() + 1);
            entry.consumer != latest.consumer
        });
        // With so many entries of the id a chain may not have been searched to its end, where those of others may be.
        if other.is_some() || seen.get() >= MAX_SEARCHED {
            return Err(Ambiguous);
        }
        Ok(self.take(latest))
    }

    /// Latest entry with a key in one of `places` that is `wanted`.
    fn latest(&self, key: u64, places: &Range<usize>, wanted: impl Fn(&Entry) -> bool) -> Option<Place> {
        let in_shard = |(n, shard): (usize, &Mutex<Shard>)| {
            let shard = shard.lock();
            let index = shard.find(key, places, &wanted)?;
            let entry = shard.ring.get(index)?;
            Some(Place { shard: n, index, number: entry.number, at: entry.request.at, consumer: entry.consumer })
        };
        self.shards.iter().enumerate().filter_map(in_shard).max_by_key(|place| (place.at, place.number))
    }

    /// Request at a place, unless it was overwritten meanwhile.
    fn take(&self, place: Place) -> Option<Found> {
        let mut shard = self.shards.get(place.shard)?.lock();
        let entry = shard.ring.get_mut(place.index).filter(|entry| entry.number == place.number)?;
        Some(Found { request: entry.request.clone(), given: entry.given.get_or_insert_default().clone() })
    }

    /// Figures of the memory.
    pub(super) fn state(&self) -> State {
        let mut state = State::default();
        for shard in &self.shards {
            let shard = shard.lock();
            state.remembered = state.remembered.saturating_add(number(shard.ring.len()));
            state.capacity = state.capacity.saturating_add(number(shard.capacity));
            state.evicted = state.evicted.saturating_add(shard.evicted);
        }
        state
    }
}

/// Place of an entry.
#[derive(Debug, Clone, Copy)]
struct Place {
    shard: usize,
    index: usize,
    number: u64,
    at: u64,
    consumer: u64,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn target() -> Arc<LabelledTarget> {
        super::super::tests::target("chat", "stable")
    }

    fn ids<'a>(consumer: Option<u128>, request: &'a str, response: Option<&'a str>) -> Ids<'a> {
        Ids { consumer, request: request.as_bytes(), responses: [response, None] }
    }

    fn request(unit: u64, at: u64) -> Remembered {
        Remembered { target: target(), unit, at }
    }

    fn unit_of(found: Option<Found>) -> Option<u64> {
        found.map(|found| found.request.unit)
    }

    #[test]
    fn a_request_is_found_by_each_of_its_ids_and_only_for_its_consumer() {
        let memory = Memory::default();
        memory.resize(10, Duration::from_secs(60));
        let all = Ids { consumer: Some(1), request: b"r", responses: [Some("told"), Some("shown")] };
        memory.remember(all, true, request(7, 0));
        for id in ["r", "told", "shown"] {
            assert_eq!(unit_of(memory.find(id, Some(1))), Some(7), "{id}");
            assert_eq!(unit_of(memory.find(id, Some(2))), None, "{id}");
            assert_eq!(unit_of(memory.find(id, None)), None, "{id}");
            assert_eq!(unit_of(memory.find_of_anyone(id).unwrap()), Some(7), "{id}");
        }
        memory.remember(ids(Some(2), "r", None), true, request(8, 1));
        assert_eq!(unit_of(memory.find("r", Some(1))), Some(7), "another consumer's use of the id hides nothing");
        assert!(memory.find_of_anyone("r").is_err());
        memory.remember(ids(Some(1), "s", None), false, request(9, 2));
        assert!(memory.find_of_anyone("s").unwrap().is_none(), "nobody else may label it");
    }

    #[test]
    fn a_flood_of_one_consumer_hides_nothing_of_another() {
        let memory = Memory::default();
        memory.resize(2000, Duration::from_secs(60));
        memory.remember(ids(Some(1), "order-17", None), true, request(7, 0));
        for n in 0..1500 {
            memory.remember(ids(Some(2), "order-17", None), true, request(n, n));
        }
        assert_eq!(unit_of(memory.find("order-17", Some(1))), Some(7));
        assert_eq!(unit_of(memory.find("order-17", Some(2))), Some(1499), "the latest");
        assert!(memory.find_of_anyone("order-17").is_err(), "whose it is cannot be told");
    }

    #[test]
    fn what_is_pushed_out_is_counted_and_a_new_size_keeps_the_latest() {
        let memory = Memory::default();
        assert!(memory.find("r", None).is_none());
        memory.remember(ids(None, "r", None), false, request(0, 0));
        assert_eq!(memory.state(), State::default(), "nothing is remembered until a size is set");
        memory.resize(3, Duration::from_millis(100));
        for n in 0..5 {
            memory.remember(ids(None, &n.to_string(), None), false, request(n, n));
        }
        assert_eq!(memory.state(), State { remembered: 3, capacity: 3, evicted: 2 });
        memory.remember(ids(None, "late", None), false, request(9, 1000));
        assert_eq!(memory.state().evicted, 2, "the time of the oldest was over");
        memory.resize(2, Duration::from_millis(100));
        assert_eq!((unit_of(memory.find("4", None)), unit_of(memory.find("late", None))), (Some(4), Some(9)));
        assert!(memory.find("3", None).is_none());
        memory.resize(8000, Duration::from_millis(100));
        assert_eq!((unit_of(memory.find("4", None)), memory.state().capacity), (Some(4), 8000));
        memory.resize(0, Duration::ZERO);
        assert!(memory.find("4", None).is_none());
        assert!(size_of::<Entry>() <= 120, "{}", size_of::<Entry>());
    }

    proptest! {
        /// The memory finds what a list of the latest requests has: for ids that repeat, in rings so small that chains are shared.
        #[test]
        fn it_is_a_list_of_the_latest(
            capacity in 1u32..6, steps in prop::collection::vec((0u8..4, 0u8..4, 0u8..2), 1..60),
        ) {
            let memory = Memory::default();
            memory.resize(capacity, Duration::from_secs(60));
            let mut latest: Vec<(String, String, Option<u128>, u64)> = Vec::new();
            for (n, (request_id, response_id, consumer)) in steps.into_iter().enumerate() {
                let (request_id, response_id) = (format!("i{request_id}"), format!("i{response_id}"));
                let consumer = (consumer > 0).then(|| u128::from(consumer));
                let n = u64::try_from(n).unwrap();
                memory.remember(ids(consumer, &request_id, Some(&response_id)), true, request(n, n));
                latest.push((request_id, response_id, consumer, n));
                if latest.len() > usize::try_from(capacity).unwrap() {
                    latest.remove(0);
                }
                for id in ["i0", "i1", "i2", "i3", "none"] {
                    let with = |wanted: &dyn Fn(Option<u128>) -> bool| {
                        let mut rows = latest.iter().rev();
                        rows.find(|(a, b, own, _)| (a == id || b == id) && wanted(*own)).map(|row| row.3)
                    };
                    for consumer in [None, Some(1)] {
                        prop_assert_eq!(unit_of(memory.find(id, consumer)), with(&|own| own == consumer));
                    }
                    match memory.find_of_anyone(id) {
                        Ok(found) => prop_assert_eq!(unit_of(found), with(&|_| true)),
                        Err(Ambiguous) => {
                            prop_assert!(with(&|own| own.is_none()).is_some() && with(&|own| own.is_some()).is_some());
                        }
                    }
                }
            }
        }
    }
}
