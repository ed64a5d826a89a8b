//! What others' firewall rules would do to the packets of the kernel's path, before they matter:
//! tunnels' packets and gossip, in and out, and packets between pods. Rules are judged, not tried: a
//! packet of our own would come by another interface than those that count.
//!
//! Sets' elements, marks, limits and iptables' modules are not looked into. What depends on them is
//! a note.

mod iptables;
mod model;
mod nft_json;

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use self::model::{Fate, Hook, Probe, Table};
use super::table::TABLE;
use crate::options::{AgentOptions, NetworkOptions};

/// How many nodes and pods stand for all: a rule is asked about each.
const SAMPLE: usize = 64;
/// UDP.
const UDP: u8 = 17;

/// What was found in the rules of the host's own firewall.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct HostFirewall {
    /// What stops packets, in sentences.
    pub(super) problems: Vec<String>,
    /// What is good to know, in sentences.
    pub(super) notes: Vec<String>,
}

/// What is to be judged.
#[derive(Clone, Debug, Default)]
pub(super) struct Probes(Vec<(Probe, Kind)>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Vxlan,
    Gossip,
    Pods,
}

/// Rules as the commands list them; none where there are no such tables.
#[derive(Debug, Default)]
pub(super) struct Listings {
    pub(super) nft: Option<String>,
    /// Of iptables-legacy, by family, IPv4 first.
    pub(super) legacy: [Option<String>; 2],
}

/// Judges all rules but those of our own table.
pub(super) fn judge(listings: &Listings, probes: &Probes) -> HostFirewall {
    let mut found = HostFirewall::default();
    let mut tables = Vec::new();
    if let Some(text) = &listings.nft {
        match nft_json::tables(text, TABLE) {
            Ok(all) => tables.extend(all),
            Err(error) => found.notes.push(format!(
                "the host's firewall rules are not understood ({error}): whether they stop packets \
                 between nodes is not known"
            )),
        }
    }
    for (text, v4) in listings.legacy.iter().zip([true, false]) {
        let text = text.as_deref().unwrap_or_default();
        tables.extend(iptables::tables(text, v4));
    }
    for table in &tables {
        for (probe, kind) in &probes.0 {
            for (chain, fate) in table.fates(probe) {
                say(&mut found, table, chain, fate, (probe, *kind));
            }
        }
    }
    for all in [&mut found.problems, &mut found.notes] {
        let mut seen = BTreeSet::new();
        all.retain(|one| seen.insert(one.clone()));
    }
    found
}

fn say(found: &mut HostFirewall, table: &Table, chain: &str, fate: Fate, of: (&Probe, Kind)) {
    let (Probe { what, mend, .. }, kind) = of;
    let chain = format!("{} {chain}", table.name);
    match (fate, kind) {
        (Fate::Passes, _) => {}
        (Fate::Dropped, Kind::Vxlan) => found.problems.push(format!(
            "firewall chain {chain} drops {what}: the kernel's path does not work, and when this router \
             stops nothing does; {mend}"
        )),
        (Fate::Dropped, Kind::Gossip) => found.problems.push(format!(
            "firewall chain {chain} drops {what}: nodes do not hear of each other; {mend}"
        )),
        (Fate::Dropped, Kind::Pods) => found.problems.push(format!(
            "firewall chain {chain} drops {what} on the kernel's path, while workers pass them; {mend}"
        )),
        (Fate::MayBeDropped, Kind::Pods) => found.notes.push(format!(
            "firewall chain {chain} drops some {what}, or may drop them: it holds on the kernel's path \
             only, workers pass them"
        )),
        (Fate::MayBeDropped, _) => found.notes.push(format!(
            "firewall chain {chain} may drop {what}: that depends on sets, modules or other things that \
             are not looked into; {mend}"
        )),
    }
}

impl Probes {
    /// All packets of the kernel's path, by what this node is and knows.
    pub(super) fn new(options: &AgentOptions, network: &NetworkOptions, devices: &[&str]) -> Self {
        let mut probes = Self::default();
        let underlay = &options.underlay.name;
        for own in options.underlay.addresses.iter() {
            let like = |address: &IpAddr| address.is_ipv4() == own.is_ipv4();
            let vteps = options.routes.iter().map(|route| route.vtep).filter(like);
            let ours = (own, underlay.as_str());
            let port = network.udp_port;
            let what = format!("tunnel packets (UDP port {port} on {underlay})");
            probes.udp(&what, port, ours, vteps, Kind::Vxlan);
            if let Some(port) = options.gossip_port {
                let what = format!("gossip (UDP port {port} on {underlay})");
                let peers = options.peers.iter().copied().filter(like);
                probes.udp(&what, port, ours, peers, Kind::Gossip);
            }
        }
        probes.pods(options, network, devices);
        probes
    }

    /// Packets of other nodes to a port of this one, and of this one to theirs.
    fn udp(
        &mut self,
        what: &str,
        port: u16,
        (own, underlay): (IpAddr, &str),
        others: impl Iterator<Item = IpAddr>,
        kind: Kind,
    ) {
        let mut others: Vec<IpNet> = others.take(SAMPLE).map(IpNet::from).collect();
        if others.is_empty() {
            others.push(anywhere(own));
        }
        let own = vec![IpNet::from(own)];
        let states = match kind {
            // Our own table sees to it.
            Kind::Vxlan | Kind::Pods => vec!["untracked"],
            Kind::Gossip => vec!["new", "established"],
        };
        let coming = Probe {
            what: format!("other nodes' {what}"),
            mend: format!("accept UDP port {port} there"),
            hooks: vec![Hook::Ingress, Hook::Prerouting, Hook::Input],
            iif: vec![underlay.to_owned()],
            oif: Vec::new(),
            source: others.clone(),
            destination: own.clone(),
            protocol: Some(UDP),
            port: Some(port),
            states,
            local: true,
        };
        let going = Probe {
            what: format!("this node's {what}"),
            hooks: vec![Hook::Output, Hook::Postrouting],
            iif: Vec::new(),
            oif: coming.iif.clone(),
            source: own,
            destination: others,
            local: false,
            ..coming.clone()
        };
        self.0.extend([(coming, kind), (going, kind)]);
    }

    fn pods(&mut self, options: &AgentOptions, network: &NetworkOptions, devices: &[&str]) {
        let carried = options.ports.iter().filter(|pod| pod.network == 0);
        let links = carried.take(SAMPLE).map(|pod| pod.interface.clone());
        let links: Vec<String> = links.collect();
        if links.is_empty() {
            return;
        }
        let devices: Vec<String> = devices.iter().map(|&name| name.to_owned()).collect();
        for v4 in [true, false] {
            let of = |all: &[IpNet]| -> Vec<IpNet> {
                let all = all.iter().filter(|net| net.addr().is_ipv4() == v4);
                all.copied().collect()
            };
            let (own, cluster) = (of(&network.pod_prefixes), of(&network.cluster_prefixes));
            if own.is_empty() || cluster.is_empty() {
                continue;
            }
            for (iif, oif, source, destination) in [
                (&links, &devices, &own, &cluster),
                (&devices, &links, &cluster, &own),
                (&links, &links, &own, &own),
            ] {
                let probe = Probe {
                    what: "packets between pods".into(),
                    mend: "accept what comes from and goes to pods there".into(),
                    hooks: vec![Hook::Prerouting, Hook::Forward, Hook::Postrouting],
                    iif: iif.clone(),
                    oif: oif.clone(),
                    source: source.clone(),
                    destination: destination.clone(),
                    protocol: None,
                    port: None,
                    states: vec!["untracked"],
                    local: false,
                };
                self.0.push((probe, Kind::Pods));
            }
        }
    }
}

fn anywhere(like: IpAddr) -> IpNet {
    let all: &str = if like.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
    all.parse().unwrap_or(IpNet::from(like))
}

#[cfg(test)]
mod tests;
