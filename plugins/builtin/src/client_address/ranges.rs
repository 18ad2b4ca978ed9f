//! Sets of networks that are searched in logarithmic time.

use std::net::IpAddr;

use spillway_config::values::Network;

/// Sorted ranges that do not touch, so that a list of thousands is searched in some ten steps.
pub(super) struct Ranges(Vec<(u128, u128)>);

/// Number of an address on one scale for both families: IPv4 as mapped into IPv6.
fn number(address: IpAddr) -> u128 {
    match address.to_canonical() {
        IpAddr::V4(v4) => u128::from(v4.to_ipv6_mapped()),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

impl Ranges {
    pub(super) fn new(networks: &[Network]) -> Self {
        let mut all: Vec<_> = networks.iter().map(|n| (number(n.0.network()), number(n.0.broadcast()))).collect();
        all.sort_unstable();
        let mut ranges: Vec<(u128, u128)> = Vec::with_capacity(all.len());
        for (first, last) in all {
            match ranges.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                _ => ranges.push((first, last)),
            }
        }
        Self(ranges)
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        let address = number(address);
        let behind = self.0.partition_point(|(first, _)| *first <= address);
        behind.checked_sub(1).and_then(|n| self.0.get(n)).is_some_and(|(_, last)| address <= *last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(networks: &[&str]) -> Ranges {
        Ranges::new(&networks.iter().map(|n| n.parse().unwrap()).collect::<Vec<_>>())
    }

    #[test]
    fn networks_of_both_families_contain_what_lies_in_them_and_nothing_else() {
        let all =
            ranges(&["203.0.113.0/25", "203.0.113.128/25", "10.0.0.0/8", "10.1.0.0/16", "192.0.2.7", "2001:db8::/32"]);
        assert_eq!(all.0.len(), 4, "what overlaps or touches is one range");
        for (address, inside) in [
            ("203.0.113.0", true),
            ("203.0.113.255", true),
            ("203.0.112.255", false),
            ("203.0.114.0", false),
            ("10.255.255.255", true),
            ("11.0.0.0", false),
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("::ffff:10.0.0.1", true),
            ("2001:db8:ffff::1", true),
            ("2001:db9::", false),
            ("::1", false),
        ] {
            assert_eq!(all.contains(address.parse().unwrap()), inside, "{address}");
        }
        assert!(!ranges(&[]).contains("::".parse().unwrap()));
        assert!(ranges(&["::/0"]).contains("203.0.113.1".parse().unwrap()));
    }
}
