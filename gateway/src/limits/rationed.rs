//! A rate for each address alone, outside the rules of routes: for bad credentials.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use spillway_config::values::Rate;

use super::keys::{network, number};
use super::levels::{Levels, Limit, Verdict};

/// How much of something each address may have in a time.
pub struct Rationed(Levels);

impl std::fmt::Debug for Rationed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rationed({} keys)", self.0.keys())
    }
}

impl Rationed {
    /// For `keys` addresses at most.
    pub fn new(rate: Rate, keys: usize, forgotten: Counter) -> Self {
        let every = (rate.period / rate.count.get()).max(Duration::from_nanos(1));
        Self(Levels::new(Limit { every, burst: rate.count }, keys, forgotten))
    }

    /// How long until an address may have one more; `None` when it may now.
    pub fn wait(&self, address: IpAddr) -> Option<Duration> {
        self.0.wait(number("address", &network(address)))
    }

    /// An address takes some, if they are there.
    pub fn take(&self, address: IpAddr, amount: NonZeroU32) -> bool {
        matches!(self.0.take(number("address", &network(address)), amount), Verdict::Taken { .. })
    }
}
