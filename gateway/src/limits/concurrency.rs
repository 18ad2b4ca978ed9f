//! Running requests by key. A key without a running request is dropped, so the table has at most as many entries as
//! there are requests.

use std::collections::HashMap;

use ahash::RandomState;
use parking_lot::Mutex;

#[derive(Default)]
pub(super) struct ConcurrencyCounts(Mutex<HashMap<u128, u32, RandomState>>);

impl ConcurrencyCounts {
    /// Acquires a permit if fewer than `most` requests of the key run; returns how many run then.
    pub(super) fn enter(&self, key: u128, most: u32) -> Option<u32> {
        let mut running = self.0.lock();
        let count = running.entry(key).or_insert(0);
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(*count)
    }

    /// Running requests of a key.
    pub(super) fn count(&self, key: u128) -> u32 {
        self.0.lock().get(&key).copied().unwrap_or(0)
    }

    /// Releases the permit of one request.
    pub(super) fn leave(&self, key: u128) {
        let mut running = self.0.lock();
        if let Some(count) = running.get_mut(&key) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                running.remove(&key);
            }
        }
    }
}
