//! Handles of what the configuration names. A name has one handle as long as somebody holds it, over all reloads, and
//! its series disappear with the last holder: series are bounded by what is configured now, not by what ever was.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

/// Names of one kind that have series of their own; all further ones share [`OTHER`].
const MAX_NAMES: usize = 10_000;
/// The value of a label whose own value is one too many.
pub(super) const OTHER: &str = "other";

/// The handles of one kind that are held, by name.
pub(super) struct Live<T> {
    held: Mutex<HashMap<String, Weak<T>>>,
    max: usize,
}

impl<T> Default for Live<T> {
    fn default() -> Self {
        Self { held: Mutex::default(), max: MAX_NAMES }
    }
}

impl<T> Live<T> {
    /// The handle of `name`, made where nobody holds one.
    pub(super) fn get(&self, name: &str, make: impl FnOnce(&str) -> T) -> Arc<T> {
        let mut held = self.held.lock();
        let name = if held.contains_key(name) || held.len() < self.max { name } else { OTHER };
        if let Some(handle) = held.get(name).and_then(Weak::upgrade) {
            return handle;
        }
        let handle = Arc::new(make(name));
        held.insert(name.to_owned(), Arc::downgrade(&handle));
        handle
    }

    /// Called when the handle of `name` is dropped: removes its series, unless a new handle took them over meanwhile.
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
        let one = live.get("a", str::to_owned);
        assert!(Arc::ptr_eq(&one, &live.get("a", str::to_owned)));
        drop(one);
        let next = live.get("a", str::to_owned);
        live.gone("a", || panic!("the series belong to the next one"));
        drop(next);
        let mut removed = false;
        live.gone("a", || removed = true);
        assert!(removed && live.held.lock().is_empty());
    }

    #[test]
    fn one_name_too_many_shares_its_series() {
        let live = Live { max: 2, ..Live::default() };
        let held: Vec<_> = ["a", "b", "c", "d"].iter().map(|name| live.get(name, str::to_owned)).collect();
        assert_eq!(held.iter().map(|name| name.as_str()).collect::<Vec<_>>(), ["a", "b", OTHER, OTHER]);
        assert!(Arc::ptr_eq(&held[2], &held[3]));
    }
}
