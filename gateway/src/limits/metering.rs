//! Limits of a caller that uses tokens in many answers over one connection: each answer is reserved before it begins and
//! settled when it has ended, as requests are. Inputs are the rules that a socket meets, judged once when it opens.

use smallvec::SmallVec;
use spillway_filter::Refusal;
use std::sync::Arc;

use super::estimate::{Estimate, Used};
use super::judging::reserve;
use super::keys::{self, Subject};
use super::ledger::Ledger;
use super::reservation::{ReservationRequest, ReservedIn};
use super::rules::{Rule, RuleKind};

/// Rules in tokens, each with the level of one caller.
#[derive(Default)]
pub struct TokenRules {
    entries: Vec<(Arc<Rule>, u128)>,
    expected: Estimate,
    nanos: u64,
}

impl std::fmt::Debug for TokenRules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TokenRules({})", self.entries.len())
    }
}

impl TokenRules {
    /// Collects the rules in tokens among `rules`, with the levels of a caller. `expected` is what an answer is expected to
    /// use, and `nanos` its cost in billionths of a US dollar.
    pub fn of<'r>(
        rules: impl Iterator<Item = &'r Arc<Rule>>,
        subject: Subject<'_, '_>,
        (expected, nanos): (Estimate, u64),
    ) -> Self {
        let key = |rule: &Rule| match rule.kind {
            RuleKind::Budget { .. } => 0,
            _ => keys::of(&rule.by, subject),
        };
        let entries =
            rules.filter(|rule| rule.counts_tokens()).map(|rule| (rule.clone(), key(rule.as_ref()))).collect();
        Self { entries, expected, nanos }
    }

    /// True if no rule counts tokens.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn claims(&self, tokens: u64, nanos: u64) -> SmallVec<[ReservationRequest<'_>; 8]> {
        // An answer may take all of a level that never holds as much as is expected.
        let most = |rule: &Rule| match &rule.kind {
            RuleKind::Rate { limit, .. } => u64::from(limit.burst.get()),
            _ => u64::MAX,
        };
        let claims = self.entries.iter().map(|(rule, key)| (rule, *key, tokens.min(most(rule.as_ref()))));
        claims.map(|(rule, key, amount)| ReservationRequest { rule, key, amount, nanos }).collect()
    }

    /// Reserves for an answer that begins.
    ///
    /// # Errors
    /// Returns the refusal of a rule that is reached, of which nothing is reserved then.
    pub async fn reserve(&self) -> Result<Ledger, Box<Refusal>> {
        let mut ledger = Ledger::default();
        reserve(&self.claims(self.expected.total().max(1), self.nanos), &mut ledger).await?;
        // What would spill has nowhere to go.
        match ledger.take_exceeded() {
            Some(refusal) => Err(refusal),
            None => Ok(ledger),
        }
    }

    /// Counts what an answer has used for which nothing was reserved.
    pub fn charge(&self, used: Used) {
        let mut ledger = Ledger::default();
        for claim in self.claims(0, 0) {
            ledger.add(&claim, ReservedIn::Store { lease: 0 });
        }
        ledger.settle(used);
    }
}
