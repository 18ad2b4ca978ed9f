//! Keys made at run time, as the requests of one snapshot look them up: digests with the consumers of that snapshot. A table is
//! replaced as a whole when a key changes; a look-up takes no lock.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use spillway_config::schema::ConsumerLimits;

use super::known::Known;
use super::record::KeyRecord;
use crate::clock;
use crate::identity::Consumer;
use crate::identity::api_key::{KeyHash, Keys};
use crate::limits::{Credential, Limits};

/// Time until which the keys that were last read from the store are valid, as [`clock::now_millis`] reads it; 0 before the
/// first reading.
#[derive(Debug, Default)]
pub(super) struct Freshness(AtomicU64);

impl Freshness {
    /// Keys that were read now are valid for so many milliseconds.
    pub(super) fn renew(&self, millis: u64) {
        self.0.store(clock::now_millis().saturating_add(millis), Ordering::Release);
    }

    fn is_fresh(&self) -> bool {
        clock::now_millis() < self.0.load(Ordering::Acquire)
    }
}

/// Keys made at run time, for the requests of one snapshot.
pub struct IssuedTable {
    consumers: HashMap<Arc<str>, Arc<Consumer>>,
    limits: Limits,
    /// Most keys that may exist.
    most: u32,
    /// True where a route of the snapshot spills, and where models have prices.
    facts: (bool, bool),
    keys: ArcSwap<Keys>,
    freshness: Arc<Freshness>,
    /// Consumers with the rules of keys that have limits, by the ids of those.
    limited: Mutex<HashMap<String, Arc<Consumer>>>,
}

impl std::fmt::Debug for IssuedTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IssuedTable({:?})", self.keys.load())
    }
}

impl IssuedTable {
    pub(super) fn new(
        consumers: &[Arc<Consumer>],
        limits: Limits,
        most: u32,
        facts: (bool, bool),
        freshness: Arc<Freshness>,
    ) -> Self {
        Self {
            consumers: consumers.iter().map(|consumer| (consumer.name.clone(), consumer.clone())).collect(),
            limits,
            most,
            facts,
            keys: ArcSwap::default(),
            freshness,
            limited: Mutex::default(),
        }
    }

    /// Puts the keys in place of those before. Of more keys than may exist the first made are accepted.
    pub(super) fn fill(&self, known: &Known) {
        let mut records: Vec<_> = known.records().collect();
        records.sort_by(|(one, _), (other, _)| (one.created_at, &one.id).cmp(&(other.created_at, &other.id)));
        let most = usize::try_from(self.most).unwrap_or(usize::MAX);
        let mut limited = self.limited.lock();
        let mut before = std::mem::take(&mut *limited);
        let mut keys = Keys::default();
        for (n, (record, last_use)) in records.into_iter().enumerate() {
            let consumer = self.consumers.get(record.consumer.as_str()).filter(|_| n < most);
            let consumer = match (consumer, &record.limits) {
                (Some(consumer), Some(limits)) => {
                    let made = before.remove(&record.id).or_else(|| self.limited_consumer(consumer, record, limits));
                    if let Some(made) = &made {
                        limited.insert(record.id.clone(), made.clone());
                    }
                    made
                }
                (consumer, _) => consumer.cloned(),
            };
            for (digest, ends) in record.secrets() {
                keys.add_one(digest.0, ends, consumer.clone(), last_use);
            }
        }
        self.keys.store(Arc::new(keys));
    }

    /// Consumer with the rules of a key; `None`, so that the key admits nobody, where they cannot be kept.
    fn limited_consumer(
        &self,
        consumer: &Arc<Consumer>,
        record: &KeyRecord,
        limits: &ConsumerLimits,
    ) -> Option<Arc<Consumer>> {
        match self.limits.of_key(&record.id, limits) {
            Ok(rules) => Some(Arc::new(consumer.with_rules(rules))),
            Err(e) => {
                tracing::error!(event = "key_unreadable", id = record.id, reason = %e, "the key admits nobody");
                None
            }
        }
    }

    /// True for a consumer of the file.
    pub(super) fn has_consumer(&self, name: &str) -> bool {
        self.consumers.contains_key(name)
    }

    /// Most keys that may exist.
    pub fn most(&self) -> u32 {
        self.most
    }

    /// Fault of limits for a key, with what to write instead.
    pub(super) fn fault_of(&self, limits: &ConsumerLimits) -> Option<String> {
        let (can_spill, is_priced) = self.facts;
        let (at, message) = limits.faults(can_spill, is_priced).into_iter().next()?;
        Some(format!("limits.{}: {message}", at.join(".")))
    }

    /// Finds the consumer of a key at `now` (Unix seconds), with the number of the key.
    pub(in crate::identity) fn find(&self, digest: &KeyHash, now: u64) -> Option<(Arc<Consumer>, Credential)> {
        let keys = self.keys.load();
        if keys.is_empty() {
            return None;
        }
        keys.find(digest, now).filter(|_| self.freshness.is_fresh())
    }

    /// True where the store has not been read for so long that a key may exist, or not exist, unknown here.
    pub(in crate::identity) fn is_stale(&self) -> bool {
        !self.freshness.is_fresh()
    }

    /// True for a key that was made at run time, whether it is accepted or not.
    pub(in crate::identity) fn holds(&self, digest: &KeyHash) -> bool {
        self.keys.load().holds(digest)
    }

    /// The consumer of this name, if a key of this number is one of its keys, as [`Keys::holder`] has it.
    pub(in crate::identity) fn holder(&self, key: Credential, consumer: &str, now: u64) -> Option<Arc<Consumer>> {
        self.keys.load().holder(key, consumer, now)
    }

    /// Unix seconds from which on a key of this number does not belong to the consumer, as [`Keys::ends`] has it.
    pub(in crate::identity) fn ends(&self, key: Credential, consumer: &str) -> Option<u64> {
        self.keys.load().ends(key, consumer)
    }
}
