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
    let rule = "nft add table inet cut; add chain inet cut in { type filter hook input priority 0; }; add rule inet cut in udp dport 7946 drop";
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
         \x20   s.sendto(payload, ('{to}', 7946))\n\
         \x20   bad = bytearray(payload)\n\
         \x20   bad[-1] ^= 1\n\
         \x20   s.sendto(bad, ('{to}', 7946))\n"
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
    let stranger = bed.node(9, 1).namespace;
    let capture = bed.directory.path().join("gossip.pcap");
    let mut tcpdump = nodes[1].namespace.spawn(&format!(
        "tcpdump -U --immediate-mode -Q in -c 20 -i eth0 -w {} udp dst port 7946",
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
    replay(&stranger, &capture.display().to_string(), "192.0.2.2");
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
fn a_node_with_many_prefixes_says_them_in_parts() {
    let mut bed = Testbed::new();
    let nodes = [1, 2].map(|n| bed.node(n, 1));
    let first = bed.gossiping_router(&nodes[0], &[], 1);
    let mut second = bed.gossiping_router(&nodes[1], &[], 1);
    first.knows(&[2]);
    second.stop();
    let file = bed.directory.path().join("node-2.toml");
    let text = fs::read_to_string(&file).expect("its configuration");
    let more = (0..400).map(|n| format!("\"10.244.{}.{}/30\", ", 128 + n / 64, n % 64 * 4));
    let more = more.collect::<Vec<_>>().concat();
    let many = text.replace("pod_prefixes = [", &format!("pod_prefixes = [{more}"));
    fs::write(&file, many).expect("written");
    second.start();
    wait_for("all of its prefixes", || first.ways().len() == 402);
    let said = first.ask("peers");
    let known = said["peers"]
        .as_array()
        .expect("peers")
        .iter()
        .find(|p| p["node"] == second.name);
    let prefixes = known.expect("known")["prefixes"]
        .as_array()
        .expect("a list")
        .len();
    assert_eq!(prefixes, 402);
    // It returns with others, which replace them.
    second.kill();
    fs::write(&file, text).expect("written");
    second.start();
    first.knows(&[2]);
}

#[test]
fn a_pod_that_moves_is_reached_where_it_is() {
    let mut bed = Testbed::new();
    let nodes = [1, 2, 3].map(|n| bed.node(n, 1));
    let pods = [0, 1, 2].map(|n: usize| bed.pod(&nodes[n], "web", 2));
    let mover = bed.pod(&nodes[0], "mov", 9);
    let first = bed.gossiping_router(&nodes[0], &[&pods[0], &mover], 1);
    let others = [1, 2].map(|n: usize| bed.gossiping_router(&nodes[n], &[&pods[n]], 1));
    first.knows(&[2, 3]);
    others[0].knows(&[1, 3]);
    others[1].knows(&[1, 2]);
    let reached = |by: &str| {
        for pod in &pods {
            for address in [mover.v4(), mover.v6()] {
                let came = pod.namespace.ping(&address, 5, 56);
                assert_eq!(came, 5, "{by}: {address} from {}", pod.v4());
            }
            assert_eq!(
                mover.namespace.ping(&pod.v4(), 5, 56),
                5,
                "{by}: to {}",
                pod.v4()
            );
        }
    };
    reached("at home");

    nodes[0].namespace.run("ip link del veth-mov");
    mover.plug(&nodes[1]);
    let add = format!(
        "port add --interface veth-mov --moved --address {} --address {}",
        mover.v4(),
        mover.v6()
    );
    let (did, said) = others[0].command(&add.replace("--moved ", ""));
    assert!(!did && said.contains("`moved = true`"), "{said}");
    let (did, said) = others[0].command(&add);
    assert!(did, "{said}");
    let asked = format!("routes {}", mover.v4());
    wait_for("its claim to be heard", || {
        others[1].command(&asked).1.contains("has not delegated it")
    });
    let pod = format!(
        "[[pods]]\nnetwork = \"default\"\ninterface = \"veth-mov\"\naddresses = [\"{}\", \"{}\"]\n",
        mover.v4(),
        mover.v6()
    );
    let singles = [format!("{}/32", mover.v4()), format!("{}/128", mover.v6())];
    let delegations = singles.each_ref().map(|prefix| {
        format!(
            "[[delegations]]\nprefix = \"{prefix}\"\nnode = \"{}\"\n",
            others[0].name
        )
    });
    let delegations = delegations.concat();
    first.reload(|text| {
        assert!(text.contains(&pod), "{text}");
        text.replace(&pod, "") + &delegations
    });
    for router in [&first, &others[1]] {
        wait_for("the way to the pod's new place", || {
            singles.iter().all(|prefix| router.ways().contains(prefix))
        });
    }
    reached("moved");

    // And back.
    nodes[1].namespace.run("ip link del veth-mov");
    let (did, said) = others[0].command("port del veth-mov");
    assert!(did, "{said}");
    mover.plug(&nodes[0]);
    first.reload(|text| text.replace(&delegations, &pod));
    others[1].knows(&[1, 2]);
    first.knows(&[2, 3]);
    reached("back");
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

/// All nodes send to the one that was first; both are told.
#[test]
fn of_two_nodes_with_one_prefix_the_first_has_it() {
    let mut bed = Testbed::new();
    let nodes = [1, 2, 3].map(|n| bed.node(n, 1));
    let start = |n: usize, more: &str| {
        let gossip = bed.gossip(1, CLUSTER);
        let network = if more.is_empty() {
            String::new()
        } else {
            more.to_owned()
        };
        let setup = Setup {
            more: &gossip,
            ..Setup::default()
        };
        let mut router = bed.router_with(&nodes[n], &[], &[], &setup);
        if !network.is_empty() {
            router.stop();
            let file = bed.directory.path().join(format!("node-{}.toml", n + 1));
            let text = fs::read_to_string(&file).expect("its configuration");
            let text = text.replace("pod_prefixes = [", &format!("pod_prefixes = [{network}, "));
            fs::write(&file, text).expect("written");
            router.start();
        }
        router
    };
    // The name that comes first claims it later.
    let second = start(1, "\"10.244.77.0/24\"");
    std::thread::sleep(Duration::from_secs(2));
    let first = start(0, "\"10.244.77.0/25\"");
    let third = start(2, "");
    wait_for("the first claim", || {
        third.ways().contains(&"10.244.77.0/24".to_owned())
            && third
                .command("routes 10.244.77.7")
                .1
                .contains("goes before")
    });
    assert!(!third.ways().contains(&"10.244.77.0/25".to_owned()));
    wait_for("the later one to be told", || {
        first
            .log()
            .contains("other nodes send its packets there, not here")
    });
    wait_for("the earlier one to be told", || {
        second.log().contains("overlaps it, and goes before")
    });
    for (router, count) in [(&first, 2), (&second, 1), (&third, 1)] {
        let said = router.ask("status")["not_used"].clone();
        assert_eq!(said, count, "{}", router.name);
    }
    // And so it stays: nobody takes turns, or says it again and again.
    let all = [&first, &second, &third];
    let told = || all.map(|router| router.log().matches("10.244.77.0").count());
    std::thread::sleep(Duration::from_secs(2));
    let (ways, before) = (all.map(Daemon::ways), told());
    for _ in 0..25 {
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(all.map(Daemon::ways), ways);
    }
    assert_eq!(told(), before);
}

/// A node alone, whose peer's name comes to be known later.
#[test]
fn a_peer_may_have_a_name_that_is_known_later() {
    let mut bed = Testbed::new();
    let nodes = [1, 2].map(|n| bed.node(n, 1));
    let first = bed.gossiping_router(&nodes[0], &[], 1);
    let mut second = bed.gossiping_router(&nodes[1], &[], 2);
    second.stop();
    let hosts = bed.directory.path().join("hosts");
    fs::write(&hosts, "127.0.0.1 localhost\n").expect("written");
    let file = bed.directory.path().join("node-2.toml");
    let text = fs::read_to_string(&file).expect("its configuration");
    let named = text.replace("192.0.2.2:7946", "first.example:7946");
    assert_ne!(named, text);
    fs::write(&file, named).expect("written");
    second.hosts = Some(hosts.clone());
    second.start();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(second.ways(), [""; 0]);
    // In place: the file itself is mounted.
    fs::write(&hosts, "192.0.2.1 first.example\n").expect("written");
    second.knows(&[1]);
    first.knows(&[2]);
}

/// Who is asked, and what nodes may announce, change while a node runs; a file that is wrong
/// changes nothing.
#[test]
fn peers_and_allowed_prefixes_are_read_again() {
    let mut bed = Testbed::new();
    let nodes = [1, 2].map(|n| bed.node(n, 1));
    let first = bed.gossiping_router(&nodes[0], &[], 1);
    // Nobody is there.
    let second = bed.gossiping_router(&nodes[1], &[], 7);
    let asks = |host: &str| format!("peers = [\"{host}:7946\"]");
    let wrong = [
        (asks("192.0.2.1").replace(":7946", ":0"), "is no peer"),
        (
            asks("192.0.2.1") + "\nprobe_interval_ms = 400",
            "[gossip] has changed",
        ),
        (
            asks("192.0.2.1") + "\nallowed_prefixes = [\"10.244.1.1/24\"]",
            "host bits set",
        ),
    ];
    for (number, (text, why)) in (1..).zip(wrong) {
        let mut sound = String::new();
        second.reload(|before| {
            assert!(before.contains(&asks("192.0.2.7")), "{before}");
            sound.clone_from(&before);
            before.replace(&asks("192.0.2.7"), &text)
        });
        let log = second.log();
        let refusals = log.matches("the configuration was not read again");
        assert_eq!(refusals.count(), number, "{log}");
        assert!(log.contains(why), "{why}: {log}");
        fs::write(bed.directory.path().join("node-2.toml"), sound).expect("written");
    }
    // The node that it was to ask does so every second, had it taken any of these.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(second.ways(), [""; 0]);
    second.reload(|before| before.replace(&asks("192.0.2.7"), &asks("192.0.2.1")));
    second.knows(&[1]);
    first.knows(&[2]);

    let allowed = "\nallowed_prefixes = [\"10.244.0.0/16\"]";
    second.reload(|before| before.replace(&asks("192.0.2.1"), &(asks("192.0.2.1") + allowed)));
    wait_for("what is not allowed any more", || {
        second.ways() == ["10.244.1.0/24"]
    });
    let log = second.log();
    assert!(log.contains("it lies outside allowed_prefixes"), "{log}");
    second.reload(|before| before.replace(allowed, ""));
    second.knows(&[1]);
    assert_eq!(second.peer(&first.name), "answers");
}

/// What nobody would take is refused before anything is done.
#[test]
fn a_configuration_that_is_too_long_to_say_changes_nothing() {
    let mut bed = Testbed::new();
    let nodes = [1, 2].map(|n| bed.node(n, 1));
    let pod = bed.pod(&nodes[0], "web", 2);
    let first = bed.gossiping_router(&nodes[0], &[&pod], 1);
    let second = bed.gossiping_router(&nodes[1], &[], 1);
    second.knows(&[1]);
    let delegations = (0..4000).map(|n| {
        let node = "n".repeat(60);
        format!("[[delegations]]\nprefix = \"fd00:10:244:1::1:{n:x}/128\"\nnode = \"{node}\"\n")
    });
    let delegations = delegations.collect::<String>();
    first.reload(|text| {
        let pods = text.find("[[pods]]").expect("a pod");
        let rest = text.find("[gossip]").expect("gossip");
        text[..pods].to_owned() + &text[rest..] + &delegations
    });
    let log = first.log();
    assert!(log.contains("announce fewer prefixes"), "{log}");
    let ports = first.ask("ports")["ports"].to_string();
    assert!(ports.contains(&pod.interface), "{ports}");
    second.knows(&[1]);
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
