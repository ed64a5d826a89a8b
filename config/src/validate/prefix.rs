//! Prefixes: reading them, and finding which of many contains or lies inside another.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::{Bound, Range};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::source::Problems;

const fn v4(a: u8, b: u8, c: u8, d: u8, length: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length))
}

const fn v6(first: u16, sixth: u16, last: u16, length: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(
        Ipv6Addr::new(first, 0, 0, 0, 0, sixth, 0, last),
        length,
    ))
}

/// Ranges that no pod and no node can have, from the registries of RFC 6890. Link-local is among them because a pod
/// reaches its gateway there, which only the kernel answers for.
const SPECIAL_USE: [(IpNet, &str); 10] = [
    (v4(0, 0, 0, 0, 8), "unspecified"),
    (v4(127, 0, 0, 0, 8), "loopback"),
    (v4(169, 254, 0, 0, 16), "link-local"),
    (v4(224, 0, 0, 0, 4), "multicast"),
    (v4(255, 255, 255, 255, 32), "broadcast"),
    (v6(0, 0, 0, 128), "unspecified"),
    (v6(0, 0, 1, 128), "loopback"),
    (v6(0, 0xffff, 0, 96), "IPv4-mapped"),
    (v6(0xfe80, 0, 0, 10), "link-local"),
    (v6(0xff00, 0, 0, 8), "multicast"),
];

/// Which special range `net` has addresses of, if any.
pub(super) fn special_use(net: IpNet) -> Option<&'static str> {
    let overlaps = |range: &IpNet| range.contains(&net) || net.contains(range);
    SPECIAL_USE
        .iter()
        .find(|(range, _)| overlaps(range))
        .map(|(_, kind)| *kind)
}

/// A prefix without host bits and without special addresses.
pub(super) fn parse(text: &str, at: &Range<usize>, problems: &mut Problems<'_>) -> Option<IpNet> {
    let message = match (text.parse::<IpNet>(), text.parse::<IpAddr>()) {
        (Ok(net), _) if net != net.trunc() => {
            format!("{net} has host bits set; write {}", net.trunc())
        }
        (Ok(net), _) => match special_use(net) {
            None => return Some(net),
            Some(kind) => format!(
                "{net} contains {kind} addresses, which pods cannot have; give a narrower prefix"
            ),
        },
        (Err(_), Ok(address)) => format!(
            "{address} has no prefix length; write {}",
            IpNet::from(address)
        ),
        (Err(_), Err(_)) => {
            format!(
                "{text:?} is not a prefix; write an address and a length, like 10.244.1.0/24 or fd00:10:244:1::/64"
            )
        }
    };
    problems.report(at, message);
    None
}

/// Prefixes with something about each. Costs at most 129 look-ups a question, however many there are.
#[derive(Debug, Clone)]
pub(super) struct PrefixTable<T>(BTreeMap<IpNet, T>);

impl<T> Default for PrefixTable<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T> PrefixTable<T> {
    /// Adds `net`, which must have no host bits.
    pub(super) fn insert(&mut self, net: IpNet, value: T) {
        self.0.insert(net, value);
    }

    /// The longest prefix that contains all of `net`, which may be `net`.
    pub(super) fn covering(&self, net: IpNet) -> Option<(IpNet, &T)> {
        std::iter::successors(Some(net), IpNet::supernet)
            .find_map(|net| Some((net, self.0.get(&net)?)))
    }

    /// Every prefix that has an address in common with `net`: those that contain it, the longest first, and then those
    /// inside it.
    pub(super) fn overlapping(&self, net: IpNet) -> impl Iterator<Item = (IpNet, &T)> {
        let around = std::iter::successors(Some(net), IpNet::supernet);
        let around = around.filter_map(|net| Some((net, self.0.get(&net)?)));
        // Prefixes are ordered by first address and then by length, so those inside `net` come next to it.
        let after = self.0.range((Bound::Excluded(net), Bound::Unbounded));
        let inside = after.take_while(move |(after, _)| net.contains(*after));
        around.chain(inside.map(|(net, value)| (*net, value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_net() -> impl Strategy<Value = IpNet> {
        // Few bits, so that they meet often.
        let v4 = (any::<u8>(), 0u8..=32).prop_map(|(host, length)| {
            IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, host), length)).trunc()
        });
        let v6 = (any::<u16>(), 112u8..=128).prop_map(|(host, length)| {
            IpNet::V6(Ipv6Net::new_assert(
                Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host & 0xff),
                length,
            ))
            .trunc()
        });
        prop_oneof![v4, v6]
    }

    proptest! {
        #[test]
        fn finds_what_a_search_of_all_finds(nets in prop::collection::vec(any_net(), 0..12), asked in any_net()) {
            let mut table = PrefixTable::default();
            for net in &nets {
                table.insert(*net, ());
            }
            let longest = nets.iter().filter(|net| net.contains(&asked)).max_by_key(|net| net.prefix_len());
            prop_assert_eq!(table.covering(asked).map(|found| found.0), longest.copied());
            let meets = |net: &IpNet| net.contains(&asked) || asked.contains(net);
            let mut found: Vec<_> = table.overlapping(asked).map(|found| found.0).collect();
            found.sort_unstable();
            let mut all: Vec<_> = nets.iter().copied().filter(meets).collect();
            all.sort_unstable();
            all.dedup();
            prop_assert_eq!(found, all);
        }
    }
}
