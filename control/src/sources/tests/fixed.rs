//! What files and commands say, beside what nodes announce.

use super::*;

/// The configuration's route and the same node's announcements go together.
#[test]
fn a_node_of_the_file_may_announce_more() {
    let mut fixed_node = node(
        "fixed",
        &["192.0.2.9"],
        &["10.244.9.0/24", "10.244.10.0/24"],
    );
    part(&mut fixed_node).mac = [2, 0, 0, 0, 9, 9];
    let all = merged(&[fixed_node.clone()]);
    assert_eq!(learned(&all), ["fixed 10.244.10.0/24"]);
    part(&mut fixed_node).mac = [2, 0, 0, 0, 9, 8];
    let all = merged(&[fixed_node]);
    assert_eq!(learned(&all), [""; 0]);
    assert!(
        why(&all)[0].contains("has 02:00:00:00:09:09 for 192.0.2.9"),
        "{all:?}"
    );
}

#[test]
fn entries_of_commands_are_refused_one_by_one() {
    let mut all = sources();
    let port = testing::options().ports.remove(0);
    let with = |name: &str, interface: &str, address: &str| PortOptions {
        name: name.to_owned(),
        interface: interface.to_owned(),
        addresses: vec![ip(address)],
        ..port.clone()
    };
    all.file.ports = vec![with("web", "veth-web", "10.244.2.2")];
    all.command.ports = vec![
        with("api", "veth-api", "10.244.2.3"),
        with("two", "veth-web", "10.244.2.4"),
        with("web", "veth-x", "10.244.2.5"),
        with("x", "veth-x", "10.244.2.2"),
        PortOptions {
            network: 4,
            ..with("far", "veth-far", "10.244.2.9")
        },
    ];
    all.command.routes = vec![
        fixed("10.244.7.0/24", "192.0.2.7", 7, None),
        fixed("10.244.8.0/24", "192.0.2.8", 7, None),
        fixed("10.244.9.0/24", "192.0.2.9", 9, None),
        fixed("10.244.10.0/24", "192.0.2.9", 8, None),
        fixed("10.244.2.0/25", "192.0.2.11", 11, None),
        fixed("10.245.2.0/25", "192.0.2.11", 11, None),
        fixed("10.244.11.0/24", "192.0.2.2", 12, None),
        fixed("10.244.11.0/24", "10.244.0.1", 12, None),
    ];
    let merged = merged_of(&all);
    assert_eq!(
        why(&merged),
        [
            "node-b 10.244.10.0/24: VTEP 192.0.2.9 has the MAC 02:00:00:00:09:09 in another route of network default: a VTEP has one",
            "node-b 10.244.11.0/24: its VTEP 10.244.0.1 is inside the cluster prefix 10.244.0.0/16",
            "node-b 10.244.11.0/24: its VTEP 192.0.2.2 is this node's own address",
            "node-b 10.244.2.0/25: it overlaps this node's own 10.244.2.0/24",
            "node-b 10.244.8.0/24: VTEP 192.0.2.7 has the MAC 02:00:00:00:09:07 in network default already: a MAC belongs to one",
            "node-b 10.244.9.0/24: another route has this prefix",
            "node-b 10.245.2.0/25: it lies outside the cluster's prefixes",
            "node-b far: its network is not there",
            "node-b two: its interface veth-web is another pod's",
            "node-b web: another pod has its name",
            "node-b x: 10.244.2.2 is another pod's",
        ]
    );
    let wanted = &merged.0;
    assert_eq!(wanted.port_origins, [Source::File, Source::Command]);
    assert_eq!(wanted.routes.len(), 2);
    assert_eq!(wanted.origins[1].source, Source::Command);
    let mend = merged.1[0].mend.as_deref();
    assert_eq!(mend, Some("viaduct route del 10.244.10.0/24"));
}

/// A local pod that came from elsewhere keeps its address.
#[test]
fn a_pod_that_is_here_is_here() {
    let mut all = sources();
    let mut port = testing::options().ports.remove(0);
    port.addresses = vec![ip("10.244.1.7")];
    all.file.ports = vec![port];
    let mut a = node("a", &["192.0.2.1"], &["10.244.1.0/24", "10.244.1.7/32"]);
    let mut c = node("c", &["192.0.2.3"], &[]);
    let to = "c".to_owned();
    part(&mut a).delegated = vec![Delegation {
        prefix: net("10.244.1.7/32"),
        to,
    }];
    part(&mut c).moved = nets(&["10.244.1.7/32"]);
    all.announced = vec![a, c];
    let merged = merged_of(&all);
    assert_eq!(learned(&merged), ["a 10.244.1.0/24"]);
    assert_eq!(why(&merged), ["c 10.244.1.7/32: a pod of this node has it"]);
}

/// A pod of this node that has moved away.
#[test]
fn a_part_of_ones_own_prefix_may_be_delegated() {
    let mut all = sources();
    let delegated = |prefix: &str| Delegated {
        network: 0,
        prefix: net(prefix),
        to: "c".to_owned(),
    };
    all.file.delegations = vec![delegated("10.244.2.7/32"), delegated("10.244.2.0/32")];
    let mut c = node("c", &["192.0.2.3"], &[]);
    part(&mut c).moved = nets(&["10.244.2.7/32", "10.244.2.0/32", "10.244.2.8/32"]);
    all.announced = vec![c];
    let merged = merged_of(&all);
    assert_eq!(learned(&merged), ["c 10.244.2.7/32"]);
    assert_eq!(why(&merged).len(), 2);
}
