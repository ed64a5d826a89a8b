//! What the agent is to bring about.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use ipnet::IpNet;
use viaduct_encap::ecn::Dscp;
use viaduct_encap::{MacAddr, Vni, VtepMacs};
use viaduct_fib::{Limits, MAX_NETWORKS, MAX_PORTS, MAX_TUNNELS};

/// Routes at most: while they change, the table has the old tunnels beside the new ones.
pub(crate) const MAX_WAYS: usize = MAX_TUNNELS as usize / 2;

use crate::binding::Binding;
pub use crate::own_addresses::OwnAddresses;
use crate::place::Place;

/// The desired state: networks, pods and routes of this node.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// The interface towards the other nodes.
    pub underlay: UnderlayOptions,
    /// The overlay networks that this node takes part in. `NetworkId` is the place in here.
    pub networks: Vec<NetworkOptions>,
    /// This node's pods. At the start `PortId` is the place in here, from 1.
    pub ports: Vec<PortOptions>,
    /// The ways to other nodes.
    pub routes: Vec<RouteOptions>,
    /// Where other nodes may be found, beside those that routes lead to.
    pub peers: Vec<IpAddr>,
    /// The UDP port of this node's gossip, if it gossips.
    pub gossip_port: Option<u16>,
    /// The longest IP packet that a worker's socket takes from a link, in bytes.
    pub max_mtu: u32,
    /// What happens to the pods at the end: left as they are, for a data plane whose hooks stay, or given back to the
    /// kernel.
    pub keep_ports: bool,
    /// The kernel as a path beside the workers; none: they are the only one.
    pub slow_path: Option<SlowPathOptions>,
}

/// How the kernel is made able to carry the first network.
#[derive(Clone, Debug)]
pub struct SlowPathOptions {
    /// This node's name, by which what is made is known as its.
    pub node: String,
    /// The name of the VXLAN device, where none has to be adopted.
    pub device: String,
    /// The same for the one over IPv6.
    pub device6: String,
    /// Whether pods' packets to the outside get the node's address.
    pub masquerade: bool,
    /// Whether it is removed when the agent ends; otherwise it goes on carrying packets.
    pub remove_at_end: bool,
    /// Where to write down what kernel settings were.
    pub saved: PathBuf,
    /// The network namespace that they are of.
    pub place: Place,
}

/// The longest IPv4 packet, in bytes.
const LONGEST: u32 = 65_535;

/// The interface towards the other nodes.
#[derive(Clone, Debug)]
pub struct UnderlayOptions {
    /// Its name.
    pub name: String,
    /// Those that it must have; of a family without one, any will do.
    pub fixed: OwnAddresses,
    /// This node's addresses on it, the sources of outer packets, as far as they are known: at the
    /// start those that are fixed.
    pub addresses: OwnAddresses,
    /// Whether workers have sockets at its own queues; its hook is in tc otherwise.
    pub sockets: bool,
}

/// An overlay network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkOptions {
    /// The name that status and errors show.
    pub name: String,
    /// The network's number on the wire.
    pub vni: Vni,
    /// The UDP port of its VXLAN packets, here and at the other nodes.
    pub udp_port: u16,
    /// This node's VTEP MACs in it.
    pub vtep_macs: VtepMacs,
    /// Whether the kernel's VXLAN device over IPv6 computes outer UDP checksums.
    pub udp_checksum6: bool,
    /// DSCP of outer packets.
    pub dscp: Dscp,
    /// What this node's pods have their addresses from. The first of each family also gives the
    /// source of ICMP errors.
    pub pod_prefixes: Vec<IpNet>,
    /// What all nodes' pods have their addresses from. A pod's packets reach the workers only
    /// when they go to one of these.
    pub cluster_prefixes: Vec<IpNet>,
}

/// A pod on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortOptions {
    /// The name that status and errors show.
    pub name: String,
    /// The host's end of the pod's veth pair.
    pub interface: String,
    /// The pod's network: a place in [`AgentOptions::networks`].
    pub network: usize,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// The pod's MAC; where it is not given, the kernel is asked.
    pub mac: Option<MacAddr>,
    /// How much it may send and receive.
    pub limits: Limits,
    /// Whether workers have sockets at its own queues; its hook is in tc otherwise.
    pub sockets: bool,
    /// Which interface of that name is the pod's.
    pub binding: Binding,
}

impl PortOptions {
    /// Whether both are the same pod, wanted in the same way: what is known of its interface may
    /// differ.
    pub(crate) fn is_same_pod(&self, other: &Self) -> bool {
        let Self {
            name,
            interface,
            network,
            addresses,
            mac,
            limits,
            sockets,
            binding: _,
        } = self;
        *name == other.name
            && *interface == other.interface
            && *network == other.network
            && *addresses == other.addresses
            && *mac == other.mac
            && *limits == other.limits
            && *sockets == other.sockets
    }
}

/// The way to another node's pods in one network.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RouteOptions {
    /// The network: a place in [`AgentOptions::networks`].
    pub network: usize,
    /// Where the other node's pods have their addresses from.
    pub prefixes: Vec<IpNet>,
    /// The other node's own addresses, beside `vtep`.
    pub addresses: Vec<IpAddr>,
    /// The other node's underlay address.
    pub vtep: IpAddr,
    /// Whether outer UDP checksums are computed for it, if `vtep` is IPv6.
    pub udp_checksum6: bool,
    /// The other node's VTEP MAC in this network.
    pub vtep_mac: MacAddr,
}

/// Why options contradict themselves.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// There are more networks than a forwarding table holds.
    #[error("cannot use {0} networks: at most {MAX_NETWORKS} are supported; remove some")]
    TooManyNetworks(usize),
    /// There are more pods than a forwarding table holds.
    #[error("cannot use {0} pods: fewer than {MAX_PORTS} are supported on a node; remove some")]
    TooManyPorts(usize),
    /// A pod or route names a network that is not there.
    #[error("cannot use {whose}: there is no network number {network}; add it or correct this")]
    NoSuchNetwork {
        /// The pod or route.
        whose: String,
        /// The network that it names.
        network: usize,
    },
    /// Two pods have one interface.
    #[error("cannot use pod {pod}: its interface {interface} is another pod's; correct one")]
    InterfaceTwice {
        /// The second of the two.
        pod: String,
        /// The interface.
        interface: String,
    },
    /// Two routes have one prefix.
    #[error("cannot route {prefix} to {vtep}: another route has that prefix; remove one")]
    PrefixTwice {
        /// The prefix.
        prefix: IpNet,
        /// The node that the second route leads to.
        vtep: IpAddr,
    },
    /// Pods would send packets for a route to the kernel, not to the workers.
    #[error(
        "cannot route {prefix} to {vtep}: it lies outside the cluster's prefixes of network \
         {network}, so pods' packets would never take this route; add it to them or remove it"
    )]
    OutsideCluster {
        /// The route's prefix.
        prefix: IpNet,
        /// The node that it leads to.
        vtep: IpAddr,
        /// The network's name.
        network: String,
    },
    /// More than a forwarding table holds.
    #[error("cannot use {0} routes: at most {MAX_WAYS} are supported; remove some")]
    TooManyRoutes(usize),
    /// The route would contradict another one, or this node.
    #[error("cannot use the route to {vtep} in network {network}: {why}; correct one")]
    Route {
        /// The node that the route leads to.
        vtep: IpAddr,
        /// The network's name.
        network: String,
        /// What it contradicts.
        why: String,
    },
}

/// Why no VTEP can have an address.
pub(crate) fn unusable_vtep(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(v4) if v4.is_multicast() => Some("a multicast address"),
        IpAddr::V6(v6) if v6.is_multicast() => Some("a multicast address"),
        _ if address.is_loopback() => Some("a loopback address"),
        IpAddr::V4(v4) if v4.octets()[0] == 0 => Some("an unspecified address"),
        IpAddr::V6(v6) if v6.is_unspecified() => Some("an unspecified address"),
        IpAddr::V4(v4) if v4.is_broadcast() => Some("the broadcast address"),
        // It would have to be told the interface with each use.
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("link-local"),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Some("an IPv4-mapped address"),
        _ => None,
    }
}

/// What routes have taken so far, to find two that contradict each other.
#[derive(Default)]
struct Taken {
    /// The MAC of each VTEP.
    macs: BTreeMap<(usize, IpAddr), MacAddr>,
    /// The VTEP of each MAC, by the family of the underlay: the kernel has a device for each.
    vteps: BTreeMap<(usize, bool, MacAddr), IpAddr>,
    /// The VTEP of the node that has each address.
    addresses: BTreeMap<IpAddr, IpAddr>,
    /// The addresses of this node's pods.
    pods: BTreeSet<(usize, IpNet)>,
}

impl AgentOptions {
    /// The largest MTU of a device, with sockets at its own queues or without: a hook in tc leaves to the kernel what is too
    /// long for a worker.
    pub(crate) const fn longest(&self, sockets: bool) -> u32 {
        if sockets { self.max_mtu } else { LONGEST }
    }

    /// Checks what needs no look at the kernel or the forwarding table. What [`merge`] wants passes.
    ///
    /// # Errors
    ///
    /// The first contradiction.
    ///
    /// [`merge`]: crate::sources::merge
    pub fn check(&self) -> Result<(), OptionsError> {
        self.check_table()?;
        if self.routes.len() > MAX_WAYS {
            return Err(OptionsError::TooManyRoutes(self.routes.len()));
        }
        let mut taken = Taken::default();
        for port in &self.ports {
            let addresses = port.addresses.iter().copied().map(IpNet::from);
            taken.pods.extend(addresses.map(|a| (port.network, a)));
        }
        for route in &self.routes {
            self.check_node(route, &mut taken)?;
        }
        Ok(())
    }

    /// Checks what the forwarding table needs.
    ///
    /// # Errors
    ///
    /// The first contradiction.
    pub(crate) fn check_table(&self) -> Result<(), OptionsError> {
        if self.networks.len() > usize::from(MAX_NETWORKS) {
            return Err(OptionsError::TooManyNetworks(self.networks.len()));
        }
        self.check_ports(&self.ports)?;
        let mut prefixes = BTreeSet::new();
        for route in &self.routes {
            self.check_route(route)?;
            let mut all = route.prefixes.iter();
            let mut twice = |prefix: IpNet| !prefixes.insert((route.network, prefix));
            if let Some(&prefix) = all.find(|&&prefix| twice(prefix)) {
                let vtep = route.vtep;
                return Err(OptionsError::PrefixTwice { prefix, vtep });
            }
        }
        Ok(())
    }

    /// Checks a route's VTEP, MAC and addresses against those of the routes before it.
    fn check_node(&self, route: &RouteOptions, taken: &mut Taken) -> Result<(), OptionsError> {
        let vtep = route.vtep;
        let mac = route.vtep_mac;
        let Some(network) = self.networks.get(route.network) else {
            return Ok(());
        };
        let fail = |why: String| {
            let network = network.name.clone();
            Err(OptionsError::Route { vtep, network, why })
        };
        let networks = self.networks.iter();
        let clusters: Vec<_> = networks.flat_map(|n| &n.cluster_prefixes).collect();
        for address in std::iter::once(&vtep).chain(&route.addresses) {
            if let Some(kind) = unusable_vtep(*address) {
                return fail(format!("{address} is {kind}"));
            }
            if let Some(cluster) = clusters.iter().find(|c| c.contains(address)) {
                return fail(format!("{address} lies in the cluster prefix {cluster}"));
            }
        }
        if mac == network.vtep_macs.over(vtep) {
            return fail(format!("{mac} is this node's own VTEP MAC"));
        }
        let known = *taken.macs.entry((route.network, vtep)).or_insert(mac);
        if known != mac {
            return fail(format!("the VTEP has the MAC {known} in another route"));
        }
        let key = (route.network, vtep.is_ipv4(), mac);
        let other = *taken.vteps.entry(key).or_insert(vtep);
        if other != vtep {
            return fail(format!("{mac} is the MAC of VTEP {other}"));
        }
        for address in std::iter::once(&vtep).chain(&route.addresses) {
            let other = *taken.addresses.entry(*address).or_insert(vtep);
            if other != vtep {
                return fail(format!("{address} is of the node at {other}"));
            }
        }
        for prefix in &route.prefixes {
            // A part of it may be another node's, whose pod has moved there.
            let mut own = network.pod_prefixes.iter();
            if let Some(own) = own.find(|own| prefix.contains(*own)) {
                return fail(format!("{prefix} has this node's own {own} in it"));
            }
            if taken.pods.contains(&(route.network, *prefix)) {
                return fail(format!("{prefix} is a pod's of this node"));
            }
        }
        Ok(())
    }

    /// Whether these pods could be had.
    pub(crate) fn check_ports(&self, ports: &[PortOptions]) -> Result<(), OptionsError> {
        if ports.len() >= usize::from(MAX_PORTS) {
            return Err(OptionsError::TooManyPorts(ports.len()));
        }
        let mut interfaces = BTreeSet::new();
        for port in ports {
            self.network(port.network, || format!("pod {}", port.name))?;
            if !interfaces.insert(&port.interface) {
                return Err(OptionsError::InterfaceTwice {
                    pod: port.name.clone(),
                    interface: port.interface.clone(),
                });
            }
        }
        Ok(())
    }

    /// Whether a route is sound by itself.
    pub(crate) fn check_route(&self, route: &RouteOptions) -> Result<(), OptionsError> {
        let network = self.network(route.network, || format!("the route to {}", route.vtep))?;
        let outside = |prefix: &&IpNet| {
            let clusters = &network.cluster_prefixes;
            !clusters.iter().any(|cluster| cluster.contains(*prefix))
        };
        match route.prefixes.iter().find(outside) {
            None => Ok(()),
            Some(prefix) => Err(OptionsError::OutsideCluster {
                prefix: *prefix,
                vtep: route.vtep,
                network: network.name.clone(),
            }),
        }
    }

    fn network(
        &self,
        network: usize,
        whose: impl FnOnce() -> String,
    ) -> Result<&NetworkOptions, OptionsError> {
        self.networks
            .get(network)
            .ok_or_else(|| OptionsError::NoSuchNetwork {
                whose: whose(),
                network,
            })
    }
}

impl NetworkOptions {
    /// The node's own IPv4 address in the network: the first of its first prefix, as flannel
    /// has it.
    pub(crate) fn overlay_v4(&self) -> Option<Ipv4Addr> {
        self.pod_prefixes.iter().find_map(|prefix| match prefix {
            IpNet::V4(prefix) => Some(prefix.network()),
            IpNet::V6(_) => None,
        })
    }

    /// The node's own IPv6 address in the network.
    pub(crate) fn overlay_v6(&self) -> Option<Ipv6Addr> {
        self.pod_prefixes.iter().find_map(|prefix| match prefix {
            IpNet::V4(_) => None,
            IpNet::V6(prefix) => Some(prefix.network()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn sound_options_pass() {
        assert_eq!(testing::options().check(), Ok(()));
    }

    #[test]
    fn the_nodes_own_address_is_the_first_of_its_first_prefix() {
        let options = testing::options();
        let network = &options.networks[0];
        assert_eq!(network.overlay_v4(), Some(Ipv4Addr::new(10, 42, 1, 0)));
        assert_eq!(network.overlay_v6(), "fd00:42:1::".parse().ok());
    }

    #[test]
    fn contradictions_are_named() {
        let mut options = testing::options();
        options.ports[1].network = 7;
        let error = options.check().unwrap_err().to_string();
        assert!(error.contains("pod b") && error.contains('7'), "{error}");

        let mut options = testing::options();
        options.ports[1].interface = options.ports[0].interface.clone();
        let error = options.check().unwrap_err();
        assert!(matches!(error, OptionsError::InterfaceTwice { .. }));

        let mut options = testing::options();
        options.routes[0].prefixes = vec!["10.99.0.0/24".parse().unwrap()];
        let error = options.check().unwrap_err();
        assert!(matches!(error, OptionsError::OutsideCluster { .. }));

        let mut options = testing::options();
        options.routes.push(options.routes[0].clone());
        let error = options.check().unwrap_err();
        assert!(matches!(error, OptionsError::PrefixTwice { .. }));

        let mut options = testing::options();
        options.ports = vec![options.ports[0].clone(); 4096];
        assert_eq!(options.check(), Err(OptionsError::TooManyPorts(4096)));
    }
}
