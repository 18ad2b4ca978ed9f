//! Live handles by configured name. A name has one handle over all reloads while any snapshot holds it, and its series
//! disappear with the last holder: the current configuration bounds the series, not its history.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

/// Most names of one kind with series of their own: a scrape stays some megabytes. Further names share [`OTHER`].
const MAX_NAMES: usize = 10_000;
/// Label value of all names above the limit.
pub(super) const OTHER: &str = "other";

/// Live handles of one kind, by name.
pub(super) struct Live<T> {
    held: Mutex<HashMap<Arc<str>, Weak<T>>>,
    max: usize,
}

impl<T> Default for Live<T> {
    fn default() -> Self {
        Self { held: Mutex::default(), max: MAX_NAMES }
    }
}

impl<T> Live<T> {
    /// Returns the handle of `name`; makes it if no live one exists.
    pub(super) fn get(&self, name: &str, make: impl FnOnce(&Arc<str>) -> T) -> Arc<T> {
        let mut held = self.held.lock();
        let name = if held.contains_key(name) || held.len() < self.max { name } else { OTHER };
        if let Some(handle) = held.get(name).and_then(Weak::upgrade) {
            return handle;
        }
        let name: Arc<str> = name.into();
        let handle = Arc::new(make(&name));
        held.insert(name, Arc::downgrade(&handle));
        handle
    }

    /// All live handles.
    pub(super) fn all(&self) -> Vec<Arc<T>> {
        self.held.lock().values().filter_map(Weak::upgrade).collect()
    }

    /// True if no handle is live.
    pub(super) fn is_empty(&self) -> bool {
        self.held.lock().is_empty()
    }

    /// Removes the series of `name` when its handle is dropped, unless a new handle uses them meanwhile.
    pub(super) fn gone(&self, name: &str, remove: impl FnOnce()) {
        let mut held = self.held.lock();
        if held.get(name).is_some_and(|newer| newer.strong_count() > 0) {
            return;
        }
        held.remove(name);
        remove();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_handle_and_a_new_one_takes_its_series_over() {
        let live = Live::default();
        let one = live.get("a", Arc::clone);
        assert!(Arc::ptr_eq(&one, &live.get("a", Arc::clone)));
        drop(one);
        let next = live.get("a", Arc::clone);
        live.gone("a", || panic!("the series belong to the next one"));
        drop(next);
        let mut removed = false;
        live.gone("a", || removed = true);
        assert!(removed && live.held.lock().is_empty());
    }

    #[test]
    fn one_name_too_many_shares_its_series() {
        let live = Live { max: 2, ..Live::default() };
        let held: Vec<_> = ["a", "b", "c", "d"].iter().map(|name| live.get(name, Arc::clone)).collect();
        assert_eq!(held.iter().map(|name| &***name).collect::<Vec<_>>(), ["a", "b", OTHER, OTHER]);
        assert!(Arc::ptr_eq(&held[2], &held[3]));
    }
}
