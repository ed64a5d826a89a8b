//! Interfaces of other kinds than a veth as the underlay: with hooks in tc any that carries Ethernet frames will do.

mod common;

use common::{Node, Pair, Setup, Testbed, vtep_mac, wait_for};

/// Makes the node's own interface the lower one of another that has its name and addresses.
fn put_above(node: &Node, make: &str) {
    let (host, n) = (&node.namespace, node.n);
    host.run("ip link set eth0 down");
    host.run("ip address flush dev eth0");
    host.run("ip link set eth0 name lower");
    host.run(make);
    host.run("ip link set lower up");
    host.run("ip link set eth0 up");
    host.run(&format!("ip address add 192.0.2.{n}/24 dev eth0"));
    host.run(&format!("ip address add fd00:99::{n}/64 dev eth0 nodad"));
}

fn bridge(node: &Node) {
    put_above(node, "ip link add eth0 type bridge forward_delay 0");
    node.namespace.run("ip link set lower master eth0");
}

fn macvlan(node: &Node) {
    put_above(node, "ip link add eth0 link lower type macvlan mode bridge");
}

#[test]
fn hooks_carry_by_a_bridge_and_by_a_macvlan() {
    for (kind, prepare) in [("bridge", bridge as fn(&Node)), ("macvlan", macvlan)] {
        let pair = Pair::with_queues(&Setup::default(), 1, 1, prepare);
        let [web, far] = &pair.pods;
        let kernel = pair.by_kernel();
        for (from, to) in [(web, far), (far, web)] {
            for address in [to.v4(), to.v6()] {
                assert_eq!(
                    from.namespace.ping(&address, 3, 1000),
                    3,
                    "{kind}, {address}"
                );
                from.tcp(to, &address, 500_000);
            }
        }
        for router in &pair.routers {
            assert!(router.port("veth-web", "rx_packets") > 350, "{kind}");
            router.assert_balanced();
        }
        assert_eq!(pair.by_kernel(), kernel, "{kind}: nothing was the kernel's");
    }
}

/// WireGuard, PPP, TUN: there is no Ethernet header.
#[test]
fn what_carries_no_ethernet_frames_is_refused_by_name() {
    let mut bed = Testbed::new();
    let node = bed.node(1, 1);
    let (web, app) = (bed.pod(&node, "web", 2), bed.pod(&node, "app", 3));
    put_above(&node, "ip tuntap add mode tun name eth0");
    let router = bed.router(&node, &[&web, &app], &[(2, &vtep_mac(2))], "count = 1");
    let problem = || router.ask("status")["underlay"]["problem"].to_string();
    assert!(
        problem().contains("as tun interfaces have none"),
        "{}",
        problem()
    );
    let hooked = |name: &str| node.namespace.run(&format!("ip -d link show {name}"));
    assert!(!hooked("eth0").contains("xdp"));
    assert_eq!(web.namespace.ping(&app.v4(), 3, 56), 3, "on the node");
    // An Ethernet interface in its place is taken up.
    node.namespace.run("ip link delete eth0");
    node.namespace.run("ip link set lower down");
    node.namespace.run("ip link set lower name eth0");
    node.namespace.run("ip link set eth0 up");
    node.namespace.run("ip address add 192.0.2.1/24 dev eth0");
    wait_for("the underlay", || problem() == "null");
}
