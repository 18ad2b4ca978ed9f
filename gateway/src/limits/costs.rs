//! Costs of answers by consumer, tenant, route and price, since the process began. Rows are named by the configuration alone; the
//! consumers that tokens make are bounded in number. The module knows no request; inputs are names and what was used.

use std::collections::HashMap;
use std::hash::Hasher;
use std::time::SystemTime;

use ahash::RandomState;
use parking_lot::Mutex;
use siphasher::sip128::{Hasher128, SipHasher13};

use super::estimate::Used;

/// Most rows, so that a scrape stays some megabytes; callers beyond them share rows under [`OTHER`].
const MAX_ROWS: usize = 10_000;
/// Name of the consumer and tenant of a shared row.
const OTHER: &str = "other";
/// Name of the price in the rows of answers that have none.
const UNPRICED: &str = "";

/// Names that an answer costs something under.
#[derive(Debug, Clone, Copy)]
pub struct Payer<'n> {
    /// Name of the consumer; empty for an anonymous caller.
    pub consumer: &'n str,
    /// Name of its tenant.
    pub tenant: &'n str,
    /// Name of the route.
    pub route: &'n str,
}

/// Costs of one consumer on one route by one price.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CostRow {
    /// Name of the consumer; empty for anonymous callers.
    pub consumer: String,
    /// Name of its tenant.
    pub tenant: String,
    /// Name of the route.
    pub route: String,
    /// Name of the price, as `prices` or the catalogue has it; empty for answers without one.
    pub model: String,
    /// Answers.
    pub answers: u64,
    /// Tokens read, those of caches included.
    pub input: u64,
    /// Tokens read that servers had in their caches.
    pub cached: u64,
    /// Tokens written.
    pub output: u64,
    /// Billionths of a US dollar.
    pub nanos: u64,
}

/// Costs of the process.
pub struct Costs {
    rows: Mutex<HashMap<u128, CostRow, RandomState>>,
    /// Begin of the process.
    pub since: SystemTime,
    most: usize,
}

impl Default for Costs {
    fn default() -> Self {
        Self { rows: Mutex::default(), since: SystemTime::now(), most: MAX_ROWS }
    }
}

impl Costs {
    /// Adds an answer. `model` is the name of its price; `None` for an answer of a server that has no price.
    pub fn add(&self, payer: Payer<'_>, model: Option<&str>, used: Used) {
        let model = model.unwrap_or(UNPRICED);
        let mut rows = self.rows.lock();
        let mut payer = payer;
        let mut key = number(payer, model);
        if rows.len() >= self.most && !rows.contains_key(&key) {
            payer = Payer { consumer: OTHER, tenant: OTHER, ..payer };
            key = number(payer, model);
        }
        let row = rows.entry(key).or_insert_with(|| CostRow {
            consumer: payer.consumer.to_owned(),
            tenant: payer.tenant.to_owned(),
            route: payer.route.to_owned(),
            model: model.to_owned(),
            ..CostRow::default()
        });
        let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
        add(&mut row.answers, 1);
        add(&mut row.input, used.input);
        add(&mut row.cached, used.cached);
        add(&mut row.output, used.output);
        add(&mut row.nanos, used.nanos);
    }

    /// All rows of answers with a price, in the order of their names.
    pub fn rows(&self) -> Vec<CostRow> {
        self.rows_where(|row| row.model != UNPRICED)
    }

    /// All rows of answers without a price, in the order of their names.
    pub fn unpriced(&self) -> Vec<CostRow> {
        self.rows_where(|row| row.model == UNPRICED)
    }

    fn rows_where(&self, is_wanted: impl Fn(&&CostRow) -> bool) -> Vec<CostRow> {
        let mut rows: Vec<CostRow> = self.rows.lock().values().filter(is_wanted).cloned().collect();
        let name = |row: &CostRow| (row.consumer.clone(), row.route.clone(), row.model.clone(), row.tenant.clone());
        rows.sort_by_cached_key(name);
        rows
    }
}

/// Number of a row.
fn number(payer: Payer<'_>, model: &str) -> u128 {
    let mut hasher = SipHasher13::new();
    for name in [payer.consumer, payer.tenant, payer.route, model] {
        hasher.write_usize(name.len());
        hasher.write(name.as_bytes());
    }
    hasher.finish128().as_u128()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_told_apart_and_bounded() {
        let costs = Costs { most: 2, ..Costs::default() };
        let add = |consumer, tenant, model| {
            let used = Used { input: 3, cached: 1, output: 2, nanos: 7, ..Used::default() };
            costs.add(Payer { consumer, tenant, route: "r" }, Some(model), used);
        };
        add("ab", "c", "m");
        add("a", "bc", "m");
        add("ab", "c", "m");
        for consumer in ["x", "y", "z"] {
            add(consumer, consumer, "m");
        }
        let rows = costs.rows();
        let found: Vec<_> = rows.iter().map(|row| (row.consumer.as_str(), row.answers, row.nanos)).collect();
        assert_eq!(found, [("a", 1, 7), ("ab", 2, 14), ("other", 3, 21)]);
        let [_, row, _] = rows.as_slice() else { panic!() };
        assert_eq!((row.input, row.cached, row.output, row.tenant.as_str()), (6, 2, 4, "c"));
    }
}
