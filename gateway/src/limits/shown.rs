//! Reports of what is used of limits and budgets, for operators.

use std::sync::Arc;

use serde::Serialize;
use spillway_config::schema::Period;
use spillway_filter::LimitBy;

use super::keys::number;
use super::rules::{Rule, RuleKind};
use crate::clock::unix_now;

/// Use of a rate or of the requests at the same time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LimitReport {
    /// `requests`, `tokens` or `concurrency`.
    pub rule: &'static str,
    /// `consumer` or `tenant`: those who share it.
    pub whose: &'static str,
    /// Period of a rate, as written; `None` for requests at the same time.
    pub window: Option<String>,
    /// Most in a period, or at the same time.
    pub limit: u32,
    /// Most at once; `None` for requests at the same time.
    pub burst: Option<u32>,
    /// Part of the burst that is used and has not come back; more than the burst after an answer that cost more than
    /// expected. `None` where a shared store counts.
    pub used: Option<u64>,
    /// True if a shared store counts for several gateways.
    pub shared: bool,
}

/// Use of one unit of a budget.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BudgetReport {
    /// `tokens` or `usd`.
    pub unit: &'static str,
    /// `consumer` or `tenant`.
    pub whose: &'static str,
    /// `day` or `month`, in UTC.
    pub window: &'static str,
    /// Most in the window; `None` where this unit is counted and not limited.
    pub limit: Option<f64>,
    /// Amount spent in the present window, with a shared store through this gateway.
    pub spent: f64,
    /// True if a shared store counts for several gateways.
    pub shared: bool,
}

/// Use of the rules of a consumer or tenant.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UseReport {
    /// Rates, and requests at the same time.
    pub limits: Vec<LimitReport>,
    /// Budgets.
    pub budgets: Vec<BudgetReport>,
}

impl UseReport {
    /// Reads what is used of `rules` by a consumer of a tenant.
    pub fn of(rules: &[Arc<Rule>], consumer: &str, tenant: &str) -> Self {
        let mut report = Self::default();
        for rule in rules {
            report.add(rule, consumer, tenant);
        }
        report
    }

    #[allow(clippy::cast_precision_loss, reason = "2^53 tokens or billionths of a dollar are not reached")]
    fn add(&mut self, rule: &Rule, consumer: &str, tenant: &str) {
        let shared = rule.store.is_some();
        let (whose, key) = match rule.by {
            LimitBy::Tenant => ("tenant", number("tenant", tenant.as_bytes())),
            _ => ("consumer", number("consumer", consumer.as_bytes())),
        };
        match &rule.kind {
            RuleKind::Rate { unit, rate, levels, limit } => {
                let used = levels.reset(key).as_nanos().div_ceil(limit.every.as_nanos().max(1));
                self.limits.push(LimitReport {
                    rule: unit.name(),
                    whose,
                    window: rate.to_string().split_once('/').map(|(_, period)| period.to_owned()),
                    limit: rate.count.get(),
                    burst: Some(limit.burst.get()),
                    used: (!shared).then(|| u64::try_from(used).unwrap_or(u64::MAX)),
                    shared,
                });
            }
            RuleKind::Concurrency { running, most } => self.limits.push(LimitReport {
                rule: "concurrency",
                whose,
                window: None,
                limit: most.get(),
                burst: None,
                used: (!shared).then(|| running.count(key).into()),
                shared,
            }),
            RuleKind::Budget { whose, account, period, tokens, nanos } => {
                let spent = account.spent(unix_now());
                let whose = if whose.starts_with("tenant ") { "tenant" } else { "consumer" };
                let window = if *period == Period::Day { "day" } else { "month" };
                let tokens = (tokens.map(|most| most as f64), spent.tokens as f64);
                let usd = (nanos.map(|most| most as f64 / 1e9), spent.nanos as f64 / 1e9);
                for (unit, (limit, spent)) in [("tokens", tokens), ("usd", usd)] {
                    self.budgets.push(BudgetReport { unit, whose, window, limit, spent, shared });
                }
            }
        }
    }
}
