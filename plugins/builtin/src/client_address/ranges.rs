//! Sets of networks that are searched in logarithmic time.

use std::net::IpAddr;

use spillway_config::values::Network;

/// Networks of both families, each searched among its own: the addresses of IPv4 are no part of `::/0`.
pub(super) struct Ranges {
    v4: Sorted<u32>,
    v6: Sorted<u128>,
}

/// Sorted ranges that do not touch, so that a list of thousands is searched in some ten steps.
struct Sorted<N>(Vec<(N, N)>);

/// Number of an address of one family.
trait Number: Copy + Ord {
    /// The next number, or this one if there is none.
    fn next(self) -> Self;
}

impl Number for u32 {
    fn next(self) -> Self {
        self.saturating_add(1)
    }
}

impl Number for u128 {
    fn next(self) -> Self {
        self.saturating_add(1)
    }
}

impl<N: Number> Sorted<N> {
    fn new(mut all: Vec<(N, N)>) -> Self {
        all.sort_unstable();
        let mut ranges: Vec<(N, N)> = Vec::with_capacity(all.len());
        for (first, last) in all {
            match ranges.last_mut() {
                Some(before) if first <= before.1.next() => before.1 = before.1.max(last),
                _ => ranges.push((first, last)),
            }
        }
        ranges.shrink_to_fit();
        Self(ranges)
    }

    fn contains(&self, address: N) -> bool {
        let behind = self.0.partition_point(|(first, _)| *first <= address);
        behind.checked_sub(1).and_then(|n| self.0.get(n)).is_some_and(|(_, last)| address <= *last)
    }
}

impl Ranges {
    pub(super) fn new(networks: &[Network]) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for network in networks {
            // A network of mapped addresses (`::ffff:10.0.0.0/104`) is one of IPv4, as the addresses in it are.
            match (network.0.network().to_canonical(), network.0.broadcast().to_canonical()) {
                (IpAddr::V4(first), IpAddr::V4(last)) => v4.push((u32::from(first), u32::from(last))),
                (IpAddr::V6(first), IpAddr::V6(last)) => v6.push((u128::from(first), u128::from(last))),
                // One that begins or ends among the mapped ones is wider than they are.
                (first, last) => v6.push((number(first), number(last))),
            }
        }
        Self { v4: Sorted::new(v4), v6: Sorted::new(v6) }
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => self.v4.contains(address.into()),
            IpAddr::V6(address) => self.v6.contains(address.into()),
        }
    }
}

/// Number of an address on the scale of IPv6.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().into(),
        IpAddr::V6(v6) => v6.into(),
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
        assert_eq!((all.v4.0.len(), all.v6.0.len()), (3, 1), "what overlaps or touches is one range");
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
        for (network, v4, v6) in
            [("::/0", false, true), ("::/8", false, false), ("0.0.0.0/0", true, false), ("::ffff:0:0/96", true, false)]
        {
            let ranges = ranges(&[network]);
            assert_eq!(ranges.contains("203.0.113.1".parse().unwrap()), v4, "{network}");
            assert_eq!(ranges.contains("::ffff:203.0.113.1".parse().unwrap()), v4, "{network}");
            assert_eq!(ranges.contains("2001:db8::1".parse().unwrap()), v6, "{network}");
        }
    }
}
