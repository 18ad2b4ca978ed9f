//! Counts of categories in bounded memory: the most frequent ones exactly enough, the rest as one number.
//!
//! **Model.** Space-saving counters in the mergeable form of Misra and Gries (Agarwal et al., "Mergeable summaries", DOI
//! 10.1145/2500128). With room for `k` categories of `n` observations, a count is low by at most `n / (k + 1)`, and no category
//! more frequent than that is missed; the error so far is [`Categories::error`]. While no more than `k` categories come,
//! counts are exact. The order of merges may change which rare categories are kept, never the bound.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Bytes of a category's name that are kept; longer names are cut at a character, so that memory is bounded.
pub const NAME_BYTES: usize = 64;

/// Mergeable counts by category. Takes at most `room * (NAME_BYTES + 40)` bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Categories {
    room: usize,
    counts: BTreeMap<String, u64>,
    total: u64,
    error: u64,
}

impl Categories {
    /// Counts with room for so many categories, at least 1.
    #[must_use]
    pub fn new(room: usize) -> Self {
        Self { room: room.max(1), counts: BTreeMap::new(), total: 0, error: 0 }
    }

    /// Categories that are counted by name at most.
    #[must_use]
    pub fn room(&self) -> usize {
        self.room
    }

    /// Adds one observation.
    pub fn add(&mut self, category: &str) {
        let mut end = category.len().min(NAME_BYTES);
        while !category.is_char_boundary(end) {
            end -= 1;
        }
        let name = category.get(..end).unwrap_or_default();
        self.total += 1;
        if let Some(count) = self.counts.get_mut(name) {
            *count += 1;
        } else if self.counts.len() < self.room {
            self.counts.insert(name.to_owned(), 1);
        } else {
            // The newcomer and one of each other category cancel.
            self.error += 1;
            self.counts.retain(|_, count| {
                *count -= 1;
                *count > 0
            });
        }
    }

    /// Adds what another sketch counted; the smaller room stays.
    pub fn merge(&mut self, other: &Self) {
        self.room = self.room.min(other.room);
        self.total += other.total;
        self.error += other.error;
        for (name, count) in &other.counts {
            *self.counts.entry(name.clone()).or_insert(0) += count;
        }
        if self.counts.len() > self.room {
            let mut sizes: Vec<u64> = self.counts.values().copied().collect();
            sizes.sort_unstable_by(|a, b| b.cmp(a));
            let cut = sizes.get(self.room).copied().unwrap_or(0);
            self.error += cut;
            self.counts.retain(|_, count| {
                *count = count.saturating_sub(cut);
                *count > 0
            });
        }
    }

    /// Observations so far.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Most that any count may be too low by.
    #[must_use]
    pub fn error(&self) -> u64 {
        self.error
    }

    /// Kept categories with their counts, in the order of their names.
    pub fn counts(&self) -> impl Iterator<Item = (&str, u64)> {
        self.counts.iter().map(|(name, count)| (name.as_str(), *count))
    }

    /// Observations that belong to no kept count.
    #[must_use]
    pub fn rest(&self) -> u64 {
        self.total - self.counts.values().sum::<u64>()
    }

    /// Counts of two sketches side by side over the categories of both, in the order of names, the rest last if there is any.
    #[must_use]
    pub fn paired(&self, other: &Self) -> Vec<(f64, f64)> {
        let count = crate::units::count;
        let mut names: Vec<&String> = self.counts.keys().chain(other.counts.keys()).collect();
        names.sort_unstable();
        names.dedup();
        let of = |sketch: &Self, name: &String| count(sketch.counts.get(name).copied().unwrap_or(0));
        let mut pairs: Vec<(f64, f64)> = names.into_iter().map(|name| (of(self, name), of(other, name))).collect();
        if self.rest() + other.rest() > 0 {
            pairs.push((count(self.rest()), count(other.rest())));
        }
        pairs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counted(room: usize, names: &[u8]) -> Categories {
        let mut categories = Categories::new(room);
        names.iter().for_each(|name| categories.add(&name.to_string()));
        categories
    }

    proptest! {
        #[test]
        fn counts_are_within_the_stated_error(
            first in prop::collection::vec(0u8..40, 0..300), second in prop::collection::vec(0u8..40, 0..300), room in 1usize..50,
        ) {
            let mut merged = counted(room, &first);
            merged.merge(&counted(room, &second));
            let all: Vec<u8> = first.iter().chain(&second).copied().collect();
            prop_assert_eq!(merged.total(), all.len() as u64);
            prop_assert!(merged.counts().count() <= room);
            prop_assert!(merged.error() * (room as u64 + 1) <= merged.total());
            for name in 0u8..40 {
                let truth = all.iter().filter(|other| **other == name).count() as u64;
                let kept = merged.counts().find(|(kept, _)| *kept == name.to_string()).map_or(0, |(_, count)| count);
                prop_assert!(kept <= truth && truth <= kept + merged.error());
            }
            if room >= 40 {
                prop_assert_eq!(merged, counted(room, &all));
            }
        }
    }

    #[test]
    fn long_names_are_cut_at_a_character() {
        let mut categories = Categories::new(2);
        categories.add(&"ä".repeat(100));
        assert_eq!(categories.counts().next().unwrap().0.len(), NAME_BYTES);
    }
}
