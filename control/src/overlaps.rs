//! Whether what the cluster takes for its pods is somebody else's: the host's own addresses,
//! gateways, routes, resolvers and connections, looked at without touching anything.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::kernel::{ForeignRoute, InterfaceAddress, Kernel, KernelError, PROTOCOL};
use crate::options::AgentOptions;

/// Prefixes that are shorter claim more than any cluster has: a route for all of them would cut the
/// host off from what it reaches there by its default route, of which nothing else tells.
const WIDE_V4: u8 = 11;
const WIDE_V6: u8 = 31;

/// What lies in the cluster's prefixes and is not the cluster's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overlaps {
    /// What would make this node or others unreachable, in sentences: with these it does not start.
    pub refused: Vec<String>,
    /// What is wrong, or needs a look, in sentences.
    pub warnings: Vec<String>,
    /// What is usual, and good to know.
    pub notes: Vec<String>,
    /// The cluster's prefixes in which the host needs something that only a less specific route
    /// leads to. They have no unreachable route.
    pub spared: BTreeSet<IpNet>,
}

/// What the host has.
#[derive(Debug, Default)]
struct Facts {
    /// Interfaces' names.
    names: BTreeMap<u32, String>,
    /// Interfaces that carry pods' packets: pods' own and VXLAN devices.
    carrying: BTreeSet<u32>,
    addresses: Vec<InterfaceAddress>,
    routes: Vec<ForeignRoute>,
    resolvers: Vec<IpAddr>,
    /// The other ends of TCP connections that are reached by none of the carrying interfaces.
    connections: Vec<IpAddr>,
}

impl Overlaps {
    /// Looks at the host.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub async fn find(kernel: &Kernel, options: &AgentOptions) -> Result<Self, KernelError> {
        let mut facts = Facts::default();
        let (links, devices) = kernel.links().await?;
        facts.carrying = devices.iter().map(|device| device.link.index).collect();
        for link in links {
            if options.ports.iter().any(|pod| pod.interface == link.name) {
                facts.carrying.insert(link.index);
            }
            facts.names.insert(link.index, link.name);
        }
        facts.addresses = kernel.all_addresses().await?;
        facts.routes = kernel.foreign_routes().await?;
        let resolvers = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        facts.resolvers = nameservers(&resolvers).collect();
        let inside = |address: &IpAddr| {
            let mut networks = options.networks.iter();
            networks.any(|n| n.cluster_prefixes.iter().any(|p| p.contains(address)))
        };
        for address in peers_of_connections().into_iter().filter(inside) {
            let ways = kernel.routes_to(address).await?;
            if ways
                .iter()
                .all(|way| !facts.carrying.contains(&way.interface))
                && !ways.is_empty()
            {
                facts.connections.push(address);
            }
        }
        Ok(judge(&facts, options))
    }
}

fn judge(facts: &Facts, options: &AgentOptions) -> Overlaps {
    let mut found = Overlaps::default();
    for network in &options.networks {
        for &cluster in &network.cluster_prefixes {
            let own = |net: &IpNet| network.pod_prefixes.iter().any(|p| p.contains(net));
            let prefix = Prefix { cluster, own: &own };
            prefix.nodes(&mut found, facts, options);
            prefix.addresses(&mut found, facts, options);
            prefix.routes(&mut found, facts);
            prefix.needs(&mut found, facts);
        }
    }
    found
}

/// One of the cluster's prefixes, and whether something is of this node's pods.
struct Prefix<'a> {
    cluster: IpNet,
    own: &'a dyn Fn(&IpNet) -> bool,
}

impl Prefix<'_> {
    /// What makes nodes unreachable.
    fn nodes(&self, found: &mut Overlaps, facts: &Facts, options: &AgentOptions) {
        let cluster = self.cluster;
        let mut refuse = |address: IpAddr, what: String| {
            if cluster.contains(&address) {
                found.refused.push(format!(
                    "cluster prefix {cluster} contains {address}, {what}: it would be taken for a \
                     pod's address; choose other cluster_prefixes"
                ));
            }
        };
        let underlay = &options.underlay.name;
        for it in &facts.addresses {
            if facts.names.get(&it.interface) == Some(underlay) {
                refuse(
                    it.address.addr(),
                    format!("an address of this host on {underlay}"),
                );
            }
        }
        for route in facts
            .routes
            .iter()
            .filter(|r| r.destination.prefix_len() == 0)
        {
            for &gateway in &route.gateways {
                refuse(
                    gateway,
                    "the gateway of the host's default route".to_owned(),
                );
            }
        }
        for &peer in &options.peers {
            refuse(peer, "a peer of gossip.peers".to_owned());
        }
        let mut vteps = BTreeSet::new();
        for route in &options.routes {
            let own = route.addresses.iter().chain([&route.vtep]);
            vteps.extend(own.copied());
        }
        for vtep in vteps {
            refuse(vtep, "another node's underlay address".to_owned());
        }
    }

    fn addresses(&self, found: &mut Overlaps, facts: &Facts, options: &AgentOptions) {
        let cluster = self.cluster;
        for it in &facts.addresses {
            let address = it.address.addr();
            let name = facts.names.get(&it.interface).map_or("?", |name| name);
            let known = facts.carrying.contains(&it.interface)
                || it.protocol == Some(PROTOCOL)
                || name == options.underlay.name
                || (self.own)(&address.into());
            if !known && cluster.contains(&address) {
                found.warnings.push(format!(
                    "{address}, an address of {name}, lies inside cluster prefix {cluster}: what is \
                     behind {name} and what the cluster's pods are cannot be told apart"
                ));
            }
        }
    }

    fn routes(&self, found: &mut Overlaps, facts: &Facts) {
        let cluster = self.cluster;
        let foreign = facts.routes.iter().filter(|route| {
            let carrying = route
                .interface
                .is_some_and(|it| facts.carrying.contains(&it));
            route.destination.prefix_len() > 0 && !carrying
        });
        for route in foreign {
            let to = route.destination;
            let name = route.interface.and_then(|it| facts.names.get(&it));
            let by = name.map_or_else(String::new, |name| format!(" by {name}"));
            let table = route.table;
            if cluster.contains(&to) && !(self.own)(&to) {
                found.warnings.push(format!(
                    "the host has a route to {to}{by} (table {table}), which lies inside cluster \
                     prefix {cluster}: the host goes there, pods of {to} on other nodes are not \
                     reached by it; remove the route, or choose other cluster_prefixes"
                ));
            } else if to.contains(&cluster) && route.gateways.is_empty() && !by.is_empty() {
                found.warnings.push(format!(
                    "cluster prefix {cluster} lies inside {to}, a network that the host has{by}: hosts \
                     of that network with such addresses are not reached any more"
                ));
            } else if to.contains(&cluster) {
                found.notes.push(format!(
                    "cluster prefix {cluster} lies inside {to}, to which the host has a route{by}: what \
                     it reaches there with such addresses it does not reach any more"
                ));
            }
        }
    }

    /// What only a less specific route leads to.
    fn needs(&self, found: &mut Overlaps, facts: &Facts) {
        let cluster = self.cluster;
        let mut spare = |what: String| {
            found.spared.insert(cluster);
            found.warnings.push(format!(
                "{what}: packets to addresses of {cluster} that no node has are not refused but leave \
                 by the host's routes; choose other cluster_prefixes"
            ));
        };
        let wide = if cluster.addr().is_ipv4() {
            WIDE_V4
        } else {
            WIDE_V6
        };
        if cluster.prefix_len() <= wide {
            spare(format!(
                "cluster prefix {cluster} is wider than a cluster, and may contain what this host needs"
            ));
        }
        let inside =
            |address: &&IpAddr| cluster.contains(*address) && !(self.own)(&(**address).into());
        for resolver in facts.resolvers.iter().filter(inside) {
            spare(format!(
                "cluster prefix {cluster} contains the resolver {resolver} of /etc/resolv.conf"
            ));
        }
        let others: BTreeSet<_> = facts.connections.iter().filter(inside).collect();
        if let Some(first) = others.first() {
            spare(format!(
                "cluster prefix {cluster} contains {first}, with which the host has a TCP connection"
            ));
        }
    }
}

/// The resolvers of a resolv.conf(5).
fn nameservers(text: &str) -> impl Iterator<Item = IpAddr> {
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let address = words
            .next()
            .filter(|word| *word == "nameserver")
            .and(words.next())?;
        // A link-local one names its interface.
        address.split('%').next()?.parse().ok()
    })
}

/// With whom the namespace has TCP connections.
fn peers_of_connections() -> BTreeSet<IpAddr> {
    let of = |name: &str| {
        let text = fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap_or_default();
        text.lines().filter_map(connection).collect::<Vec<_>>()
    };
    of("tcp").into_iter().chain(of("tcp6")).collect()
}

/// The other end of an established connection in a line of `/proc/net/tcp` or `tcp6` (Linux
/// `Documentation/networking/proc_net_tcp.rst`): addresses are words as the processor has them.
fn connection(line: &str) -> Option<IpAddr> {
    let mut words = line.split_whitespace().skip(2);
    let (remote, state) = (words.next()?, words.next()?);
    if state != "01" {
        return None;
    }
    let (hex, _) = remote.split_once(':')?;
    let mut bytes = Vec::new();
    for word in 0..hex.len() / 8 {
        let word = hex.get(word * 8..word * 8 + 8)?;
        bytes.extend(u32::from_str_radix(word, 16).ok()?.to_ne_bytes());
    }
    let v4 = <[u8; 4]>::try_from(bytes.as_slice()).map(Ipv4Addr::from);
    let address = match v4 {
        Ok(address) => IpAddr::V4(address),
        Err(_) => Ipv6Addr::from(<[u8; 16]>::try_from(bytes.as_slice()).ok()?).to_canonical(),
    };
    Some(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    const ETH1: u32 = testing::UNDERLAY;
    const DOCKER: u32 = 7;
    const VXLAN: u32 = 9;

    fn facts() -> Facts {
        let names = [(ETH1, "eth1"), (DOCKER, "docker0"), (VXLAN, "viaduct.1")];
        Facts {
            names: names.map(|(index, name)| (index, name.into())).into(),
            carrying: [VXLAN].into(),
            ..Facts::default()
        }
    }

    fn address(interface: u32, address: &str) -> InterfaceAddress {
        InterfaceAddress {
            interface,
            address: address.parse().unwrap(),
            flags: 0,
            protocol: None,
        }
    }

    fn route(to: &str, interface: u32, gateway: Option<&str>) -> ForeignRoute {
        ForeignRoute {
            destination: to.parse().unwrap(),
            table: 254,
            interface: Some(interface),
            gateways: gateway.iter().map(|g| g.parse().unwrap()).collect(),
        }
    }

    type Change = fn(&mut Facts, &mut AgentOptions);

    fn found(change: impl FnOnce(&mut Facts, &mut AgentOptions)) -> Overlaps {
        let (mut facts, mut options) = (facts(), testing::options());
        facts.addresses.push(address(ETH1, "192.0.2.1/24"));
        facts.addresses.push(address(VXLAN, "10.42.1.0/32"));
        facts
            .routes
            .push(route("0.0.0.0/0", ETH1, Some("192.0.2.254")));
        facts.routes.push(route("192.0.2.0/24", ETH1, None));
        facts
            .routes
            .push(route("10.42.7.0/24", VXLAN, Some("10.42.7.0")));
        facts.resolvers.push("192.0.2.53".parse().unwrap());
        change(&mut facts, &mut options);
        judge(&facts, &options)
    }

    #[test]
    fn a_host_with_nothing_in_the_clusters_prefixes_is_left_alone() {
        assert_eq!(found(|_, _| {}), Overlaps::default());
        // What a bridge for pods has of this node's own prefix.
        let own = found(|facts, _| {
            facts.addresses.push(address(DOCKER, "10.42.1.1/24"));
            facts.routes.push(route("10.42.1.0/24", DOCKER, None));
        });
        assert_eq!(own, Overlaps::default());
    }

    #[test]
    fn what_would_make_nodes_unreachable_is_refused_by_name() {
        let cases: [(Change, &str); 5] = [
            (
                |f, _| f.addresses.push(address(ETH1, "10.42.0.5/24")),
                "10.42.0.5, an address",
            ),
            (
                |f, _| f.addresses.push(address(ETH1, "fd00:42:9::5/64")),
                "fd00:42:9::5, an",
            ),
            (
                |f, _| f.routes.push(route("0.0.0.0/0", ETH1, Some("10.42.0.1"))),
                "10.42.0.1, the gateway",
            ),
            (
                |_, o| o.peers.push([10, 42, 9, 9].into()),
                "10.42.9.9, a peer",
            ),
            (
                |_, o| o.routes[0].vtep = [10, 42, 9, 8].into(),
                "10.42.9.8, another node",
            ),
        ];
        for (change, part) in cases {
            let found = found(change);
            assert_eq!(found.refused.len(), 1, "{found:?}");
            assert!(found.refused[0].contains(part), "{part}: {found:?}");
        }
    }

    #[test]
    fn what_is_beside_is_named() {
        let cases: [(Change, &str, bool); 7] = [
            (
                |f, _| f.addresses.push(address(DOCKER, "10.42.9.1/24")),
                "an address of docker0",
                false,
            ),
            (
                |f, _| f.routes.push(route("10.42.9.0/24", DOCKER, None)),
                "10.42.9.0/24 by docker0",
                false,
            ),
            (
                |f, _| f.routes.push(route("10.0.0.0/8", ETH1, None)),
                "lies inside 10.0.0.0/8",
                false,
            ),
            (
                |f, _| f.resolvers.push([10, 42, 0, 53].into()),
                "the resolver 10.42.0.53",
                true,
            ),
            (
                |f, _| f.connections.push([10, 42, 0, 7].into()),
                "10.42.0.7, with which",
                true,
            ),
            (
                |_, o| o.networks[0].cluster_prefixes[0] = "10.0.0.0/8".parse().unwrap(),
                "10.0.0.0/8 is wider",
                true,
            ),
            (
                |_, o| o.networks[0].cluster_prefixes[1] = "fd00::/8".parse().unwrap(),
                "fd00::/8 is wider",
                true,
            ),
        ];
        for (change, part, spared) in cases {
            let found = found(change);
            assert_eq!(found.warnings.len(), 1, "{found:?}");
            assert!(found.warnings[0].contains(part), "{part}: {found:?}");
            assert_eq!(!found.spared.is_empty(), spared, "{found:?}");
            assert!(found.refused.is_empty(), "{found:?}");
        }
        let wide = found(|f, _| f.routes.push(route("10.0.0.0/8", ETH1, Some("192.0.2.7"))));
        assert_eq!((wide.notes.len(), wide.warnings.len()), (1, 0), "{wide:?}");
    }

    #[test]
    fn files_of_the_host_are_read() {
        let text = "# nameserver 192.0.2.9\nnameserver 10.42.0.53\nnameserver fe80::1%eth0\nsearch x\nnameserver\n";
        let all: Vec<_> = nameservers(text).map(|it| it.to_string()).collect();
        assert_eq!(all, ["10.42.0.53", "fe80::1"]);
        let line = "   0: 0100007F:1F90 0700090A:0016 01 00000000:00000000 00:00000000 00000000";
        let expected = if cfg!(target_endian = "little") {
            [10, 9, 0, 7]
        } else {
            [7, 0, 9, 10]
        };
        assert_eq!(connection(line), Some(expected.into()));
        assert_eq!(connection(&line.replace(" 01 ", " 0A ")), None);
        let six = "   0: 0:1F90 0000000000000000FFFF00000700090A:0016 01 0:0";
        assert_eq!(connection(six), Some(expected.into()));
        for length in 0..line.len() {
            let _ = connection(&line[..length]);
        }
    }
}
