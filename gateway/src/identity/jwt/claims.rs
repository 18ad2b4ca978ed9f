//! Consumers made from the claims of verified tokens: name, tenant and plan of a caller that the file does not name.

use std::collections::{HashMap, HashSet};
use std::hash::Hasher;
use std::sync::Arc;

use serde_json::Value;
use siphasher::sip::SipHasher13;
use spillway_config::schema::{Budget, Claims, ConsumerLimits, JwtIssuer};

use super::IdentityDeps;
use crate::identity::{Consumer, Tenants};
use crate::limits::{Credential, Limits, RateTooHigh, Rules};

/// Most scopes of a token that are kept; real tokens have a dozen.
const MAX_SCOPES: usize = 64;

/// Limits that an issuer's consumers get by the name of their plan.
struct ConsumerPlan {
    label: String,
    rules: Rules,
    budget: Option<Budget>,
}

impl ConsumerPlan {
    fn new(label: String, limits: &ConsumerLimits, deps: IdentityDeps<'_>) -> Result<Self, RateTooHigh> {
        let rules = deps.limits.of_consumers(&label, limits, deps.commit_steps)?;
        Ok(Self { rules, budget: limits.budget.clone(), label })
    }
}

/// Makes consumers from claims.
pub(super) struct FromClaims {
    issuer: String,
    claims: Claims,
    /// Names of consumers of the file: no token may claim one.
    taken: HashSet<Arc<str>>,
    any: ConsumerPlan,
    plans: HashMap<String, ConsumerPlan>,
    tenants: Arc<Tenants>,
    limits: Limits,
    /// Names of tenants of the file.
    taken_tenants: HashSet<Arc<str>>,
}

impl FromClaims {
    pub(super) fn new(
        issuer: &JwtIssuer,
        (taken, taken_tenants): (HashSet<Arc<str>>, HashSet<Arc<str>>),
        tenants: Arc<Tenants>,
        deps: IdentityDeps<'_>,
    ) -> Result<Option<Self>, RateTooHigh> {
        let Some(claims) = issuer.claims.clone() else { return Ok(None) };
        let label = format!("issuer {}", issuer.issuer);
        let mut plans = HashMap::new();
        for (name, written) in &issuer.plans {
            plans.insert(name.clone(), ConsumerPlan::new(format!("{label}/{name}"), written, deps)?);
        }
        let any = ConsumerPlan::new(label, &issuer.limits, deps)?;
        let limits = deps.limits.clone();
        Ok(Some(Self { issuer: issuer.issuer.clone(), claims, taken, taken_tenants, any, plans, tenants, limits }))
    }

    /// Makes the consumer that a token names; `None` if a claim is missing, or names a consumer or tenant of the file.
    pub(super) fn consumer(&self, claims: &Value) -> Option<Arc<Consumer>> {
        let name = text(claims, &self.claims.consumer)?;
        if self.taken.contains(name.as_str()) {
            return None;
        }
        let tenant = match &self.claims.tenant {
            Some(path) => text(claims, path)?,
            // A subject with the name of a tenant of the file does not belong to that tenant.
            None if self.taken_tenants.contains(name.as_str()) => return None,
            None => name.clone(),
        };
        // An unknown plan is a mistake of the issuer or the file, and grants nothing.
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

/// Reads a claim as a name: a number, or a short text that is safe in logs and headers.
fn text(claims: &Value, path: &str) -> Option<String> {
    // A claim whose name has dots in it, such as a URL, goes before one inside another.
    let value = claims.get(path).or_else(|| path.split('.').try_fold(claims, |value, part| value.get(part)))?;
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    let sound = !text.is_empty() && text.len() <= 128 && text.bytes().all(|b| b.is_ascii_graphic());
    sound.then_some(text)
}

/// Reads the scopes of a token: `scope`, words with blanks between them (RFC 8693, 4.2), or `scp`, the same or a list.
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

/// Number that the tokens of one subject share, and those of no other.
pub(super) fn credential(issuer: &str, subject: &str) -> Credential {
    let mut hasher = SipHasher13::new();
    hasher.write_usize(issuer.len());
    hasher.write(issuer.as_bytes());
    hasher.write(subject.as_bytes());
    hasher.finish()
}
