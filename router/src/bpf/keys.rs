//! What the maps of the rules and the trunk hold, as `router/bpf/rules.h` and `trunk.h` have it.

use std::net::IpAddr;

use aya::Pod;
use viaduct_encap::Vni;

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    /// The first slot of the socket map.
    pub(crate) base: u32,
    /// Queues that have an owner.
    pub(crate) queues: u32,
    pub(crate) workers: u32,
    /// A pod's network.
    pub(crate) vni: u32,
    /// The pod's MAC; on the underlay the interface's own, zero while it is not known.
    pub(crate) mac: [u8; 6],
    /// 1: of a network that the kernel does not carry.
    pub(crate) no_slow_path: u8,
    /// 1: a veth with native XDP, whose packets may have a VLAN tag beside them.
    pub(crate) native_veth: u8,
    /// The port's number.
    pub(crate) port: u16,
    pub(crate) zero: u16,
}

/// A worker's trunk.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trunk {
    /// The index of the hooks' end.
    pub(crate) ifindex: u32,
    /// Of the worker's socket.
    pub(crate) slot: u32,
    /// For packets of one round.
    pub(crate) places: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Vtep {
    pub(super) address: [u8; 16],
    pub(super) port: [u8; 2],
    pub(super) zero: [u8; 2],
}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PodKey {
    pub(super) vni: u32,
    pub(super) address: [u8; 16],
}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PrefixKey {
    /// Bits of network and address together.
    pub(super) bits: u32,
    pub(super) vni: [u8; 4],
    pub(super) address: [u8; 16],
}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SourceKey {
    pub(super) ifindex: u32,
    pub(super) address: [u8; 16],
}

// SAFETY: all six are plain data without padding (28, 12, 20, 20, 24 and 20 bytes).
unsafe impl Pod for Device {}
// SAFETY: as above.
unsafe impl Pod for Trunk {}
// SAFETY: as above.
unsafe impl Pod for SourceKey {}
// SAFETY: as above.
unsafe impl Pod for Vtep {}
// SAFETY: as above.
unsafe impl Pod for PodKey {}
// SAFETY: as above.
unsafe impl Pod for PrefixKey {}

/// IPv4 addresses are mapped into IPv6 for the maps.
pub(super) fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(a) => a.to_ipv6_mapped().octets(),
        IpAddr::V6(a) => a.octets(),
    }
}

pub(super) fn vtep_key(address: IpAddr, port: u16) -> Vtep {
    Vtep {
        address: mapped(address),
        port: port.to_be_bytes(),
        zero: [0; 2],
    }
}

/// `length` counts the bits of `address` in its own family.
pub(super) fn prefix_key(vni: Vni, address: IpAddr, length: u8) -> PrefixKey {
    PrefixKey {
        bits: 32 + u32::from(length) + if address.is_ipv4() { 96 } else { 0 },
        vni: vni.get().to_be_bytes(),
        address: mapped(address),
    }
}
