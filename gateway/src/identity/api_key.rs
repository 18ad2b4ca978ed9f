//! The table of API keys: SHA-256 digests and the consumers they stand for. It never holds a key.
//! Its input is the configuration's `consumers`; it is built once for a snapshot and only read after that.
//! A look-up costs one hash of the key, however many consumers there are.

use std::collections::HashMap;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use spillway_config::schema;
use subtle::ConstantTimeEq;

use super::{Consumer, IdentityError};

/// Bytes of a digest that choose a bucket.
const PREFIX: usize = 8;

/// Digests and whom they stand for.
///
/// Timing tells nothing that helps to find a key. What is compared is never the key but its SHA-256: to steer that
/// comparison a caller would need keys whose digests start with chosen bytes, which is as hard as inverting the hash that
/// far. The bucket is found by the digest's first 64 bits (through a randomly keyed hash map); whether a bucket exists
/// could show in the time, and so at most that some digest shares those 64 bits, which leaves a 256-bit key as unknown as
/// before. Within a bucket every entry is compared in full and in constant time.
pub(super) struct Keys {
    buckets: HashMap<[u8; PREFIX], Vec<Entry>, ahash::RandomState>,
}

struct Entry {
    digest: [u8; 32],
    consumer: Arc<Consumer>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys({} buckets)", self.buckets.len())
    }
}

impl Keys {
    /// Enters the keys of all consumers.
    pub(super) fn new(consumers: &[schema::Consumer]) -> Result<Self, IdentityError> {
        let mut buckets: HashMap<[u8; PREFIX], Vec<Entry>, ahash::RandomState> = HashMap::default();
        for written in consumers {
            let consumer = Arc::new(Consumer {
                name: written.name.as_str().into(),
                tenant: written.tenant.as_deref().unwrap_or(&written.name).into(),
                priority: written.priority,
            });
            for key in &written.keys {
                let digest = key.sha256.0;
                let bucket = buckets.entry(prefix(&digest)).or_default();
                match bucket.iter().find(|entry| entry.digest == digest) {
                    Some(entry) if entry.consumer.name == consumer.name => {}
                    Some(entry) => {
                        return Err(IdentityError::SharedKey {
                            first: entry.consumer.name.to_string(),
                            second: written.name.clone(),
                        });
                    }
                    None => bucket.push(Entry { digest, consumer: Arc::clone(&consumer) }),
                }
            }
        }
        Ok(Self { buckets })
    }

    /// The consumer whose key this is.
    pub(super) fn find(&self, key: &[u8]) -> Option<&Arc<Consumer>> {
        let digest: [u8; 32] = Sha256::digest(key).into();
        let mut found = None;
        for entry in self.buckets.get(&prefix(&digest))? {
            if bool::from(entry.digest.ct_eq(&digest)) {
                found = Some(&entry.consumer);
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
