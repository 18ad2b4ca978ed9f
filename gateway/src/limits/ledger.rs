//! Reservations of one request. All are released if a later rule refuses the request, and settled once by what the
//! answer used. `Drop` releases permits, and tokens and budgets that were not settled, so that no path can forget
//! them. Rates of requests keep a request that was not refused by a rule.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use smallvec::SmallVec;
use spillway_filter::Refusal;

use super::budgets::Amount;
use super::estimate::Used;
use super::reservation::{ReservationRequest, ReservedIn, amount_here};
use super::rules::{Rule, RuleKind, Unit};
use crate::clock::unix_now;

/// Level of a caller under a rate, after this request.
#[derive(Debug, Clone)]
pub struct RateStatus {
    /// True for a rate of tokens, false for one of requests.
    pub is_tokens: bool,
    /// Most that may be reserved at once.
    pub limit: u64,
    /// Rest of `limit` now.
    pub remaining: u64,
    /// Time until the level is full again.
    pub reset: Duration,
    /// Value of `RateLimit-Policy`.
    pub policy: Option<HeaderValue>,
}

impl RateStatus {
    /// Level of a rate; `None` for a rule that is no rate.
    pub(super) fn of(rule: &Rule, remaining: u64, reset: Duration) -> Option<Self> {
        let RuleKind::Rate { unit, limit, .. } = &rule.kind else { return None };
        Some(Self {
            is_tokens: *unit == Unit::Tokens,
            limit: limit.burst.get().into(),
            remaining,
            reset,
            policy: rule.policy.clone(),
        })
    }

    /// True if a smaller fraction remains than of `other`.
    fn is_tighter(&self, other: &Self) -> bool {
        // a/b < c/d without division; both limits are at least 1.
        u128::from(self.remaining) * u128::from(other.limit) < u128::from(other.remaining) * u128::from(self.limit)
    }
}

/// Reservation that a rule has granted.
struct Reservation {
    rule: Arc<Rule>,
    key: u128,
    amount: Amount,
    /// Unix seconds of a budget's reservation.
    at: u64,
    /// Day or month from whose budget the amount was reserved.
    window: u64,
    held: ReservedIn,
}

/// Reservations of one request.
#[derive(Default)]
pub struct Ledger {
    reservations: SmallVec<[Reservation; 4]>,
    requests: Option<RateStatus>,
    tokens: Option<RateStatus>,
    settled: bool,
    /// Refusal by an exceeded rule that spills: sent if nothing answers the request instead.
    exceeded: Option<Box<Refusal>>,
}

impl Ledger {
    pub(super) fn add(&mut self, granted: &ReservationRequest<'_>, held: ReservedIn) {
        let (at, window) = match &granted.rule.kind {
            RuleKind::Budget { account, .. } => {
                let now = unix_now();
                (now, account.window(now))
            }
            _ => (0, 0),
        };
        let amount = Amount { tokens: granted.amount, nanos: granted.nanos };
        self.reservations.push(Reservation { rule: granted.rule.clone(), key: granted.key, amount, at, window, held });
    }

    /// Notes the level of the caller under a rate; for each unit the smallest remaining fraction is kept.
    pub fn show(&mut self, status: RateStatus) {
        let kept = if status.is_tokens { &mut self.tokens } else { &mut self.requests };
        if kept.as_ref().is_none_or(|tightest| status.is_tighter(tightest)) {
            *kept = Some(status);
        }
    }

    /// Notes that a rule that spills is exceeded; the refusal with the longest wait is kept.
    pub(super) fn exceeded(&mut self, refusal: Refusal) {
        if self.exceeded.as_ref().is_none_or(|other| other.retry_after < refusal.retry_after) {
            self.exceeded = Some(Box::new(refusal));
        }
    }

    /// Refusal by an exceeded rule that spills, for a request that nothing else answers.
    pub fn take_exceeded(&mut self) -> Option<Box<Refusal>> {
        self.exceeded.take()
    }

    /// Level of the caller under the tightest rate of each unit.
    pub fn shown(&self) -> impl Iterator<Item = &RateStatus> {
        self.requests.iter().chain(&self.tokens)
    }

    /// True if a reservation is to be settled by the usage of the answer.
    pub fn counts_tokens(&self) -> bool {
        self.reservations.iter().any(|reservation| reservation.rule.counts_tokens())
    }

    /// Releases all reservations: a refused request uses nothing of any rule.
    pub fn release(&mut self) {
        self.release_entries((0, self.reservations.len()));
    }

    /// Number of reservations.
    pub fn entries(&self) -> usize {
        self.reservations.len()
    }

    /// Releases the reservations from index `from` to before `to`.
    pub fn release_entries(&mut self, (from, to): (usize, usize)) {
        let to = to.min(self.reservations.len());
        for reservation in self.reservations.drain(from.min(to)..to) {
            if matches!(reservation.rule.kind, RuleKind::Rate { unit: Unit::Requests, .. }) {
                reservation.move_level(-signed(reservation.amount_of_level()));
            }
            reservation.settle(Used::default());
            reservation.release_permit();
        }
    }

    /// Corrects the reservations to what was used, once.
    pub fn settle(&mut self, used: Used) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        for reservation in &self.reservations {
            reservation.settle(used);
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        // A request that ended before its usage was known was not answered.
        self.settle(Used::default());
        for reservation in &self.reservations {
            reservation.release_permit();
        }
    }
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

impl Reservation {
    fn settle(&self, used: Used) {
        match &self.rule.kind {
            RuleKind::Rate { unit: Unit::Tokens, .. } => {
                let used = used.tokens().saturating_mul(self.gateways());
                self.move_level(signed(used).saturating_sub(signed(self.amount_of_level())));
            }
            RuleKind::Budget { account, .. } => {
                let used = Amount { tokens: used.tokens(), nanos: used.nanos };
                account.settle(self.amount, used, self.window);
                if let (ReservedIn::Store { .. }, Some(store)) = (self.held, &self.rule.store) {
                    store.spend(&self.rule, self.at, self.amount, used);
                }
            }
            RuleKind::Rate { unit: Unit::Requests, .. } | RuleKind::Concurrency { .. } => {}
        }
    }

    /// Times that each unit is counted here: once for every gateway while the store is away, as each may use as much.
    fn gateways(&self) -> u64 {
        match self.held {
            ReservedIn::Process { gateways } => gateways.get().into(),
            ReservedIn::Store { .. } => 1,
        }
    }

    /// Amount reserved of the level in this process.
    fn amount_of_level(&self) -> u64 {
        match (self.held, &self.rule.kind) {
            (ReservedIn::Process { gateways }, RuleKind::Rate { limit, .. }) => {
                amount_here(self.amount.tokens, gateways, limit.burst).get().into()
            }
            _ => self.amount.tokens,
        }
    }

    fn move_level(&self, more: i64) {
        let RuleKind::Rate { levels, limit, .. } = &self.rule.kind else { return };
        if more == 0 {
            return;
        }
        levels.settle(self.key, more);
        if let (ReservedIn::Store { .. }, Some(store)) = (self.held, &self.rule.store) {
            store.move_level(self.rule.number ^ self.key, limit.every, more);
        }
    }

    fn release_permit(&self) {
        let RuleKind::Concurrency { running, .. } = &self.rule.kind else { return };
        running.leave(self.key);
        if let (ReservedIn::Store { lease }, Some(store)) = (self.held, &self.rule.store) {
            store.leave(self.rule.number ^ self.key, lease);
        }
    }
}
