//! Reservations: what a request asks of a rule, how the rule answers, and where a granted reservation is held. Inputs
//! are compiled rules, and what is known of a request before it is answered.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use super::estimate::Estimate;
use super::keys::{self, Subject};
use super::rules::{Rule, RuleKind, Unit};

/// Reservation that a request asks of one rule.
pub struct ReservationRequest<'r> {
    pub(super) rule: &'r Arc<Rule>,
    /// Number of the level; zero for a budget, which has a single account.
    pub(super) key: u128,
    /// Tokens for a rule of tokens or a budget, else one request.
    pub(super) amount: u64,
    /// Expected cost, in billionths of a US dollar; zero unless the rule is a budget.
    pub(super) nanos: u64,
}

/// Answer of a rule to a [`ReservationRequest`].
#[derive(Debug, Clone, Copy)]
pub(super) enum ReservationOutcome {
    /// The amount is reserved; with the level after that.
    Granted { remaining: u64, reset: Duration },
    /// Nothing is reserved; with the time until it would be, and the level now.
    Refused { wait: Duration, remaining: u64, reset: Duration },
    /// The amount is more than the level ever holds.
    TooMuch,
}

/// Where a granted reservation is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReservedIn {
    /// In this process alone, as one of several gateways that share the limit.
    Process { gateways: NonZeroU32 },
    /// In the shared store, and counted here as well; with the number of the request's leases in the store.
    Store { lease: u64 },
}

impl Rule {
    /// Reservation that a request asks of the rule; `None` for a rule of tokens if the request uses none.
    pub fn reservation<'r>(
        self: &'r Arc<Self>,
        subject: Subject<'_, '_>,
        expected: Option<(Estimate, u64)>,
    ) -> Option<ReservationRequest<'r>> {
        let (amount, nanos) = match &self.kind {
            RuleKind::Rate { unit: Unit::Requests, limit, .. } => match &self.cost {
                None => (1, 0),
                // An amount above the burst would never pass.
                Some(cost) => match cost.of(subject.view).min(limit.burst.get()) {
                    0 => return None,
                    amount => (amount.into(), 0),
                },
            },
            RuleKind::Concurrency { .. } => (1, 0),
            // A request that announces no tokens is judged all the same, and settled by what it used.
            RuleKind::Rate { unit: Unit::Tokens, .. } => (expected?.0.total().max(1), 0),
            RuleKind::Budget { .. } => {
                let (estimate, nanos) = expected?;
                (estimate.total(), nanos)
            }
        };
        let key = match &self.kind {
            RuleKind::Budget { .. } => 0,
            _ => keys::of(&self.by, subject),
        };
        Some(ReservationRequest { rule: self, key, amount, nanos })
    }
}

/// Amount to reserve here for `amount` of a limit that several gateways share without knowing each other's use. Each
/// gateway reserves as much for every other one: at least one unit, at most the burst.
pub(super) fn amount_here(amount: u64, gateways: NonZeroU32, burst: NonZeroU32) -> NonZeroU32 {
    let amount = u32::try_from(amount.saturating_mul(gateways.get().into())).unwrap_or(u32::MAX);
    NonZeroU32::new(amount).unwrap_or(NonZeroU32::MIN).min(burst)
}
