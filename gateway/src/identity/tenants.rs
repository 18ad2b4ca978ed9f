//! Rules that all consumers of one tenant share, whether the file or a token makes them its members.

use std::collections::HashMap;
use std::sync::Arc;

use spillway_config::schema;

use super::IdentityDeps;
use crate::limits::{RateTooHigh, Rule, Rules};

/// Rules of tenants, by the tenant's name.
#[derive(Default)]
pub(super) struct Tenants(HashMap<String, Rules>);

impl std::fmt::Debug for Tenants {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tenants({})", self.0.len())
    }
}

impl Tenants {
    pub(super) fn new(written: &[schema::Tenant], deps: IdentityDeps<'_>) -> Result<Self, RateTooHigh> {
        let rules = |tenant: &schema::Tenant| {
            let label = format!("tenant {}", tenant.name);
            let mut rules = deps.limits.of_tenant(&label, &tenant.limits, deps.commit_steps)?;
            if let Some(budget) = &tenant.limits.budget {
                // The label has a blank, and no name of a consumer has: the account is the tenant's alone.
                rules.push(deps.limits.budget(&label, "this tenant", &label, budget));
            }
            Ok((tenant.name.clone(), rules))
        };
        written.iter().map(rules).collect::<Result<_, _>>().map(Self)
    }

    /// Names of the tenants.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Rules of all tenants.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Rule>> {
        self.0.values().flatten()
    }

    /// Rules that the consumers of one tenant share.
    pub(super) fn rules(&self, name: &str) -> impl Iterator<Item = Arc<Rule>> + '_ {
        self.0.get(name).into_iter().flatten().cloned()
    }
}
