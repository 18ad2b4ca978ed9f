//! Rule of the requests that a built-in model or stand-in may answer, compiled from a route's `spill`.

use std::num::NonZeroU32;
use std::sync::Arc;

use spillway_cel::{Expression, Seen};
use spillway_config::ModelPattern;
use spillway_filter::RequestView;

/// Conditions that a request must meet to spill. The default lets every request spill.
#[derive(Debug, Default, Clone)]
pub struct SpillRule {
    /// Longest prompt in tokens.
    pub max_prompt_tokens: Option<NonZeroU32>,
    /// Models, one of which the request must name.
    pub models: Option<Vec<ModelPattern>>,
    /// Tenants, one of which the caller must belong to.
    pub tenants: Option<Vec<Arc<str>>>,
    /// Share of the requests, from 0 to 1.
    pub share: Option<f64>,
    /// Condition on the request.
    pub when: Option<Arc<Expression>>,
}

impl SpillRule {
    /// True if the condition holds for a request. One without a value does not.
    pub fn holds<'v>(&self, view: impl FnOnce() -> RequestView<'v>) -> bool {
        self.when.as_ref().is_none_or(|when| when.holds(&Seen::from(&view()).on_loop()).unwrap_or(false))
    }

    /// True if a request that names `model` and comes from `tenant` may spill. `drawn` is a random number from 0 to 1.
    pub fn allows(&self, model: Option<&str>, tenant: Option<&str>, drawn: f64) -> bool {
        let named = |patterns: &Vec<ModelPattern>| {
            model.is_some_and(|model| patterns.iter().any(|pattern| pattern.matches(model)))
        };
        let known = |tenants: &Vec<Arc<str>>| tenant.is_some_and(|tenant| tenants.iter().any(|one| **one == *tenant));
        self.models.as_ref().is_none_or(named)
            && self.tenants.as_ref().is_none_or(known)
            && self.share.is_none_or(|share| drawn < share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_must_be_met() {
        let all = SpillRule::default();
        assert!(all.allows(None, None, 0.999));
        let some = SpillRule {
            max_prompt_tokens: None,
            models: Some(vec![ModelPattern::new("gpt-4*"), ModelPattern::new("x")]),
            tenants: Some(vec!["acme".into()]),
            share: Some(0.25),
            when: None,
        };
        for (model, tenant, drawn, may) in [
            (Some("gpt-4o"), Some("acme"), 0.24, true),
            (Some("x"), Some("acme"), 0.0, true),
            (Some("gpt-4o"), Some("acme"), 0.25, false),
            (Some("gpt-3"), Some("acme"), 0.0, false),
            (Some("x"), Some("other"), 0.0, false),
            (Some("x"), None, 0.0, false),
            (None, Some("acme"), 0.0, false),
        ] {
            assert_eq!(some.allows(model, tenant, drawn), may, "{model:?} {tenant:?} {drawn}");
        }
        let none = SpillRule { share: Some(0.0), ..SpillRule::default() };
        assert!(!none.allows(None, None, 0.0));
    }
}
