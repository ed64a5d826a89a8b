//! Pods on different nodes, real kernels on both ends, routers in between.

mod common;

use common::{Daemon, Hooks, Setup, Testbed, vtep_mac, wait_for};

fn peers(others: &[u8]) -> Vec<(u8, String)> {
    others.iter().map(|&n| (n, vtep_mac(n))).collect()
}

fn borrowed(peers: &[(u8, String)]) -> Vec<(u8, &str)> {
    peers.iter().map(|(n, mac)| (*n, mac.as_str())).collect()
}

fn two_nodes(workers: &str, queues: u8) {
    let mut bed = Testbed::new();
    let (a, b) = (bed.node(1, queues), bed.node(2, queues));
    let (web, dns, far) = (
        bed.pod(&a, "web", 2),
        bed.pod(&a, "dns", 3),
        bed.pod(&b, "web", 2),
    );
    let ra = bed.router(&a, &[&web, &dns], &borrowed(&peers(&[2])), workers);
    let rb = bed.router(&b, &[&far], &borrowed(&peers(&[1])), workers);

    for (address, header) in [(far.v4(), 20), (far.v6(), 40)] {
        let before = ra.port("veth-web", "rx_packets");
        for size in [1, 100, 1450 - header - 8] {
            assert_eq!(
                web.namespace.ping(&address, 5, size),
                5,
                "{address} with {size} bytes"
            );
        }
        assert!(
            ra.port("veth-web", "rx_packets") - before >= 15,
            "the worker carried them"
        );
        web.tcp(&far, &address, 3_000_000);
    }
    far.tcp(&web, &web.v4(), 1_000_000);
    far.tcp(&web, &web.v6(), 1_000_000);
    assert_eq!(web.namespace.ping(&dns.v4(), 5, 56), 5, "pods of one node");
    assert_eq!(web.namespace.ping(&dns.v6(), 5, 56), 5, "pods of one node");
    web.tcp(&dns, &dns.v4(), 1_000_000);
    assert!(ra.port("veth-dns", "tx_packets") >= 10, "by the workers");
    assert_eq!(ra.port("underlay", "drops"), 0);
    ra.assert_balanced();
    rb.assert_balanced();
}

#[test]
fn pods_reach_pods_with_one_worker() {
    two_nodes("count = 1", 1);
}

#[test]
fn pods_reach_pods_with_two_workers() {
    two_nodes("count = 2", 2);
}

/// Idle ports keep the frames that they once got: the last one still has its share.
#[test]
fn the_last_of_many_idle_pods_receives() {
    let mut bed = Testbed::new();
    let a = bed.node(1, 1);
    let pods: Vec<_> = (2..=15).map(|n| bed.pod(&a, &format!("p{n}"), n)).collect();
    let all: Vec<_> = pods.iter().collect();
    let router = bed.router(&a, &all, &[], "count = 1");
    let (first, last) = (&pods[0], &pods[13]);
    assert_eq!(last.namespace.ping(&first.v4(), 20, 56), 20);
    last.tcp(first, &first.v4(), 1_000_000);
    for port in router.ask("ports")["ports"].as_array().expect("ports") {
        assert_eq!(port["kernel"]["fill_ring_empty"], 0, "{port}");
    }
    assert!(router.port("veth-p15", "rx_packets") > 100, "by the worker");
}

/// SSH-like TCP, ping and foreign UDP to the node itself, whatever the router does.
#[test]
fn the_node_itself_stays_reachable_and_is_left_as_it_was() {
    let mut bed = Testbed::new();
    let (a, b) = (bed.node(1, 1), bed.node(2, 1));
    let web = bed.pod(&a, "web", 2);
    let xdp = |ns: &common::Namespace| ns.run("ip -d link show").matches("prog/xdp").count();
    let reachable = |when: &str| {
        assert_eq!(b.namespace.ping("192.0.2.1", 3, 56), 3, "ping, {when}");
        let listen = ["10", "socat", "-u", "TCP4-LISTEN:22,reuseaddr", "STDOUT"];
        let server = a
            .namespace
            .command("timeout")
            .args(listen)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("socat");
        wait_for("TCP to the node", || {
            let client = ["-c", "echo hello | timeout 3 socat - TCP4:192.0.2.1:22"];
            b.namespace
                .command("sh")
                .args(client)
                .output()
                .is_ok_and(|o| o.status.success())
        });
        assert_eq!(
            server.wait_with_output().expect("socat").stdout,
            b"hello\n",
            "TCP, {when}"
        );
    };
    let before = a.namespace.run("ethtool -k eth0");
    let setup = Setup {
        hooks: Some(Hooks::Xdp),
        ..Setup::default()
    };
    let mut router = bed.router_with(&a, &[&web], &borrowed(&peers(&[2])), &setup);
    assert_eq!(
        xdp(&a.namespace),
        2,
        "XDP on the underlay and on the pod's veth"
    );
    reachable("running");
    router.signal("-STOP");
    reachable("stopped with SIGSTOP");
    router.signal("-CONT");
    router.kill();
    assert_eq!(xdp(&a.namespace), 2, "the links are pinned");
    reachable("after SIGKILL");
    // A successor takes over, and stops cleanly.
    router.start();
    reachable("with a successor");
    router.stop();
    assert_eq!(xdp(&a.namespace), 2, "after a clean stop");
    reachable("after a clean stop");
    // What one has left, dead or stopped, can be removed without a successor.
    for end in [Daemon::stop, Daemon::kill] {
        router.start();
        end(&mut router);
        assert!(router.cleanup().contains("2 BPF links removed"));
        wait_for("the links to detach", || xdp(&a.namespace) == 0);
        let now = a.namespace.run("ethtool -k eth0");
        assert_eq!(now, before, "the interface is as before");
    }
}

#[test]
fn a_pod_that_restarts_is_found_again_and_no_frame_is_lost() {
    let mut bed = Testbed::new();
    let a = bed.node(1, 1);
    let (web, dns) = (bed.pod(&a, "web", 2), bed.pod(&a, "dns", 3));
    let router = bed.router(&a, &[&web, &dns], &[], "count = 1");
    assert_eq!(dns.namespace.ping(&web.v4(), 3, 56), 3);
    let whole = || {
        let worker = &router.ask("status")["workers"][0];
        let frames = |name: &str| worker[name].as_u64().expect("a number");
        frames("free_frames") + frames("ring_frames") == frames("frames")
    };
    wait_for("all frames to be accounted for", whole);
    for round in 0..5 {
        a.namespace.run("ip link delete veth-web");
        wait_for("the port to go down", || {
            router.ask("ports")["ports"][1]["state"] == "down"
        });
        web.plug(&a);
        wait_for("the port to come back", || {
            router.ask("ports")["ports"][1]["state"] == "up"
        });
        for address in [web.v4(), web.v6()] {
            // The pod may look for its gateway before it is there, and then again a second later.
            wait_for("the pod", || dns.namespace.ping(&address, 1, 56) == 1);
            assert_eq!(dns.namespace.ping(&address, 3, 56), 3, "round {round}");
        }
        wait_for("all frames to be accounted for", whole);
    }
    router.assert_balanced();
}

#[test]
fn a_pod_cannot_use_an_address_that_is_not_its_own() {
    let mut bed = Testbed::new();
    let a = bed.node(1, 1);
    let (web, dns) = (bed.pod(&a, "web", 2), bed.pod(&a, "dns", 3));
    let router = bed.router(&a, &[&web, &dns], &[], "count = 1");
    web.namespace.run("ip address add 10.244.1.99/32 dev eth0");
    let ping = [
        "-c",
        "3",
        "-i",
        "0.02",
        "-W",
        "1",
        "-I",
        "10.244.1.99",
        "10.244.1.3",
    ];
    let output = web
        .namespace
        .command("ping")
        .args(ping)
        .output()
        .expect("ping runs");
    assert!(!output.status.success(), "the forged pings were answered");
    let drops = router.ask("drops");
    assert_eq!(drops["drops"][0]["reason"], "spoofed-source", "{drops}");
    router.assert_balanced();
}

#[test]
fn an_idle_router_sleeps() {
    let mut bed = Testbed::new();
    let a = bed.node(1, 1);
    let router = bed.router(&a, &[], &[], "count = 1");
    let turns = || {
        router.ask("status")["workers"][0]["turns"]
            .as_u64()
            .expect("a number")
    };
    let (before, ticks) = (turns(), router.cpu_ticks());
    std::thread::sleep(std::time::Duration::from_secs(3));
    // Polling would make millions of turns; the heartbeat needs some tens.
    let made = turns() - before;
    assert!(made < 20_000, "{made} turns in three idle seconds");
    // 300 ticks pass; the aim is 6 (2% of a core), polling takes all.
    let used = router.cpu_ticks() - ticks;
    println!("{used} ticks of processor time in 300");
    assert!(used < 60, "{used} ticks of processor time in 300");
}
