//! Bad credentials by address: whoever has shown too many is not looked at for a while.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use spillway_config::schema::FailureLimit;

use crate::limits::Rationed;
use crate::telemetry::Metrics;

/// The addresses that have shown bad credentials, under one limit.
#[derive(Debug, Clone)]
pub(super) struct Failures {
    limit: FailureLimit,
    table: Arc<Rationed>,
}

impl Failures {
    /// Those that the previous snapshot knows, where it has the same limit.
    pub(super) fn new(limit: &FailureLimit, previous: Option<&Self>, metrics: &Metrics) -> Self {
        if let Some(previous) = previous.filter(|previous| previous.limit == *limit) {
            return previous.clone();
        }
        let keys = usize::try_from(limit.max_addresses).unwrap_or(usize::MAX);
        let table = Rationed::new(limit.rate, keys, metrics.process.limit_keys_forgotten.clone());
        Self { limit: limit.clone(), table: Arc::new(table) }
    }

    /// How long an address is not looked at; `None` where it may show something.
    pub(super) fn wait(&self, address: IpAddr) -> Option<Duration> {
        self.table.wait(address)
    }

    /// An address has shown a bad credential.
    pub(super) fn note(&self, address: IpAddr) {
        self.table.take(address, NonZeroU32::MIN);
    }
}
