//! What the XDP programs have counted.

use aya::maps::{MapData, PerCpuArray};

use super::Pinholes;

/// How packets fared at the pinholes, all CPUs and devices together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcomes {
    /// Given to a worker's socket.
    pub redirected: u64,
    /// Left to the kernel: not ours.
    pub passed: u64,
    /// Left to the kernel: the worker's heartbeat had stopped, or its socket was gone.
    pub stale: u64,
    /// Dropped for the same reason, when nothing may pass unseen.
    pub closed: u64,
    /// Dropped: a pod's packet to the kernel with a source, or a MAC, that is not its own, or a
    /// router's message.
    pub spoofed: u64,
    /// Dropped: a tunnel's packet to the kernel whose inner source is not the sending node's.
    pub unknown_vtep: u64,
    /// Dropped: a pod's packet to the tunnels' port of a node.
    pub tunnel_from_pod: u64,
    /// Dropped: a packet of a network that only workers carry.
    pub no_slow_path: u64,
    /// Dropped: a pod's packet to many, neighbour discovery apart.
    pub multicast: u64,
    /// Dropped: a frame with a VLAN tag.
    pub vlan_tagged: u64,
    /// Dropped: a tunnel's packet with neither IPv4 nor IPv6 inside, or with a part of a header.
    pub malformed: u64,
    /// Left to the kernel, which drops it: a tunnel's packet in a frame for another MAC than the
    /// underlay's.
    pub foreign_mac: u64,
    /// Dropped: a worker's packet to a port that had gone.
    pub port_gone: u64,
}

impl Pinholes {
    pub(crate) fn outcomes(&self) -> Outcomes {
        let read = |index| {
            let map = PerCpuArray::<&MapData, u64>::try_from(self.ebpf.map("outcomes")?).ok()?;
            Some(map.get(&index, 0).ok()?.iter().sum())
        };
        let n = |index| read(index).unwrap_or(0);
        Outcomes {
            redirected: n(0),
            passed: n(1),
            stale: n(2),
            closed: n(3),
            spoofed: n(4),
            unknown_vtep: n(5),
            tunnel_from_pod: n(6),
            no_slow_path: n(7),
            multicast: n(8),
            vlan_tagged: n(9),
            malformed: n(10),
            foreign_mac: n(11),
            port_gone: n(12),
        }
    }
}
