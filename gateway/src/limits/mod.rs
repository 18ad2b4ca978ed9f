//! Usage limits of callers: request and token rates, concurrent requests, budgets. The room owns the levels of all
//! rules and the budgets, in this process or in a shared store. All rules of a request are judged together: each rule
//! reserves, or none does. The room never identifies a caller, and never makes a request wait for a store longer than
//! `timeout`. Inputs are the rules of the configuration, a view of the request, and the usage that the answer reports.

mod address_rate;
mod budgets;
mod concurrency;
mod costs;
mod estimate;
mod judging;
mod keys;
mod ledger;
mod levels;
mod metering;
mod prices;
mod reservation;
mod rules;
mod shared;
mod shared_rules;
mod shown;
#[cfg(test)]
mod tests;

pub use address_rate::AddressRate;
pub use budgets::BudgetError;
pub use costs::{CostRow, Costs, Payer};
pub use estimate::{Estimate, Used};
pub use judging::{Exhausted, exhausted, reserve};
pub use keys::{Credential, Subject, network, number_of_address, number_of_consumer};
pub use ledger::{Ledger, RateStatus};
pub use metering::TokenRules;
pub use prices::Prices;
pub use reservation::ReservationRequest;
pub use rules::{BudgetRules, Limits, RateTooHigh, Rule, Rules};
pub use shared::StoreError;
pub use shown::{BudgetReport, LimitReport, UseReport};
