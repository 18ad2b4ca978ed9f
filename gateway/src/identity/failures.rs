//! Bad credentials by address: whoever has shown too many is not looked at for a while.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;

use parking_lot::Mutex;
use spillway_config::schema::FailureLimit;

use crate::limits::Rationed;
use crate::telemetry::Metrics;

/// The addresses that have shown bad credentials; kept over reloads.
pub struct Failures {
    table: Mutex<(FailureLimit, Arc<Rationed>)>,
    metrics: Arc<Metrics>,
}

impl Failures {
    /// No address has shown any.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        let limit = FailureLimit::default();
        let table = Arc::new(Self::table(&limit, &metrics));
        Self { table: Mutex::new((limit, table)), metrics }
    }

    fn table(limit: &FailureLimit, metrics: &Metrics) -> Rationed {
        let keys = usize::try_from(limit.max_addresses).unwrap_or(usize::MAX);
        Rationed::new(limit.rate, keys, metrics.limit_keys_forgotten.clone())
    }

    /// The table under a limit: the one that is there, if the limit is the same.
    pub fn under(&self, limit: &FailureLimit) -> Arc<Rationed> {
        let mut table = self.table.lock();
        if table.0 != *limit {
            *table = (limit.clone(), Arc::new(Self::table(limit, &self.metrics)));
        }
        table.1.clone()
    }
}

/// What an address may still show.
pub(super) fn is_over(table: &Rationed, address: IpAddr) -> Option<std::time::Duration> {
    table.wait(address)
}

/// An address has shown a bad credential.
pub(super) fn note(table: &Rationed, address: IpAddr) {
    table.take(address, NonZeroU32::MIN);
}
