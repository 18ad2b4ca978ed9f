//! Tokens that were verified, by the SHA-256 of all of them, until they end. Bounded: those that end soonest go first.

use std::collections::HashMap;

use ahash::RandomState;
use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;

use super::Bearer;

const SHARDS: usize = 16;

/// A token that was verified.
#[derive(Clone)]
pub(super) struct Verified {
    /// Its issuer's place in the list.
    pub(super) issuer: usize,
    /// The keys it was verified under.
    pub(super) epoch: u64,
    /// Unix seconds from which on it is not believed any more.
    pub(super) until: u64,
    pub(super) bearer: Bearer,
}

type Shard = Mutex<HashMap<[u8; 32], Verified, RandomState>>;

pub(super) struct Cache {
    shards: [Shard; SHARDS],
    most: usize,
    entries: Gauge,
}

impl Default for Cache {
    fn default() -> Self {
        Self::new(1, Gauge::default())
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        let held: usize = self.shards.iter().map(|shard| shard.lock().len()).sum();
        self.entries.dec_by(i64::try_from(held).unwrap_or(0));
    }
}

impl Cache {
    pub(super) fn new(most: u32, entries: Gauge) -> Self {
        let shards = std::array::from_fn(|_| Mutex::new(HashMap::with_hasher(RandomState::new())));
        Self { shards, most: usize::try_from(most).unwrap_or(usize::MAX).div_ceil(SHARDS), entries }
    }

    fn shard(&self, digest: &[u8; 32]) -> Option<&Shard> {
        let [first, ..] = digest;
        self.shards.get(usize::from(*first) % SHARDS)
    }

    pub(super) fn get(&self, digest: &[u8; 32]) -> Option<Verified> {
        self.shard(digest)?.lock().get(digest).cloned()
    }

    pub(super) fn put(&self, digest: [u8; 32], verified: Verified, now: u64) {
        let Some(shard) = self.shard(&digest) else { return };
        let mut shard = shard.lock();
        let before = shard.len();
        if before >= self.most && !shard.contains_key(&digest) {
            shard.retain(|_, held| held.until > now);
            if shard.len() >= self.most {
                let mut ends: Vec<u64> = shard.values().map(|held| held.until).collect();
                let (_, bound, _) = ends.select_nth_unstable(self.most / 8);
                let bound = *bound;
                // Many may end at the same second: no more of them go than must.
                let mut room = self.most / 8 + 1;
                shard.retain(|_, held| {
                    let goes = room > 0 && held.until <= bound;
                    room -= usize::from(goes);
                    !goes
                });
            }
        }
        shard.insert(digest, verified);
        let change = i64::try_from(shard.len()).unwrap_or(0) - i64::try_from(before).unwrap_or(0);
        self.entries.inc_by(change);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }
}
