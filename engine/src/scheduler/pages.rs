//! Pages of the KV cache: their users, and the tokens of full pages. A page is in use by any number of sequences,
//! idle, or free. An idle page has no user but still holds tokens with which a later prompt may begin.
//!
//! A full page is identified by its tokens and by the page before it, compared token by token: no hash stands for the
//! text of somebody else's prompt. Idle pages are evicted least recently used first, the end of a text before its
//! beginning; a page in use never is. Page 0 belongs to no sequence.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::prefixes::{BEGINNING, Content, Key, Prefixes};
use crate::exec::{PAGE, Sizes};

#[derive(Debug, Default)]
struct Page {
    users: u32,
    /// Content, once the page is full.
    content: Option<(Content, Key)>,
    /// Time of becoming idle, and a rank within the text, lowest for the last page: the order of eviction.
    idle: Option<(u64, u32)>,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    /// Pages in the table.
    count: usize,
    /// Leading pages whose content is known, and the content of the last of them.
    known: usize,
    content: Content,
}

const EMPTY: Slot = Slot { count: 0, known: 0, content: BEGINNING };

/// Free, idle and used pages, and the table that executors read.
pub(super) struct Pages {
    pages: Vec<Page>,
    free: Vec<u32>,
    prefixes: Arc<Prefixes>,
    idle: BTreeSet<(u64, u32, u32)>,
    /// `slots` x `pages_per_slot`; 0 where a sequence has no page.
    table: Vec<u32>,
    slots: Vec<Slot>,
    per_slot: usize,
    contents: Content,
    clock: u64,
}

fn at(page: u32) -> usize {
    usize::try_from(page).unwrap_or(usize::MAX)
}

impl Pages {
    /// Empty pages, which enter their texts into `prefixes`; what it held is forgotten.
    pub(super) fn new(sizes: Sizes, prefixes: Arc<Prefixes>) -> Self {
        prefixes.clear();
        Self {
            pages: (0..sizes.pages).map(|_| Page::default()).collect(),
            free: (1..sizes.pages).rev().filter_map(|page| u32::try_from(page).ok()).collect(),
            prefixes,
            idle: BTreeSet::new(),
            table: vec![0; sizes.slots * sizes.pages_per_slot()],
            slots: vec![EMPTY; sizes.slots],
            per_slot: sizes.pages_per_slot(),
            contents: BEGINNING,
            clock: 0,
        }
    }

    /// Page table.
    pub(super) fn table(&self) -> &[u32] {
        &self.table
    }

    /// Pages that can be allocated.
    pub(super) fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// Pages without a user and without tokens for later prompts.
    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    /// Pages that hold tokens for later prompts and have no user.
    pub(super) fn idle(&self) -> usize {
        self.idle.len()
    }

    /// Allocates the pages of these tokens to `slot` if at least `spare` pages remain. Leading pages that are cached
    /// are shared; the last token is never among them, so that it gives logits. Returns the number of shared tokens,
    /// or `None` without any change.
    pub(super) fn take(&mut self, slot: usize, tokens: &[u32], spare: usize) -> Option<usize> {
        debug_assert!(self.slots.get(slot).is_some_and(|slot| slot.count == 0));
        let count = tokens.len().div_ceil(PAGE).min(self.per_slot);
        let mut shared = Vec::new();
        let mut content = BEGINNING;
        for (page, next) in self.prefixes.pages_of(tokens) {
            shared.push(page);
            content = next;
        }
        let idle_shared = shared.iter().filter(|page| self.is_idle(**page)).count();
        let known = shared.len();
        if self.available().saturating_sub(idle_shared) < count.saturating_sub(known).saturating_add(spare) {
            return None;
        }
        for (n, page) in shared.into_iter().enumerate() {
            self.use_page(page);
            self.enter(slot, n, page);
        }
        for n in known..count {
            // Present, because `available` counted it.
            let page = self.take_empty()?;
            self.use_page(page);
            self.enter(slot, n, page);
        }
        if let Some(slot) = self.slots.get_mut(slot) {
            *slot = Slot { count, known, content };
        }
        Some(known * PAGE)
    }

    /// Tokens for which `slot` has pages.
    pub(super) fn room(&self, slot: usize) -> usize {
        self.slots.get(slot).map_or(0, |slot| slot.count * PAGE)
    }

    /// Allocates one more page to `slot`. Returns false if there is none.
    pub(super) fn grow(&mut self, slot: usize) -> bool {
        let Some(count) = self.slots.get(slot).map(|slot| slot.count).filter(|count| *count < self.per_slot) else {
            return false;
        };
        let Some(page) = self.take_empty() else { return false };
        self.use_page(page);
        self.enter(slot, count, page);
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.count += 1;
        }
        true
    }

    /// Records that `tokens` of `slot` are in the cache: its full pages can be shared from now on.
    pub(super) fn filled(&mut self, slot: usize, tokens: &[u32]) {
        while let Some(Slot { known, content, count }) = self.slots.get(slot).copied() {
            let Some(piece) = tokens.get(known * PAGE..(known + 1) * PAGE) else { break };
            let Some(page) = self.entry(slot, known).filter(|_| known < count) else { break };
            let content = match self.prefixes.find(content, piece) {
                // Another sequence was faster: one of two equal pages is enough.
                Some((twin, same)) => {
                    if twin != page {
                        self.use_page(twin);
                        self.enter(slot, known, twin);
                        self.leave(page, known);
                    }
                    same
                }
                None => {
                    self.contents += 1;
                    let key: Key = (content, piece.into());
                    if let Some(entry) = self.pages.get_mut(at(page)) {
                        entry.content = Some((self.contents, key.clone()));
                    }
                    self.prefixes.insert(key, page, self.contents);
                    self.contents
                }
            };
            if let Some(slot) = self.slots.get_mut(slot) {
                slot.known += 1;
                slot.content = content;
            }
        }
    }

    /// Shares pages at the start of `tokens` that other sequences have filled since, from `read` on. Returns the
    /// number of tokens of `slot` in the cache now.
    pub(super) fn catch_up(&mut self, slot: usize, tokens: &[u32], read: usize) -> usize {
        let mut read = read;
        while read.is_multiple_of(PAGE) && read + PAGE < tokens.len() {
            let Some(Slot { known, content, .. }) = self.slots.get(slot).copied() else { break };
            if known * PAGE != read {
                break;
            }
            let Some(piece) = tokens.get(read..read + PAGE) else { break };
            let (Some((twin, next)), Some(page)) = (self.prefixes.find(content, piece), self.entry(slot, known)) else {
                break;
            };
            self.use_page(twin);
            self.enter(slot, known, twin);
            self.leave(page, known);
            if let Some(slot) = self.slots.get_mut(slot) {
                slot.known += 1;
                slot.content = next;
            }
            read += PAGE;
        }
        read
    }

    /// Page of `slot` that holds the token at `position`.
    pub(super) fn page_of(&self, slot: usize, position: usize) -> Option<u32> {
        self.entry(slot, position / PAGE).filter(|page| *page != 0)
    }

    /// Releases the pages of `slot`.
    pub(super) fn release_slot(&mut self, slot: usize) {
        self.clock += 1;
        let count = self.slots.get(slot).map_or(0, |slot| slot.count);
        for n in 0..count {
            if let Some(page) = self.entry(slot, n) {
                self.enter(slot, n, 0);
                self.leave(page, n);
            }
        }
        if let Some(slot) = self.slots.get_mut(slot) {
            *slot = EMPTY;
        }
    }

    fn entry(&self, slot: usize, n: usize) -> Option<u32> {
        self.table.get(slot * self.per_slot + n).copied()
    }

    fn enter(&mut self, slot: usize, n: usize, page: u32) {
        if let Some(entry) = self.table.get_mut(slot * self.per_slot + n) {
            *entry = page;
        }
    }

    fn is_idle(&self, page: u32) -> bool {
        self.pages.get(at(page)).is_some_and(|page| page.idle.is_some())
    }

    /// Adds a user to a page.
    fn use_page(&mut self, page: u32) {
        let Some(entry) = self.pages.get_mut(at(page)) else { return };
        entry.users += 1;
        if let Some((when, early)) = entry.idle.take() {
            self.idle.remove(&(when, early, page));
        }
    }

    /// Removes a user from a page, the `n`-th of its text.
    fn leave(&mut self, page: u32, n: usize) {
        let Some(entry) = self.pages.get_mut(at(page)) else { return };
        entry.users = entry.users.saturating_sub(1);
        if entry.users > 0 {
            return;
        }
        if entry.content.is_some() {
            let early = u32::MAX - u32::try_from(n).unwrap_or(u32::MAX);
            entry.idle = Some((self.clock, early));
            self.idle.insert((self.clock, early, page));
        } else {
            self.free.push(page);
        }
    }

    /// Takes an empty page: a free one, else the least recently used idle one.
    fn take_empty(&mut self) -> Option<u32> {
        if let Some(page) = self.free.pop() {
            return Some(page);
        }
        let (_, _, page) = self.idle.pop_first()?;
        let entry = self.pages.get_mut(at(page))?;
        entry.idle = None;
        if let Some((_, key)) = entry.content.take() {
            self.prefixes.remove(&key);
        }
        Some(page)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    const SLOTS: usize = 4;
    const PAGES: usize = 11;

    fn sizes() -> Sizes {
        Sizes {
            max_rows: 8,
            max_picks: SLOTS,
            slots: SLOTS,
            context: 5 * PAGE,
            pages: PAGES + 1,
            layers: 1,
            heads: 1,
            kv_heads: 1,
            head_dim: 2,
            vocabulary: 1,
            types: 0,
        }
    }

    /// A text of `pages` full pages and one token; texts of one `kind` begin alike.
    fn text(kind: u32, pages: usize) -> Vec<u32> {
        (0..pages * PAGE + 1).map(|n| if n < PAGE { 7 } else { kind }).collect()
    }

    fn check(pages: &Pages) {
        let mut users = [0u32; PAGES + 1];
        for page in pages.table.iter().filter(|page| **page != 0) {
            users[*page as usize] += 1;
        }
        for (n, page) in pages.pages.iter().enumerate().skip(1) {
            assert_eq!(page.users, users[n], "users of page {n}");
            let places = usize::from(page.users > 0)
                + usize::from(page.idle.is_some())
                + pages.free.iter().filter(|free| **free as usize == n).count();
            assert_eq!(places, 1, "page {n} is in use, idle or free");
            if let Some((_, key)) = &page.content {
                assert_eq!(pages.prefixes.find(key.0, &key.1).map(|found| found.0), Some(n as u32));
            }
        }
        assert_eq!(pages.idle.len(), pages.pages.iter().filter(|page| page.idle.is_some()).count());
        assert_eq!(pages.prefixes.len(), pages.pages.iter().filter(|page| page.content.is_some()).count());
    }

    #[test]
    fn equal_beginnings_share_their_pages_and_the_last_token_is_always_read() {
        let mut pages = Pages::new(sizes(), Arc::default());
        assert_eq!(pages.take(0, &text(1, 3), 0), Some(0));
        pages.filled(0, &text(1, 3));
        assert_eq!(pages.take(1, &text(1, 3), 0), Some(3 * PAGE));
        assert_eq!(pages.take(2, &text(2, 3), 0), Some(PAGE), "only the first page is the same");
        assert_eq!(pages.available(), PAGES - 4 - 1 - 3);
        pages.release_slot(0);
        pages.release_slot(2);
        check(&pages);
        // A text of whole pages: its last token is in no shared page.
        assert_eq!(pages.take(0, &text(1, 3)[..3 * PAGE], 0), Some(2 * PAGE));
    }

    #[test]
    fn idle_pages_go_least_recently_used_first_and_from_the_end() {
        let mut pages = Pages::new(sizes(), Arc::default());
        for kind in [1, 2] {
            pages.take(0, &text(kind, 4), 0);
            pages.filled(0, &text(kind, 4));
            pages.release_slot(0);
        }
        // 1 + 3 + 3 full pages idle; the first text is the older one.
        assert_eq!(pages.idle(), 7);
        assert_eq!(pages.take(3, &text(9, 4)[PAGE..], 0), Some(0));
        assert!(pages.grow(3) && !pages.grow(3));
        check(&pages);
        assert_eq!(pages.take(0, &text(2, 4), 0), Some(4 * PAGE), "the newer text is still there");
        pages.release_slot(0);
        assert_eq!(pages.take(0, &text(1, 4), 0), Some(2 * PAGE), "the older one has lost its end");
    }

    #[test]
    fn a_prompt_catches_up_with_what_another_has_read() {
        let mut pages = Pages::new(sizes(), Arc::default());
        let (a, b) = (text(1, 3), text(1, 3));
        pages.take(0, &a, 0);
        pages.take(1, &b, 0);
        let before = pages.available();
        pages.filled(0, &a[..2 * PAGE]);
        assert_eq!(pages.catch_up(1, &b, 0), 2 * PAGE);
        assert_eq!(pages.available(), before + 2);
        // Two that fill the same page at once keep one of them.
        pages.filled(1, &b[..3 * PAGE]);
        pages.filled(0, &a[..3 * PAGE]);
        assert_eq!(pages.page_of(0, 2 * PAGE), pages.page_of(1, 2 * PAGE));
        check(&pages);
    }

    proptest! {
        #[test]
        fn no_page_is_lost_or_shared_wrongly(
            turns in proptest::collection::vec((0usize..SLOTS, 0u8..5, 0u32..3, 0usize..6), 1..80)
        ) {
            let mut pages = Pages::new(sizes(), Arc::default());
            let mut held: Vec<Option<(Vec<u32>, usize)>> = vec![None; SLOTS];
            // Content of each page, as an executor would have written it.
            let mut written: HashMap<u32, Vec<u32>> = HashMap::new();
            for (slot, what, kind, length) in turns {
                match (what, held[slot].take()) {
                    (_, None) => {
                        let mut tokens = text(kind, length);
                        tokens.truncate(5 * PAGE);
                        if let Some(read) = pages.take(slot, &tokens, 0) {
                            held[slot] = Some((tokens, read));
                        }
                    }
                    (0, Some(_)) => pages.release_slot(slot),
                    (1, Some((tokens, read))) => {
                        let read = pages.catch_up(slot, &tokens, read);
                        held[slot] = Some((tokens, read));
                    }
                    (_, Some((tokens, read))) => {
                        let to = (read + 1 + length * 20).min(tokens.len());
                        for (position, token) in tokens.iter().enumerate().take(to).skip(read) {
                            let page = pages.page_of(slot, position).unwrap();
                            let kept = written.entry(page).or_default();
                            kept.truncate(position % PAGE);
                            kept.push(*token);
                        }
                        pages.filled(slot, &tokens[..to]);
                        held[slot] = Some((tokens, to));
                    }
                }
                check(&pages);
                for (slot, held) in held.iter().enumerate() {
                    let Some((tokens, read)) = held else { continue };
                    for (position, token) in tokens.iter().enumerate().take(*read) {
                        let page = pages.page_of(slot, position).unwrap();
                        prop_assert_eq!(written[&page][position % PAGE], *token, "slot {} position {}", slot, position);
                    }
                }
            }
            for slot in 0..SLOTS {
                pages.release_slot(slot);
            }
            check(&pages);
            prop_assert_eq!(pages.available(), PAGES);
        }
    }
}
