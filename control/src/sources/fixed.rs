//! What operators want: the file's pods and routes, then those that were added by command.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use viaduct_encap::MacAddr;

use super::space::Space;
use super::{Merger, Origin, Owner, Source, StaticRoute};
use crate::options::{MAX_WAYS, PortOptions, unusable_vtep};

/// A node that operators' routes lead to.
#[derive(Debug)]
pub(super) struct FixedNode {
    pub(super) source: Source,
    pub(super) name: Option<String>,
    /// By network and family of the underlay.
    pub(super) macs: BTreeSet<(usize, bool, MacAddr)>,
}

/// What operators' routes have taken.
#[derive(Debug, Default)]
pub(super) struct Fixed {
    /// Whose each prefix is, by network: this node's own, and the routes'.
    pub(super) spaces: Vec<Space<Owner>>,
    pub(super) nodes: Vec<FixedNode>,
    /// Whose each address is: a place in `nodes`.
    pub(super) addresses: BTreeMap<IpAddr, usize>,
    /// The VTEP of the route that has each address, its own or a further one.
    pub(super) ends: BTreeMap<IpAddr, IpAddr>,
    /// Whose each VTEP MAC is, by network and family of the underlay.
    pub(super) macs: BTreeMap<(usize, bool, MacAddr), IpAddr>,
    vteps: BTreeMap<(usize, IpAddr), MacAddr>,
    prefixes: BTreeSet<(usize, IpNet)>,
}

impl Fixed {
    /// The node that operators' routes have this address for.
    pub(super) fn node_at(&self, address: IpAddr) -> Option<&FixedNode> {
        self.nodes.get(*self.addresses.get(&address)?)
    }

    /// Whether a route that ends at `vtep` may have this address: no operator's route that ends
    /// elsewhere does.
    pub(super) fn may_have(&self, vtep: IpAddr, address: IpAddr) -> bool {
        self.ends.get(&address).is_none_or(|end| *end == vtep)
    }

    /// The MAC that operators' routes have for a VTEP.
    pub(super) fn mac_of(&self, network: usize, vtep: IpAddr) -> Option<MacAddr> {
        self.vteps.get(&(network, vtep)).copied()
    }

    /// The node of this name or with this VTEP, or a new one.
    fn node(&mut self, source: Source, name: Option<&str>, vtep: IpAddr) -> usize {
        let named = |node: &FixedNode| name.is_some() && node.name.as_deref() == name;
        let known = self.addresses.get(&vtep).copied();
        known
            .or_else(|| self.nodes.iter().position(named))
            .unwrap_or_else(|| {
                self.nodes.push(FixedNode {
                    source,
                    name: name.map(str::to_owned),
                    macs: BTreeSet::new(),
                });
                self.nodes.len() - 1
            })
    }
}

impl Merger<'_> {
    /// Pods of the file, then those added by command.
    pub(super) fn ports(&mut self) {
        let sources = self.sources;
        let mut names = BTreeSet::new();
        let mut interfaces = BTreeSet::new();
        let mut addresses = BTreeSet::new();
        let both = [
            (Source::File, &sources.file),
            (Source::Command, &sources.command),
        ];
        for (source, entries) in both {
            for port in &entries.ports {
                let own = || port.addresses.iter().map(|a| (port.network, *a));
                let why = if port.network >= sources.networks.len() {
                    Some("its network is not there".to_owned())
                } else if self.wanted.ports.len() >= sources.max_ports {
                    let most = sources.max_ports;
                    Some(format!(
                        "there are {most} pods already, as workers.max_ports says"
                    ))
                } else if names.contains(&port.name) {
                    Some("another pod has its name".to_owned())
                } else if interfaces.contains(&port.interface) {
                    let interface = &port.interface;
                    Some(format!("its interface {interface} is another pod's"))
                } else {
                    let taken = own().find(|address| addresses.contains(address));
                    taken.map(|(_, address)| format!("{address} is another pod's"))
                };
                if let Some(why) = why {
                    self.refuse_entry(source, &port.name, why, "port");
                    continue;
                }
                names.insert(&port.name);
                interfaces.insert(&port.interface);
                addresses.extend(own());
                self.pods
                    .extend(own().map(|(network, a)| (network, IpNet::from(a))));
                self.wanted.ports.push(PortOptions::clone(port));
                self.wanted.port_origins.push(source);
            }
        }
    }

    /// Refuses a pod or route of an operator's.
    fn refuse_entry(&mut self, source: Source, what: &str, why: String, kind: &str) {
        let node = self.sources.node.clone();
        self.refuse(source, &node, &what, why);
        if source == Source::Command
            && let Some(refused) = self.refused.last_mut()
        {
            refused.mend = Some(format!("viaduct {kind} del {what}"));
        }
    }

    /// Routes of the file, then those added by command.
    pub(super) fn routes(&mut self) -> Fixed {
        let sources = self.sources;
        let mut fixed = Fixed::default();
        for network in &sources.networks {
            let mut space = Space::default();
            for prefix in &network.pod_prefixes {
                space.insert(*prefix, Owner::Here);
            }
            fixed.spaces.push(space);
        }
        let both = [
            (Source::File, &sources.file),
            (Source::Command, &sources.command),
        ];
        for (source, entries) in both {
            for route in &entries.routes {
                self.route(source, route, &mut fixed);
            }
        }
        // An address at which a route ends is no further one of another route.
        let vteps: BTreeSet<_> = self.wanted.routes.iter().map(|r| r.vtep).collect();
        for route in &mut self.wanted.routes {
            route.addresses.retain(|address| !vteps.contains(address));
            let all = std::iter::once(&route.vtep).chain(&route.addresses);
            fixed.ends.extend(all.map(|address| (*address, route.vtep)));
        }
        fixed
    }

    fn route(&mut self, source: Source, wish: &StaticRoute, fixed: &mut Fixed) {
        let mut route = wish.route.clone();
        if let Some(why) = self.against_vtep(wish, fixed) {
            let first = route.prefixes.first();
            let what = first.map_or_else(|| route.vtep.to_string(), ToString::to_string);
            self.refuse_entry(source, &what, why, "route");
            return;
        }
        let mut prefixes = Vec::new();
        for prefix in route.prefixes {
            if let Some(why) = self.against_prefix(route.network, prefix, fixed) {
                self.refuse_entry(source, &prefix.to_string(), why, "route");
                continue;
            }
            fixed.prefixes.insert((route.network, prefix));
            prefixes.push(prefix);
        }
        if prefixes.is_empty() {
            return;
        }
        route.prefixes = prefixes;
        let key = (route.network, route.vtep.is_ipv4(), route.vtep_mac);
        fixed.macs.insert(key, route.vtep);
        fixed
            .vteps
            .insert((route.network, route.vtep), route.vtep_mac);
        let node = fixed.node(source, wish.node.as_deref(), route.vtep);
        fixed.addresses.entry(route.vtep).or_insert(node);
        if let Some(node) = fixed.nodes.get_mut(node) {
            node.macs.insert(key);
        }
        let mut addresses = Vec::new();
        for address in route.addresses {
            if let Some(why) = self.against_address(address, node, fixed) {
                self.refuse_entry(source, &address.to_string(), why, "route");
            } else if fixed.addresses.insert(address, node).is_none() {
                addresses.push(address);
            }
        }
        route.addresses = addresses;
        if let Some(space) = fixed.spaces.get_mut(route.network) {
            for prefix in &route.prefixes {
                space.insert(*prefix, Owner::Fixed(source));
            }
        }
        self.wanted.routes.push(route);
        self.wanted.origins.push(Origin {
            source,
            node: wish.node.clone(),
        });
    }

    /// Why a route cannot lead where it is to lead.
    fn against_vtep(&self, wish: &StaticRoute, fixed: &Fixed) -> Option<String> {
        let route = &wish.route;
        let vtep = route.vtep;
        let Some(network) = self.sources.networks.get(route.network) else {
            return Some("its network is not there".to_owned());
        };
        if let Some(kind) = unusable_vtep(vtep) {
            return Some(format!("its VTEP {vtep} is {kind}"));
        }
        if self.sources.own.like(vtep) == Some(vtep) {
            return Some(format!("its VTEP {vtep} is this node's own address"));
        }
        if let Some(cluster) = self.in_cluster(vtep) {
            return Some(format!(
                "its VTEP {vtep} is inside the cluster prefix {cluster}"
            ));
        }
        if route.vtep_mac == network.vtep_macs.over(vtep) {
            return Some(format!("{} is this node's own VTEP MAC", route.vtep_mac));
        }
        if self.wanted.routes.len() >= MAX_WAYS {
            return Some(format!("there are {MAX_WAYS} routes already"));
        }
        let mac = fixed.vteps.get(&(route.network, vtep));
        if let Some(mac) = mac.filter(|mac| **mac != route.vtep_mac) {
            return Some(format!(
                "VTEP {vtep} has the MAC {mac} in another route of network {}: a VTEP has one",
                network.name
            ));
        }
        let key = (route.network, vtep.is_ipv4(), route.vtep_mac);
        let other = fixed.macs.get(&key).filter(|other| **other != vtep);
        other.map(|other| {
            let (mac, name) = (route.vtep_mac, &network.name);
            format!(
                "VTEP {other} has the MAC {mac} in network {name} already: a MAC belongs to one"
            )
        })
    }

    fn against_prefix(&self, network: usize, prefix: IpNet, fixed: &Fixed) -> Option<String> {
        let own = self.sources.networks.get(network)?;
        let meets = |one: &&IpNet| one.contains(&prefix) || prefix.contains(*one);
        if !(own.cluster_prefixes.iter()).any(|cluster| cluster.contains(&prefix)) {
            Some("it lies outside the cluster's prefixes".to_owned())
        } else if let Some(mine) = own.pod_prefixes.iter().find(meets) {
            Some(format!("it overlaps this node's own {mine}"))
        } else if fixed.prefixes.contains(&(network, prefix)) {
            Some("another route has this prefix".to_owned())
        } else if self.is_pod(network, prefix) {
            Some("a pod of this node has this address".to_owned())
        } else {
            None
        }
    }

    fn against_address(&self, address: IpAddr, node: usize, fixed: &Fixed) -> Option<String> {
        if let Some(kind) = unusable_vtep(address) {
            Some(format!("it is {kind}"))
        } else if self.sources.own.like(address) == Some(address) {
            Some("it is this node's own address".to_owned())
        } else if let Some(cluster) = self.in_cluster(address) {
            Some(format!("it is inside the cluster prefix {cluster}"))
        } else {
            let other = fixed.addresses.get(&address);
            let other = other.is_some_and(|other| *other != node);
            other.then(|| "another route's node has this address".to_owned())
        }
    }
}
