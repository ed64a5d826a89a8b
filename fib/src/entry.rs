//! What the forwarding table says about a network, a port and a next hop.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use viaduct_encap::{MacAddr, Tunnel, Vni, VtepMacs};

use crate::NetworkId;

/// An overlay network as this node takes part in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// The network's number on the wire (RFC 7348 section 5).
    pub vni: Vni,
    /// The UDP port that this network's VXLAN packets are received on.
    pub udp_port: u16,
    /// This node's VTEP MACs: the inner destinations of packets that others send here.
    pub vtep_macs: VtepMacs,
    /// The address that ICMP errors to IPv4 senders come from; none: they are not sent.
    pub overlay_v4: Option<Ipv4Addr>,
    /// The address that `ICMPv6` errors come from; none: they are not sent.
    pub overlay_v6: Option<Ipv6Addr>,
}

/// A pod's attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// The network that the pod is in.
    pub network: NetworkId,
    /// The pod's own MAC: the destination of frames delivered to it.
    pub mac: MacAddr,
    /// The MAC of the host's end of the pair, the pod's gateway: the source of frames delivered.
    pub gateway_mac: MacAddr,
    /// The longest IP packet, in bytes, that the pod's interface takes.
    pub mtu: u16,
    /// The pod's identity number, for policies; 0 where none was given.
    pub identity: u32,
    /// How much it may send and receive.
    pub limits: Limits,
}

/// How much a pod may send and receive; what has no rate is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// What the pod sends ("egress").
    pub from_pod: Option<Rate>,
    /// What the pod receives ("ingress").
    pub to_pod: Option<Rate>,
}

/// A rate with bursts, of Ethernet frames without checksum and preamble, as tc(8) counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    bits_per_second: u64,
    burst: u64,
}

impl Rate {
    /// So many bits a second, at least 1, and so many at once.
    #[must_use]
    pub fn new(bits_per_second: u64, burst_bits: u64) -> Self {
        let mut rate = Self {
            bits_per_second: bits_per_second.max(1),
            burst: 0,
        };
        rate.burst = rate.time_of(burst_bits);
        rate
    }

    /// How long so many bits take, in nanoseconds.
    #[inline]
    pub fn time_of(&self, bits: u64) -> u64 {
        const SECOND: u64 = 1_000_000_000;
        bits.saturating_mul(SECOND)
            .checked_div(self.bits_per_second)
            .unwrap_or(u64::MAX)
    }

    /// How long a burst takes, in nanoseconds.
    #[inline]
    pub const fn burst(&self) -> u64 {
        self.burst
    }
}

/// The way to one other node.
#[derive(Clone, Debug, PartialEq)]
pub struct NextHop {
    /// The other node's underlay address. Packets from it are accepted as this tunnel's.
    pub vtep: IpAddr,
    /// Whether the outer header can be written yet.
    pub state: NextHopState,
}

/// Whether a next hop's outer header is known.
#[derive(Clone, Debug, PartialEq)]
pub enum NextHopState {
    /// The whole outer header, prebuilt.
    Resolved(Tunnel),
    /// Several ways of equal cost, by different routers of the underlay; each flow takes one of
    /// these slots ([`slot`]). A way with more weight has more of them. Never empty.
    Multipath(Arc<[Tunnel]>),
    /// The kernel has no route to the VTEP or no MAC for the way there: packets are dropped with
    /// that reason until it has.
    Unresolved,
}

/// The slot of a flow: by the upper bits of its hash, as the lower ones make its source port.
#[inline]
pub fn slot(ways: &[Tunnel], flow_hash: u32) -> Option<&Tunnel> {
    let index = u64::try_from(ways.len())
        .ok()?
        .checked_mul(u64::from(flow_hash))?
        >> 32;
    ways.get(usize::try_from(index).ok()?)
}
