//! State of filters that survives a reload, found again by type and name while a snapshot holds it. Keeps weak
//! references only, so that state without a snapshot is freed.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Shared states of all filters of a process.
#[derive(Default)]
pub struct SharedStates {
    states: Mutex<Kept>,
}

/// States by type and name.
#[derive(Default)]
struct Kept {
    by_name: HashMap<(TypeId, String), Weak<dyn Any + Send + Sync>>,
    /// Number of entries at which those without a state are removed: twice what was left the last time, so that a state
    /// costs the same however many there are.
    sweep_at: usize,
}

/// Number of entries up to which none is removed.
const LEAST_SWEPT: usize = 64;

impl SharedStates {
    /// Removes the entries whose states nobody holds any more: after a configuration was replaced.
    pub fn sweep(&self) {
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        states.by_name.retain(|_, state| state.strong_count() > 0);
        states.by_name.shrink_to_fit();
    }

    /// Returns the state under `name`, or a new one.
    pub fn get_or_insert<T: Any + Send + Sync>(&self, name: &str, make: impl FnOnce() -> T) -> Arc<T> {
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (TypeId::of::<T>(), name.to_owned());
        if let Some(kept) =
            states.by_name.get(&key).and_then(Weak::upgrade).and_then(|state| state.downcast::<T>().ok())
        {
            return kept;
        }
        if states.by_name.len() >= states.sweep_at {
            states.by_name.retain(|_, state| state.strong_count() > 0);
            states.sweep_at = states.by_name.len().saturating_mul(2).max(LEAST_SWEPT);
        }
        let made = Arc::new(make());
        let weak: Weak<T> = Arc::downgrade(&made);
        states.by_name.insert(key, weak);
        made
    }
}
