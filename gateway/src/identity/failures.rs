//! Bad credentials by address: after too many of them, further credentials of the address are refused unseen for a
//! while.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use spillway_config::schema::FailureLimit;

use crate::limits::AddressRate;
use crate::telemetry::Metrics;

/// Addresses that have sent bad credentials, under one limit.
#[derive(Debug, Clone)]
pub(super) struct Failures {
    limit: FailureLimit,
    table: Arc<AddressRate>,
}

impl Failures {
    /// Keeps the addresses of the previous snapshot if its limit is the same.
    pub(super) fn new(limit: &FailureLimit, previous: Option<&Self>, metrics: &Metrics) -> Self {
        if let Some(previous) = previous.filter(|previous| previous.limit == *limit) {
            return previous.clone();
        }
        let keys = usize::try_from(limit.max_addresses).unwrap_or(usize::MAX);
        let table = AddressRate::new(limit.rate, keys, metrics.process.limit_keys_forgotten.clone());
        Self { limit: limit.clone(), table: Arc::new(table) }
    }

    /// Time for which credentials of an address are refused unseen; `None` if they are examined.
    pub(super) fn wait(&self, address: IpAddr) -> Option<Duration> {
        self.table.wait(address)
    }

    /// Counts a bad credential of an address.
    pub(super) fn note(&self, address: IpAddr) {
        self.table.take(address, NonZeroU32::MIN);
    }
}
