//! What nodes announce, of every kind, and what must be true of what this node makes of it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use viaduct_control::gossip::{
    Certificate, Claim, Claimed, Content, Delegation, NetworkPart, Record, Version,
};
use viaduct_control::sources::{
    Announced, Delegated, Entries, Grant, Rules, Source, Sources, StaticRoute, Wanted, merge,
};
use viaduct_control::{
    AgentOptions, NetworkOptions, OwnAddresses, PortOptions, RouteOptions, UnderlayOptions,
};
use viaduct_encap::ecn::Dscp;
use viaduct_encap::{MacAddr, Vni, VtepMacs};
use viaduct_fib::Limits;

const ME: &str = "me";
const NAMES: [&str; 6] = ["a", "b", "c", "d", ME, "fixed"];
/// Nodes of an input at most.
const MOST: usize = 6;

/// Draws small values, so that they meet often.
struct Draw<'a>(std::slice::Iter<'a, u8>);

impl Draw<'_> {
    fn byte(&mut self) -> u8 {
        self.0.next().copied().unwrap_or(0)
    }

    fn below(&mut self, most: u8) -> u8 {
        self.byte() % most
    }

    fn name(&mut self) -> String {
        NAMES[usize::from(self.below(6))].to_owned()
    }

    /// Inside or around 10.244.0.0/22, or an IPv6 one.
    fn prefix(&mut self) -> IpNet {
        let [kind, third, last, length] = [self.byte(), self.below(4), self.byte(), self.byte()];
        let net = match kind % 8 {
            0 => IpNet::new(IpAddr::from([10, 244, 0, 0]), length % 33),
            1 => IpNet::new(
                IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)]),
                112 + length % 17,
            ),
            _ => IpNet::new(IpAddr::from([10, 244, third, last]), 20 + length % 13),
        };
        net.expect("at most its family's").trunc()
    }

    fn prefixes(&mut self, most: u8) -> Vec<IpNet> {
        (0..self.below(most + 1)).map(|_| self.prefix()).collect()
    }

    fn address(&mut self) -> IpAddr {
        let last = self.below(12);
        match self.below(8) {
            0 => IpAddr::from([10, 244, 1, last]),
            1 => IpAddr::from([0xfd99, 0, 0, 0, 0, 0, 0, u16::from(last)]),
            2 => IpAddr::from([0xfe80, 0, 0, 0, 0, 0, 0, u16::from(last)]),
            3 => IpAddr::from([255, 255, 255, 255]),
            _ => IpAddr::from([192, 0, 2, last]),
        }
    }

    fn addresses(&mut self, most: u8) -> Vec<IpAddr> {
        (0..self.below(most + 1)).map(|_| self.address()).collect()
    }

    fn list(&mut self) -> Option<Vec<IpNet>> {
        (self.below(3) == 0).then(|| self.prefixes(3))
    }

    fn address_list(&mut self) -> Option<Vec<IpNet>> {
        let all = |it: &mut Self| it.addresses(3).into_iter().map(IpNet::from).collect();
        (self.below(3) == 0).then(|| all(self))
    }

    fn network(&mut self) -> NetworkPart {
        let claim = |it: &mut Self| Claim {
            prefix: it.prefix(),
            since: u64::from(it.below(4)),
        };
        let delegation = |it: &mut Self| Delegation {
            prefix: it.prefix(),
            to: it.name(),
        };
        NetworkPart {
            vni: u32::from(1 + self.below(3)),
            port: if self.below(8) == 0 { 4789 } else { 8472 },
            mac: [2, 0, 0, 0, 0, self.below(12)],
            mac6: [2, 0, 0, 0, 0, self.below(12)],
            prefixes: (0..self.below(5)).map(|_| claim(self)).collect(),
            moved: self.prefixes(3),
            delegated: (0..self.below(3)).map(|_| delegation(self)).collect(),
        }
    }

    fn announced(&mut self) -> Announced {
        let name = self.name();
        let certificate = (self.below(3) == 0).then(|| Certificate {
            claim: Claimed {
                name: name.clone(),
                key: [0; 32],
                issued: 1,
                prefixes: self.list(),
                addresses: self.address_list(),
            },
            signature: Vec::new(),
        });
        let content = if self.below(8) == 0 {
            Content::Gone
        } else {
            Content::Here {
                gossip: (self.address(), 7946).into(),
                vteps: self.addresses(4),
                parts: 1,
                networks: (0..self.below(4)).map(|_| self.network()).collect(),
            }
        };
        let version = Version {
            incarnation: 1,
            change: 1,
        };
        let ages: BTreeMap<_, _> = (0..self.below(3))
            .map(|_| ((1, self.prefix()), u64::from(self.below(4))))
            .collect();
        Announced {
            answers: self.below(2) == 0,
            overdue: false,
            heard: (self.below(2) == 0).then(|| self.address()),
            ages: Arc::new(ages),
            record: Arc::new(Record {
                name,
                part: 0,
                version,
                instance: 1,
                started: 1,
                certificate,
                content,
            }),
        }
    }

    fn route(&mut self) -> StaticRoute {
        StaticRoute {
            node: (self.below(2) == 0).then(|| self.name()),
            route: RouteOptions {
                network: usize::from(self.below(3)),
                prefixes: self.prefixes(3),
                addresses: self.addresses(2),
                vtep: self.address(),
                udp_checksum6: false,
                vtep_mac: MacAddr([2, 0, 0, 0, 0, self.below(12)]),
            },
        }
    }

    fn port(&mut self, number: u8) -> PortOptions {
        let name = format!("pod-{}", number.min(self.below(8)));
        PortOptions {
            interface: format!("veth-{}", self.below(8)),
            name,
            network: usize::from(self.below(3)),
            addresses: vec![IpAddr::from([10, 244, self.below(4), self.byte()])],
            mac: None,
            limits: Limits::default(),
            sockets: true,
            binding: viaduct_control::Binding::Name,
        }
    }

    fn entries(&mut self) -> Entries {
        let delegated = |it: &mut Self| Delegated {
            network: usize::from(it.below(2)),
            prefix: it.prefix(),
            to: it.name(),
        };
        Entries {
            ports: (0..self.below(4)).map(|number| self.port(number)).collect(),
            routes: (0..self.below(4)).map(|_| self.route()).collect(),
            delegations: (0..self.below(2)).map(|_| delegated(self)).collect(),
        }
    }
}

fn network(vni: u32, own: &str) -> NetworkOptions {
    let net = |text: &str| text.parse().expect("a prefix");
    NetworkOptions {
        name: format!("net-{vni}"),
        vni: Vni::new(vni).expect("small"),
        udp_port: 8472,
        vtep_macs: VtepMacs {
            v4: MacAddr([2, 0, 0, 0, 0, 0]),
            v6: MacAddr([2, 0, 0, 0, 0, 1]),
        },
        udp_checksum6: false,
        dscp: Dscp::default(),
        pod_prefixes: vec![net(own)],
        cluster_prefixes: vec![net("10.244.0.0/22"), net("fd00::/112")],
    }
}

fn sources(data: &[u8]) -> Sources {
    let mut draw = Draw(data.iter());
    let mut announced = Vec::<Announced>::new();
    let file = draw.entries();
    let command = draw.entries();
    let mut nodes = BTreeMap::new();
    for _ in 0..draw.below(3) {
        let grant = Grant {
            prefixes: draw.list(),
            addresses: draw.address_list(),
        };
        nodes.insert(draw.name(), grant);
    }
    let rules = Rules {
        prefixes: draw.list(),
        addresses: draw.address_list().unwrap_or_default(),
        nodes,
        certified: draw.below(2) == 0,
    };
    while !draw.0.as_slice().is_empty() && announced.len() < MOST {
        let mut node = draw.announced();
        node.overdue = !node.answers && draw.below(2) == 0;
        // Gossip has one of a name.
        if announced
            .iter()
            .all(|other| other.record.name != node.record.name)
        {
            announced.push(node);
        }
    }
    Sources {
        node: ME.to_owned(),
        networks: vec![network(1, "10.244.2.0/25"), network(2, "10.244.0.0/24")],
        own: OwnAddresses {
            v4: Some([192, 0, 2, 1].into()),
            v6: Some([0xfd99, 0, 0, 0, 0, 0, 0, 1].into()),
        },
        max_ports: 6,
        file,
        command,
        announced,
        rules,
    }
}

fn options(sources: &Sources, wanted: &Wanted) -> AgentOptions {
    AgentOptions {
        underlay: UnderlayOptions {
            name: "eth0".to_owned(),
            fixed: OwnAddresses::default(),
            addresses: sources.own,
            sockets: true,
        },
        networks: sources.networks.clone(),
        ports: wanted.ports.clone(),
        routes: wanted.routes.clone(),
        max_mtu: 1600,
        keep_ports: false,
        slow_path: None,
        gossip_port: None,
        peers: Vec::new(),
    }
}

/// Prefixes of announced routes, with network and node.
fn learned(wanted: &Wanted) -> Vec<(usize, IpNet, &str)> {
    let all = wanted.routes.iter().zip(&wanted.origins);
    let all = all.filter(|(_, origin)| origin.source == Source::Gossip);
    let all = all.flat_map(|(route, origin)| {
        let node = origin.node.as_deref().unwrap_or_default();
        route
            .prefixes
            .iter()
            .map(move |prefix| (route.network, *prefix, node))
    });
    all.collect()
}

fn claims<'a>(sources: &'a Sources, node: &'a str) -> impl Iterator<Item = &'a NetworkPart> {
    let all = sources.announced.iter();
    let own = all.filter(move |other| other.record.name == node);
    own.flat_map(|node| node.record.networks())
}

/// Whatever sources say: what comes of it passes every check, and nobody has what is another's.
pub fn check_sources(data: &[u8]) {
    let sources = sources(data);
    let (wanted, refused) = merge(&sources);
    assert_eq!(options(&sources, &wanted).check(), Ok(()), "{sources:?}");
    let mut other = sources.clone();
    other.announced.reverse();
    assert_eq!(
        merge(&other),
        (wanted.clone(), refused),
        "whatever the order"
    );
    no_entry_takes_anothers(&sources, &wanted);
    // Without one node, the others have what they had, and perhaps what it had.
    if let Some(gone) = sources.announced.first() {
        let mut other = sources.clone();
        other.announced.remove(0);
        without(&wanted, &merge(&other).0, &gone.record.name);
    }
}

fn no_entry_takes_anothers(sources: &Sources, wanted: &Wanted) {
    let learned = learned(wanted);
    for &(network, prefix, node) in &learned {
        let options = &sources.networks[network];
        assert_ne!(node, ME);
        // Only what the node says itself.
        let vni = options.vni.get();
        let says = claims(sources, node)
            .filter(|part| part.vni == vni)
            .any(|part| {
                let claimed = part
                    .prefixes
                    .iter()
                    .any(|claim| claim.prefix.contains(&prefix));
                claimed || part.moved.contains(&prefix)
            });
        assert!(says, "{prefix} to {node}");
        // This node's own only if it was delegated, or is allowed to the other node.
        let own = options.pod_prefixes.iter().any(|own| own.contains(&prefix));
        let moved = claims(sources, node).any(|part| part.moved.contains(&prefix));
        assert!(!own || moved, "{prefix} of this node to {node}");
        // Nothing of an operator's route.
        for (route, origin) in wanted.routes.iter().zip(&wanted.origins) {
            let fixed = origin.source != Source::Gossip && route.network == network;
            let meets = |one: &IpNet| one.contains(&prefix);
            assert!(
                !fixed || !route.prefixes.iter().any(meets),
                "{prefix} of an operator's"
            );
        }
        // Nobody else's, but for a pod that has moved.
        for &(other, around, owner) in &learned {
            if other == network && owner != node && around.contains(&prefix) {
                assert!(moved && around != prefix, "{prefix} of {owner} to {node}");
                assert_ne!(
                    around.network(),
                    prefix.network(),
                    "one gateway for two nodes"
                );
            }
        }
    }
}

/// What the others had, they have, of claims; a moved pod's way may end with its prefix's owner.
fn without(before: &Wanted, after: &Wanted, gone: &str) {
    let kept: Vec<_> = learned(after);
    let fixed = |wanted: &Wanted| {
        let all = wanted.origins.iter();
        all.filter(|origin| origin.source != Source::Gossip).count()
    };
    assert_eq!(before.ports, after.ports);
    assert_eq!(fixed(before), fixed(after));
    assert!(kept.iter().all(|(_, _, node)| *node != gone));
}
