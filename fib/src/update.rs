//! Changes to the forwarding table, and why one is refused.

use std::net::IpAddr;

use ipnet::IpNet;
use viaduct_encap::Vni;

use crate::{
    MAX_NETWORKS, MAX_PORTS, MAX_TUNNELS, Network, NetworkId, NextHop, Port, PortId, TunnelId,
};

/// One change to the forwarding table.
///
/// Every published table is closed: what one entry names is there. So things are put in the
/// order network, port, local address and network, next hop, remote prefix, and removed in the
/// opposite order; changes that are published together are seen together. Putting what is there
/// already replaces it.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// Adds a network or replaces what is known of it.
    PutNetwork {
        /// The network.
        id: NetworkId,
        /// What is to be known of it. No other network may have its VNI.
        network: Network,
    },
    /// Removes a network that has neither ports nor prefixes left.
    RemoveNetwork {
        /// The network.
        id: NetworkId,
    },
    /// Adds a pod's port or replaces what is known of it.
    PutPort {
        /// The port; not [`PortId::UNDERLAY`].
        id: PortId,
        /// What is to be known of it. Its network can change only while it has no addresses.
        port: Port,
    },
    /// Removes a port that has no addresses left.
    RemovePort {
        /// The port.
        id: PortId,
    },
    /// Makes an address that of a local pod.
    PutLocal {
        /// The network that the address is in; the port's.
        network: NetworkId,
        /// The pod's address.
        address: IpAddr,
        /// The pod's port. To move an address to another port, remove it first.
        port: PortId,
    },
    /// Removes a local pod's address.
    RemoveLocal {
        /// The network that the address is in.
        network: NetworkId,
        /// The pod's address.
        address: IpAddr,
    },
    /// Adds a prefix of another node, or gives it to another next hop.
    PutRemote {
        /// The network that the prefix is in.
        network: NetworkId,
        /// The prefix, without host bits.
        prefix: IpNet,
        /// The next hop to the node that has it.
        tunnel: TunnelId,
    },
    /// Removes a prefix of another node.
    RemoveRemote {
        /// The network that the prefix is in.
        network: NetworkId,
        /// The prefix, without host bits.
        prefix: IpNet,
    },
    /// Adds a next hop or replaces what is known of it.
    PutNextHop {
        /// The next hop's number.
        tunnel: TunnelId,
        /// What is to be known of it.
        next_hop: NextHop,
    },
    /// Removes a next hop that no prefix uses any more.
    RemoveNextHop {
        /// The next hop's number.
        tunnel: TunnelId,
    },
}

/// Why an [`Update`] was refused. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpdateError {
    /// A network's number is too high.
    #[error("cannot add {0}: at most {MAX_NETWORKS} networks are supported; use a lower number")]
    NetworkOutOfRange(NetworkId),
    /// A port's number is too high.
    #[error("cannot add {0}: at most {MAX_PORTS} ports are supported; use a lower number")]
    PortOutOfRange(PortId),
    /// A next hop's number is too high.
    #[error("cannot add {0}: at most {MAX_TUNNELS} tunnels are supported; use a lower number")]
    TunnelOutOfRange(TunnelId),
    /// The underlay was to be a pod's port.
    #[error("cannot add a pod as port 0: that is the underlay's; number pods from 1")]
    UnderlayPort,
    /// Something was to refer to, or remove, a network that is not there.
    #[error("{0} is unknown: add it first")]
    UnknownNetwork(NetworkId),
    /// Something was to refer to, or remove, a port that is not there.
    #[error("{0} is unknown: add it first")]
    UnknownPort(PortId),
    /// Something was to refer to, or remove, a next hop that is not there.
    #[error("{0} is unknown: add its next hop first")]
    UnknownTunnel(TunnelId),
    /// Two networks were to have one VNI.
    #[error(
        "cannot give VNI {} to {wanted}: {by} has it; choose another or remove that network",
        vni.get()
    )]
    VniTaken {
        /// The VNI.
        vni: Vni,
        /// Who was to have it.
        wanted: NetworkId,
        /// Who has it.
        by: NetworkId,
    },
    /// Two ports were to have one address.
    #[error(
        "cannot give {address} in {network} to {wanted}: {by} has it; remove it from there first"
    )]
    AddressTaken {
        /// The network that the address is in.
        network: NetworkId,
        /// The address.
        address: IpAddr,
        /// Who was to have it.
        wanted: PortId,
        /// Who has it.
        by: PortId,
    },
    /// An address was to be in another network than its port.
    #[error("cannot give {address} in {network} to {port}: that port is in {port_network}")]
    OtherNetwork {
        /// The network that the address was to be in.
        network: NetworkId,
        /// The address.
        address: IpAddr,
        /// The port.
        port: PortId,
        /// The port's network.
        port_network: NetworkId,
    },
    /// A prefix has bits set beyond its length.
    #[error("{prefix} is not a prefix: bits beyond its length are set; use {canonical}")]
    HostBits {
        /// The prefix as it was given.
        prefix: IpNet,
        /// The prefix as it was probably meant.
        canonical: IpNet,
    },
    /// The address to be removed is not there.
    #[error("cannot remove {address} from {network}: no local pod has it")]
    UnknownLocal {
        /// The network.
        network: NetworkId,
        /// The address.
        address: IpAddr,
    },
    /// The prefix to be removed is not there.
    #[error("cannot remove {prefix} from {network}: it has no such route")]
    UnknownRemote {
        /// The network.
        network: NetworkId,
        /// The prefix.
        prefix: IpNet,
    },
    /// The network to be removed is in use.
    #[error(
        "cannot remove {network}: it still has {ports} ports and {remotes} remote prefixes; \
         remove these first"
    )]
    NetworkInUse {
        /// The network.
        network: NetworkId,
        /// How many ports are in it.
        ports: usize,
        /// How many remote prefixes are in it.
        remotes: usize,
    },
    /// The port to be removed, or to be moved to another network, has addresses.
    #[error(
        "cannot remove {port} or change its network: it still has {locals} addresses; \
         remove these first"
    )]
    PortInUse {
        /// The port.
        port: PortId,
        /// How many addresses it has.
        locals: usize,
    },
    /// The next hop to be removed is in use.
    #[error(
        "cannot remove the next hop of {tunnel}: {prefixes} prefixes use it; remove these first"
    )]
    NextHopInUse {
        /// The next hop.
        tunnel: TunnelId,
        /// How many prefixes use it.
        prefixes: usize,
    },
}
