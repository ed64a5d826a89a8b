//! What is wanted of what sources say; here what they have in common.

mod addresses;
mod claims;
mod fixed;
mod lists;

use std::net::IpAddr;

use viaduct_encap::{MacAddr, Vni};
use viaduct_gossip::{Certificate, Claim, Claimed, Delegation, NetworkPart, Version};

use super::*;
use crate::testing;

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

fn nets(all: &[&str]) -> Vec<IpNet> {
    all.iter().map(|text| net(text)).collect()
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Node `node-b`, which has 10.244.2.0/24 and a route to 10.244.9.0/24.
fn sources() -> Sources {
    let mut network = testing::options().networks.remove(0);
    network.vni = Vni::new(1).expect("24 bits");
    network.pod_prefixes = nets(&["10.244.2.0/24"]);
    network.cluster_prefixes = nets(&["10.244.0.0/16", "fd00::/16"]);
    Sources {
        node: "node-b".to_owned(),
        networks: vec![network],
        own: OwnAddresses {
            v4: Some([192, 0, 2, 2].into()),
            v6: None,
        },
        max_ports: 110,
        file: Entries {
            routes: vec![fixed("10.244.9.0/24", "192.0.2.9", 9, Some("fixed"))],
            ..Entries::default()
        },
        command: Entries::default(),
        announced: Vec::new(),
        rules: Rules::default(),
    }
}

fn fixed(prefix: &str, vtep: &str, mac: u8, node: Option<&str>) -> StaticRoute {
    StaticRoute {
        node: node.map(str::to_owned),
        route: RouteOptions {
            network: 0,
            prefixes: vec![net(prefix)],
            addresses: Vec::new(),
            vtep: ip(vtep),
            udp_checksum6: false,
            vtep_mac: MacAddr([2, 0, 0, 0, 9, mac]),
        },
    }
}

/// A node that answers, and claims its prefixes since 5. Its MAC ends as its first VTEP does.
fn node(name: &str, vteps: &[&str], prefixes: &[&str]) -> Announced {
    let vteps: Vec<IpAddr> = vteps.iter().map(|v| ip(v)).collect();
    let last = match vteps[0] {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(v6) => v6.octets()[15],
    };
    let claims = prefixes.iter().map(|p| Claim {
        prefix: net(p),
        since: 5,
    });
    Announced {
        answers: true,
        overdue: false,
        ages: Arc::default(),
        heard: Some(vteps[0]),
        record: Arc::new(Record {
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
                gossip: (vteps[0], 7950).into(),
                vteps,
                parts: 1,
                networks: vec![NetworkPart {
                    vni: 1,
                    port: 8472,
                    mac: [2, 0, 0, 0, 0, last],
                    mac6: [2, 0, 0, 0, 6, last],
                    prefixes: claims.collect(),
                    moved: Vec::new(),
                    delegated: Vec::new(),
                }],
            },
        }),
    }
}

fn part(node: &mut Announced) -> &mut NetworkPart {
    match &mut Arc::make_mut(&mut node.record).content {
        Content::Here { networks, .. } => &mut networks[0],
        _ => panic!("it is there"),
    }
}

fn since(mut node: Announced, since: u64) -> Announced {
    for claim in &mut part(&mut node).prefixes {
        claim.since = since;
    }
    node
}

/// The options that come of what is wanted, which pass all checks.
fn checked(sources: &Sources, wanted: &Wanted) -> crate::AgentOptions {
    let mut options = testing::options();
    options.networks.clone_from(&sources.networks);
    options.underlay.addresses = sources.own;
    options.ports.clone_from(&wanted.ports);
    options.routes.clone_from(&wanted.routes);
    assert_eq!(options.check(), Ok(()));
    options
}

fn merged_of(sources: &Sources) -> (Wanted, Vec<Refused>) {
    let merged = merge(sources);
    let mut backwards = sources.clone();
    backwards.announced.reverse();
    assert_eq!(merge(&backwards), merged, "whatever the order");
    checked(sources, &merged.0);
    merged
}

fn merged(announced: &[Announced]) -> (Wanted, Vec<Refused>) {
    let announced = announced.to_vec();
    merged_of(&Sources {
        announced,
        ..sources()
    })
}

/// What is learned, as "node prefix prefix ...".
fn learned((wanted, _): &(Wanted, Vec<Refused>)) -> Vec<String> {
    let all = wanted.routes.iter().zip(&wanted.origins);
    let all = all.filter(|(_, origin)| origin.source == Source::Gossip);
    let line = |(route, origin): (&RouteOptions, &Origin)| {
        let mut words = vec![origin.node.clone().expect("a node")];
        words.extend(route.prefixes.iter().map(ToString::to_string));
        words.join(" ")
    };
    all.map(line).collect()
}

fn why((_, refused): &(Wanted, Vec<Refused>)) -> Vec<String> {
    let all = refused.iter();
    all.map(|r| format!("{} {}: {}", r.node, r.what, r.why))
        .collect()
}

#[test]
fn nodes_become_routes() {
    let mut dual = sources();
    dual.rules.addresses = nets(&["2001:db8::/64", "192.0.2.0/24"]);
    dual.announced = vec![
        node(
            "node-c",
            &["192.0.2.3", "2001:db8::3"],
            &["10.244.3.0/24", "fd00:3::/64"],
        ),
        node("node-a", &["2001:db8::1", "192.0.2.1"], &["10.244.1.0/24"]),
        // This node's own.
        node("node-b", &["192.0.2.2"], &["10.244.2.0/24"]),
    ];
    let all = merged_of(&dual);
    assert_eq!(why(&all), [""; 0]);
    assert_eq!(
        learned(&all),
        ["node-a 10.244.1.0/24", "node-c fd00:3::/64 10.244.3.0/24"]
    );
    let vteps: Vec<_> = all.0.routes.iter().map(|r| r.vtep.to_string()).collect();
    assert_eq!(vteps, ["192.0.2.9", "192.0.2.1", "192.0.2.3"]);
    assert_eq!(all.0.routes[2].addresses, [ip("2001:db8::3")]);
}

#[test]
fn what_cannot_be_used_is_named() {
    let all = merged(&[
        node(
            "a",
            &["192.0.2.1"],
            &["10.244.1.0/24", "10.0.0.0/24", "10.244.2.0/25"],
        ),
        node(
            "c",
            &["192.0.2.3"],
            &["10.244.1.0/24", "10.244.3.0/24", "10.244.9.7/32"],
        ),
        node("e", &["2001:db8::5"], &["10.244.5.0/24"]),
        node("f", &["192.0.2.2"], &["10.244.6.0/24"]),
    ]);
    assert_eq!(
        why(&all),
        [
            "a 10.0.0.0/24: it lies outside the cluster's prefixes",
            "a 10.244.2.0/25: 10.244.2.0/24 of this node overlaps it, and goes before",
            "c 10.244.1.0/24: 10.244.1.0/24 of a overlaps it, and goes before",
            "c 10.244.9.7/32: 10.244.9.0/24 of the configuration overlaps it, and goes before",
            "e its VTEP: this node's underlay has no address of a family that the node has",
            "f 192.0.2.2: it is this node's own address",
        ]
    );
    assert_eq!(learned(&all), ["a 10.244.1.0/24", "c 10.244.3.0/24"]);
}

fn certificate(name: &str, prefixes: Option<&[&str]>, addresses: &[&str]) -> Certificate {
    Certificate {
        claim: Claimed {
            name: name.to_owned(),
            key: [0; 32],
            issued: 1,
            prefixes: prefixes.map(nets),
            addresses: (!addresses.is_empty()).then(|| nets(addresses)),
        },
        signature: Vec::new(),
    }
}

fn certified(mut node: Announced, prefixes: &[&str]) -> Announced {
    let record = Arc::make_mut(&mut node.record);
    record.certificate = Some(certificate(&record.name, Some(prefixes), &[]));
    node
}

/// Node a may announce 10.244.1.0/24, other nodes what is in 10.244.0.0/20, or in their certificates.
fn ruled() -> Sources {
    let grant = Grant {
        prefixes: Some(nets(&["10.244.1.0/24"])),
        addresses: None,
    };
    Sources {
        rules: Rules {
            prefixes: Some(nets(&["10.244.0.0/20"])),
            addresses: Vec::new(),
            nodes: [("a".to_owned(), grant)].into(),
            certified: true,
        },
        ..sources()
    }
}
