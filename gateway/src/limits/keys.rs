//! Numbers of levels: 128-bit hashes of the caller, address or value that a level belongs to. The hash is the same in
//! every process, because gateways that share a store must mean the same level. With 128 bits no caller can find a
//! value that collides with another's.

use std::hash::Hasher;
use std::net::IpAddr;

use siphasher::sip128::{Hasher128, SipHasher13};
use spillway_filter::{LimitBy, RequestView};

/// Number of one key or token of a caller; reveals nothing of its text.
pub type Credential = u64;

/// Request whose level is looked for.
#[derive(Clone, Copy)]
pub struct Subject<'a, 'v> {
    /// View that filters have of the request.
    pub view: &'a RequestView<'v>,
    /// Key or token that identified the caller.
    pub credential: Option<Credential>,
}

/// Hashes a kind of subject with its name.
pub(super) fn number(kind: &str, name: &[u8]) -> u128 {
    let mut hasher = SipHasher13::new();
    hasher.write_usize(kind.len());
    hasher.write(kind.as_bytes());
    hasher.write(name);
    hasher.finish128().as_u128()
}

/// Number of a consumer as a caller.
pub fn number_of_consumer(name: &str) -> u128 {
    number("consumer", name.as_bytes())
}

/// Number of an unknown caller by the client's address: the bytes of its network, smaller than the hash of any consumer.
pub fn number_of_address(client: IpAddr) -> u128 {
    network(client).iter().fold(0, |number, byte| number << 8 | u128::from(*byte))
}

/// Network that counts as one address: an IPv4 address, or a /64 of IPv6, because that is what one household or server
/// is given. The last byte tells the families apart.
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

/// Number of the level that a rule counts a request under.
pub(super) fn of(by: &LimitBy, subject: Subject<'_, '_>) -> u128 {
    let address = || number("address", &network(subject.view.client));
    match (by, subject.view.caller) {
        (LimitBy::Route, _) => 0,
        (LimitBy::Consumer, Some(caller)) => number("consumer", caller.consumer.as_bytes()),
        (LimitBy::Tenant, Some(caller)) => number("tenant", caller.tenant.as_bytes()),
        (LimitBy::ApiKey, Some(_)) => subject.credential.map_or_else(address, |c| number("key", &c.to_be_bytes())),
        (LimitBy::Model, _) => number("model", subject.view.model.unwrap_or_default().as_bytes()),
        (LimitBy::Header(name), _) => match subject.view.headers.get(name) {
            Some(value) => number("header", value.as_bytes()),
            None => address(),
        },
        (LimitBy::Value(value), _) => match value.of(subject.view) {
            Some(value) => number("value", value.as_bytes()),
            None => address(),
        },
        (LimitBy::Consumer | LimitBy::Tenant | LimitBy::ApiKey | LimitBy::ClientAddress, _) => address(),
    }
}
