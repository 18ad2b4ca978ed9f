//! State of filters that survives a reload, found again by type and name while a snapshot holds it. Keeps weak
//! references only, so that state without a snapshot is freed.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Shared states of all filters of a process.
#[derive(Default)]
pub struct SharedStates {
    states: Mutex<HashMap<(TypeId, String), Weak<dyn Any + Send + Sync>>>,
}

impl SharedStates {
    /// Returns the state under `name`, or a new one.
    pub fn get_or_insert<T: Any + Send + Sync>(&self, name: &str, make: impl FnOnce() -> T) -> Arc<T> {
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        states.retain(|_, state| state.strong_count() > 0);
        let key = (TypeId::of::<T>(), name.to_owned());
        if let Some(kept) = states.get(&key).and_then(Weak::upgrade).and_then(|state| state.downcast::<T>().ok()) {
            return kept;
        }
        let made = Arc::new(make());
        let weak: Weak<T> = Arc::downgrade(&made);
        states.insert(key, weak);
        made
    }
}
