//! A consumer as requests meet it: its name, what it may name and use, what its requests show backends.

use std::collections::HashMap;
use std::sync::Arc;

use http::HeaderValue;
use spillway_config::schema;

use super::tenants::Tenants;
use super::{IdentityError, Parts};
use crate::limits::Rules;
use crate::model_pattern::ModelPattern;

/// Somebody who may call.
pub struct Consumer {
    /// Its name.
    pub name: Arc<str>,
    /// Whom it belongs to.
    pub tenant: Arc<str>,
    /// Its rank among those who wait for a place: the higher, the sooner.
    pub priority: i32,
    /// What it may use.
    pub rules: Rules,
    /// Models that it may name; all where there is no list.
    models: Option<Vec<ModelPattern>>,
    /// What replaces a backend's own credentials for its requests, by the backend's name.
    credentials: HashMap<String, HeaderValue>,
}

impl std::fmt::Debug for Consumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Consumer({} of {})", self.name, self.tenant)
    }
}

impl Consumer {
    /// A consumer of the file.
    pub(super) fn new(written: &schema::Consumer, tenants: &Tenants, parts: Parts<'_>) -> Result<Self, IdentityError> {
        let label = format!("consumer {}", written.name);
        let mut rules =
            parts.limits.of_consumers(&label, &written.limits, parts.adoptions).map_err(IdentityError::Limits)?;
        if let Some(budget) = &written.limits.budget {
            rules.push(parts.limits.budget(&label, "this consumer", &written.name, budget));
        }
        let tenant = written.tenant.as_deref().unwrap_or(&written.name);
        rules.extend(tenants.rules(tenant));
        let mut credentials = HashMap::new();
        for (backend, secret) in &written.credentials {
            let value = crate::credentials::bearer(secret)
                .map_err(|e| IdentityError::Keys(format!("{label}, credentials for `{backend}`: {e}")))?;
            credentials.insert(backend.clone(), value);
        }
        Ok(Self {
            name: written.name.as_str().into(),
            tenant: tenant.into(),
            priority: written.priority,
            rules,
            models: written.models.as_ref().map(|models| models.iter().map(|m| ModelPattern::new(m)).collect()),
            credentials,
        })
    }

    /// One that a token names, which says itself what it may do.
    pub(super) fn from_claims(name: Arc<str>, tenant: Arc<str>, rules: Rules) -> Self {
        Self { name, tenant, priority: 0, rules, models: None, credentials: HashMap::new() }
    }

    /// Whether it may name a model; `None` stands for a request that names none.
    pub fn may_use(&self, model: Option<&str>) -> bool {
        match (&self.models, model) {
            (None, _) => true,
            (Some(patterns), Some(model)) => patterns.iter().any(|pattern| pattern.matches(model)),
            (Some(_), None) => false,
        }
    }

    /// Whether it may name only some models.
    pub fn is_restricted(&self) -> bool {
        self.models.is_some()
    }

    /// What its requests show a backend instead of the backend's own credentials.
    pub fn credentials(&self, backend: &str) -> Option<&HeaderValue> {
        self.credentials.get(backend)
    }
}
