//! What one request has taken from limits: given back as a whole when a later rule refuses it, shown in its answer.
//! It owns the takings of one exchange and nothing else.

use std::time::Duration;

/// A taking that can be undone.
pub trait Reservation: Send + Sync {
    /// Gives back what was taken.
    fn give_back(&self);
}

/// Where a caller stands with one rule, after this request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitStatus {
    /// Most that may be taken at once.
    pub limit: u32,
    /// What is left now.
    pub remaining: u32,
    /// Time until all of it is back.
    pub reset: Duration,
}

/// The takings of one request.
#[derive(Default)]
pub struct Ledger {
    taken: Vec<Box<dyn Reservation>>,
    tightest: Option<LimitStatus>,
}

impl Ledger {
    /// Notes a taking.
    pub fn add(&mut self, reservation: Box<dyn Reservation>) {
        self.taken.push(reservation);
    }

    /// Notes where the caller stands with a rule; the one with the smallest remaining fraction is shown.
    pub fn show(&mut self, status: LimitStatus) {
        let fraction = |s: &LimitStatus| f64::from(s.remaining) / f64::from(s.limit.max(1));
        if self.tightest.as_ref().is_none_or(|shown| fraction(&status) < fraction(shown)) {
            self.tightest = Some(status);
        }
    }

    /// Where the caller stands with the tightest rule.
    pub fn tightest(&self) -> Option<LimitStatus> {
        self.tightest
    }

    /// Gives back everything: a refused request takes nothing from any rule.
    pub fn give_back(&mut self) {
        for reservation in self.taken.drain(..) {
            reservation.give_back();
        }
    }
}
