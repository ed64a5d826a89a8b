//! Routes from what nodes say of themselves.
//!
//! What an operator wrote goes before what a node says. Of nodes whose prefixes overlap, the one
//! whose name comes first keeps its own, here and on every other node.

use std::net::IpAddr;

use ipnet::IpNet;
use viaduct_config::Config;
use viaduct_control::gossip::{Content, NetworkPart, Record};
use viaduct_control::{OwnAddresses, RouteOptions};
use viaduct_encap::MacAddr;

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

/// A prefix that is somebody's.
struct Taken {
    network: usize,
    prefix: IpNet,
    whose: String,
}

struct Sorter<'a> {
    config: &'a Config,
    own: OwnAddresses,
    taken: Vec<Taken>,
    learned: Learned,
}

/// What the records come to on this node, whose underlay addresses are `own`.
pub(crate) fn learn(config: &Config, own: OwnAddresses, records: &[Record]) -> Learned {
    let mut sorter = Sorter {
        config,
        own,
        taken: Vec::new(),
        learned: Learned::default(),
    };
    for (network, it) in config.networks.iter().enumerate() {
        sorter.take(network, &it.pod_prefixes, "this node");
    }
    for route in &config.routes {
        sorter.take(route.network, &route.prefixes, "the configuration");
    }
    let mut records: Vec<_> = records.iter().collect();
    records.sort_by(|a, b| a.name.cmp(&b.name));
    for record in records {
        if let Content::Here {
            vteps, networks, ..
        } = &record.content
            && record.name != config.node.name
        {
            sorter.node(&record.name, vteps, networks);
        }
    }
    sorter.learned
}

impl Sorter<'_> {
    fn take(&mut self, network: usize, prefixes: &[IpNet], whose: &str) {
        self.taken.extend(prefixes.iter().map(|prefix| Taken {
            network,
            prefix: *prefix,
            whose: whose.to_owned(),
        }));
    }

    fn unused(&mut self, node: &str, what: &dyn ToString, why: String) {
        self.learned.unused.push(Unused {
            node: node.to_owned(),
            what: what.to_string(),
            why,
        });
    }

    fn node(&mut self, name: &str, vteps: &[IpAddr], parts: &[NetworkPart]) {
        if let Some(mine) = vteps
            .iter()
            .find(|vtep| self.own.like(**vtep) == Some(**vtep))
        {
            return self.unused(name, mine, "it is this node's own address".into());
        }
        let vtep = vteps.iter().find(|vtep| self.own.like(**vtep).is_some());
        let Some(&vtep) = vtep else {
            let why = "this node's underlay has no address of a family that the node has";
            return self.unused(name, &"its VTEP", why.into());
        };
        for part in parts {
            // Networks that are not here are not this node's affair.
            let networks = self.config.networks.iter();
            let mut here = networks.enumerate().filter(|(_, n)| n.vni == part.vni);
            match here.next() {
                Some((_, n)) if n.port != part.port => {
                    let why = format!(
                        "network {} has UDP port {} here and {} there",
                        n.name, n.port, part.port
                    );
                    self.unused(name, &format!("VNI {}", part.vni), why);
                }
                Some((network, _)) => self.part(name, network, vtep, vteps, part),
                None => {}
            }
        }
    }

    fn part(
        &mut self,
        name: &str,
        network: usize,
        vtep: IpAddr,
        vteps: &[IpAddr],
        part: &NetworkPart,
    ) {
        let cluster = &self.config.networks[network].cluster_prefixes;
        let mut prefixes = Vec::new();
        let mut all = part.prefixes.clone();
        all.sort_unstable();
        all.dedup();
        for prefix in all {
            let overlaps = |taken: &&Taken| {
                let other = &taken.prefix;
                taken.network == network
                    && taken.whose != name
                    && (other.contains(&prefix) || prefix.contains(other))
            };
            if !cluster.iter().any(|cluster| cluster.contains(&prefix)) {
                self.unused(
                    name,
                    &prefix,
                    "it lies outside the cluster's prefixes".into(),
                );
            } else if let Some(taken) = self.taken.iter().find(overlaps) {
                let why = format!(
                    "{} of {} overlaps it, and goes before",
                    taken.prefix, taken.whose
                );
                self.unused(name, &prefix, why);
            } else {
                prefixes.push(prefix);
            }
        }
        self.take(network, &prefixes, name);
        if prefixes.is_empty() {
            return;
        }
        self.learned.nodes.push(name.to_owned());
        self.learned.routes.push(RouteOptions {
            network,
            prefixes,
            addresses: vteps.iter().copied().filter(|a| *a != vtep).collect(),
            vtep,
            udp_checksum6: self.config.networks[network].udp_checksum6,
            vtep_mac: MacAddr(part.mac),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use viaduct_control::gossip::Version;

    fn config() -> Config {
        let text = "[node]\nname = 'node-b'\n[underlay]\ninterface = 'eth0'\n\
            [[networks]]\nname = 'default'\nvni = 1\npod_prefixes = ['10.244.2.0/24']\n\
            cluster_prefixes = ['10.244.0.0/16', 'fd00::/16']\n\
            [[routes]]\nvtep = '192.0.2.9'\nnode = 'fixed'\nprefixes = ['10.244.9.0/24']\n";
        Config::parse(text, "test").expect("sound")
    }

    fn record(name: &str, vteps: &[&str], prefixes: &[&str]) -> Record {
        let vteps: Vec<IpAddr> = vteps.iter().map(|v| v.parse().expect("one")).collect();
        Record {
            name: name.to_owned(),
            version: Version {
                incarnation: 1,
                change: 1,
            },
            instance: 1,
            started: 1,
            content: Content::Here {
                gossip: (vteps[0], 7946).into(),
                vteps,
                networks: vec![NetworkPart {
                    vni: 1,
                    port: 8472,
                    mac: [2, 0, 0, 0, 0, 1],
                    prefixes: prefixes.iter().map(|p| p.parse().expect("one")).collect(),
                }],
            },
        }
    }

    fn learned(records: &[Record]) -> Learned {
        let own = OwnAddresses {
            v4: Some([192, 0, 2, 2].into()),
            v6: None,
        };
        let learned = learn(&config(), own, records);
        let mut backwards = records.to_vec();
        backwards.reverse();
        assert_eq!(
            learn(&config(), own, &backwards),
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
                "d 10.244.0.0/16: 10.244.2.0/24 of this node overlaps it, and goes before",
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
            let Content::Here { networks, .. } = &mut record.content else {
                return;
            };
            if change {
                networks[0].vni = 7;
            } else {
                networks[0].port = 4789;
            }
        }
        let all = learned(&[other, port]);
        assert!(all.routes.is_empty());
        assert_eq!(
            why(&all),
            ["c VNI 1: network default has UDP port 8472 here and 4789 there"]
        );
    }
}
