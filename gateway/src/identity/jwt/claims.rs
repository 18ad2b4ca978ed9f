//! What a verified token says of a caller that is no consumer of the file: name, tenant, plan.

use std::collections::{HashMap, HashSet};
use std::hash::Hasher;
use std::sync::Arc;

use serde_json::Value;
use siphasher::sip::SipHasher13;
use spillway_config::schema::{Budget, Claims, ConsumerLimits, JwtIssuer};

use super::Parts;
use crate::identity::{Consumer, Tenants};
use crate::limits::{Credential, Limits, Rules};

/// Scopes of a token that are looked at.
const MAX_SCOPES: usize = 64;

struct Plan {
    label: String,
    rules: Rules,
    budget: Option<Budget>,
}

impl Plan {
    fn new(label: String, limits: &ConsumerLimits, parts: Parts<'_>) -> Result<Self, String> {
        let rules = parts.limits.of_consumers(&label, limits, parts.adoptions)?;
        Ok(Self { rules, budget: limits.budget.clone(), label })
    }
}

/// Makes consumers from claims.
pub(super) struct FromClaims {
    issuer: String,
    claims: Claims,
    /// Names of consumers of the file: a token does not become one of them by its name.
    taken: HashSet<Arc<str>>,
    any: Plan,
    plans: HashMap<String, Plan>,
    tenants: Arc<Tenants>,
    limits: Limits,
    /// Tenants of the file.
    taken_tenants: HashSet<Arc<str>>,
}

impl FromClaims {
    pub(super) fn new(
        issuer: &JwtIssuer,
        (taken, taken_tenants): (HashSet<Arc<str>>, HashSet<Arc<str>>),
        tenants: Arc<Tenants>,
        parts: Parts<'_>,
    ) -> Result<Option<Self>, String> {
        let Some(claims) = issuer.claims.clone() else { return Ok(None) };
        let label = format!("issuer {}", issuer.issuer);
        let mut plans = HashMap::new();
        for (name, written) in &issuer.plans {
            plans.insert(name.clone(), Plan::new(format!("{label}/{name}"), written, parts)?);
        }
        let any = Plan::new(label, &issuer.limits, parts)?;
        let limits = parts.limits.clone();
        Ok(Some(Self { issuer: issuer.issuer.clone(), claims, taken, taken_tenants, any, plans, tenants, limits }))
    }

    /// The consumer that a token names; `None` where it names none that may be.
    pub(super) fn consumer(&self, claims: &Value) -> Option<Arc<Consumer>> {
        let name = text(claims, &self.claims.consumer)?;
        if self.taken.contains(name.as_str()) {
            return None;
        }
        let tenant = match &self.claims.tenant {
            Some(path) => text(claims, path)?,
            // A subject that calls itself as a tenant of the file is not that tenant.
            None if self.taken_tenants.contains(name.as_str()) => return None,
            None => name.clone(),
        };
        // A plan that is not there is a mistake of the issuer or the file: nobody gets more by it.
        let plan = match &self.claims.plan {
            Some(path) => self.plans.get(&text(claims, path)?)?,
            None => &self.any,
        };
        let mut rules = plan.rules.clone();
        if let Some(budget) = &plan.budget {
            let account = format!("{} {name}", self.issuer);
            rules.push(self.limits.budget(&plan.label, "this consumer", &account, budget));
        }
        rules.extend(self.tenants.rules(&tenant));
        Some(Arc::new(Consumer::from_claims(name.into(), tenant.into(), rules)))
    }
}

/// A claim as a name: a short text that can stand in logs and headers, or a number.
fn text(claims: &Value, path: &str) -> Option<String> {
    // A claim whose name has dots in it, such as a URL, is meant before one inside another.
    let value = claims.get(path).or_else(|| path.split('.').try_fold(claims, |value, part| value.get(part)))?;
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    let sound = !text.is_empty() && text.len() <= 128 && text.bytes().all(|b| b.is_ascii_graphic());
    sound.then_some(text)
}

/// Scopes of a token: `scope`, words with blanks between them (RFC 8693, 4.2), or `scp`, the same or a list.
pub(super) fn scopes(claims: &Value) -> Vec<String> {
    let mut scopes = Vec::new();
    for claim in [claims.get("scope"), claims.get("scp")].into_iter().flatten() {
        match claim {
            Value::String(text) => scopes.extend(text.split(' ').filter(|s| !s.is_empty()).map(str::to_owned)),
            Value::Array(list) => scopes.extend(list.iter().filter_map(Value::as_str).map(str::to_owned)),
            _ => {}
        }
    }
    scopes.truncate(MAX_SCOPES);
    scopes
}

/// What tells the tokens of one subject from those of others.
pub(super) fn credential(issuer: &str, subject: &str) -> Credential {
    let mut hasher = SipHasher13::new();
    hasher.write_usize(issuer.len());
    hasher.write(issuer.as_bytes());
    hasher.write(subject.as_bytes());
    hasher.finish()
}
