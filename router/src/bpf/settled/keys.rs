//! What the maps of settled entries hold, as `router/bpf/settled.h` has it.

use std::net::IpAddr;

use aya::Pod;
use ipnet::IpNet;
use viaduct_encap::Tunnel;
use viaduct_encap::ecn::Dscp;
use viaduct_fib::{NetworkId, NextHop, NextHopState, TunnelId};

use super::super::keys::mapped;

/// Bytes of an outer header over IPv6, both Ethernet headers included: the longest.
const HEADER: usize = 84;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Port {
    pub(super) ifindex: u32,
    pub(super) vni: u32,
    pub(super) network: u16,
    pub(super) mtu: u16,
    pub(super) mac: [u8; 6],
    pub(super) gateway_mac: [u8; 6],
    /// 1: what it sends may be carried by hooks.
    pub(super) from: u8,
    /// 1: what it gets, too.
    pub(super) to: u8,
    /// 1: frames go over its veth.
    pub(super) by_veth: u8,
    pub(super) zero: u8,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Network {
    pub(super) id: u16,
    pub(super) udp_port: [u8; 2],
    pub(super) vtep_mac: [u8; 6],
    pub(super) vtep_mac6: [u8; 6],
}

/// An address in a network.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    network: u32,
    address: [u8; 16],
}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Prefix {
    /// Bits of network and address together.
    bits: u32,
    network: [u8; 4],
    address: [u8; 16],
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Hop {
    vtep: [u8; 16],
    /// 0: it is not resolved.
    ways: u32,
    /// 0: there is no such next hop.
    present: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Slot {
    next_hop: u32,
    number: u32,
}

/// A way to another node.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    /// The longest inner IP packet.
    room: u16,
    /// Of the header.
    length: u8,
    copies_dscp: u8,
    tos: u8,
    /// 1: the outer UDP checksum is computed, over all the packet.
    summed: u8,
    zero: [u8; 2],
    header: [u8; HEADER],
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Traffic {
    pub(super) packets: u64,
    pub(super) bytes: u64,
}

/// All entries together, as they are since their last change.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Generation {
    pub(super) number: u64,
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub(super) since: u64,
}

// SAFETY: all are plain data without padding (28, 16, 20, 24, 24, 8, 92, 16 and 16 bytes).
unsafe impl Pod for Port {}
// SAFETY: as above.
unsafe impl Pod for Network {}
// SAFETY: as above.
unsafe impl Pod for Place {}
// SAFETY: as above.
unsafe impl Pod for Prefix {}
// SAFETY: as above.
unsafe impl Pod for Hop {}
// SAFETY: as above.
unsafe impl Pod for Slot {}
// SAFETY: as above.
unsafe impl Pod for Way {}
// SAFETY: as above.
unsafe impl Pod for Traffic {}
// SAFETY: as above.
unsafe impl Pod for Generation {}

impl Place {
    pub(super) fn of(network: NetworkId, address: IpAddr) -> Self {
        Self {
            network: network.0.into(),
            address: mapped(address),
        }
    }
}

impl Prefix {
    pub(super) fn of(network: NetworkId, prefix: IpNet) -> Self {
        let address = prefix.network();
        let mapping = if address.is_ipv4() { 96 } else { 0 };
        Self {
            bits: 32 + mapping + u32::from(prefix.prefix_len()),
            network: u32::from(network.0).to_be_bytes(),
            address: mapped(address),
        }
    }
}

impl Slot {
    pub(super) const fn of(next_hop: TunnelId, number: u32) -> Self {
        Self {
            next_hop: next_hop.0,
            number,
        }
    }
}

impl Hop {
    pub(super) fn of(next_hop: &NextHop) -> Self {
        let ways = ways(next_hop).len();
        Self {
            vtep: mapped(next_hop.vtep),
            ways: u32::try_from(ways).unwrap_or(0),
            present: 1,
        }
    }

    /// How many ways there are, by number.
    pub(super) const fn ways(&self) -> u32 {
        self.ways
    }
}

/// The ways of a next hop, one for each slot; none, while it is not resolved.
pub(super) fn ways(next_hop: &NextHop) -> &[Tunnel] {
    match &next_hop.state {
        NextHopState::Resolved(tunnel) => std::slice::from_ref(tunnel),
        NextHopState::Multipath(ways) => ways,
        NextHopState::Unresolved => &[],
    }
}

impl Way {
    pub(super) fn of(tunnel: &Tunnel) -> Self {
        let template = tunnel.template();
        let mut header = [0; HEADER];
        for (to, from) in header.iter_mut().zip(template) {
            *to = *from;
        }
        Self {
            room: tunnel.room(),
            length: u8::try_from(template.len()).unwrap_or(0),
            copies_dscp: u8::from(tunnel.dscp() == Dscp::Copy),
            tos: tunnel.outer_tos(0),
            summed: u8::from(tunnel.is_summed()),
            zero: [0; 2],
            header,
        }
    }
}
