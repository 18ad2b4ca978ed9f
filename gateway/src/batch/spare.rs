//! Spare capacity: how many lines may have a slot beside callers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Number of the lines at one endpoint or built-in model.
#[derive(Debug, Clone, Default)]
pub struct LineCount(Arc<AtomicU32>);

/// Place of a line, counted until it is dropped.
#[derive(Debug)]
pub struct Seat(LineCount);

impl LineCount {
    /// Takes a place for a line whose slot is counted already. `in_flight` is the number of taken slots, that of the line
    /// included, out of `limit`, which is `u32::MAX` where none is known; `share` is the part of the free ones that lines may have.
    pub fn take(&self, limit: u32, in_flight: u32, share: f64) -> Option<Seat> {
        let lines = self.0.fetch_add(1, Ordering::AcqRel).saturating_add(1);
        // Counted now, so that two lines at once do not both get the last place: the one that is too much goes back.
        let seat = Seat(self.clone());
        allows(limit, in_flight, lines, share).then_some(seat)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// True if `lines` may be among the `in_flight` requests, where `limit` fit.
fn allows(limit: u32, in_flight: u32, lines: u32, share: f64) -> bool {
    if limit == u32::MAX {
        return true;
    }
    let callers = in_flight.saturating_sub(lines);
    let free = limit.saturating_sub(callers);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the share is from 0 to 1")]
    let shared = (f64::from(free) * share) as u32;
    // Where nobody is, a server that takes one request at a time is of use too.
    let most = if callers == 0 { shared.max(1) } else { shared.min(free.saturating_sub(1)) };
    lines <= most
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_get_their_share_of_what_callers_leave() {
        for (limit, callers, share, most) in [
            (8, 0, 0.5, 4),
            (8, 4, 0.5, 2),
            (8, 7, 0.5, 0),
            (8, 8, 1.0, 0),
            (8, 0, 1.0, 8),
            (8, 1, 1.0, 6),
            (1, 0, 0.5, 1),
            (1, 1, 0.5, 0),
            (0, 0, 0.5, 1),
        ] {
            let allowed = (0..=limit + 2).filter(|lines| *lines > 0 && allows(limit, callers + lines, *lines, share));
            assert_eq!(allowed.max().unwrap_or(0), most, "{limit} {callers} {share}");
        }
        assert!(allows(u32::MAX, 1_000, 900, 0.1));
    }

    #[test]
    fn a_place_is_counted_until_it_is_dropped() {
        let count = LineCount::default();
        let first = count.take(2, 1, 0.5);
        assert!(first.is_some() && count.take(2, 2, 0.5).is_none());
        drop(first);
        assert!(count.take(2, 1, 0.5).is_some());
    }

    proptest! {
        /// Beside a caller, a slot is free for the next one.
        #[test]
        fn a_slot_is_left_to_callers(limit in 1u32..200, callers in 1u32..200, lines in 1u32..200, share in 0.0f64..=1.0) {
            if allows(limit, callers + lines, lines, share) {
                prop_assert!(callers + lines < limit);
            }
        }
    }
}
