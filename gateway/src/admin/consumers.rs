//! Report of consumers and tenants with what each has used of its limits and budgets.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::identity::{Authenticator, Consumer};
use crate::limits::UseReport;

/// Most consumers of one report.
const MAX_CONSUMERS: usize = 200;

/// Report of a consumer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ConsumerReport {
    name: String,
    tenant: String,
    priority: i32,
    #[serde(flatten)]
    used: UseReport,
}

/// Report of a tenant.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TenantReport {
    name: String,
    #[serde(flatten)]
    used: UseReport,
}

/// Report of consumers, in the order of their names.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ConsumersReport {
    consumers: Vec<ConsumerReport>,
    more: usize,
    tenants: Vec<TenantReport>,
}

/// Reports the consumers of the file, those of a tenant or all, whose names come behind `after`, and the tenants that have
/// limits, of those that the report names or of all.
pub(super) fn report(identity: &Authenticator, tenant: Option<&str>, after: Option<&str>) -> ConsumersReport {
    let wanted = |consumer: &&Consumer| {
        tenant.is_none_or(|tenant| *consumer.tenant == *tenant) && after.is_none_or(|after| *consumer.name > *after)
    };
    let mut found = identity.consumers().filter(wanted);
    let consumers: Vec<ConsumerReport> = found
        .by_ref()
        .take(MAX_CONSUMERS)
        .map(|consumer| ConsumerReport {
            name: consumer.name.to_string(),
            tenant: consumer.tenant.to_string(),
            priority: consumer.priority,
            used: UseReport::of(&consumer.rules, &consumer.name, &consumer.tenant),
        })
        .collect();
    let more = found.count();
    // Without consumers of the file, those of tokens have tenants all the same.
    let named: BTreeSet<&str> = match tenant {
        Some(tenant) => BTreeSet::from([tenant]),
        None if consumers.is_empty() || after.is_none() => identity.tenants().into_iter().take(MAX_CONSUMERS).collect(),
        None => consumers.iter().map(|consumer| &*consumer.tenant).collect(),
    };
    let tenants = named
        .into_iter()
        .map(|name| (name, UseReport::of(&identity.rules_of_tenant(name), "", name)))
        .filter(|(_, used)| *used != UseReport::default())
        .map(|(name, used)| TenantReport { name: name.to_owned(), used })
        .collect();
    ConsumersReport { consumers, more, tenants }
}
