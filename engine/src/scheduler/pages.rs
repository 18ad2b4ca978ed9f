//! The pages of the KV cache: which belong to which sequence. A sequence gets all pages that its whole length needs
//! when it is admitted and gives them back when it ends; page 0 belongs to nobody.

use crate::exec::{PAGE, Sizes};

/// Free and taken pages, and the table that executors read.
pub(super) struct Pages {
    free: Vec<u32>,
    free_slots: Vec<usize>,
    /// `slots` x `pages_per_slot`; 0 where a sequence has no page.
    table: Vec<u32>,
    per_slot: usize,
}

impl Pages {
    pub(super) fn new(sizes: Sizes) -> Self {
        Self {
            free: (1..sizes.pages).rev().filter_map(|page| u32::try_from(page).ok()).collect(),
            free_slots: (0..sizes.slots).rev().collect(),
            table: vec![0; sizes.slots * sizes.pages_per_slot()],
            per_slot: sizes.pages_per_slot(),
        }
    }

    /// A place with pages for so many tokens, if both are free.
    pub(super) fn take(&mut self, tokens: usize) -> Option<usize> {
        let count = tokens.div_ceil(PAGE).min(self.per_slot);
        if self.free.len() < count {
            return None;
        }
        let slot = self.free_slots.pop()?;
        let row = self.table.iter_mut().skip(slot * self.per_slot).take(count);
        for (entry, page) in row.zip(self.free.drain(self.free.len() - count..)) {
            *entry = page;
        }
        Some(slot)
    }

    /// Gives back a place with its pages.
    pub(super) fn give_back(&mut self, slot: usize) {
        for entry in self.table.iter_mut().skip(slot * self.per_slot).take(self.per_slot) {
            if *entry != 0 {
                self.free.push(std::mem::take(entry));
            }
        }
        self.free_slots.push(slot);
    }

    /// The table.
    pub(super) fn table(&self) -> &[u32] {
        &self.table
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sizes() -> Sizes {
        Sizes {
            max_rows: 8,
            max_picks: 4,
            slots: 4,
            context: 5 * PAGE,
            pages: 11,
            layers: 1,
            heads: 1,
            kv_heads: 1,
            head_dim: 2,
            vocabulary: 1,
            types: 0,
        }
    }

    proptest! {
        #[test]
        fn no_page_has_two_owners_and_none_is_lost(turns in proptest::collection::vec((any::<bool>(), 1usize..200), 1..60)) {
            let mut pages = Pages::new(sizes());
            let mut taken: Vec<usize> = Vec::new();
            for (take, tokens) in turns {
                if take {
                    let before = pages.free.len();
                    match pages.take(tokens) {
                        Some(slot) => taken.push(slot),
                        None => prop_assert!(before < tokens.div_ceil(PAGE).min(5) || taken.len() == 4),
                    }
                } else if let Some(slot) = taken.pop() {
                    pages.give_back(slot);
                }
                let mut owned: Vec<u32> = pages.table.iter().chain(&pages.free).copied().filter(|p| *p != 0).collect();
                owned.sort_unstable();
                prop_assert_eq!(owned, (1..11).collect::<Vec<_>>());
            }
        }
    }
}
