//! Gossip on an underlay that is not as it should be: a taken port, no address, small paths, rules.

mod common;

use std::fs;

use common::{CLUSTER, Daemon, Setup, Testbed, wait_for};

/// What is wrong with gossip, as `peers` says it.
fn problems(router: &Daemon) -> String {
    router.ask("peers")["problems"].to_string()
}

#[test]
fn a_taken_port_is_told_and_tried_again() {
    let mut bed = Testbed::new();
    let nodes = [1, 2].map(|n| bed.node(n, 1));
    let web = bed.pod(&nodes[0], "web", 2);
    let first = bed.gossiping_router(&nodes[0], &[&web], 2);
    let words = "socat -u UDP4-RECV:7950,bind=192.0.2.2 OPEN:/dev/null";
    let other = nodes[1].namespace.spawn(words);
    let ports = || nodes[1].namespace.run("ss -Hlun sport = 7950");
    wait_for("the port to be taken", || !ports().is_empty());
    let far = bed.pod(&nodes[1], "web", 2);
    let second = bed.gossiping_router(&nodes[1], &[&far], 1);
    let says = problems(&second);
    assert!(says.contains("UDP port 7950 of 192.0.2.2"), "{says}");
    assert!(says.contains("stop that program"), "{says}");
    assert!(
        second
            .ask("status")
            .to_string()
            .contains("UDP port 7950 of 192.0.2.2")
    );
    wait_for("the peer to be missed", || {
        problems(&first).contains("peer 192.0.2.2:7950 has not answered")
    });
    drop(other);
    first.knows(&[2]);
    second.knows(&[1]);
    assert_eq!(
        (problems(&first), problems(&second)),
        ("[]".into(), "[]".into())
    );
    // On its own address alone: others may have the port elsewhere.
    let bound = ports();
    assert!(
        bound.contains("192.0.2.2:7950") && !bound.contains("0.0.0.0:7950"),
        "{bound}"
    );
}

#[test]
fn a_node_without_an_address_is_heard_when_it_has_one() {
    let mut bed = Testbed::new();
    let nodes = [1, 2].map(|n| bed.node(n, 1));
    let pods = [0, 1].map(|n: usize| bed.pod(&nodes[n], "web", 2));
    let first = bed.gossiping_router(&nodes[0], &[&pods[0]], 1);
    nodes[1].namespace.run("ip address flush dev eth0");
    let second = bed.gossiping_router(&nodes[1], &[&pods[1]], 1);
    let says = problems(&second);
    assert!(says.contains("waits for an address"), "{says}");
    nodes[1]
        .namespace
        .run("ip address add 192.0.2.2/24 dev eth0");
    nodes[1].namespace.run("ip link set eth0 up");
    first.knows(&[2]);
    second.knows(&[1]);
    assert_eq!(first.peer(&second.name), "answers");
    // And elsewhere, when it moves.
    nodes[1]
        .namespace
        .run("ip address delete 192.0.2.2/24 dev eth0");
    nodes[1]
        .namespace
        .run("ip address add 192.0.2.22/24 dev eth0");
    wait_for("the new address", || {
        let peers = first.ask("peers");
        let peers = peers["peers"].as_array().expect("peers");
        let second = peers.iter().find(|peer| peer["node"] == second.name[..]);
        second.is_some_and(|p| p["address"] == "192.0.2.22:7950" && p["state"] == "answers")
    });
}

/// Nothing says that a datagram was too long, as behind a firewall that drops ICMP.
fn on_a_path_of(bytes: u32, v6: bool) {
    let mut bed = Testbed::new();
    let nodes = [1, 2, 3].map(|n| bed.node(n, 1));
    let switch = &nodes[0].switch;
    let nft = |words: &str| {
        let mut nft = switch.command("nft");
        assert!(
            nft.arg(words).status().expect("nft runs").success(),
            "{words}"
        );
    };
    nft("add table bridge small");
    nft("add chain bridge small path { type filter hook forward priority 0; }");
    nft(&format!(
        "add rule bridge small path meta length gt {bytes} counter drop"
    ));
    let mut routers = Vec::new();
    for node in &nodes {
        if v6 {
            node.namespace.run("ip address flush dev eth0 scope global");
            let address = format!("ip address add fd00:99::{}/64 dev eth0 nodad", node.n);
            node.namespace.run(&address);
        }
        let table = bed.gossip(1, CLUSTER);
        let table = if v6 {
            table.replace("192.0.2.1:", "[fd00:99::1]:")
        } else {
            table
        };
        let setup = Setup {
            more: &table,
            ..Setup::default()
        };
        let mut router = bed.router_with(node, &[], &[], &setup);
        router.kill();
        let file = router.file().to_owned();
        let text = fs::read_to_string(&file).expect("its configuration");
        let prefix = |p: u32| {
            let group = 0x1000 * u32::from(node.n) + p;
            format!("\"fd00:10:244:{group:x}::/64\", ")
        };
        let more = (0..120).map(prefix).collect::<Vec<_>>().concat();
        let text = text.replace("pod_prefixes = [", &format!("pod_prefixes = [{more}"));
        fs::write(&file, text).expect("written");
        router.start();
        routers.push(router);
    }
    for router in &routers {
        wait_for("all routes", || {
            let reply = router.ask("routes");
            reply["routes"].as_array().map_or(0, Vec::len) == 2 * 122
        });
        assert_eq!(problems(router), "[]");
    }
}

#[test]
fn all_routes_come_on_a_path_of_1300_bytes() {
    on_a_path_of(1300, false);
}

#[test]
fn all_routes_come_on_a_path_of_1240_bytes() {
    on_a_path_of(1240, false);
}

#[test]
fn all_routes_come_on_a_path_of_600_bytes() {
    on_a_path_of(600, false);
}

#[test]
fn all_routes_come_on_a_path_of_1280_bytes_of_ipv6() {
    on_a_path_of(1280, true);
}

/// Only what has the underlay's address as its source has a way to the others.
#[test]
fn gossip_leaves_from_its_own_address() {
    let mut bed = Testbed::new();
    let nodes = [1, 2].map(|n| bed.node(n, 1));
    let a = &nodes[0].namespace;
    for words in [
        "ip link add wrong type bridge",
        "ip address add 203.0.113.1/24 dev wrong",
        "ip link set wrong up",
        "ip route add 192.0.2.0/24 dev eth0 table 100",
        "ip rule add from 192.0.2.1 lookup 100 pref 1000",
        "ip route delete 192.0.2.0/24 dev eth0",
        "ip route add 192.0.2.0/24 dev wrong src 203.0.113.1",
    ] {
        a.run(words);
    }
    let first = bed.gossiping_router(&nodes[0], &[], 2);
    let second = bed.gossiping_router(&nodes[1], &[], 2);
    for (by, of) in [(&first, &second), (&second, &first)] {
        wait_for("the other to answer", || by.peer(&of.name) == "answers");
    }
}
