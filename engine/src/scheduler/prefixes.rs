//! Beginnings of texts whose full pages are in the KV cache. The scheduler's thread owns the pages and enters their
//! texts here; callers look up a prompt, so that an estimate counts only the tokens that still need prefill.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::exec::PAGE;

/// Identifies the content of a page and of all before it; never used twice.
pub(super) type Content = u64;
/// Content before the first page.
pub(super) const BEGINNING: Content = 0;

/// Key of a full page: the content before it, and its tokens.
pub(super) type Key = (Content, Box<[u32]>);

/// Full pages by their text. Bounded by the number of pages, since each stands here once.
#[derive(Default)]
pub(super) struct Prefixes {
    by_key: Mutex<HashMap<Key, (u32, Content)>>,
}

impl Prefixes {
    fn by_key(&self) -> MutexGuard<'_, HashMap<Key, (u32, Content)>> {
        self.by_key.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Page that holds these tokens after `content`, and its own content.
    pub(super) fn find(&self, content: Content, tokens: &[u32]) -> Option<(u32, Content)> {
        self.by_key().get(&(content, Box::from(tokens))).copied()
    }

    /// Pages of the longest cached beginning of `tokens`. The last token is never in one, so that it gives logits.
    pub(super) fn pages_of(&self, tokens: &[u32]) -> impl Iterator<Item = (u32, Content)> {
        let mut content = BEGINNING;
        tokens.chunks_exact(PAGE).take(tokens.len().saturating_sub(1) / PAGE).map_while(move |piece| {
            let found = self.find(content, piece)?;
            content = found.1;
            Some(found)
        })
    }

    /// Number of tokens of a prompt that need no prefill now.
    pub(super) fn cached(&self, tokens: &[u32]) -> usize {
        self.pages_of(tokens).count() * PAGE
    }

    pub(super) fn insert(&self, key: Key, page: u32, content: Content) {
        self.by_key().insert(key, (page, content));
    }

    pub(super) fn remove(&self, key: &Key) {
        self.by_key().remove(key);
    }

    pub(super) fn clear(&self) {
        self.by_key().clear();
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_key().len()
    }
}
