//! Table of API keys: SHA-256 digests and their consumers, never a key. The inputs are the configuration's `consumers`, or the
//! keys that were made at run time; a table is built once and only read after that. A look-up costs one hash of the key,
//! however many consumers there are.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};
use smallvec::SmallVec;
use spillway_config::schema::ConsumerKey;
use subtle::ConstantTimeEq;

use super::{Consumer, IdentityError};
use crate::limits::Credential;

/// Bytes of a digest that select a bucket.
const PREFIX: usize = 8;

/// SHA-256 of a key.
pub(super) type KeyHash = [u8; 32];

/// Digest of a key that a caller shows.
pub(super) fn hash(key: &[u8]) -> KeyHash {
    Sha256::digest(key).into()
}

/// Digests with their consumers.
///
/// Timing reveals nothing that helps to find a key. The comparison is of SHA-256 digests, never of keys. To steer it, a
/// caller would need keys whose digests start with chosen bytes, which is as hard as inverting that part of the hash. A
/// randomly keyed hash map finds the bucket by the digest's first 64 bits. Timing could reveal at most that a bucket
/// exists, so that some digest shares those 64 bits. A 256-bit key is as unknown as before. Within a bucket every entry
/// is compared in full and in constant time.
#[derive(Default)]
pub(super) struct Keys {
    buckets: HashMap<[u8; PREFIX], SmallVec<[KeyEntry; 1]>, ahash::RandomState>,
}

struct KeyEntry {
    digest: KeyHash,
    /// Unix seconds from which on the key is refused.
    expires: u64,
    /// Consumer; `None` where that has left the file, and the key admits nobody.
    consumer: Option<Arc<Consumer>>,
    /// Last use of a key that was made at run time; `None` for one of the file.
    last_use: Option<Arc<LastUse>>,
}

/// Time of the last request with a key on this gateway, Unix seconds; 0 before the first one.
#[derive(Debug, Default)]
pub(super) struct LastUse(AtomicU64);

impl LastUse {
    /// Records a request. Of many in a second only the first writes, so threads do not take the line from each other.
    fn record(&self, now: u64) {
        if self.0.load(Ordering::Relaxed) < now {
            self.0.store(now, Ordering::Relaxed);
        }
    }

    /// Time of the last request, Unix seconds; `None` before the first one.
    pub(super) fn read(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|at| *at != 0)
    }
}

impl KeyEntry {
    fn consumer_name(&self) -> Option<&str> {
        self.consumer.as_ref().map(|consumer| &*consumer.name)
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys({} buckets)", self.buckets.len())
    }
}

impl Keys {
    /// Adds the keys of a consumer. A key that is both in the configuration and in the consumer's file expires at the
    /// later of the two times.
    pub(super) fn add(&mut self, consumer: &Arc<Consumer>, keys: &[ConsumerKey]) -> Result<(), IdentityError> {
        for key in keys {
            let digest = key.sha256.0;
            let expires = key.expires.map_or(u64::MAX, |day| day.unix_seconds());
            let bucket = self.buckets.entry(prefix(&digest)).or_default();
            match bucket.iter_mut().find(|entry| entry.digest == digest) {
                Some(entry) if entry.consumer_name() == Some(&consumer.name) => {
                    entry.expires = entry.expires.max(expires);
                }
                Some(entry) => {
                    return Err(IdentityError::SharedKey {
                        first: entry.consumer_name().unwrap_or_default().to_owned(),
                        second: consumer.name.to_string(),
                    });
                }
                None => bucket.push(KeyEntry { digest, expires, consumer: Some(Arc::clone(consumer)), last_use: None }),
            }
        }
        Ok(())
    }

    /// Adds a key that was made at run time; without a consumer it admits nobody.
    pub(super) fn add_one(
        &mut self,
        digest: KeyHash,
        expires: u64,
        consumer: Option<Arc<Consumer>>,
        last_use: &Arc<LastUse>,
    ) {
        let last_use = Some(last_use.clone());
        self.buckets.entry(prefix(&digest)).or_default().push(KeyEntry { digest, expires, consumer, last_use });
    }

    /// True if there is no key.
    pub(super) fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    /// True for a key of the table, expired or not.
    pub(super) fn holds(&self, digest: &KeyHash) -> bool {
        let bucket = self.buckets.get(&prefix(digest)).into_iter().flatten();
        bucket.fold(false, |held, entry| held | bool::from(entry.digest.ct_eq(digest)))
    }

    /// Unix seconds from which on a key of this number does not belong to the consumer: 0 for one that does not at all,
    /// `None` for one without an end.
    pub(super) fn ends(&self, key: Credential, consumer: &str) -> Option<u64> {
        let bucket = self.buckets.get(&key.to_be_bytes()).into_iter().flatten();
        let last = bucket.filter(|entry| entry.consumer_name() == Some(consumer)).map(|entry| entry.expires).max();
        Some(last.unwrap_or(0)).filter(|ends| *ends != u64::MAX)
    }

    /// The consumer of this name, if a key of this number is one of its keys at `now` (Unix seconds).
    pub(super) fn holder(&self, key: Credential, consumer: &str, now: u64) -> Option<Arc<Consumer>> {
        let mut bucket = self.buckets.get(&key.to_be_bytes())?.iter();
        let found = bucket.find(|entry| now < entry.expires && entry.consumer_name() == Some(consumer))?;
        found.consumer.clone()
    }

    /// Finds the consumer of a key at `now` (Unix seconds), with the number of the key. Records the use of a key that was made at
    /// run time.
    pub(super) fn find(&self, digest: &KeyHash, now: u64) -> Option<(Arc<Consumer>, Credential)> {
        let prefix = prefix(digest);
        let mut found = None;
        for entry in self.buckets.get(&prefix)? {
            if bool::from(entry.digest.ct_eq(digest)) && now < entry.expires {
                found = entry.consumer.as_ref().map(|consumer| (consumer, &entry.last_use));
            }
        }
        let (consumer, last_use) = found?;
        if let Some(last_use) = last_use {
            last_use.record(now);
        }
        Some((consumer.clone(), u64::from_be_bytes(prefix)))
    }
}

fn prefix(digest: &KeyHash) -> [u8; PREFIX] {
    let mut prefix = [0; PREFIX];
    for (to, from) in prefix.iter_mut().zip(digest) {
        *to = *from;
    }
    prefix
}
