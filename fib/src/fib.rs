//! The forwarding table as its readers see it.
#![allow(
    clippy::inline_always,
    reason = "a call between stages copies what was parsed, at a third of a packet's time (./dev bench)"
)]
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::arithmetic_side_effects
    )
)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ahash::HashMap;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use viaduct_encap::Vni;

use crate::lpm::Lpm;
use crate::{Network, NetworkId, NextHop, Port, PortId, TunnelId};

/// The forwarding table. Lookups neither allocate nor panic; all of them take constant time but
/// [`Fib::remote`], which takes one probe per prefix length in use, and
/// [`Fib::network_by_vni`].
///
/// Tables are kept per network, so networks may use the same addresses.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fib {
    pub(crate) epoch: u64,
    pub(crate) networks: Vec<Option<NetworkEntry>>,
    /// By VNI, for a binary search: with the few networks that a node has it is done in a step
    /// or two, on one cache line.
    pub(crate) vnis: Vec<(u32, NetworkId)>,
    pub(crate) ports: Vec<Option<PortEntry>>,
    pub(crate) next_hops: Vec<Option<NextHopEntry>>,
}

/// A network with its own address space.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NetworkEntry {
    pub(crate) network: Network,
    /// How many ports are in it.
    pub(crate) ports: usize,
    pub(crate) local_v4: HashMap<u32, PortId>,
    pub(crate) local_v6: HashMap<u128, PortId>,
    pub(crate) remote_v4: Lpm<u32>,
    pub(crate) remote_v6: Lpm<u128>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PortEntry {
    pub(crate) port: Port,
    /// How many addresses lead to it.
    pub(crate) locals: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NextHopEntry {
    pub(crate) next_hop: NextHop,
    /// How many prefixes lead to it.
    pub(crate) prefixes: usize,
}

/// How many entries of each kind a table holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Networks.
    pub networks: usize,
    /// Ports of local pods.
    pub ports: usize,
    /// Addresses of local pods.
    pub locals: usize,
    /// Prefixes of other nodes.
    pub remotes: usize,
    /// Next hops.
    pub next_hops: usize,
}

impl Fib {
    /// Which publication this is: 0 for the empty table at the start, then one more each time.
    /// What was derived from a table (a cached verdict) is valid for its epoch only.
    #[inline]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// What is known of a network.
    #[inline]
    pub fn network(&self, id: NetworkId) -> Option<&Network> {
        Some(&self.network_entry(id)?.network)
    }

    /// The network that a VNI means here.
    #[inline]
    pub fn network_by_vni(&self, vni: Vni) -> Option<NetworkId> {
        let at = self.vni_position(vni).ok()?;
        self.vnis.get(at).map(|&(_, id)| id)
    }

    /// What is known of a pod's port. [`PortId::UNDERLAY`] is never found.
    #[inline]
    pub fn port(&self, id: PortId) -> Option<&Port> {
        Some(&self.port_entry(id)?.port)
    }

    /// The port of the local pod that has this address.
    #[inline(always)]
    pub fn local(&self, network: NetworkId, address: IpAddr) -> Option<PortId> {
        let entry = self.network_entry(network)?;
        match address {
            IpAddr::V4(address) => entry.local_v4.get(&u32::from(address)),
            IpAddr::V6(address) => entry.local_v6.get(&u128::from(address)),
        }
        .copied()
    }

    /// The way to the node whose prefix, the longest one that matches, this address lies in
    /// (RFC 1812 section 5.2.4.3).
    #[inline(always)]
    pub fn remote(&self, network: NetworkId, address: IpAddr) -> Option<TunnelId> {
        let entry = self.network_entry(network)?;
        match address {
            IpAddr::V4(address) => entry.remote_v4.lookup(address.into()),
            IpAddr::V6(address) => entry.remote_v6.lookup(address.into()),
        }
    }

    /// What is known of a next hop.
    #[inline]
    pub fn next_hop(&self, id: TunnelId) -> Option<&NextHop> {
        Some(&self.next_hop_entry(id)?.next_hop)
    }

    /// All networks, by number.
    pub fn networks(&self) -> impl Iterator<Item = (NetworkId, &Network)> {
        self.network_entries()
            .map(|(id, entry)| (id, &entry.network))
    }

    /// All ports, by number.
    pub fn ports(&self) -> impl Iterator<Item = (PortId, &Port)> {
        (0..)
            .map(PortId)
            .zip(&self.ports)
            .filter_map(|(id, entry)| Some((id, &entry.as_ref()?.port)))
    }

    /// All next hops, by number.
    pub fn next_hops(&self) -> impl Iterator<Item = (TunnelId, &NextHop)> {
        (0..)
            .map(TunnelId)
            .zip(&self.next_hops)
            .filter_map(|(id, entry)| Some((id, &entry.as_ref()?.next_hop)))
    }

    /// All addresses of local pods, by network, else in no order.
    pub fn locals(&self) -> impl Iterator<Item = (NetworkId, IpAddr, PortId)> {
        self.network_entries().flat_map(|(id, entry)| {
            let v4 = entry
                .local_v4
                .iter()
                .map(move |(&address, &port)| (id, Ipv4Addr::from(address).into(), port));
            let v6 = entry
                .local_v6
                .iter()
                .map(move |(&address, &port)| (id, Ipv6Addr::from(address).into(), port));
            v4.chain(v6)
        })
    }

    /// All prefixes of other nodes, by network, else in no order.
    pub fn remotes(&self) -> impl Iterator<Item = (NetworkId, IpNet, TunnelId)> {
        self.network_entries().flat_map(|(id, entry)| {
            let v4 = entry
                .remote_v4
                .iter()
                .filter_map(move |(prefix, length, tunnel)| {
                    let prefix = Ipv4Net::new(prefix.into(), length).ok()?;
                    Some((id, prefix.into(), tunnel))
                });
            let v6 = entry
                .remote_v6
                .iter()
                .filter_map(move |(prefix, length, tunnel)| {
                    let prefix = Ipv6Net::new(prefix.into(), length).ok()?;
                    Some((id, prefix.into(), tunnel))
                });
            v4.chain(v6)
        })
    }

    /// How many entries of each kind there are.
    pub fn counts(&self) -> Counts {
        Counts {
            networks: self.networks().count(),
            ports: self.ports().count(),
            locals: self.network_entries().map(|(_, e)| e.locals()).sum(),
            remotes: self.network_entries().map(|(_, e)| e.remotes()).sum(),
            next_hops: self.next_hops().count(),
        }
    }

    #[inline]
    pub(crate) fn network_entry(&self, id: NetworkId) -> Option<&NetworkEntry> {
        self.networks.get(usize::from(id.0))?.as_ref()
    }

    #[inline]
    pub(crate) fn port_entry(&self, id: PortId) -> Option<&PortEntry> {
        self.ports.get(usize::from(id.0))?.as_ref()
    }

    #[inline]
    pub(crate) fn next_hop_entry(&self, id: TunnelId) -> Option<&NextHopEntry> {
        self.next_hops.get(usize::try_from(id.0).ok()?)?.as_ref()
    }

    /// Where this VNI is in the order of VNIs, or belongs.
    #[inline]
    pub(crate) fn vni_position(&self, vni: Vni) -> Result<usize, usize> {
        self.vnis.binary_search_by_key(&vni.get(), |&(vni, _)| vni)
    }

    fn network_entries(&self) -> impl Iterator<Item = (NetworkId, &NetworkEntry)> {
        (0..)
            .map(NetworkId)
            .zip(&self.networks)
            .filter_map(|(id, entry)| Some((id, entry.as_ref()?)))
    }
}

impl NetworkEntry {
    pub(crate) fn new(network: Network) -> Self {
        Self {
            network,
            ports: 0,
            local_v4: HashMap::default(),
            local_v6: HashMap::default(),
            remote_v4: Lpm::default(),
            remote_v6: Lpm::default(),
        }
    }

    /// How many addresses local pods have in it.
    fn locals(&self) -> usize {
        self.local_v4.len().saturating_add(self.local_v6.len())
    }

    /// How many prefixes of other nodes are in it.
    pub(crate) fn remotes(&self) -> usize {
        self.remote_v4.len().saturating_add(self.remote_v6.len())
    }
}
