//! Table of API keys: SHA-256 digests and their consumers, never a key. The input is the configuration's `consumers`;
//! the table is built once for a snapshot and only read after that. A look-up costs one hash of the key, however many
//! consumers there are.

use std::collections::HashMap;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use smallvec::SmallVec;
use spillway_config::schema::ConsumerKey;
use subtle::ConstantTimeEq;

use super::{Consumer, IdentityError};
use crate::limits::Credential;

/// Bytes of a digest that select a bucket.
const PREFIX: usize = 8;

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
    digest: [u8; 32],
    /// Unix seconds from which on the key is refused.
    expires: u64,
    consumer: Arc<Consumer>,
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
                Some(entry) if entry.consumer.name == consumer.name => entry.expires = entry.expires.max(expires),
                Some(entry) => {
                    return Err(IdentityError::SharedKey {
                        first: entry.consumer.name.to_string(),
                        second: consumer.name.to_string(),
                    });
                }
                None => bucket.push(KeyEntry { digest, expires, consumer: Arc::clone(consumer) }),
            }
        }
        Ok(())
    }

    /// True for a key of the configuration, expired or not.
    pub(super) fn holds(&self, key: &[u8]) -> bool {
        let digest: [u8; 32] = Sha256::digest(key).into();
        let bucket = self.buckets.get(&prefix(&digest)).into_iter().flatten();
        bucket.fold(false, |held, entry| held | bool::from(entry.digest.ct_eq(&digest)))
    }

    /// Unix seconds from which on a key of this number does not belong to the consumer: 0 for one that does not at all,
    /// `None` for one without an end.
    pub(super) fn ends(&self, key: Credential, consumer: &str) -> Option<u64> {
        let bucket = self.buckets.get(&key.to_be_bytes()).into_iter().flatten();
        let last = bucket.filter(|entry| *entry.consumer.name == *consumer).map(|entry| entry.expires).max();
        Some(last.unwrap_or(0)).filter(|ends| *ends != u64::MAX)
    }

    /// Finds the consumer of a key at `now` (Unix seconds), with the number of the key.
    pub(super) fn find(&self, key: &[u8], now: u64) -> Option<(&Arc<Consumer>, Credential)> {
        let digest: [u8; 32] = Sha256::digest(key).into();
        let prefix = prefix(&digest);
        let mut found = None;
        for entry in self.buckets.get(&prefix)? {
            if bool::from(entry.digest.ct_eq(&digest)) && now < entry.expires {
                found = Some((&entry.consumer, u64::from_be_bytes(prefix)));
            }
        }
        found
    }
}

fn prefix(digest: &[u8; 32]) -> [u8; PREFIX] {
    let mut prefix = [0; PREFIX];
    for (to, from) in prefix.iter_mut().zip(digest) {
        *to = *from;
    }
    prefix
}
