//! Answers of one endpoint to callers and operations, for outlier detection: a few of each, in fixed memory and without a
//! lock. Where more are at work than there is place for, the oldest evidence is lost; then there are several callers anyway.

use std::sync::atomic::{AtomicU64, Ordering};

use smallvec::SmallVec;

/// Callers and operations that are remembered for each endpoint.
const PLACES: usize = 16;
/// Places that are tried for one of them.
const PROBES: usize = 4;
/// Most answers that are counted of each kind.
const MAX_COUNT: u64 = 0xffff;

/// Callers and operations by number, each with its good answers and its errors. A word has the upper 24 bits of the number,
/// the half of the window in 8, and the two counts in 16 each.
#[derive(Debug, Default)]
pub(super) struct CallerAnswers([AtomicU64; PLACES]);

/// Number of a caller and operation, as far as it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CallerTag(u64);

/// A word taken apart.
#[derive(Clone, Copy)]
struct CallerCounts {
    tag: CallerTag,
    epoch: u64,
    good: u64,
    bad: u64,
}

impl CallerTag {
    fn of(caller: u64) -> Self {
        // Zero is an empty place.
        Self((caller >> 40).max(1))
    }
}

impl CallerCounts {
    fn of(word: u64) -> Self {
        Self {
            tag: CallerTag(word >> 40),
            epoch: (word >> 32) & 0xff,
            good: (word >> 16) & MAX_COUNT,
            bad: word & MAX_COUNT,
        }
    }

    fn word(self) -> u64 {
        (self.tag.0 << 40) | (self.epoch << 32) | (self.good.min(MAX_COUNT) << 16) | self.bad.min(MAX_COUNT)
    }

    /// True if it is of the half `epoch` of a window or of the one before.
    fn is_recent(self, epoch: u64) -> bool {
        self.tag.0 != 0 && (epoch & 0xff).wrapping_sub(self.epoch) & 0xff <= 1
    }
}

impl CallerAnswers {
    /// Counts an answer.
    pub(super) fn add(&self, caller: u64, is_good: bool, epoch: u64) {
        let tag = CallerTag::of(caller);
        let entry = |place: &AtomicU64| CallerCounts::of(place.load(Ordering::Relaxed));
        let near = || self.near(caller);
        let Some(place) = near()
            .find(|place| entry(place).tag == tag)
            .or_else(|| near().find(|place| !entry(place).is_recent(epoch)))
            .or_else(|| near().next())
        else {
            return;
        };
        // Always `Some`, so it cannot fail.
        let _ = place.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
            let before = CallerCounts::of(word);
            let now = epoch & 0xff;
            let mut entry = match before {
                same if same.tag == tag && same.epoch == now => same,
                // Of the half before, half counts: so it fades.
                older if older.tag == tag && older.is_recent(epoch) => {
                    CallerCounts { epoch: now, good: older.good / 2, bad: older.bad / 2, ..older }
                }
                _ => CallerCounts { tag, epoch: now, good: 0, bad: 0 },
            };
            if is_good {
                entry.good += 1;
            } else {
                entry.bad += 1;
            }
            Some(entry.word())
        });
    }

    /// Callers and operations with errors, each once.
    pub(super) fn failing(&self, epoch: u64) -> SmallVec<[CallerTag; PLACES]> {
        let mut tags = SmallVec::new();
        for entry in self.recent(epoch).filter(|entry| entry.bad > 0) {
            if !tags.contains(&entry.tag) {
                tags.push(entry.tag);
            }
        }
        tags
    }

    /// Good answers and errors of one of them.
    pub(super) fn of(&self, tag: CallerTag, epoch: u64) -> (u32, u32) {
        let count = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        self.recent(epoch).filter(|entry| entry.tag == tag).fold((0, 0), |(good, bad), entry| {
            (count(entry.good).saturating_add(good), count(entry.bad).saturating_add(bad))
        })
    }

    fn recent(&self, epoch: u64) -> impl Iterator<Item = CallerCounts> {
        self.0
            .iter()
            .map(|place| CallerCounts::of(place.load(Ordering::Relaxed)))
            .filter(move |entry| entry.is_recent(epoch))
    }

    /// Places for one of them, the best first.
    fn near(&self, caller: u64) -> impl Iterator<Item = &AtomicU64> {
        let first = usize::try_from(caller % 16).unwrap_or(0);
        (0..PROBES).filter_map(move |n| self.0.get((first + n) % PLACES))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_a_window_are_counted_and_fade() {
        let callers = CallerAnswers::default();
        let (a, b) = (7 << 40, (9 << 40) + 1);
        for _ in 0..4 {
            callers.add(a, true, 10);
            callers.add(a, false, 10);
        }
        callers.add(b, false, 11);
        assert_eq!(callers.of(CallerTag::of(a), 11), (4, 4));
        assert_eq!(callers.failing(11).len(), 2);
        callers.add(a, true, 11);
        assert_eq!(callers.of(CallerTag::of(a), 11), (3, 2));
        assert_eq!(
            (callers.of(CallerTag::of(a), 13), callers.failing(13).len()),
            ((0, 0), 0),
            "a window later it is over"
        );
        callers.add(a, true, 11 + 256);
        assert_eq!(
            callers.of(CallerTag::of(a), 11 + 256).0,
            4,
            "only its numbers are kept, and no server idles so long"
        );
    }

    #[test]
    fn more_than_there_is_place_for_are_still_several() {
        let callers = CallerAnswers::default();
        for n in 1..1000u64 {
            callers.add((n << 40) + n, false, 3);
        }
        assert!(callers.failing(3).len() > 8);
        assert_eq!(callers.of(CallerTag::of(999 << 40), 3), (0, 1));
        let crowded = CallerAnswers::default();
        (0..u64::from(u16::MAX) + 9).for_each(|_| crowded.add(1 << 40, false, 1));
        assert_eq!(crowded.of(CallerTag::of(1 << 40), 1), (0, u32::from(u16::MAX)), "it saturates");
    }
}
