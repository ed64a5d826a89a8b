//! Numbers that name things in the forwarding table.
//!
//! Ports, networks and tunnels are looked up by direct index, so whoever hands out these numbers
//! should take the lowest free one.

use std::fmt;

/// Names an overlay network: one VNI with its own address space. Below [`MAX_NETWORKS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkId(pub u16);

/// Names a place where frames enter or leave the router. Below [`MAX_PORTS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId(pub u16);

/// Names a next hop: the way to one other node within one network. Below [`MAX_TUNNELS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TunnelId(pub u32);

/// How many networks a forwarding table holds at most.
pub const MAX_NETWORKS: u16 = 1024;
/// How many ports a forwarding table holds at most, the underlay's own among them.
pub const MAX_PORTS: u16 = 4096;
/// How many next hops a forwarding table holds at most.
pub const MAX_TUNNELS: u32 = 65_536;

impl PortId {
    /// The node's own interface towards the other nodes. It belongs to no network, so it is never
    /// stored in the table; pods are numbered from 1.
    pub const UNDERLAY: Self = Self(0);
}

impl fmt::Display for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "network {}", self.0)
    }
}

impl fmt::Display for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::UNDERLAY {
            f.write_str("the underlay port")
        } else {
            write!(f, "port {}", self.0)
        }
    }
}

impl fmt::Display for TunnelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tunnel {}", self.0)
    }
}
