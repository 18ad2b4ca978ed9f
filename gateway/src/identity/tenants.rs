//! What tenants may use: rules that all consumers of one tenant share, whoever says that they belong to it, the file or a
//! token.

use std::collections::HashMap;
use std::sync::Arc;

use spillway_config::schema;

use super::Parts;
use crate::limits::{Rule, Rules};

/// The rules of tenants, by name.
#[derive(Default)]
pub(super) struct Tenants(HashMap<String, Rules>);

impl Tenants {
    pub(super) fn new(written: &[schema::Tenant], parts: Parts<'_>) -> Result<Self, String> {
        let rules = |tenant: &schema::Tenant| {
            let label = format!("tenant {}", tenant.name);
            let mut rules = parts.limits.of_tenant(&label, &tenant.limits, parts.adoptions)?;
            if let Some(budget) = &tenant.limits.budget {
                // Names of consumers have no blanks: it is nobody else's.
                rules.push(parts.limits.budget(&label, "this tenant", &label, budget));
            }
            Ok((tenant.name.clone(), rules))
        };
        written.iter().map(rules).collect::<Result<_, _>>().map(Self)
    }

    /// What they are called.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Those of all tenants.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Rule>> {
        self.0.values().flatten()
    }

    /// The rules that a consumer of this tenant shares with others.
    pub(super) fn rules(&self, name: &str) -> impl Iterator<Item = Arc<Rule>> + '_ {
        self.0.get(name).into_iter().flatten().cloned()
    }
}
