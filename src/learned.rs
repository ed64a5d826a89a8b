//! Routes from what nodes say of themselves.
//!
//! What an operator wrote goes before what a node says. A node may announce what is allowed to it;
//! of nodes whose prefixes overlap, the one that has claimed its own first keeps it, on every node
//! the same one. An address inside another node's prefix needs that node's delegation, or to be
//! allowed to the one that announces it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use viaduct_config::{Config, PrefixTable};
use viaduct_control::gossip::{Content, NetworkPart, Record};
use viaduct_control::{OwnAddresses, RouteOptions};
use viaduct_encap::MacAddr;

use crate::allowed::Allowed;

/// What of a node's record is not used, and why.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Unused {
    /// The node's name.
    pub(crate) node: String,
    /// What it says: a prefix, or its address.
    pub(crate) what: String,
    pub(crate) why: String,
}

/// What came of the records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Learned {
    pub(crate) routes: Vec<RouteOptions>,
    /// Whose each route is.
    pub(crate) nodes: Vec<String>,
    pub(crate) unused: Vec<Unused>,
}

/// Whose a prefix is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose<'a> {
    Here,
    File,
    Node(&'a str),
}

impl Whose<'_> {
    fn spoken(self) -> String {
        match self {
            Self::Here => "this node".to_owned(),
            Self::File => "the configuration".to_owned(),
            Self::Node(name) => name.to_owned(),
        }
    }
}

/// A node's part of one of this node's networks.
struct Part<'a> {
    name: &'a str,
    network: usize,
    vtep: IpAddr,
    vteps: &'a [IpAddr],
    said: &'a NetworkPart,
}

struct Sorter<'a> {
    config: &'a Config,
    own: OwnAddresses,
    allowed: Allowed<'a>,
    /// Whose each prefix is, by network.
    taken: Vec<PrefixTable<Whose<'a>>>,
    routes: BTreeMap<(&'a str, usize), RouteOptions>,
    unused: Vec<Unused>,
}

/// What the records come to on this node, whose underlay addresses are `own`.
pub(crate) fn learn(config: &Config, own: OwnAddresses, records: &[Record]) -> Learned {
    let mut sorter = Sorter {
        config,
        own,
        allowed: Allowed::new(config, records),
        taken: config
            .networks
            .iter()
            .map(|_| PrefixTable::default())
            .collect(),
        routes: BTreeMap::new(),
        unused: Vec::new(),
    };
    for (network, it) in config.networks.iter().enumerate() {
        for prefix in &it.pod_prefixes {
            sorter.taken[network].insert(*prefix, Whose::Here);
        }
    }
    for route in &config.routes {
        for prefix in &route.prefixes {
            sorter.taken[route.network].insert(*prefix, Whose::File);
        }
    }
    let mut by_name: Vec<_> = records.iter().collect();
    by_name.sort_by(|a, b| a.name.cmp(&b.name));
    let parts: Vec<_> = (by_name.iter())
        .flat_map(|record| sorter.parts(record))
        .collect();
    sorter.claims(&parts, by_name.iter().find(|r| r.name == config.node.name));
    for part in &parts {
        for prefix in &part.said.moved {
            sorter.moved(part, *prefix, &parts);
        }
    }
    sorter.learned()
}

impl<'a> Sorter<'a> {
    fn unused(&mut self, node: &str, what: &dyn ToString, why: String) {
        self.unused.push(Unused {
            node: node.to_owned(),
            what: what.to_string(),
            why,
        });
    }

    /// What of a record has to do with this node's networks.
    fn parts(&mut self, record: &'a Record) -> Vec<Part<'a>> {
        let name = &record.name[..];
        let Content::Here {
            vteps, networks, ..
        } = &record.content
        else {
            return Vec::new();
        };
        if name == self.config.node.name {
            return Vec::new();
        }
        if let Some(mine) = vteps
            .iter()
            .find(|vtep| self.own.like(**vtep) == Some(**vtep))
        {
            self.unused(name, mine, "it is this node's own address".into());
            return Vec::new();
        }
        let vtep = vteps.iter().find(|vtep| self.own.like(**vtep).is_some());
        let Some(&vtep) = vtep else {
            let why = "this node's underlay has no address of a family that the node has";
            self.unused(name, &"its VTEP", why.into());
            return Vec::new();
        };
        let mut parts = Vec::new();
        for said in networks {
            // Networks that are not here are not this node's affair.
            let here = self.config.networks.iter().position(|n| n.vni == said.vni);
            let Some(network) = here else { continue };
            let n = &self.config.networks[network];
            if n.port == said.port {
                parts.push(Part {
                    name,
                    network,
                    vtep,
                    vteps,
                    said,
                });
            } else {
                let why = format!(
                    "network {} has UDP port {} here and {} there",
                    n.name, n.port, said.port
                );
                self.unused(name, &format!("VNI {}", said.vni), why);
            }
        }
        parts
    }

    /// Gives every prefix to the node that has claimed it first. This node's own stay its own: its
    /// pods are here. But if it is not the first, the others do not send to it.
    fn claims(&mut self, parts: &[Part<'a>], me: Option<&&'a Record>) {
        let mut own = HashMap::new();
        for said in me.iter().flat_map(|record| record.networks()) {
            for claim in &said.prefixes {
                own.insert((said.vni, claim.prefix), claim.since);
            }
        }
        let all = parts.iter().flat_map(|part| {
            let claims = part.said.prefixes.iter();
            claims.map(move |claim| (claim.since, part.name, claim.prefix, part))
        });
        let mut all: Vec<_> = all.collect();
        all.sort_unstable_by_key(|(since, name, prefix, part)| {
            (*since, *name, part.network, *prefix)
        });
        all.dedup_by_key(|(_, name, prefix, part)| (*name, part.network, *prefix));
        for (since, name, prefix, part) in all {
            let network = &self.config.networks[part.network];
            let inside = (network.cluster_prefixes.iter()).any(|c| c.contains(&prefix));
            if !inside {
                let why = "it lies outside the cluster's prefixes".to_owned();
                self.unused(name, &prefix, why);
                continue;
            }
            if let Some(why) = self.allowed.against(name, prefix) {
                self.unused(name, &prefix, why);
                continue;
            }
            let other = self.taken[part.network]
                .overlapping(prefix)
                .find(|(_, whose)| **whose != Whose::Node(name))
                .map(|(other, whose)| (other, *whose));
            let Some((other, whose)) = other else {
                self.taken[part.network].insert(prefix, Whose::Node(name));
                self.route(part).prefixes.push(prefix);
                continue;
            };
            let why = format!("{other} of {} overlaps it, and goes before", whose.spoken());
            self.unused(name, &prefix, why);
            let mine = own.get(&(network.vni, other)).copied();
            let here = &self.config.node.name[..];
            if whose == Whose::Here && mine.is_some_and(|mine| (since, name) < (mine, here)) {
                let why = format!(
                    "{name} claimed {prefix} first: other nodes send its packets there, not here"
                );
                self.unused(here, &other, why);
            }
        }
    }

    /// A pod that has moved away from the node whose prefix its address is in.
    fn moved(&mut self, part: &Part<'a>, prefix: IpNet, parts: &[Part<'a>]) {
        let network = part.network;
        let refused = match self.taken[network].covering(prefix) {
            Some((_, Whose::File)) => Some("the configuration has another way to it".to_owned()),
            // Both say that it is theirs, and one may be late.
            Some((_, Whose::Here)) if self.is_here(network, prefix) => {
                Some("a pod of this node has it".to_owned())
            }
            Some((_, Whose::Node(name))) if *name == part.name => return,
            _ if self.allowed.grants(part.name, prefix) => None,
            None => Some("it lies in no node's prefix".to_owned()),
            Some((owner, whose)) => {
                let delegated = match whose {
                    Whose::Node(owner) => parts.iter().any(|of| {
                        let mut delegated = of.said.delegated.iter();
                        of.name == *owner
                            && of.network == network
                            && delegated.any(|d| d.prefix.contains(&prefix) && d.to == part.name)
                    }),
                    _ => self.config.delegations.iter().any(|d| {
                        d.network == network && d.prefix.contains(&prefix) && d.node == part.name
                    }),
                };
                (!delegated).then(|| {
                    format!(
                        "{owner} is of {}, which has not delegated it",
                        whose.spoken()
                    )
                })
            }
        };
        if let Some(why) = refused {
            self.unused(part.name, &prefix, why);
            return;
        }
        self.taken[network].insert(prefix, Whose::Node(part.name));
        self.route(part).prefixes.push(prefix);
    }

    fn is_here(&self, network: usize, prefix: IpNet) -> bool {
        let pods = self.config.pods.iter().filter(|pod| pod.network == network);
        pods.flat_map(|pod| &pod.addresses)
            .any(|address| prefix.contains(address))
    }

    fn route(&mut self, part: &Part<'a>) -> &mut RouteOptions {
        let checksum = self.config.networks[part.network].udp_checksum6;
        let key = (part.name, part.network);
        self.routes.entry(key).or_insert_with(|| {
            let others = part.vteps.iter().copied();
            RouteOptions {
                network: part.network,
                prefixes: Vec::new(),
                addresses: others.filter(|a| *a != part.vtep).collect(),
                vtep: part.vtep,
                udp_checksum6: checksum,
                vtep_mac: MacAddr(part.said.mac),
            }
        })
    }

    fn learned(self) -> Learned {
        let mut unused = self.unused;
        unused.sort_by(|a, b| (&a.node, &a.what, &a.why).cmp(&(&b.node, &b.what, &b.why)));
        let mut learned = Learned {
            unused,
            ..Learned::default()
        };
        for ((name, _), mut route) in self.routes {
            route
                .prefixes
                .sort_unstable_by_key(|p| (Reverse(p.prefix_len()), *p));
            learned.nodes.push(name.to_owned());
            learned.routes.push(route);
        }
        learned
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use viaduct_control::gossip::{Certificate, Claim, Claimed, Delegation, Version};

    fn config() -> Config {
        let text = "[node]\nname = 'node-b'\n[underlay]\ninterface = 'eth0'\n\
            [[networks]]\nname = 'default'\nvni = 1\npod_prefixes = ['10.244.2.0/24']\n\
            cluster_prefixes = ['10.244.0.0/16', 'fd00::/16']\n\
            [[routes]]\nvtep = '192.0.2.9'\nnode = 'fixed'\nprefixes = ['10.244.9.0/24']\n";
        Config::parse(text, "test").expect("sound")
    }

    fn claim(prefix: &str) -> Claim {
        Claim {
            prefix: prefix.parse().expect("one"),
            since: 5,
        }
    }

    fn part(record: &mut Record) -> &mut NetworkPart {
        match &mut record.content {
            Content::Here { networks, .. } => &mut networks[0],
            _ => panic!("it is there"),
        }
    }

    fn record(name: &str, vteps: &[&str], prefixes: &[&str]) -> Record {
        let vteps: Vec<IpAddr> = vteps.iter().map(|v| v.parse().expect("one")).collect();
        Record {
            name: name.to_owned(),
            part: 0,
            certificate: None,
            version: Version {
                incarnation: 1,
                change: 1,
            },
            instance: 1,
            started: 1,
            content: Content::Here {
                gossip: (vteps[0], 7946).into(),
                vteps,
                parts: 1,
                networks: vec![NetworkPart {
                    vni: 1,
                    port: 8472,
                    mac: [2, 0, 0, 0, 0, 1],
                    prefixes: prefixes.iter().map(|p| claim(p)).collect(),
                    moved: Vec::new(),
                    delegated: Vec::new(),
                }],
            },
        }
    }

    fn learned(records: &[Record]) -> Learned {
        learned_by(&config(), records)
    }

    fn learned_by(config: &Config, records: &[Record]) -> Learned {
        let own = OwnAddresses {
            v4: Some([192, 0, 2, 2].into()),
            v6: None,
        };
        let learned = learn(config, own, records);
        let mut backwards = records.to_vec();
        backwards.reverse();
        assert_eq!(
            learn(config, own, &backwards),
            learned,
            "whatever the order"
        );
        learned
    }

    fn why(learned: &Learned) -> Vec<String> {
        let all = learned.unused.iter();
        all.map(|u| format!("{} {}: {}", u.node, u.what, u.why))
            .collect()
    }

    #[test]
    fn nodes_become_routes() {
        let all = learned(&[
            record(
                "node-c",
                &["192.0.2.3", "2001:db8::3"],
                &["10.244.3.0/24", "fd00:3::/64"],
            ),
            record("node-a", &["2001:db8::1", "192.0.2.1"], &["10.244.1.0/24"]),
            // This node's own.
            record("node-b", &["192.0.2.2"], &["10.244.2.0/24"]),
        ]);
        assert_eq!(why(&all), [""; 0]);
        assert_eq!(all.nodes, ["node-a", "node-c"]);
        let vteps: Vec<_> = all.routes.iter().map(|r| r.vtep.to_string()).collect();
        assert_eq!(vteps, ["192.0.2.1", "192.0.2.3"]);
        assert_eq!(all.routes[1].prefixes.len(), 2);
        assert_eq!(all.routes[1].addresses.len(), 1);
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let all = learned(&[
            record(
                "a",
                &["192.0.2.1"],
                &["10.244.1.0/24", "10.0.0.0/8", "10.244.2.0/25"],
            ),
            record(
                "c",
                &["192.0.2.3"],
                &["10.244.1.0/24", "10.244.3.0/24", "10.244.9.7/32"],
            ),
            record("d", &["192.0.2.4"], &["10.244.0.0/16"]),
            record("e", &["2001:db8::5"], &["10.244.5.0/24"]),
            record("f", &["192.0.2.2"], &["10.244.6.0/24"]),
        ]);
        assert_eq!(
            why(&all),
            [
                "a 10.0.0.0/8: it lies outside the cluster's prefixes",
                "a 10.244.2.0/25: 10.244.2.0/24 of this node overlaps it, and goes before",
                "c 10.244.1.0/24: 10.244.1.0/24 of a overlaps it, and goes before",
                "c 10.244.9.7/32: 10.244.9.0/24 of the configuration overlaps it, and goes before",
                "d 10.244.0.0/16: 10.244.1.0/24 of a overlaps it, and goes before",
                "e its VTEP: this node's underlay has no address of a family that the node has",
                "f 192.0.2.2: it is this node's own address",
            ]
        );
        assert_eq!(all.nodes, ["a", "c"]);
    }

    #[test]
    fn another_port_and_another_network_are_not_used() {
        let mut other = record("a", &["192.0.2.1"], &["10.244.1.0/24"]);
        let mut port = record("c", &["192.0.2.3"], &["10.244.3.0/24"]);
        for (record, change) in [(&mut other, true), (&mut port, false)] {
            if change {
                part(record).vni = 7;
            } else {
                part(record).port = 4789;
            }
        }
        let all = learned(&[other, port]);
        assert!(all.routes.is_empty());
        assert_eq!(
            why(&all),
            ["c VNI 1: network default has UDP port 8472 here and 4789 there"]
        );
    }

    #[test]
    fn the_first_claim_counts() {
        let early = |name, vtep, prefix, since| {
            let mut record = record(name, &[vtep], &[prefix]);
            part(&mut record).prefixes[0].since = since;
            record
        };
        let me = early("node-b", "192.0.2.2", "10.244.2.0/24", 5);
        let c = early("c", "192.0.2.3", "10.244.1.0/25", 2);
        let a = early("a", "192.0.2.1", "10.244.0.0/23", 3);
        let d = early("d", "192.0.2.4", "10.244.2.0/24", 4);
        let all = learned(&[me, a, c, d]);
        assert_eq!(all.nodes, ["c"]);
        assert_eq!(
            why(&all),
            [
                "a 10.244.0.0/23: 10.244.1.0/25 of c overlaps it, and goes before",
                "d 10.244.2.0/24: 10.244.2.0/24 of this node overlaps it, and goes before",
                "node-b 10.244.2.0/24: d claimed 10.244.2.0/24 first: other nodes send its packets there, not here",
            ]
        );
    }

    #[test]
    fn a_node_announces_what_is_allowed_to_it() {
        let mut config = config();
        let key = "00".repeat(32);
        let text = format!(
            "[gossip]\ncluster = 'x'\nkey_file = '/k'\ntrust = 'authority'\nauthority = '{key}'\n\
             allowed_prefixes = ['10.244.0.0/20']\n\
             [[gossip.nodes]]\nname = 'a'\nallowed_prefixes = ['10.244.1.0/24']\n\
             [[gossip.nodes]]\nname = 'c'\n"
        );
        let whole = format!(
            "[node]\nname = 'node-b'\n[underlay]\ninterface = 'eth0'\n{text}\
             [[networks]]\nname = 'default'\nvni = 1\npod_prefixes = ['10.244.2.0/24']\n\
             cluster_prefixes = ['10.244.0.0/16']\n"
        );
        config.gossip = Config::parse(&whole, "test").expect("sound").gossip;
        let certificate = |name: &str, prefixes: &[&str]| Certificate {
            claim: Claimed {
                name: name.to_owned(),
                key: [0; 32],
                issued: 1,
                prefixes: Some(prefixes.iter().map(|p| claim(p).prefix).collect()),
            },
            signature: Vec::new(),
        };
        let a = record("a", &["192.0.2.1"], &["10.244.1.128/25", "10.244.4.0/24"]);
        let c = record(
            "c",
            &["192.0.2.3"],
            &["10.244.1.0/25", "10.244.5.0/24", "10.244.16.0/24"],
        );
        let mut d = record("d", &["192.0.2.4"], &["10.244.6.0/24", "10.244.99.0/24"]);
        d.certificate = Some(certificate("d", &["10.244.99.0/24"]));
        let all = learned_by(&config, &[a, c, d]);
        assert_eq!(
            why(&all),
            [
                "a 10.244.4.0/24: it lies outside what is allowed to a",
                "c 10.244.1.0/25: 10.244.1.0/24 is allowed to a only",
                "c 10.244.16.0/24: it lies outside allowed_prefixes",
                "d 10.244.6.0/24: it lies outside what is allowed to d",
            ]
        );
        let prefixes: Vec<_> = all.routes.iter().flat_map(|r| &r.prefixes).collect();
        let prefixes: Vec<_> = prefixes.iter().map(ToString::to_string).collect();
        assert_eq!(
            prefixes,
            ["10.244.1.128/25", "10.244.5.0/24", "10.244.99.0/24"]
        );
    }

    #[test]
    fn a_moved_pod_is_where_the_owner_of_its_prefix_says() {
        let net = |text: &str| text.parse::<IpNet>().expect("one");
        let mut owner = record("a", &["192.0.2.1"], &["10.244.1.0/24"]);
        part(&mut owner).delegated = vec![Delegation {
            prefix: net("10.244.1.7/32"),
            to: "c".to_owned(),
        }];
        let mut c = record("c", &["192.0.2.3"], &[]);
        let moved = [
            "10.244.1.7/32",
            "10.244.1.8/32",
            "10.244.2.9/32",
            "10.244.8.8/32",
        ];
        part(&mut c).moved = moved.into_iter().map(net).collect();
        let mut d = record("d", &["192.0.2.4"], &["10.244.4.0/24"]);
        part(&mut d).moved = vec![net("10.244.1.7/32")];
        let all = learned(&[owner, c, d]);
        assert_eq!(
            why(&all),
            [
                "c 10.244.1.8/32: 10.244.1.0/24 is of a, which has not delegated it",
                "c 10.244.2.9/32: 10.244.2.0/24 is of this node, which has not delegated it",
                "c 10.244.8.8/32: it lies in no node's prefix",
                "d 10.244.1.7/32: 10.244.1.7/32 is of c, which has not delegated it",
            ]
        );
        assert_eq!(all.nodes, ["a", "c", "d"]);
        assert_eq!(all.routes[1].prefixes, [net("10.244.1.7/32")]);
    }
}
