//! How many requests of each key run now. A key that has none is not kept, so that the table is as large as the number of
//! requests at most.

use std::collections::HashMap;

use ahash::RandomState;
use parking_lot::Mutex;

#[derive(Default)]
pub(super) struct Running(Mutex<HashMap<u128, u32, RandomState>>);

impl Running {
    /// Lets one more run if fewer than `most` do; says how many do then.
    pub(super) fn enter(&self, key: u128, most: u32) -> Option<u32> {
        let mut running = self.0.lock();
        let count = running.entry(key).or_insert(0);
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(*count)
    }

    /// How many run.
    pub(super) fn count(&self, key: u128) -> u32 {
        self.0.lock().get(&key).copied().unwrap_or(0)
    }

    /// One has ended.
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
