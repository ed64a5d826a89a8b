//! Which of the underlay's addresses are this node's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::kernel::InterfaceAddress;

/// `IFA_F_...` of Linux `include/uapi/linux/if_addr.h`. `SECONDARY` of an IPv6 address is
/// `TEMPORARY`.
const SECONDARY: u32 = 0x01;
const OPTIMISTIC: u32 = 0x04;
const DADFAILED: u32 = 0x08;
const DEPRECATED: u32 = 0x20;
const TENTATIVE: u32 = 0x40;

/// This node's underlay addresses, at most one of a family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnAddresses {
    /// For VTEPs with IPv4 addresses.
    pub v4: Option<Ipv4Addr>,
    /// For VTEPs with IPv6 addresses.
    pub v6: Option<Ipv6Addr>,
}

impl FromIterator<IpAddr> for OwnAddresses {
    /// The first of each family.
    fn from_iter<I: IntoIterator<Item = IpAddr>>(all: I) -> Self {
        let mut own = Self::default();
        for address in all {
            match address {
                IpAddr::V4(v4) => own.v4 = own.v4.or(Some(v4)),
                IpAddr::V6(v6) => own.v6 = own.v6.or(Some(v6)),
            }
        }
        own
    }
}

impl OwnAddresses {
    /// The address of the family of another.
    pub fn like(self, other: IpAddr) -> Option<IpAddr> {
        match other {
            IpAddr::V4(_) => self.v4.map(IpAddr::V4),
            IpAddr::V6(_) => self.v6.map(IpAddr::V6),
        }
    }

    /// Those that there are.
    pub fn iter(self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.v4.map(IpAddr::V4);
        v4.into_iter().chain(self.v6.map(IpAddr::V6))
    }

    /// Which of an interface's addresses are the node's, by family: the `fixed` one; else one of
    /// those that suit best, and of these the current one while it is there, or the first.
    ///
    /// An address suits less the more of this is true of it: it is deprecated; it is temporary
    /// (RFC 8981); its prefix is as long as an address, as that of a virtual address which moves
    /// from host to host; it is secondary. One that other nodes cannot reach, or that has not
    /// passed duplicate address detection (RFC 4862), does not suit at all. The current one may be
    /// checked again, as after a loss of carrier.
    #[must_use]
    pub fn choose(fixed: Self, current: Self, there: &[InterfaceAddress]) -> Self {
        let family = |v4: bool| {
            let like = |own: Self| own.iter().find(|own| own.is_ipv4() == v4);
            let current = like(current);
            let checked_again = |it: &InterfaceAddress| {
                Some(it.address.addr()) == current
                    && it.flags & (TENTATIVE | DADFAILED) == TENTATIVE
            };
            let usable = there.iter().filter(|it| is_usable(it) || checked_again(it));
            let usable = usable.filter(move |it| it.address.addr().is_ipv4() == v4);
            choose(like(fixed), current, usable)
        };
        [family(true), family(false)]
            .into_iter()
            .flatten()
            .collect()
    }

    /// These, and of families that these lack, those of another.
    #[must_use]
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            v4: self.v4.or(other.v4),
            v6: self.v6.or(other.v6),
        }
    }

    /// Those of them that `keep` says.
    pub(crate) fn only(self, keep: impl Fn(IpAddr) -> bool) -> Self {
        Self {
            v4: self.v4.filter(|&address| keep(address.into())),
            v6: self.v6.filter(|&address| keep(address.into())),
        }
    }
}

fn choose<'a>(
    fixed: Option<IpAddr>,
    current: Option<IpAddr>,
    there: impl Iterator<Item = &'a InterfaceAddress> + Clone,
) -> Option<IpAddr> {
    let mut addresses = there.clone().map(|it| it.address.addr());
    if let Some(fixed) = fixed {
        return addresses.find(|&address| address == fixed);
    }
    let best = there.clone().map(fault).min()?;
    let mut suit = there.filter(|it| fault(it) == best);
    let first = suit.clone().next()?.address.addr();
    let kept = suit.find(|it| Some(it.address.addr()) == current);
    Some(kept.map_or(first, |it| it.address.addr()))
}

/// Whether other nodes may be able to reach the node by it.
fn is_usable(it: &InterfaceAddress) -> bool {
    let unicast = match it.address.addr() {
        IpAddr::V4(a) => {
            !(a.is_link_local() || a.is_loopback() || a.is_multicast() || a.is_unspecified())
        }
        IpAddr::V6(a) => {
            !(a.is_unicast_link_local()
                || a.is_loopback()
                || a.is_multicast()
                || a.is_unspecified())
        }
    };
    unicast && unready(it).is_none()
}

/// Why the kernel does not use an address, or not yet.
fn unready(it: &InterfaceAddress) -> Option<&'static str> {
    if it.flags & DADFAILED != 0 {
        Some("another host has it, too (duplicate address detection)")
    } else if it.flags & TENTATIVE != 0 && it.flags & OPTIMISTIC == 0 {
        Some("duplicate address detection is not over yet")
    } else {
        None
    }
}

/// The addresses that the kernel does not use, each with the reason.
pub(crate) fn unready_addresses(there: &[InterfaceAddress]) -> Vec<String> {
    let why = |it: &InterfaceAddress| Some(format!("{}: {}", it.address.addr(), unready(it)?));
    there.iter().filter_map(why).collect()
}

/// What speaks against an address, the worst first; to be compared.
fn fault(it: &InterfaceAddress) -> [bool; 4] {
    let v6 = it.address.addr().is_ipv6();
    let marked = it.flags & SECONDARY != 0;
    [
        it.flags & DEPRECATED != 0,
        v6 && marked,
        it.address.prefix_len() == it.address.max_prefix_len(),
        !v6 && marked,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_interface(all: &[(&str, u32)]) -> Vec<InterfaceAddress> {
        let one = |&(address, flags): &(&str, u32)| InterfaceAddress {
            interface: 2,
            address: address.parse().unwrap(),
            flags,
            protocol: None,
        };
        all.iter().map(one).collect()
    }

    fn own(all: &[&str]) -> OwnAddresses {
        all.iter().map(|a| a.parse::<IpAddr>().unwrap()).collect()
    }

    fn chosen(current: &[&str], all: &[(&str, u32)]) -> OwnAddresses {
        OwnAddresses::choose(OwnAddresses::default(), own(current), &on_interface(all))
    }

    #[test]
    fn an_address_is_one_that_is_meant_for_the_interface() {
        let v4 = "192.0.2.1/24";
        for other in [
            ("192.0.2.9/32", 0),
            ("192.0.2.9/24", SECONDARY),
            ("192.0.2.9/24", DEPRECATED),
            ("169.254.3.3/16", 0),
        ] {
            assert_eq!(
                chosen(&[], &[other, (v4, 0)]),
                own(&["192.0.2.1"]),
                "{other:?}"
            );
            // Also when it was taken while there was no better one.
            let there = [other, (v4, 0)];
            assert_eq!(
                chosen(&["192.0.2.9"], &there),
                own(&["192.0.2.1"]),
                "{other:?}"
            );
        }
        let v6 = "fd00:99::1/64";
        for other in [
            ("fd00:99::9/128", 0),
            ("fd00:99::9/64", SECONDARY),
            ("fd00:99::9/64", DEPRECATED),
            ("fd00:99::9/64", TENTATIVE),
            ("fd00:99::9/64", DADFAILED | TENTATIVE),
            ("fe80::9/64", 0),
        ] {
            assert_eq!(
                chosen(&[], &[other, (v6, 0)]),
                own(&["fd00:99::1"]),
                "{other:?}"
            );
        }
    }

    #[test]
    fn the_only_address_will_do_unless_the_kernel_does_not_use_it() {
        for only in ["192.0.2.9/32", "fd00:99::9/128"] {
            let address = only.split('/').next().unwrap();
            for flags in [0, SECONDARY, DEPRECATED, TENTATIVE | OPTIMISTIC] {
                assert_eq!(
                    chosen(&[], &[(only, flags)]),
                    own(&[address]),
                    "{only} {flags}"
                );
            }
            for flags in [TENTATIVE, DADFAILED] {
                assert_eq!(chosen(&[], &[(only, flags)]), own(&[]), "{only} {flags}");
            }
        }
        let failed = on_interface(&[("fd00:99::9/64", DADFAILED)]);
        assert!(unready_addresses(&failed)[0].contains("fd00:99::9: another host"));
    }

    #[test]
    fn among_equals_the_current_one_is_kept() {
        let there = [
            ("192.0.2.5/24", 0),
            ("198.51.100.1/24", 0),
            ("fd00:99::1/64", 0),
            ("fd00:99::2/64", 0),
        ];
        assert_eq!(chosen(&[], &there), own(&["192.0.2.5", "fd00:99::1"]));
        let current = ["198.51.100.1", "fd00:99::2"];
        assert_eq!(chosen(&current, &there), own(&current));
        assert_eq!(chosen(&["192.0.2.77"], &there), chosen(&[], &there));
        let there = [("fd00:99::9/128", 0), ("fd00:99::1/64", TENTATIVE)];
        assert_eq!(chosen(&["fd00:99::1"], &there), own(&["fd00:99::1"]));
        assert_eq!(chosen(&[], &there), own(&["fd00:99::9"]));
    }

    #[test]
    fn a_fixed_address_is_that_or_none() {
        let there = on_interface(&[("192.0.2.1/24", 0), ("192.0.2.9/32", 0)]);
        let fixed = own(&["192.0.2.9"]);
        let choose = |fixed| OwnAddresses::choose(fixed, OwnAddresses::default(), &there);
        assert_eq!(choose(fixed), fixed);
        assert_eq!(choose(own(&["192.0.2.8"])), own(&[]));
    }
}
