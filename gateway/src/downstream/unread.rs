//! Bytes of answers that servers have sent and clients have not read.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::Downstream;

/// Most bytes of one write, 64 KiB: a client must read as much within `writeTimeout`.
pub const SLICE: usize = 64 << 10;

/// Memory of the whole process for answers that wait for their clients.
#[derive(Debug)]
pub struct AnswerBudget {
    total: u64,
    used: AtomicU64,
}

impl AnswerBudget {
    /// Makes a budget of `total` bytes.
    pub fn new(total: u64) -> Self {
        Self { total, used: AtomicU64::new(0) }
    }

    /// Reserved bytes.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: u64) -> bool {
        let within = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.total);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within).is_ok()
    }

    fn release(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Memory of a piece beside its content, bytes: an entry in a queue that grows by doubling, and the allocation of
/// `Bytes` when the piece is written.
const PIECE: u64 = 128;

/// Least memory of a piece, bytes: small parts are joined in it.
const LEAST: usize = 1 << 10;

/// Unread rest of one answer, in order. The share of a request and the budget of the process bound it. Neither is
/// exceeded by more than the one part (at most 64 KiB) that finds no room. Counted is the memory that is held, not the
/// bytes in it.
#[derive(Debug, Default)]
pub struct Unread {
    /// Pieces that wait; all but the last are as long as a write.
    pieces: VecDeque<Piece>,
    /// Memory counted for the piece that is being written.
    writing: u64,
    /// Memory counted for the answer, `writing` included.
    counted: u64,
    /// State with the budget of the process; `None` until something waits.
    shared: Option<Arc<Downstream>>,
    is_full: bool,
}

/// Bytes of one write, or of a part of it.
#[derive(Debug, Default)]
struct Piece {
    bytes: Vec<u8>,
    /// Memory counted for the piece.
    counted: u64,
}

impl Unread {
    /// Adds a part behind those that wait. `most` is the share of a request, bytes.
    pub fn push(&mut self, part: &[u8], shared: &Arc<Downstream>, most: u64) {
        self.shared.get_or_insert_with(|| shared.clone());
        let mut rest = part;
        while !rest.is_empty() {
            let mut piece = match self.pieces.pop_back() {
                Some(last) if last.bytes.len() < SLICE => last,
                full => {
                    self.pieces.extend(full);
                    Piece { counted: self.count(PIECE, most), ..Piece::default() }
                }
            };
            let (now, later) = rest.split_at(rest.len().min(SLICE - piece.bytes.len()));
            let needed = piece.bytes.len() + now.len();
            let has = piece.bytes.capacity();
            if needed > has {
                let doubled = needed.max(has * 2).clamp(LEAST, SLICE);
                piece.counted = piece.counted.saturating_add(self.count(len(doubled - has), most));
                // Beyond the share, no more memory is allocated than needed.
                let wanted = if self.is_full { needed } else { doubled };
                piece.bytes.reserve_exact(wanted - piece.bytes.len());
            }
            piece.bytes.extend_from_slice(now);
            self.pieces.push_back(piece);
            rest = later;
        }
    }

    /// Reserves memory, or notes that none is left; returns what was reserved.
    fn count(&mut self, more: u64, most: u64) -> u64 {
        let sum = self.counted.saturating_add(more);
        if !self.is_full && sum <= most && self.shared.as_ref().is_some_and(|shared| shared.answers.take(more)) {
            self.counted = sum;
            more
        } else {
            self.is_full = true;
            0
        }
    }

    /// True while a further part may be added.
    pub fn has_room(&self) -> bool {
        !self.is_full
    }

    /// Next bytes to write. A call means that the client has read those before.
    pub fn take_slice(&mut self) -> Option<Bytes> {
        let shared = self.shared.as_ref()?;
        let taken = std::mem::take(&mut self.writing);
        shared.answers.release(taken);
        self.counted = self.counted.saturating_sub(taken);
        self.is_full = false;
        let Some(next) = self.pieces.pop_front() else {
            // Frees the queue's own memory as well.
            self.pieces = VecDeque::new();
            self.shared = None;
            return None;
        };
        self.writing = next.counted;
        Some(next.bytes.into())
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        if let Some(shared) = &self.shared {
            shared.answers.release(self.counted);
        }
    }
}

/// Splits the bytes of the next write off; `None` if none are left.
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

    /// Memory that an answer holds, the piece that is being written included.
    fn held(unread: &Unread, writing: Option<&Bytes>) -> u64 {
        let slots = unread.pieces.capacity() * size_of::<Piece>();
        let waiting: usize = unread.pieces.iter().map(|piece| piece.bytes.capacity()).sum();
        // A piece that is written is as long as the memory of it, but for the last one.
        len(slots + waiting + writing.map_or(0, Bytes::len))
    }

    #[test]
    fn what_waits_comes_out_in_order_and_is_given_back() {
        let shared = shared(1 << 20);
        let mut unread = Unread::default();
        assert!(unread.take_slice().is_none());
        let parts: Vec<Vec<u8>> = (0u8..5).map(|n| vec![n; 20_000]).collect();
        parts.iter().for_each(|part| unread.push(part, &shared, 1 << 20));
        let whole = 2 * (len(SLICE) + PIECE);
        assert!(shared.answers.used() <= whole && shared.answers.used() >= 100_000, "{}", shared.answers.used());
        let before = shared.answers.used();
        let mut all = unread.take_slice().unwrap().to_vec();
        assert_eq!((all.len(), shared.answers.used()), (SLICE, before), "what is being written counts");
        all.extend(unread.take_slice().unwrap());
        assert_eq!(all, parts.concat());
        assert_eq!(shared.answers.used(), before - len(SLICE) - PIECE);
        assert!(unread.take_slice().is_none());
        assert_eq!(shared.answers.used(), 0);
    }

    #[test]
    fn what_is_counted_is_what_is_held() {
        for sizes in
            [vec![1; 5_000], vec![1, 70_000, 1, 3, 64 << 10], vec![200; 2_000], vec![300_000, 5], vec![SLICE; 4]]
        {
            let shared = shared(4 << 20);
            let mut unread = Unread::default();
            let mut sent: Vec<u8> = Vec::new();
            for (n, size) in sizes.iter().enumerate() {
                let part = vec![n as u8; *size];
                unread.push(&part, &shared, 4 << 20);
                sent.extend(part);
                assert!(held(&unread, None) <= shared.answers.used(), "{} parts of {size}", n + 1);
            }
            let waiting = len(sent.len());
            assert!(shared.answers.used() <= (2 * waiting).max(len(LEAST)) + PIECE * (waiting / len(SLICE) + 1));
            let mut taken = Vec::new();
            while let Some(next) = unread.take_slice() {
                assert!(held(&unread, Some(&next)) <= shared.answers.used(), "what was taken is held no more");
                let left = len(sent.len() - taken.len());
                let most = (2 * left).max(len(LEAST)) + PIECE * (left / len(SLICE) + 1);
                assert!(shared.answers.used() <= most, "{} for {left}", shared.answers.used());
                taken.extend(next);
            }
            assert!(taken == sent && shared.answers.used() == 0);
        }
    }

    #[test]
    fn one_answer_and_all_of_them_are_bounded() {
        let shared = shared(4_000);
        let (mut one, mut other) = (Unread::default(), Unread::default());
        one.push(&[0; 1_000], &shared, 2_000);
        assert!(one.has_room());
        one.push(&[0; 1_000], &shared, 2_000);
        assert!(!one.has_room(), "the share of a request");
        other.push(&[0; 1_000], &shared, 9_000);
        assert!(other.has_room());
        other.push(&[0; 2_000], &shared, 9_000);
        assert!(!other.has_room(), "the budget of all");
        assert_eq!(shared.answers.used(), 2 * (len(LEAST) + PIECE));
        assert_eq!(one.take_slice().map(|all| all.len()), Some(2_000), "nothing is lost");
        assert!(one.take_slice().is_none() && one.has_room());
        drop(other);
        assert_eq!(shared.answers.used(), 0);
    }

    #[test]
    fn no_part_beyond_the_share_makes_room_for_another() {
        let shared = shared(0);
        let mut unread = Unread::default();
        for _ in 0..100 {
            assert!(unread.has_room());
            unread.push(&[0; 64 << 10], &shared, 0);
            assert!(!unread.has_room() && held(&unread, None) < 65 << 10);
            assert_eq!(unread.take_slice().map(|slice| slice.len()), Some(64 << 10));
        }
        assert_eq!(shared.answers.used(), 0);
    }
}
