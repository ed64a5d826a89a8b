//! Ways to other nodes follow what the kernel knows of its neighbours.

mod common;

use common::{Testbed, vtep_mac, wait_for};

#[test]
fn a_node_that_is_not_there_yet_is_looked_for_and_found() {
    let mut bed = Testbed::new();
    let a = bed.node(1, 1);
    let web = bed.pod(&a, "web", 2);
    let ra = bed.router(&a, &[&web], &[(2, &vtep_mac(2))], "count = 1");
    assert_eq!(web.namespace.ping("10.244.2.2", 3, 56), 0);
    assert_eq!(ra.dropped("next-hop-unresolved"), 3, "dropped, not queued");

    let b = bed.node(2, 1);
    let far = bed.pod(&b, "web", 2);
    let _rb = bed.router(&b, &[&far], &[(1, &vtep_mac(1))], "count = 1");
    wait_for("the route to be resolved", || {
        ra.ask("routes")["routes"][0]["state"] == "resolved"
    });
    assert_eq!(web.namespace.ping(&far.v4(), 3, 56), 3);
}

#[test]
fn a_node_that_changes_its_mac_is_followed_both_ways() {
    let mut bed = Testbed::new();
    let (a, b) = (bed.node(1, 1), bed.node(2, 1));
    let (web, far) = (bed.pod(&a, "web", 2), bed.pod(&b, "web", 2));
    let ra = bed.router(&a, &[&web], &[(2, &vtep_mac(2))], "count = 1");
    let rb = bed.router(&b, &[&far], &[(1, &vtep_mac(1))], "count = 1");
    assert_eq!(web.namespace.ping(&far.v4(), 3, 56), 3);

    // As a replaced NIC does: a new address, announced.
    let mac = "02:00:00:00:0b:0b";
    b.namespace
        .run("sysctl -qw net.ipv4.conf.eth0.arp_notify=1");
    b.namespace.run("ip link set eth0 down");
    b.namespace.run(&format!("ip link set eth0 address {mac}"));
    b.namespace.run("ip link set eth0 up");
    wait_for("the new address to be known", || {
        ra.ask("routes")["routes"][0]["mac"] == mac
    });
    let before = rb.port("underlay", "tx_packets");
    wait_for("pings to pass again", || {
        web.namespace.ping(&far.v4(), 1, 56) == 1
    });
    assert_eq!(far.namespace.ping(&web.v6(), 3, 56), 3);
    assert!(
        rb.port("underlay", "tx_packets") > before + 3,
        "by the workers"
    );
    let frames = a.namespace.run("ip -j neighbour show 192.0.2.2 dev eth0");
    assert!(frames.contains(mac), "{frames}");
}
