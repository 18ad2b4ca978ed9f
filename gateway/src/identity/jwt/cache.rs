//! Cache of verified tokens, by the SHA-256 of the whole token, until they end. Beyond its bound those that end soonest
//! are dropped.

use std::collections::HashMap;

use ahash::RandomState;
use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;

use super::Bearer;

/// Shards, each with a lock of its own: more than the threads that commonly look tokens up at once.
const SHARDS: usize = 16;

/// Verified token.
#[derive(Clone)]
pub(super) struct Verified {
    /// Index of the issuer.
    pub(super) issuer: usize,
    /// Number of the key set that verified the token.
    pub(super) epoch: u64,
    /// Unix seconds from which on the token is refused.
    pub(super) until: u64,
    pub(super) bearer: Bearer,
}

type CacheShard = Mutex<HashMap<[u8; 32], Verified, RandomState>>;

pub(super) struct Cache {
    shards: [CacheShard; SHARDS],
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

    fn shard(&self, digest: &[u8; 32]) -> Option<&CacheShard> {
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
                // Many may end at the same second: only as many as needed are dropped.
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
