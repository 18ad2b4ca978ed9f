//! Whom a level belongs to, as a number of 128 bits. It is the same in every process, because gateways that share a store
//! must mean the same level; 128 bits leave nobody a chance to choose a value that meets another's.

use std::hash::Hasher;
use std::net::IpAddr;

use siphasher::sip128::{Hasher128, SipHasher13};
use spillway_filter::{LimitBy, RequestView};

/// Stands for one key or token of a caller; tells nothing of it.
pub type Credential = u64;

/// What is known of a request besides what filters see.
#[derive(Clone, Copy)]
pub struct Subject<'a, 'v> {
    /// What filters see.
    pub view: &'a RequestView<'v>,
    /// The key or token that showed who calls.
    pub credential: Option<Credential>,
}

/// The number of a kind of thing and its name.
pub(super) fn number(kind: &str, name: &[u8]) -> u128 {
    let mut hasher = SipHasher13::new();
    hasher.write_usize(kind.len());
    hasher.write(kind.as_bytes());
    hasher.write(name);
    hasher.finish128().as_u128()
}

/// The number of whoever makes a request: the consumer where that is known, else the client's address.
pub fn caller(consumer: Option<&str>, client: IpAddr) -> u128 {
    match consumer {
        Some(consumer) => number("consumer", consumer.as_bytes()),
        None => number("address", &network(client)),
    }
}

/// What counts as one address: a household or server has a /64 of IPv6.
pub fn network(address: IpAddr) -> [u8; 9] {
    let mut network = [0; 9];
    let canonical = address.to_canonical();
    let bytes: &[u8] = match &canonical {
        IpAddr::V4(v4) => &v4.octets(),
        IpAddr::V6(v6) => &v6.octets(),
    };
    if canonical.is_ipv6() {
        network[8] = 1;
    }
    for (to, from) in network.iter_mut().take(8).zip(bytes) {
        *to = *from;
    }
    network
}

/// The number of whoever a rule by `by` counts a request for.
pub(super) fn of(by: &LimitBy, x: Subject<'_, '_>) -> u128 {
    let address = || number("address", &network(x.view.client));
    match (by, x.view.caller) {
        (LimitBy::Route, _) => 0,
        (LimitBy::Consumer, Some(caller)) => number("consumer", caller.consumer.as_bytes()),
        (LimitBy::Tenant, Some(caller)) => number("tenant", caller.tenant.as_bytes()),
        (LimitBy::ApiKey, Some(_)) => x.credential.map_or_else(address, |c| number("key", &c.to_be_bytes())),
        (LimitBy::Model, _) => number("model", x.view.model.unwrap_or_default().as_bytes()),
        (LimitBy::Header(name), _) => match x.view.headers.get(name) {
            Some(value) => number("header", value.as_bytes()),
            None => address(),
        },
        (LimitBy::Value(value), _) => match value.of(x.view) {
            Some(value) => number("value", value.as_bytes()),
            None => address(),
        },
        (LimitBy::Consumer | LimitBy::Tenant | LimitBy::ApiKey | LimitBy::ClientAddress, _) => address(),
    }
}
