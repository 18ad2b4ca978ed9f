//! The table of API keys: SHA-256 digests and the consumers they stand for. It never holds a key.
//! Its input is the configuration's `consumers`; it is built once for a snapshot and only read after that.
//! A look-up costs one hash of the key, however many consumers there are.

use std::collections::HashMap;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use spillway_config::schema::ConsumerKey;
use subtle::ConstantTimeEq;

use super::{Consumer, IdentityError};
use crate::limits::Credential;

/// Bytes of a digest that choose a bucket.
const PREFIX: usize = 8;

/// Digests and whom they stand for.
///
/// Timing tells nothing that helps to find a key. What is compared is never the key but its SHA-256: to steer that
/// comparison a caller would need keys whose digests start with chosen bytes, which is as hard as inverting the hash that
/// far. The bucket is found by the digest's first 64 bits (through a randomly keyed hash map); whether a bucket exists
/// could show in the time, and so at most that some digest shares those 64 bits, which leaves a 256-bit key as unknown as
/// before. Within a bucket every entry is compared in full and in constant time.
#[derive(Default)]
pub(super) struct Keys {
    buckets: HashMap<[u8; PREFIX], Vec<Entry>, ahash::RandomState>,
}

struct Entry {
    digest: [u8; 32],
    /// Unix seconds from which on it stands for nobody.
    expires: u64,
    consumer: Arc<Consumer>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys({} buckets)", self.buckets.len())
    }
}

impl Keys {
    /// Enters the keys of a consumer. A key that stands twice for one consumer, in the configuration and in its file, holds
    /// until the later end.
    pub(super) fn enter(&mut self, consumer: &Arc<Consumer>, keys: &[ConsumerKey]) -> Result<(), IdentityError> {
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
                None => bucket.push(Entry { digest, expires, consumer: Arc::clone(consumer) }),
            }
        }
        Ok(())
    }

    /// True if this is a key of the configuration, ended or not.
    pub(super) fn holds(&self, key: &[u8]) -> bool {
        let digest: [u8; 32] = Sha256::digest(key).into();
        let bucket = self.buckets.get(&prefix(&digest)).into_iter().flatten();
        bucket.fold(false, |held, entry| held | bool::from(entry.digest.ct_eq(&digest)))
    }

    /// The consumer whose key this is at `now` (Unix seconds), and what tells the key from others.
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
