//! The kernel's path beside the workers: what it carries always, and that it is kept as it
//! should be.

mod common;

use common::{Daemon, Node, Pod, Setup, Testbed, vtep_mac, wait_for};

/// Two nodes, a router and a pod on each.
struct Pair {
    bed: Testbed,
    nodes: [Node; 2],
    pods: [Pod; 2],
    routers: [Daemon; 2],
}

impl Pair {
    fn new(setup: &Setup<'_>) -> Self {
        let mut bed = Testbed::new();
        let (a, b) = (bed.node(1, 1), bed.node(2, 1));
        let (web, far) = (bed.pod(&a, "web", 2), bed.pod(&b, "web", 2));
        let ra = bed.router_with(&a, &[&web], &[(2, &vtep_mac(2))], setup);
        let rb = bed.router_with(&b, &[&far], &[(1, &vtep_mac(1))], setup);
        Self {
            bed,
            nodes: [a, b],
            pods: [web, far],
            routers: [ra, rb],
        }
    }
}

/// Packets that a device of a node has received and sent.
fn device_packets(node: &Node, device: &str) -> (u64, u64) {
    let count = |which: &str| {
        let file = format!("/sys/class/net/{device}/statistics/{which}_packets");
        // sysfs shows the network namespace of its mount: ask `ip` instead.
        let _ = file;
        let out = node.namespace.run(&format!("ip -j -s link show {device}"));
        let all: serde_json::Value = serde_json::from_str(&out).expect("JSON");
        all[0]["stats64"][which]["packets"]
            .as_u64()
            .expect("a count")
    };
    (count("rx"), count("tx"))
}

#[test]
fn what_concerns_a_host_takes_the_kernels_path() {
    let pair = Pair::new(&Setup::default());
    let [a, b] = &pair.nodes;
    let [web, far] = &pair.pods;
    let [ra, rb] = &pair.routers;
    for (near, remote, overlay) in [
        (web.v4(), far.v4(), "10.244.2.0"),
        (web.v6(), far.v6(), "fd00:10:244:2::"),
    ] {
        let (_, sent) = device_packets(a, "viaduct.1");
        assert_eq!(a.namespace.ping(&remote, 5, 56), 5, "host to {remote}");
        assert!(
            device_packets(a, "viaduct.1").1 >= sent + 5,
            "by its kernel"
        );
        assert!(rb.port("veth-web", "tx_packets") >= 5, "to a worker there");

        let (received, _) = device_packets(b, "viaduct.1");
        assert_eq!(web.namespace.ping(overlay, 5, 56), 5, "pod to {overlay}");
        assert!(
            device_packets(b, "viaduct.1").0 >= received + 5,
            "the other node's kernel got them"
        );
        let workers = ra.port("veth-web", "tx_packets");
        assert_eq!(a.namespace.ping(&near, 5, 56), 5, "host to its own pod");
        assert_eq!(ra.port("veth-web", "tx_packets"), workers, "no worker");
    }
    let workers = ra.port("veth-web", "rx_packets");
    assert_eq!(web.namespace.ping("192.0.2.1", 5, 56), 5, "to its node");
    assert_eq!(web.namespace.ping("10.244.1.0", 5, 56), 5, "to its node");
    assert_eq!(
        web.namespace.ping("192.0.2.2", 5, 56),
        5,
        "to the other node, whose answer comes by VXLAN"
    );
    assert_eq!(ra.port("veth-web", "rx_packets"), workers, "no worker");
    assert_eq!(ra.port("underlay", "drops"), 0);
    far.namespace.run("ip route get 10.244.1.2");
    web.tcp(far, &far.v4(), 100_000);
    ra.assert_balanced();
}

/// What an interface, the routes and neighbours look like, for comparison.
fn state(node: &Node) -> String {
    [
        "ip -details -j link show viaduct.1",
        "ip -4 route show proto 118",
        "ip -6 route show proto 118",
        "ip neighbour show dev viaduct.1 nud permanent",
        "ip -6 neighbour show proxy",
        "bridge fdb show dev viaduct.1",
        "ip address show dev veth-web",
        "nft list table inet viaduct",
    ]
    .iter()
    .map(|words| {
        let out = node.namespace.run(words);
        let mut lines: Vec<_> = out.lines().map(without_numbers).collect();
        lines.sort();
        lines.join("\n")
    })
    .collect()
}

/// A new device has a new number.
fn without_numbers(line: &str) -> String {
    line.split_once("\"flags\"")
        .map_or_else(|| line.to_owned(), |(_, rest)| rest.to_owned())
}

#[test]
fn what_somebody_removes_is_back_within_a_second() {
    let pair = Pair::new(&Setup::default());
    let node = &pair.nodes[0];
    let whole = state(node);
    let mac = vtep_mac(2);
    for harm in [
        "ip route del 10.244.2.0/24".to_owned(),
        "ip -6 route del fd00:10:244:2::/64".to_owned(),
        "ip route del unreachable 10.244.0.0/16".to_owned(),
        "ip route del 10.244.1.2".to_owned(),
        "ip neighbour del 10.244.2.0 dev viaduct.1".to_owned(),
        format!("bridge fdb del {mac} dev viaduct.1 dst 192.0.2.2"),
        "ip address del 10.244.1.0/32 dev viaduct.1".to_owned(),
        "ip address del 169.254.1.1/32 dev veth-web".to_owned(),
        "nft delete table inet viaduct".to_owned(),
        "nft flush chain inet viaduct translated".to_owned(),
        "ip link set viaduct.1 down".to_owned(),
        "ip link set viaduct.1 address 02:00:00:00:00:77".to_owned(),
        "ip link delete viaduct.1".to_owned(),
    ] {
        node.namespace.run(&harm);
        let begin = std::time::Instant::now();
        wait_for(&harm, || {
            node.namespace
                .command("ip")
                .args(["link", "show", "viaduct.1"])
                .output()
                .expect("ip")
                .status
                .success()
                && node
                    .namespace
                    .command("nft")
                    .args(["list", "table", "inet", "viaduct"])
                    .output()
                    .expect("nft")
                    .status
                    .success()
                && state(node) == whole
        });
        // Not a measurement: the next look at everything would come after fifteen seconds.
        assert!(begin.elapsed().as_secs() < 5, "{harm}");
    }
    assert_eq!(pair.pods[0].namespace.ping(&pair.pods[1].v4(), 3, 56), 3);
}

#[test]
fn a_clean_stop_leaves_all_to_the_kernel_and_cleanup_leaves_nothing() {
    let mut pair = Pair::new(&Setup::default());
    let before = pair.nodes[0]
        .namespace
        .run("sysctl -n net.ipv4.conf.veth-web.forwarding");
    assert_eq!(before.trim(), "1");
    pair.routers[0].stop();
    for (near, remote) in [
        (&pair.pods[0], pair.pods[1].v4()),
        (&pair.pods[0], pair.pods[1].v6()),
    ] {
        assert_eq!(near.namespace.ping(&remote, 5, 56), 5, "{remote}");
    }
    let said = pair.routers[0].cleanup();
    assert!(said.contains("VXLAN device"), "{said}");
    let node = &pair.nodes[0].namespace;
    assert_eq!(node.run("ip route show proto 118"), "");
    assert_eq!(node.run("ip -6 route show proto 118"), "");
    assert_eq!(node.run("ip -j link show type vxlan").trim(), "[]");
    assert_eq!(node.run("nft list tables"), "");
    assert!(!node.run("ip address show dev veth-web").contains("169.254"));
    let after = node.run("sysctl -n net.ipv4.conf.veth-web.forwarding net.ipv4.conf.eth0.forwarding net.ipv4.conf.veth-web.proxy_arp");
    assert_eq!(
        after.split_whitespace().collect::<Vec<_>>(),
        ["0", "0", "0"]
    );
    assert!(!pair.bed.directory.path().join("x.settings").exists());
}

#[test]
fn on_exit_remove_leaves_nothing_after_a_clean_stop() {
    let mut pair = Pair::new(&Setup {
        slow_path: "on_exit = \"remove\"",
        ..Setup::default()
    });
    pair.routers[0].stop();
    let node = &pair.nodes[0].namespace;
    assert_eq!(node.run("ip -j link show type vxlan").trim(), "[]");
    assert_eq!(node.run("ip route show proto 118"), "");
    assert_eq!(node.run("nft list tables"), "");
    let forwarding = node.run("sysctl -n net.ipv4.conf.veth-web.forwarding");
    assert_eq!(forwarding.trim(), "0");
}
