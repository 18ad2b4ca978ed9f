//! A rate for each client address, apart from the rules of routes: for bad credentials and audit lines.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use spillway_config::values::Rate;

use super::keys::{network, number};
use super::levels::{LevelOutcome, Levels, Limit};

/// Rate that each address has for itself.
pub struct AddressRate(Levels);

impl std::fmt::Debug for AddressRate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AddressRate({} keys)", self.0.keys())
    }
}

impl AddressRate {
    /// Keeps levels of `keys` addresses at most.
    pub fn new(rate: Rate, keys: usize, forgotten: Counter) -> Self {
        let every = (rate.period / rate.count.get()).max(Duration::from_nanos(1));
        Self(Levels::new(Limit { every, burst: rate.count }, keys, forgotten))
    }

    /// Time until the rate allows an address one more; `None` if it does now.
    pub fn wait(&self, address: IpAddr) -> Option<Duration> {
        self.0.wait(number("address", &network(address)))
    }

    /// Acquires `amount` for an address; false if the rate does not allow all of it.
    pub fn take(&self, address: IpAddr, amount: NonZeroU32) -> bool {
        matches!(self.0.take(number("address", &network(address)), amount), LevelOutcome::Granted { .. })
    }
}
