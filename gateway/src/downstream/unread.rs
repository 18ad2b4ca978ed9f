//! Bytes of answers that their servers have written and their clients have not taken.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};

use super::Downstream;

/// Most bytes of one write: a client must take so much within `writeTimeout`.
pub const SLICE: usize = 64 << 10;

/// Memory of the whole process for answers that wait for their clients.
#[derive(Debug)]
pub struct AnswerBudget {
    total: u64,
    used: AtomicU64,
}

impl AnswerBudget {
    /// A budget of so many bytes.
    pub fn new(total: u64) -> Self {
        Self { total, used: AtomicU64::new(0) }
    }

    /// Bytes that are taken.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: u64) -> bool {
        let within = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.total);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within).is_ok()
    }

    fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// What waits of one answer, in its order. It is bounded by the share of a request and the budget of the process, and
/// passes neither by more than the one part (at most 64 KiB) that shows that there is no room for another.
#[derive(Debug, Default)]
pub struct Unread {
    queue: BytesMut,
    /// Bytes counted against the budget.
    counted: u64,
    /// Where they are counted; `None` until something waits.
    shared: Option<Arc<Downstream>>,
    is_full: bool,
}

impl Unread {
    /// Adds a part behind those that wait. `most` is the share of a request.
    pub fn push(&mut self, part: &[u8], shared: &Arc<Downstream>, most: u64) {
        let more = len(part.len());
        let budget = &self.shared.get_or_insert_with(|| shared.clone()).answers;
        if self.counted.saturating_add(more) <= most && budget.take(more) {
            self.counted = self.counted.saturating_add(more);
        } else {
            self.is_full = true;
        }
        self.queue.extend_from_slice(part);
    }

    /// True while a further part may be added.
    pub fn has_room(&self) -> bool {
        !self.is_full
    }

    /// The next bytes to write. Asking for them says that those before were taken.
    pub fn take_slice(&mut self) -> Option<Bytes> {
        let shared = self.shared.as_ref()?;
        let still = len(self.queue.len());
        shared.answers.give_back(self.counted.saturating_sub(still));
        self.counted = self.counted.min(still);
        self.is_full = false;
        if self.queue.is_empty() {
            // The memory goes back as well.
            self.queue = BytesMut::new();
            self.shared = None;
            return None;
        }
        let most = self.queue.len().min(SLICE);
        Some(self.queue.split_to(most).freeze())
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        if let Some(shared) = &self.shared {
            shared.answers.give_back(self.counted);
        }
    }
}

/// Cuts the bytes of the next write off; `None` when all of them were.
pub fn slice(body: &mut Bytes) -> Option<Bytes> {
    (!body.is_empty()).then(|| body.split_to(body.len().min(SLICE)))
}

fn len(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    fn shared(bytes: u64) -> Arc<Downstream> {
        Arc::new(Downstream::new(bytes, Counter::default()))
    }

    #[test]
    fn what_waits_comes_out_in_order_and_is_given_back() {
        let shared = shared(1 << 20);
        let mut unread = Unread::default();
        assert!(unread.take_slice().is_none());
        let parts: Vec<Vec<u8>> = (0u8..5).map(|n| vec![n; 20_000]).collect();
        parts.iter().for_each(|part| unread.push(part, &shared, 1 << 20));
        assert_eq!(shared.answers.used(), 100_000);
        let mut all = unread.take_slice().unwrap().to_vec();
        assert_eq!((all.len(), shared.answers.used()), (SLICE, 100_000), "what is being written counts");
        all.extend(unread.take_slice().unwrap());
        assert_eq!(all, parts.concat());
        assert_eq!(shared.answers.used(), 100_000 - len(SLICE));
        assert!(unread.take_slice().is_none());
        assert_eq!(shared.answers.used(), 0);
    }

    #[test]
    fn one_answer_and_all_of_them_are_bounded() {
        let shared = shared(2_500);
        let (mut one, mut other) = (Unread::default(), Unread::default());
        one.push(&[0; 1_000], &shared, 1_500);
        assert!(one.has_room());
        one.push(&[0; 1_000], &shared, 1_500);
        assert!(!one.has_room(), "the share of a request");
        other.push(&[0; 1_000], &shared, 9_000);
        other.push(&[0; 1_000], &shared, 9_000);
        assert!(!other.has_room(), "the budget of all");
        assert_eq!(shared.answers.used(), 2_000);
        assert_eq!(one.take_slice().map(|all| all.len()), Some(2_000), "nothing is lost");
        assert!(one.take_slice().is_none() && one.has_room());
        drop(other);
        assert_eq!(shared.answers.used(), 0);
    }
}
