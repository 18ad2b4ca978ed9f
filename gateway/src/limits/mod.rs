//! How much a caller may use: requests, tokens, requests at a time, budgets. It owns the levels of all rules and the
//! budgets, here or in a shared store, and judges all rules of a request together: all of them take, or none does.
//! It never decides who calls, and never makes a request wait for a store longer than its time limit.
//! Its inputs are rules of the configuration, what a request shows of itself, and the usage of its answer.

mod budgets;
mod estimate;
mod judging;
mod keys;
mod ledger;
mod levels;
mod prices;
mod rationed;
mod rules;
mod running;
mod shared;
#[cfg(test)]
mod tests;

pub use budgets::BudgetError;
pub use estimate::{Estimate, Used};
pub use judging::{Claim, Spent, reserve, spent};
pub use keys::{Credential, Subject, caller, network};
pub use ledger::{Ledger, Shown};
pub use prices::Prices;
pub use rationed::Rationed;
pub use rules::{BudgetRules, Limits, Rule, Rules};
