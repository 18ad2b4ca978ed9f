//! What one request holds of limits: given back as a whole when a later rule refuses it, settled once by what was used,
//! and released by `Drop`, so that no path can forget it.

use std::num::NonZeroU32;
use std::time::Duration;

use http::HeaderValue;
use smallvec::SmallVec;
use spillway_filter::Refusal;
use std::sync::Arc;

use super::budgets::Amount;
use super::estimate::Used;
use super::judging::{Claim, share_of};
use super::rules::{Kind, Rule, Unit};
use crate::clock::unix_now;

/// Where a taking stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In this process, as one of so many gateways.
    Here {
        /// How many share the limit.
        share: NonZeroU32,
    },
    /// In the shared store, and noted here; with the number of the request's leases there.
    Shared(u64),
}

/// Where a caller stands with a rate, after this request.
#[derive(Debug, Clone)]
pub struct Shown {
    /// Whether it counts tokens, else requests.
    pub is_tokens: bool,
    /// Most that may be taken at once.
    pub limit: u64,
    /// What is left now.
    pub remaining: u64,
    /// Time until all of it is back.
    pub reset: Duration,
    /// The rule for `RateLimit-Policy`.
    pub policy: Option<HeaderValue>,
}

impl Shown {
    /// Whether less of it is left than of the other.
    fn is_tighter(&self, other: &Self) -> bool {
        // a/b < c/d without division; both limits are at least 1.
        u128::from(self.remaining) * u128::from(other.limit) < u128::from(other.remaining) * u128::from(self.limit)
    }
}

struct Taken {
    rule: Arc<Rule>,
    key: u128,
    amount: Amount,
    at: u64,
    /// The window of the budget that it was taken from.
    window: u64,
    place: Place,
}

/// The takings of one request.
#[derive(Default)]
pub struct Ledger {
    taken: SmallVec<[Taken; 4]>,
    requests: Option<Shown>,
    tokens: Option<Shown>,
    settled: bool,
    /// A rule that wants the lesser answer for what is over it has been exceeded: what to say where there is none.
    exceeded: Option<Box<Refusal>>,
}

impl Ledger {
    pub(super) fn add(&mut self, claim: &Claim<'_>, place: Place) {
        let (at, window) = match &claim.rule.kind {
            Kind::Budget { account, .. } => {
                let now = unix_now();
                (now, account.window(now))
            }
            _ => (0, 0),
        };
        let amount = Amount { tokens: claim.amount, nanos: claim.nanos };
        self.taken.push(Taken { rule: claim.rule.clone(), key: claim.key, amount, at, window, place });
    }

    /// Notes where the caller stands with a rule; of each unit the one with the smallest remaining fraction is shown.
    pub fn show(&mut self, shown: Shown) {
        let slot = if shown.is_tokens { &mut self.tokens } else { &mut self.requests };
        if slot.as_ref().is_none_or(|tightest| shown.is_tighter(tightest)) {
            *slot = Some(shown);
        }
    }

    /// Notes that a rule is exceeded which wants the lesser answer then; the longest wait counts.
    pub(super) fn exceeded(&mut self, refusal: Refusal) {
        if self.exceeded.as_ref().is_none_or(|other| other.retry_after < refusal.retry_after) {
            self.exceeded = Some(Box::new(refusal));
        }
    }

    /// What to say to a request that shall have the lesser answer, where nobody gives one.
    pub fn take_exceeded(&mut self) -> Option<Box<Refusal>> {
        self.exceeded.take()
    }

    /// Where the caller stands with the tightest rule of each unit.
    pub fn shown(&self) -> impl Iterator<Item = &Shown> {
        self.requests.iter().chain(&self.tokens)
    }

    /// Whether something waits to be settled by the usage of the answer.
    pub fn counts_tokens(&self) -> bool {
        self.taken.iter().any(|taken| taken.rule.counts_tokens())
    }

    /// Gives back everything: a refused request takes nothing from any rule.
    pub fn give_back(&mut self) {
        self.give_back_of((0, self.taken.len()));
    }

    /// How many entries there are.
    pub fn entries(&self) -> usize {
        self.taken.len()
    }

    /// Gives back the entries from one to before the other.
    pub fn give_back_of(&mut self, (from, to): (usize, usize)) {
        let to = to.min(self.taken.len());
        for taken in self.taken.drain(from.min(to)..to) {
            if matches!(taken.rule.kind, Kind::Rate { unit: Unit::Requests, .. }) {
                taken.move_level(-signed(taken.of_level()));
            }
            taken.settle(Used::default());
            taken.release();
        }
    }

    /// Corrects what was reserved to what was used, once.
    pub fn settle(&mut self, used: Used) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        for taken in &self.taken {
            taken.settle(used);
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        // A request that ended before anybody could tell its usage was not answered.
        self.settle(Used::default());
        for taken in &self.taken {
            taken.release();
        }
    }
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

impl Taken {
    fn settle(&self, used: Used) {
        match &self.rule.kind {
            Kind::Rate { unit: Unit::Tokens, .. } => {
                let used = used.tokens().saturating_mul(self.share());
                self.move_level(signed(used).saturating_sub(signed(self.of_level())));
            }
            Kind::Budget { account, .. } => {
                let used = Amount { tokens: used.tokens(), nanos: used.nanos };
                account.settle(self.amount, used, self.window);
                if let (Place::Shared(_), Some(shared)) = (self.place, &self.rule.shared) {
                    shared.spend(&self.rule, self.at, self.amount, used);
                }
            }
            Kind::Rate { unit: Unit::Requests, .. } | Kind::Concurrency { .. } => {}
        }
    }

    /// For how many gateways it stands.
    fn share(&self) -> u64 {
        match self.place {
            Place::Here { share } => share.get().into(),
            Place::Shared(_) => 1,
        }
    }

    /// What was taken from the level here.
    fn of_level(&self) -> u64 {
        match (self.place, &self.rule.kind) {
            (Place::Here { share }, Kind::Rate { limit, .. }) => {
                share_of(self.amount.tokens, share, limit.burst).get().into()
            }
            _ => self.amount.tokens,
        }
    }

    fn move_level(&self, more: i64) {
        let Kind::Rate { levels, limit, .. } = &self.rule.kind else { return };
        if more == 0 {
            return;
        }
        levels.settle(self.key, more);
        if let (Place::Shared(_), Some(shared)) = (self.place, &self.rule.shared) {
            shared.move_level(&self.rule, self.key, limit.every, more);
        }
    }

    fn release(&self) {
        let Kind::Concurrency { running, .. } = &self.rule.kind else { return };
        running.leave(self.key);
        if let (Place::Shared(lease), Some(shared)) = (self.place, &self.rule.shared) {
            shared.leave(&self.rule, self.key, lease);
        }
    }
}
