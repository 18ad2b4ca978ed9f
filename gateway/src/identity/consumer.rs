//! Consumer of a snapshot: name, tenant, limits, permitted models, aliases of models, and credentials towards backends.

use std::collections::HashMap;
use std::sync::Arc;

use spillway_config::ModelPattern;
use spillway_config::schema;

use super::tenants::Tenants;
use super::{IdentityDeps, IdentityError};
use crate::credentials::Credential;
use crate::limits::Rules;

/// Model that a name of a consumer's own stands for.
#[derive(Debug)]
pub struct ModelAlias {
    /// Name of the model, as routes and backends know it.
    pub served: Arc<str>,
    /// Name as JSON text, to put into a body.
    pub json: Box<str>,
}

/// Configured identity of a caller.
#[derive(Clone)]
pub struct Consumer {
    /// Name in the configuration, or in the claims of a token.
    pub name: Arc<str>,
    /// Number of the consumer as a caller.
    pub number: u128,
    /// Tenant that the consumer belongs to.
    pub tenant: Arc<str>,
    /// Rank among waiters for a slot: the higher, the sooner.
    pub priority: i32,
    /// Limits and budgets.
    pub rules: Rules,
    /// True if texts of its requests may be kept.
    pub keep_examples: bool,
    /// Models that the consumer may name; all of them without a list.
    models: Option<Arc<[ModelPattern]>>,
    /// The same in small letters.
    small_models: Option<Arc<[ModelPattern]>>,
    /// Models by the consumer's own names for them.
    aliases: Arc<HashMap<Box<str>, Arc<ModelAlias>>>,
    /// Credentials that replace a backend's own for requests of the consumer, in the order of the backends' names.
    credentials: Arc<[(Box<str>, Credential)]>,
}

impl std::fmt::Debug for Consumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Consumer({} of {})", self.name, self.tenant)
    }
}

impl Consumer {
    /// Compiles a consumer of the file.
    pub(super) fn new(
        written: &schema::Consumer,
        tenants: &Tenants,
        deps: IdentityDeps<'_>,
    ) -> Result<Self, IdentityError> {
        let label = format!("consumer {}", written.name);
        let mut rules = deps.limits.of_consumer(&label, &written.limits, deps.commit_steps)?;
        if let Some(budget) = &written.limits.budget {
            rules.push(deps.limits.budget(&label, "this consumer", &written.name, budget));
        }
        let tenant = written.tenant.as_deref().unwrap_or(&written.name);
        rules.extend(tenants.rules(tenant));
        rules.shrink_to_fit();
        let mut credentials = Vec::with_capacity(written.credentials.len());
        for (backend, secret) in &written.credentials {
            let value = crate::credentials::credential(secret).map_err(|source| IdentityError::Credentials {
                label: label.clone(),
                backend: backend.clone(),
                source,
            })?;
            credentials.push((backend.as_str().into(), value));
        }
        let name: Arc<str> = written.name.as_str().into();
        let models: Option<Arc<[_]>> =
            written.models.as_ref().map(|models| models.iter().map(|model| ModelPattern::new(model)).collect());
        Ok(Self {
            number: crate::limits::number_of_consumer(&name),
            tenant: if *tenant == *name { name.clone() } else { tenant.into() },
            name,
            priority: written.priority,
            keep_examples: written.keep_examples,
            rules,
            small_models: models.as_ref().map(|models| models.iter().map(ModelPattern::in_small_letters).collect()),
            models,
            aliases: Arc::new(
                written.model_alias.iter().map(|(name, served)| (name.as_str().into(), alias(served))).collect(),
            ),
            credentials: credentials.into(),
        })
    }

    /// Makes a consumer from the claims of a token, which name its scopes themselves.
    pub(super) fn from_claims(name: Arc<str>, tenant: Arc<str>, rules: Rules) -> Self {
        let number = crate::limits::number_of_consumer(&name);
        Self {
            name,
            number,
            tenant,
            priority: 0,
            keep_examples: true,
            rules,
            models: None,
            small_models: None,
            aliases: Arc::default(),
            credentials: Arc::default(),
        }
    }

    /// Copy of the consumer with further rules: those of the key by which it calls.
    pub(super) fn with_rules(&self, further: Rules) -> Self {
        let mut rules = self.rules.clone();
        rules.extend(further);
        Self { rules, ..self.clone() }
    }

    /// True if the consumer may name a model; `None` is a request that names none.
    pub fn may_use(&self, model: Option<&str>) -> bool {
        is_among(self.models.as_deref(), model)
    }

    /// As [`Self::may_use`], for a server that reads names in any letters and gets this one in small ones.
    pub fn may_use_folded(&self, model: Option<&str>) -> bool {
        is_among(self.small_models.as_deref(), model)
    }

    /// True if the consumer may name only some models.
    pub fn is_restricted(&self) -> bool {
        self.models.is_some()
    }

    /// Model that a name of the consumer's own stands for; `None` for any other name.
    pub fn alias(&self, name: &str) -> Option<&Arc<ModelAlias>> {
        // Few consumers have any, and no name is hashed for the others.
        if self.aliases.is_empty() { None } else { self.aliases.get(name) }
    }

    /// Names of the consumer's own with the models that they stand for, in no order.
    pub fn aliases(&self) -> impl Iterator<Item = (&str, &ModelAlias)> {
        self.aliases.iter().map(|(name, alias)| (&**name, &**alias))
    }

    /// True if what the consumer may do depends on the model that a request names: it may use some only, or has names of its
    /// own for some.
    pub fn judges_models(&self) -> bool {
        self.models.is_some() || !self.aliases.is_empty()
    }

    /// Credentials of the consumer for a backend, in place of the backend's own.
    pub fn credentials(&self, backend: &str) -> Option<&Credential> {
        let index = self.credentials.binary_search_by(|(name, _)| (**name).cmp(backend)).ok()?;
        self.credentials.get(index).map(|(_, value)| value)
    }
}

/// True if a model is one of a list.
fn is_among(patterns: Option<&[ModelPattern]>, model: Option<&str>) -> bool {
    match (patterns, model) {
        (None, _) => true,
        (Some(patterns), Some(model)) => patterns.iter().any(|pattern| pattern.matches(model)),
        (Some(_), None) => false,
    }
}

fn alias(served: &str) -> Arc<ModelAlias> {
    let json = serde_json::Value::from(served).to_string();
    Arc::new(ModelAlias { served: served.into(), json: json.into() })
}
