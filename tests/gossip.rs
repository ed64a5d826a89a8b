//! Nodes that are told of one peer and learn the rest.

mod common;

use std::fs;
use std::time::Duration;

use common::{CLUSTER, Daemon, Namespace, Pod, Setup, Testbed, wait_for, write_key};

/// Pings both ways, IPv4 and IPv6, that the workers carry.
fn by_workers(one: &Pod, other: &Pod, router: &Daemon) {
    let before = router.port(&one.interface, "rx_packets");
    for (from, to) in [(one, other), (other, one)] {
        for address in [to.v4(), to.v6()] {
            wait_for(&address, || from.namespace.ping(&address, 1, 56) == 1);
            assert_eq!(from.namespace.ping(&address, 5, 56), 5, "{address}");
        }
    }
    let carried = router.port(&one.interface, "rx_packets") - before;
    assert!(carried >= 20, "by the workers: {carried}");
}

/// Pings one way, that this node's workers carry.
fn by_workers_to(one: &Pod, other: &Pod, router: &Daemon) {
    let before = router.port(&one.interface, "rx_packets");
    for address in [other.v4(), other.v6()] {
        wait_for(&address, || one.namespace.ping(&address, 1, 56) == 1);
        assert_eq!(one.namespace.ping(&address, 5, 56), 5, "{address}");
    }
    let carried = router.port(&one.interface, "rx_packets") - before;
    assert!(carried >= 10, "by the workers: {carried}");
}

#[test]
fn eight_nodes_with_one_peer() {
    let mut bed = Testbed::new();
    let nodes: Vec<_> = (1..=8).map(|n| bed.node(n, 1)).collect();
    let pods: Vec<_> = nodes.iter().map(|node| bed.pod(node, "web", 2)).collect();
    let mut routers: Vec<_> = (nodes.iter().zip(&pods).take(7))
        .map(|(node, pod)| bed.gossiping_router(node, &[pod], 1))
        .collect();
    let others = |of: u8, last: u8| (1..=last).filter(|n| *n != of).collect::<Vec<_>>();
    for (n, router) in (1..).zip(&routers) {
        router.knows(&others(n, 7));
    }
    by_workers(&pods[0], &pods[6], &routers[0]);
    // Who said it?
    let (did, said) = routers[0].command(&format!("routes {}", pods[6].v4()));
    let gossip = said.lines().filter(|line| {
        line.contains("10.244.7.0/24") && line.contains("gossip") && line.contains(&routers[6].name)
    });
    assert!(
        did && gossip.count() == 1 && !said.contains("10.244.2.0"),
        "{said}"
    );
    let (did, said) = routers[0].command(&format!("routes {}", pods[0].v4()));
    assert!(did && said.contains("this node's own"), "{said}");
    let (did, said) = routers[0].command("routes nowhere");
    assert!(
        !did && said.contains("neither a prefix nor an address"),
        "{said}"
    );
    by_workers(&pods[3], &pods[4], &routers[3]);
    // Late, with another peer.
    routers.push(bed.gossiping_router(&nodes[7], &[&pods[7]], 5));
    for (n, router) in (1..).zip(&routers) {
        router.knows(&others(n, 8));
    }
    by_workers(&pods[7], &pods[1], &routers[7]);
    let told = routers[7].command("leave");
    assert!(told.0, "{}", told.1);
    for (n, router) in (1..=7).zip(&routers) {
        router.knows(&others(n, 7));
        assert_eq!(router.peer(&routers[7].name), "gone");
    }
}

#[test]
fn who_dies_or_is_cut_off_keeps_its_routes() {
    let mut bed = Testbed::new();
    let nodes = [1, 2, 3].map(|n| bed.node(n, 1));
    let pods = [0, 1, 2].map(|n: usize| bed.pod(&nodes[n], "web", 2));
    let mut routers = [0, 1, 2].map(|n: usize| bed.gossiping_router(&nodes[n], &[&pods[n]], 1));
    routers[0].knows(&[2, 3]);
    routers[1].knows(&[1, 3]);
    let name = routers[1].name.clone();
    wait_for("the second to answer", || {
        routers[0].peer(&name) == "answers"
    });
    routers[1].kill();
    wait_for("the second to be missed", || {
        routers[0].peer(&name) == "silent"
    });
    routers[0].knows(&[2, 3]);
    assert_eq!(
        pods[0].namespace.ping(&pods[1].v4(), 5, 56),
        5,
        "by the kernel"
    );
    routers[1].start();
    wait_for("the second to answer again", || {
        routers[0].peer(&name) == "answers"
    });
    routers[1].knows(&[1, 3]);
    by_workers(&pods[1], &pods[0], &routers[1]);
    // Cut off, as by a firewall on the way: only gossip.
    let rule = "nft add table inet cut; add chain inet cut in { type filter hook input priority 0; }; add rule inet cut in udp dport 7950 drop";
    nodes[2].namespace.run("nft add table inet cut");
    for part in rule.split("; add").skip(1) {
        let words = format!("add{part}");
        let mut nft = nodes[2].namespace.command("nft");
        assert!(nft.arg(words).status().expect("nft runs").success());
    }
    let name = routers[2].name.clone();
    wait_for("the third to be missed", || {
        routers[0].peer(&name) == "silent"
    });
    by_workers(&pods[0], &pods[2], &routers[0]);
    nodes[2].namespace.run("nft delete table inet cut");
    wait_for("the third to answer again", || {
        routers[0].peer(&name) == "answers"
    });
    for router in &routers {
        router.assert_balanced();
    }
    // One that will not come back.
    let forget = format!("forget {name}");
    let (did, said) = routers[0].command(&forget);
    assert!(!did && said.contains("it answers"), "{said}");
    routers[2].kill();
    wait_for("the third to be missed", || {
        routers[..2]
            .iter()
            .all(|router| router.peer(&name) == "silent")
    });
    assert!(routers[0].command(&forget).0);
    routers[0].knows(&[2]);
    routers[1].knows(&[1]);
    assert_eq!(routers[1].peer(&name), "forgotten");
    // Its state is lost: it has another key now.
    let state = bed.directory.path().join("state");
    std::fs::remove_file(state.join(format!("{name}.key"))).expect("removed");
    routers[2].start();
    routers[1].knows(&[1, 3]);
    let (did, said) = routers[0].command("forget nobody");
    assert!(!did && said.contains("no node of this name"), "{said}");
}

/// Sends each packet's payload of a capture once more, as it is and with one bit turned.
fn replay(from: &Namespace, capture: &str, to: &str) {
    let program = format!(
        "import socket\n\
         data = open('{capture}', 'rb').read()[24:]\n\
         s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
         while data:\n\
         \x20   length = int.from_bytes(data[8:12], 'little')\n\
         \x20   payload, data = data[16 + 42:16 + length], data[16 + length:]\n\
         \x20   s.sendto(payload, ('{to}', 7950))\n\
         \x20   bad = bytearray(payload)\n\
         \x20   bad[-1] ^= 1\n\
         \x20   s.sendto(bad, ('{to}', 7950))\n"
    );
    let mut python = from.command("python3");
    let ran = python.args(["-c", &program]).status().expect("python runs");
    assert!(ran.success());
}

/// The ids of a node's keys, the used one first.
fn keys(router: &Daemon) -> Vec<String> {
    let (did, said) = router.command("key list --json");
    assert!(did, "{said}");
    let said: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    let keys = said["keys"].as_array().expect("keys");
    assert_eq!(keys[0]["used"], true);
    let id = |key: &serde_json::Value| key["id"].as_str().expect("an id").to_owned();
    keys.iter().map(id).collect()
}

#[test]
fn the_clusters_key_is_changed_without_loss() {
    let mut bed = Testbed::new();
    let nodes = [1, 2, 3].map(|n| bed.node(n, 1));
    let pods = [0, 1, 2].map(|n: usize| bed.pod(&nodes[n], "web", 2));
    let mut routers = [0, 1, 2].map(|n: usize| bed.gossiping_router(&nodes[n], &[&pods[n]], 1));
    for (router, others) in routers.iter().zip([[2, 3], [1, 3], [1, 2]]) {
        router.knows(&others);
    }
    let stream = pods[0].tcp_stream(&pods[1], &pods[1].v4(), 5001);
    let file = bed.directory.path().join("new.key");
    write_key(&file, &"3c".repeat(32));
    let all = |routers: &[Daemon; 3], words: &str| {
        for router in routers {
            let (did, said) = router.command(words);
            assert!(did, "{words}: {said}");
            // Long enough for nodes to speak to each other in between.
            std::thread::sleep(Duration::from_secs(2));
            stream.goes_on();
        }
    };
    let old = keys(&routers[0]).remove(0);
    all(&routers, &format!("key add {}", file.display()));
    let new = keys(&routers[0]).remove(1);
    all(&routers, &format!("key use {new}"));
    let refusals = [
        (format!("key remove {new}"), "is in use"),
        ("key use 12345678".to_owned(), "no key 12345678"),
        ("key use x".to_owned(), "no key's id"),
        ("key add /dev/null".to_owned(), "64 hexadecimal digits"),
    ];
    for (words, why) in refusals {
        let (did, said) = routers[0].command(&words);
        assert!(!did && said.contains(why), "{words}: {said}");
    }
    assert_eq!(keys(&routers[0]), [&new[..], &old]);
    all(&routers, &format!("key remove {old}"));
    for router in &routers {
        assert_eq!(keys(router), [&new[..]]);
        let refused = router.ask("peers")["refused"].clone();
        assert_eq!(refused, serde_json::json!({}), "{}", router.name);
        assert!(!router.log().contains("does not answer"), "{}", router.name);
    }
    // It is in the file, too.
    routers[2].kill();
    routers[2].start();
    routers[2].knows(&[1, 2]);
    assert_eq!(keys(&routers[2]), [&new[..]]);
}

#[test]
fn strangers_are_not_heard() {
    let mut bed = Testbed::new();
    let nodes = [1, 2, 3, 4].map(|n| bed.node(n, 1));
    let outsider = bed.node(9, 1).namespace;
    let capture = bed.directory.path().join("gossip.pcap");
    let mut tcpdump = nodes[1].namespace.spawn(&format!(
        "tcpdump -U --immediate-mode -Q in -c 20 -i eth0 -w {} udp dst port 7950",
        capture.display()
    ));
    wait_for("the capture to begin", || capture.exists());
    let first = bed.gossiping_router(&nodes[0], &[], 1);
    let second = bed.gossiping_router(&nodes[1], &[], 1);
    second.knows(&[1]);
    let wrong = |cluster| Setup {
        more: cluster,
        ..Setup::default()
    };
    let key = bed.gossip(1, ("test", "2e"));
    let name = bed.gossip(1, ("other", CLUSTER.1));
    let third = bed.router_with(&nodes[2], &[], &[], &wrong(&key));
    let fourth = bed.router_with(&nodes[3], &[], &[], &wrong(&name));
    let refused =
        |router: &Daemon, why: &str| router.ask("peers")["refused"][why].as_u64().unwrap_or(0);
    wait_for("both to be refused", || refused(&first, "unknown-key") >= 4);
    tcpdump.ended("twenty datagrams to be captured");
    replay(&outsider, &capture.display().to_string(), "192.0.2.2");
    wait_for("what was sent before to be refused", || {
        refused(&second, "replayed") == 20 && refused(&second, "forged") == 20
    });
    for router in [&third, &fourth] {
        assert_eq!(router.ways(), [""; 0]);
    }
    for router in [&first, &second] {
        assert_eq!(
            router.ask("peers")["peers"]
                .as_array()
                .expect("peers")
                .len(),
            2
        );
    }
    let warned = second
        .log()
        .matches("a gossip datagram was dropped")
        .count();
    assert!(warned <= 2, "once for each source, and minute: {warned}");
}

#[test]
fn a_node_whose_address_changes_says_so() {
    let mut bed = Testbed::new();
    let nodes = [1, 2, 3].map(|n| bed.node(n, 1));
    let pods = [0, 1, 2].map(|n: usize| bed.pod(&nodes[n], "web", 2));
    let routers = [0, 1, 2].map(|n: usize| bed.gossiping_router(&nodes[n], &[&pods[n]], 1));
    for (router, others) in routers.iter().zip([[2, 3], [1, 3], [1, 2]]) {
        router.knows(&others);
    }
    let stream = pods[0].tcp_stream(&pods[1], &pods[1].v4(), 5001);
    nodes[1]
        .namespace
        .run("ip address delete 192.0.2.2/24 dev eth0");
    nodes[1]
        .namespace
        .run("ip address add 192.0.2.22/24 dev eth0");
    for place in [0, 2] {
        wait_for("the new address", || {
            let said = routers[place].ask("routes")["routes"].to_string();
            said.contains("\"192.0.2.22\"") && !said.contains("\"192.0.2.2\"")
        });
        wait_for("the second to answer there", || {
            routers[place].peer(&routers[1].name) == "answers"
        });
        assert_eq!(pods[place].namespace.ping(&pods[1].v6(), 5, 56), 5);
        assert_eq!(pods[1].namespace.ping(&pods[place].v4(), 5, 56), 5);
    }
    stream.goes_on();
}

/// The whole node, as when a cable is pulled.
#[test]
fn a_node_whose_link_is_down_keeps_its_routes() {
    let mut bed = Testbed::new();
    let nodes = [1, 2, 3, 4].map(|n| bed.node(n, 1));
    let pods = [0, 1, 2, 3].map(|n: usize| bed.pod(&nodes[n], "web", 2));
    let routers = [0, 1, 2, 3].map(|n: usize| bed.gossiping_router(&nodes[n], &[&pods[n]], 1));
    let others = [[2, 3, 4], [1, 3, 4], [1, 2, 4], [1, 2, 3]];
    for (router, others) in routers.iter().zip(&others) {
        router.knows(others);
    }
    for node in &nodes[2..] {
        let port = &node.switch_port;
        node.switch.run(&format!("ip link set {port} down"));
    }
    for (place, lost) in [(0, 2), (1, 3), (2, 0), (3, 2)] {
        wait_for("them to be missed", || {
            routers[place].peer(&routers[lost].name) == "silent"
        });
    }
    // Whether or not ARP has given up on those behind the link by now.
    assert_eq!(routers[0].ask("status")["routes"], 6);
    assert_eq!(pods[0].namespace.ping(&pods[1].v4(), 5, 56), 5);
    for node in &nodes[2..] {
        let port = &node.switch_port;
        node.switch.run(&format!("ip link set {port} up"));
    }
    for (router, known) in routers.iter().zip(&others) {
        for other in routers.iter().filter(|other| other.name != router.name) {
            wait_for("them to be back", || router.peer(&other.name) == "answers");
        }
        router.knows(known);
    }
    wait_for("packets to go through", || {
        pods[0].namespace.ping(&pods[2].v4(), 1, 56) == 1
    });
    assert_eq!(pods[3].namespace.ping(&pods[2].v6(), 5, 56), 5);
}

/// Routes are there at once, when nobody answers.
#[test]
fn what_others_said_is_known_after_a_start() {
    let mut bed = Testbed::new();
    let nodes = [1, 2].map(|n| bed.node(n, 1));
    let pods = [0, 1].map(|n: usize| bed.pod(&nodes[n], "web", 2));
    let [mut first, mut second] =
        [0, 1].map(|n: usize| bed.gossiping_router(&nodes[n], &[&pods[n]], 1));
    first.knows(&[2]);
    second.knows(&[1]);
    let file = bed
        .directory
        .path()
        .join("state")
        .join(format!("{}.records", first.name));
    let name = second.name.clone();
    let kept = |text: &str| {
        let found = fs::read(&file).unwrap_or_default();
        found
            .windows(text.len())
            .any(|bytes| bytes == text.as_bytes())
    };
    wait_for("its record to be kept", || kept(&name));
    second.kill();
    first.kill();
    first.start();
    first.knows(&[2]);
    assert_eq!(first.peer(&name), "silent");
    by_workers_to(&pods[0], &pods[1], &first);

    // Damaged: as if it were not there.
    first.kill();
    let bytes = fs::read(&file).expect("kept");
    fs::write(&file, &bytes[..bytes.len() - 1]).expect("written");
    first.start();
    wait_for("the damage to be told", || {
        first
            .log()
            .contains("before this start is not used: it is damaged")
    });
    assert_eq!(
        (first.ways(), first.peer(&name)),
        (Vec::new(), String::new())
    );
    second.start();
    first.knows(&[2]);

    // Who was forgotten does not come back from it.
    wait_for("its record to be kept again", || kept(&name));
    second.kill();
    wait_for("the second to be missed", || first.peer(&name) == "silent");
    let before = fs::read(&file).expect("kept");
    let (did, said) = first.command(&format!("forget {name}"));
    assert!(did, "{said}");
    wait_for("that to be kept", || {
        fs::read(&file).is_ok_and(|bytes| bytes != before)
    });
    first.kill();
    first.start();
    assert_eq!(first.peer(&name), "forgotten");
    assert_eq!(first.ways(), [""; 0]);
}
