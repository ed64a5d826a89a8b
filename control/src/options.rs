//! What the agent is to bring about.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use ipnet::IpNet;
use viaduct_encap::ecn::Dscp;
use viaduct_encap::{MacAddr, Vni};
use viaduct_fib::{Limits, MAX_NETWORKS, MAX_PORTS};

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
    /// The longest IP packet that workers can carry on a link, in bytes.
    pub max_mtu: u32,
    /// What happens to the pods at the end: given back to the kernel, or left as they are, for
    /// a data plane that then drops their packets.
    pub keep_ports: bool,
    /// The kernel as a path beside the workers; none: they are the only one.
    pub slow_path: Option<SlowPathOptions>,
}

/// How the kernel is made able to carry the first network.
#[derive(Clone, Debug)]
pub struct SlowPathOptions {
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
}

/// The interface towards the other nodes.
#[derive(Clone, Debug)]
pub struct UnderlayOptions {
    /// Its name.
    pub name: String,
    /// Those that it must have; of a family without one, any will do.
    pub fixed: OwnAddresses,
    /// This node's addresses on it at the start: the sources of outer packets.
    pub addresses: OwnAddresses,
}

/// This node's underlay addresses, at most one of a family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnAddresses {
    /// For VTEPs with IPv4 addresses.
    pub v4: Option<Ipv4Addr>,
    /// For VTEPs with IPv6 addresses.
    pub v6: Option<Ipv6Addr>,
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

    /// Which of an interface's addresses are the node's, by family: the `fixed` one; else the
    /// current one while it is there; else the first that other nodes can reach (not link-local).
    #[must_use]
    pub fn choose(fixed: Self, current: Self, there: &[IpAddr]) -> Self {
        let v4 = there.iter().filter_map(|address| match address {
            IpAddr::V4(address) if !address.is_link_local() => Some(*address),
            _ => None,
        });
        let v6 = there.iter().filter_map(|address| match address {
            IpAddr::V6(address) if !address.is_unicast_link_local() => Some(*address),
            _ => None,
        });
        Self {
            v4: choose(fixed.v4, current.v4, v4),
            v6: choose(fixed.v6, current.v6, v6),
        }
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

fn choose<A: PartialEq + Copy>(
    fixed: Option<A>,
    current: Option<A>,
    there: impl Iterator<Item = A> + Clone,
) -> Option<A> {
    let first = there.clone().next();
    match fixed {
        Some(fixed) => there.into_iter().find(|&address| address == fixed),
        None => there
            .into_iter()
            .find(|&address| Some(address) == current)
            .or(first),
    }
}

/// An overlay network.
#[derive(Clone, Debug)]
pub struct NetworkOptions {
    /// The name that status and errors show.
    pub name: String,
    /// The network's number on the wire.
    pub vni: Vni,
    /// The UDP port of its VXLAN packets, here and at the other nodes.
    pub udp_port: u16,
    /// This node's VTEP MAC in it.
    pub vtep_mac: MacAddr,
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
}

/// The way to another node's pods in one network.
#[derive(Clone, Debug, PartialEq, Eq)]
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
}

impl AgentOptions {
    /// Checks what needs no look at the kernel or the forwarding table.
    ///
    /// # Errors
    ///
    /// The first contradiction.
    pub(crate) fn check(&self) -> Result<(), OptionsError> {
        if self.networks.len() > usize::from(MAX_NETWORKS) {
            return Err(OptionsError::TooManyNetworks(self.networks.len()));
        }
        if self.ports.len() >= usize::from(MAX_PORTS) {
            return Err(OptionsError::TooManyPorts(self.ports.len()));
        }
        let mut interfaces = BTreeSet::new();
        for port in &self.ports {
            self.network(port.network, || format!("pod {}", port.name))?;
            if !interfaces.insert(&port.interface) {
                return Err(OptionsError::InterfaceTwice {
                    pod: port.name.clone(),
                    interface: port.interface.clone(),
                });
            }
        }
        let mut prefixes = BTreeSet::new();
        for route in &self.routes {
            self.check_route(route)?;
            let mut all = route.prefixes.iter();
            if let Some(&prefix) = all.find(|&&prefix| !prefixes.insert((route.network, prefix))) {
                let vtep = route.vtep;
                return Err(OptionsError::PrefixTwice { prefix, vtep });
            }
        }
        Ok(())
    }

    fn check_route(&self, route: &RouteOptions) -> Result<(), OptionsError> {
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
