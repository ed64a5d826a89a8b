//! Whose the nodes' own addresses and VTEP MACs are.
//!
//! An address inside a cluster prefix is no node's. This node's own and those of operators' routes
//! come first. A node may have the address at which it hears gossip, and others only if a list
//! allows them; of several nodes that claim one address, the first of these has it: one whose own
//! list has it; one that hears gossip there, before one that has it as a further address; one that
//! answers, and whose datagrams come from there; the one that claims prefixes the longest.

use std::collections::BTreeMap;
use std::net::IpAddr;

use viaduct_encap::MacAddr;
use viaduct_gossip::NetworkPart;

use super::allowed::Allowed;
use super::fixed::{Fixed, FixedNode};
use super::{Announced, Merger};
use crate::options::{MAX_WAYS, unusable_vtep};

/// A node's part of one of this node's networks. The node has an address and a MAC.
pub(super) struct Part<'a> {
    /// A place in the announcements.
    pub(super) node: usize,
    pub(super) network: usize,
    /// Where its tunnels end; none: at no address of a family that this node's underlay has.
    pub(super) vtep: Option<IpAddr>,
    /// Its other addresses.
    pub(super) addresses: Vec<IpAddr>,
    pub(super) said: &'a NetworkPart,
}

impl Part<'_> {
    /// Its MAC in packets over the family of this address.
    pub(super) const fn mac_over(&self, vtep: IpAddr) -> MacAddr {
        MacAddr(match vtep {
            IpAddr::V4(_) => self.said.mac,
            IpAddr::V6(_) => self.said.mac6,
        })
    }
}

/// The less, the better a node's claim of an address.
type Rank<'a> = (bool, bool, bool, u64, &'a str);

/// Since when a node claims anything.
fn age(node: &Announced) -> u64 {
    let networks = node.record.networks().iter();
    let claims = networks.flat_map(|network| network.prefixes.iter().map(|c| (network.vni, c)));
    let ages = claims.map(|(vni, claim)| node.since(vni, claim));
    ages.min().unwrap_or(u64::MAX)
}

impl<'a> Merger<'a> {
    /// What of the announcements has to do with this node's networks, of nodes that can be reached.
    pub(super) fn parts(&mut self, fixed: &Fixed) -> Vec<Part<'a>> {
        let allowed = Allowed::new(self.sources);
        let owners = self.addresses(fixed, &allowed);
        let mut order: Vec<_> = (self.sources.announced.iter().enumerate())
            .filter(|(_, node)| node.name() != self.sources.node)
            .collect();
        order.sort_by_key(|(_, node)| (node.overdue, age(node), node.name()));
        let mut macs = BTreeMap::new();
        let mut parts = Vec::new();
        for (place, node) in order {
            let Some((_, all)) = node.addresses() else {
                continue;
            };
            let mut has: Vec<IpAddr> = Vec::new();
            for address in all.iter().filter(|a| owners.get(a) == Some(&place)) {
                if !has.contains(address) {
                    has.push(*address);
                }
            }
            if has.is_empty() {
                if all.is_empty() {
                    self.refuse_node(place, &"its VTEP", "it has none".to_owned());
                }
                continue;
            }
            let vtep = self.vtep_among(place, &has, fixed);
            let addresses: Vec<_> = (has.into_iter())
                .filter(|a| vtep.is_some_and(|vtep| vtep != *a && fixed.may_have(vtep, *a)))
                .collect();
            let mut seen = Vec::new();
            for said in node.record.networks() {
                let networks = &self.sources.networks;
                // Networks that are not here are not this node's affair.
                let here = networks.iter().position(|n| n.vni.get() == said.vni);
                let Some(network) = here else { continue };
                if seen.contains(&network) {
                    let why = "it is listed twice; the first counts".to_owned();
                    self.refuse_node(place, &format!("VNI {}", said.vni), why);
                    continue;
                }
                seen.push(network);
                let part = Part {
                    node: place,
                    network,
                    vtep,
                    addresses: addresses.clone(),
                    said,
                };
                match self.against_part(&part, fixed, &mut macs) {
                    Some((what, why)) => self.refuse_node(place, &what, why),
                    None => parts.push(part),
                }
            }
        }
        parts
    }

    /// The address of a node's where its tunnels end: the first of a family that this node's
    /// underlay has, unless an operator says that they end elsewhere.
    fn vtep_among(&mut self, node: usize, has: &[IpAddr], fixed: &Fixed) -> Option<IpAddr> {
        let own = self.sources.own;
        let reachable = || has.iter().filter(|a| own.like(**a).is_some());
        let vtep = reachable().find(|a| fixed.may_have(**a, **a));
        if vtep.is_none() {
            let why = match reachable().find_map(|a| Some((a, fixed.ends.get(a)?))) {
                Some((address, end)) => {
                    format!("an operator's route has {address} for the node whose VTEP is {end}")
                }
                None => {
                    "this node's underlay has no address of a family that the node has".to_owned()
                }
            };
            self.refuse_node(node, &"its VTEP", why);
        }
        vtep.copied()
    }

    /// Why a node's part of a network cannot be used; its MAC is noted.
    fn against_part(
        &self,
        part: &Part<'_>,
        fixed: &Fixed,
        macs: &mut BTreeMap<(usize, bool, MacAddr), usize>,
    ) -> Option<(String, String)> {
        let network = self.sources.networks.get(part.network)?;
        let (said, name) = (part.said, &network.name);
        if network.udp_port != said.port {
            let why = format!(
                "network {name} has UDP port {} here and {} there",
                network.udp_port, said.port
            );
            return Some((format!("VNI {}", said.vni), why));
        }
        // Where no packets go, no MAC is needed.
        let vtep = part.vtep?;
        let mac = part.mac_over(vtep);
        let what = format!("VTEP MAC {mac}");
        if mac == network.vtep_macs.over(vtep) {
            return Some((what, format!("it is this node's own in network {name}")));
        }
        let key = (part.network, vtep.is_ipv4(), mac);
        if let Some(other) = fixed.macs.get(&key).filter(|other| **other != vtep) {
            let why = format!("an operator's route of network {name} has it for VTEP {other}");
            return Some((what, why));
        }
        if let Some(other) = fixed.mac_of(part.network, vtep).filter(|m| *m != mac) {
            let why = format!("an operator's route of network {name} has {other} for {vtep}");
            return Some((what, why));
        }
        if macs.len() + self.wanted.routes.len() >= MAX_WAYS {
            let why = format!("there are {MAX_WAYS} routes already");
            return Some((format!("VNI {}", said.vni), why));
        }
        match macs.insert(key, part.node) {
            Some(other) => {
                macs.insert(key, other);
                let other = self.spoken(super::Owner::Node(other));
                Some((
                    what,
                    format!("{other} has it in network {name}: a MAC belongs to one VTEP"),
                ))
            }
            None => None,
        }
    }

    /// Gives every address to at most one node: a place in the announcements.
    fn addresses(&mut self, fixed: &Fixed, allowed: &Allowed<'_>) -> BTreeMap<IpAddr, usize> {
        let sources = self.sources;
        let mut claims: BTreeMap<IpAddr, Vec<(Rank<'_>, usize)>> = BTreeMap::new();
        for (place, node) in sources.announced.iter().enumerate() {
            let Some((gossip, vteps)) = node.addresses() else {
                continue;
            };
            let name = node.name();
            if name == sources.node {
                continue;
            }
            for &address in vteps {
                if let Some(why) = self.against_claim(node, address, fixed, allowed) {
                    let notice = why == UNPROVEN && !self.is_claimed_by_another(place, address);
                    self.refuse_node(place, &address, why);
                    if let Some(refused) = self.refused.last_mut().filter(|_| notice) {
                        refused.notice = true;
                        let help = "allow it: `allowed_addresses` in [gossip], [[gossip.nodes]] or the node's certificate";
                        refused.mend = Some(help.to_owned());
                    }
                    continue;
                }
                let direct = node.answers && node.heard == Some(address);
                let rank = (
                    !allowed.grants_address(name, address),
                    address != gossip,
                    !direct,
                    age(node),
                    name,
                );
                claims.entry(address).or_default().push((rank, place));
            }
        }
        let mut owners = BTreeMap::new();
        for (address, mut claimants) in claims {
            claimants.sort_unstable();
            claimants.dedup();
            let Some((&(_, first), others)) = claimants.split_first() else {
                continue;
            };
            for &(_, other) in others.iter().filter(|(_, other)| *other != first) {
                let first = super::Owner::Node(first);
                let why = format!("it is {}'s address", self.spoken(first));
                self.refuse_node(other, &address, why);
                let mend = self.mend(first);
                if let Some(refused) = self.refused.last_mut() {
                    refused.mend = mend;
                }
            }
            owners.insert(address, first);
        }
        owners
    }

    fn is_claimed_by_another(&self, node: usize, address: IpAddr) -> bool {
        let mut others = self.sources.announced.iter().enumerate();
        others.any(|(place, other)| {
            let mut all = other.addresses().into_iter().flat_map(|(_, all)| all);
            place != node && all.any(|one| *one == address)
        })
    }

    /// Why an address cannot be a node's, whoever else claims it.
    fn against_claim(
        &self,
        node: &Announced,
        address: IpAddr,
        fixed: &Fixed,
        allowed: &Allowed<'_>,
    ) -> Option<String> {
        let name = node.name();
        if let Some(kind) = unusable_vtep(address) {
            return Some(format!("it is {kind}: no VTEP has such an address"));
        }
        if self.sources.own.like(address) == Some(address) {
            return Some("it is this node's own address".to_owned());
        }
        if let Some(cluster) = self.in_cluster(address) {
            return Some(format!(
                "it is inside the cluster prefix {cluster}: no VTEP is"
            ));
        }
        if let Some(fixed) = fixed.node_at(address).filter(|fixed| !self.is(node, fixed)) {
            let source = fixed.source;
            return Some(format!(
                "a route of {source} has this address for another node"
            ));
        }
        if let Some(other) = allowed.address_of_another(name, address)
            && !allowed.grants_address(name, address)
        {
            return Some(format!("it is allowed to {other} only"));
        }
        let gossip = node.addresses().map(|(gossip, _)| gossip);
        let may = gossip == Some(address)
            || allowed.grants_address(name, address)
            || allowed.pools_address(address);
        (!may).then(|| UNPROVEN.to_owned())
    }

    /// Whether a node that announces is the one that an operator's routes lead to.
    fn is(&self, node: &Announced, fixed: &FixedNode) -> bool {
        if let Some(name) = &fixed.name {
            return name == node.name();
        }
        node.record.networks().iter().any(|said| {
            let mut networks = self.sources.networks.iter().enumerate();
            let mut has = [(true, said.mac), (false, said.mac6)].into_iter();
            networks.any(|(network, here)| {
                let known = |(v4, mac)| fixed.macs.contains(&(network, v4, MacAddr(mac)));
                here.vni.get() == said.vni && has.any(known)
            })
        })
    }
}

/// Why a further address is not used when nobody says that the node may have it.
const UNPROVEN: &str = "nothing shows that it is the node's: gossip reaches the node elsewhere";
