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
        let [sent, _] = a.namespace.device_packets("viaduct.1");
        assert_eq!(a.namespace.ping(&remote, 5, 56), 5, "host to {remote}");
        assert!(
            a.namespace.device_packets("viaduct.1")[0] >= sent + 5,
            "by its kernel"
        );
        assert!(rb.port("veth-web", "tx_packets") >= 5, "to a worker there");

        let [_, received] = b.namespace.device_packets("viaduct.1");
        assert_eq!(web.namespace.ping(overlay, 5, 56), 5, "pod to {overlay}");
        assert!(
            b.namespace.device_packets("viaduct.1")[1] >= received + 5,
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
        "nft -s list table inet viaduct",
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
fn a_clean_stop_leaves_hooks_and_the_kernels_path_and_cleanup_leaves_nothing() {
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
    // Hooks of one that was killed are the successor's to remove.
    pair.routers[0].kill();
    pair.routers[0].start();
    pair.routers[0].stop();
    let pins = pair.bed.pins().join(&pair.routers[0].name);
    assert!(!pins.exists(), "no hook is left");
    let node = &pair.nodes[0].namespace;
    assert_eq!(node.run("ip -j link show type vxlan").trim(), "[]");
    assert_eq!(node.run("ip route show proto 118"), "");
    assert_eq!(node.run("nft list tables"), "");
    let forwarding = node.run("sysctl -n net.ipv4.conf.veth-web.forwarding");
    assert_eq!(forwarding.trim(), "0");
}

/// The MAC that a pod has for a neighbour.
fn neighbour(pod: &Pod, address: &str) -> String {
    let out = pod
        .namespace
        .run(&format!("ip -j neighbour show {address} dev eth0"));
    let all: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    all[0]["lladdr"].as_str().unwrap_or("none").to_owned()
}

fn host_mac(node: &Node, pod: &Pod) -> String {
    let out = node
        .namespace
        .run(&format!("ip -j link show {}", pod.interface));
    let all: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    all[0]["address"].as_str().expect("a MAC").to_owned()
}

/// Source MACs of echo replies that reach a pod while it pings.
fn reply_sources(pod: &Pod, address: &str) -> Vec<String> {
    let mut tcpdump = pod.namespace.command("tcpdump");
    tcpdump
        .args("-e -n -c 3 -i eth0 --immediate-mode".split(' '))
        .arg("icmp[0]==0 or (icmp6 and ip6[40]==129)")
        .stdin(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    let mut tcpdump = common::Process::start(tcpdump);
    // It takes its time to begin.
    wait_for("three captured replies", || {
        assert_eq!(pod.namespace.ping(address, 1, 56), 1, "{address}");
        tcpdump.has_ended()
    });
    let (said, _) = tcpdump.finish();
    // 12:00:00.000000 SOURCE > DESTINATION, ethertype ...
    let macs = said.lines().filter_map(|line| line.split(' ').nth(1));
    let mut macs: Vec<_> = macs.map(str::to_owned).collect();
    macs.sort();
    macs.dedup();
    macs
}

#[test]
fn pods_find_gateways_and_each_other_and_nothing_changes_with_the_path() {
    let mut bed = Testbed::new();
    let (a, b) = (bed.node(1, 1), bed.node(2, 1));
    let single = bed.pod(&a, "single", 5);
    let (one, two) = (bed.classic_pod(&a, "one", 2), bed.classic_pod(&a, "two", 3));
    let far = bed.classic_pod(&b, "far", 2);
    let mut ra = bed.router(
        &a,
        &[&single, &one, &two],
        &[(2, &vtep_mac(2))],
        "count = 1",
    );
    let _rb = bed.router(&b, &[&far], &[(1, &vtep_mac(1))], "count = 1");
    let gateway = host_mac(&a, &one);
    let pairs = [
        (&one, &two), // neighbours, as they think
        (&one, &single),
        (&single, &two),
        (&two, &far),
        (&far, &one),
        (&single, &far),
    ];
    let all = |how: &str| {
        for (from, to) in pairs {
            for address in [to.v4(), to.v6()] {
                assert_eq!(from.namespace.ping(&address, 3, 56), 3, "{address}, {how}");
            }
        }
        for address in [
            two.v4(),
            two.v6(),
            "10.244.1.1".into(),
            "fd00:10:244:1::1".into(),
        ] {
            assert_eq!(one.namespace.ping(&address, 1, 56), 1, "{address}, {how}");
            assert_eq!(neighbour(&one, &address), gateway, "{address}, {how}");
        }
        for address in ["169.254.1.1", "fe80::1"] {
            assert_eq!(
                neighbour(&single, address),
                host_mac(&a, &single),
                "{address}, {how}"
            );
        }
        for address in [two.v4(), far.v6()] {
            assert_eq!(
                reply_sources(&one, &address),
                [gateway.as_str()],
                "{address}, {how}"
            );
        }
    };
    let passed = ra.port("veth-one", "rx_packets");
    all("by workers");
    assert!(
        ra.port("veth-one", "rx_packets") > passed + 10,
        "by workers"
    );
    ra.kill();
    all("by the kernel");
    ra.start();
    assert_eq!(one.namespace.ping(&two.v4(), 3, 56), 3);
}

/// flannel's device for node 1, with these differences.
fn flannel(node: &Node, mac: &str, more: &str) {
    let host = &node.namespace;
    host.run(&format!(
        "ip link add flannel.1 address {mac} mtu 1450 type vxlan id 1 dstport 8472 local 192.0.2.1 dev eth0 {more}"
    ));
    host.run("ip link set flannel.1 up");
}

#[test]
fn a_device_that_fits_is_adopted_and_left_behind() {
    let mut bed = Testbed::new();
    let (a, b) = (bed.node(1, 1), bed.node(2, 1));
    let (web, far) = (bed.pod(&a, "web", 2), bed.pod(&b, "web", 2));
    flannel(&a, &vtep_mac(1), "nolearning");
    // An entry of flannel's own, for a node that is not Viaduct's business.
    a.namespace
        .run("bridge fdb append 02:00:00:00:07:07 dev flannel.1 dst 192.0.2.77");
    // Nor is what some other control plane has learned on a device of its own.
    a.namespace
        .run("ip link add other type vxlan id 9 dstport 9999 local 192.0.2.1 dev eth0 nolearning");
    a.namespace
        .run("bridge fdb append 02:00:00:00:08:08 dev other dst 192.0.2.88 extern_learn");
    let mut ra = bed.router(&a, &[&web], &[(2, &vtep_mac(2))], "count = 1");
    let _rb = bed.router(&b, &[&far], &[(1, &vtep_mac(1))], "count = 1");
    let path = &ra.ask("status")["slow_path"];
    assert_eq!(path["device"], "flannel.1");
    assert_eq!(path["adopted"], true);
    assert_eq!(path["problems"], serde_json::json!([]));
    assert_eq!(a.namespace.ping(&far.v4(), 3, 56), 3, "the host, by it");
    ra.stop();
    assert_eq!(web.namespace.ping(&far.v6(), 3, 56), 3, "the pod, by it");
    ra.cleanup();
    let forwarding = a.namespace.run("bridge fdb show dev flannel.1");
    assert!(forwarding.contains("192.0.2.77"), "not ours: {forwarding}");
    assert!(!forwarding.contains("192.0.2.2 "), "ours: {forwarding}");
    let others = a.namespace.run("bridge fdb show dev other");
    assert!(others.contains("192.0.2.88"), "not ours: {others}");
    assert_eq!(a.namespace.run("ip route show proto 118"), "");
}

/// Starts a router that must refuse; what it says.
fn refused(bed: &Testbed, node: &Node, pod: &str) -> String {
    let config = format!(
        "[node]\nname = \"refused\"\n[underlay]\ninterface = \"eth0\"\n\
         [runtime]\ndirectory = \"{}\"\nbpffs = \"{}\"\n\
         [[networks]]\nname = \"default\"\nvni = 1\nvtep_mac = \"{}\"\n\
         pod_prefixes = [\"10.244.1.0/24\"]\ncluster_prefixes = [\"10.244.0.0/16\"]\n\
         [[pods]]\ninterface = \"{pod}\"\naddresses = [\"10.244.1.2\"]\n",
        bed.directory.path().display(),
        bed.pins().display(),
        vtep_mac(1),
    );
    let file = bed.directory.path().join("refused.toml");
    std::fs::write(&file, config).expect("the configuration is written");
    let mut command = node.namespace.command("timeout");
    command
        .args(["10", env!("CARGO_BIN_EXE_viaduct"), "run", "--config"])
        .arg(&file);
    let output = command.output().expect("viaduct runs");
    assert_eq!(output.status.code(), Some(1), "refused");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// All of a node's network state that a failed start might have touched.
fn everything(node: &Node) -> String {
    let settings = "sysctl net.ipv4.conf.eth0.forwarding net.ipv4.conf.eth0.rp_filter \
                    net.ipv6.conf.eth0.forwarding net.ipv6.conf.eth0.accept_ra \
                    net.ipv6.conf.all.forwarding net.ipv6.conf.eth0.force_forwarding";
    [
        "ip link show",
        "ip address show",
        "ip route show",
        "ip -6 route show",
        "nft -s list ruleset",
        settings,
    ]
    .iter()
    .map(|words| node.namespace.run(words))
    .collect()
}

#[test]
fn what_does_not_fit_is_named_and_a_failed_start_leaves_the_host_as_it_was() {
    let mut bed = Testbed::new();
    let a = bed.node(1, 1);
    let _web = bed.pod(&a, "web", 2);
    flannel(&a, "02:00:00:00:07:07", "learning");
    let before = everything(&a);
    let says = refused(&bed, &a, "veth-web");
    for part in ["flannel.1", "it learns", "02:00:00:00:07:07", "vtep_mac "] {
        assert!(says.contains(part), "{part}: {says}");
    }
    assert_eq!(everything(&a), before);
    a.namespace.run("ip link delete flannel.1");
    a.namespace.run("ip link add viaduct.1 type bridge");
    let says = refused(&bed, &a, "veth-web");
    assert!(
        says.contains("viaduct.1") && says.contains("slow_path.device"),
        "{says}"
    );
    a.namespace.run("ip link delete viaduct.1");
}

/// What a dead router left is put right by the next one, also where the configuration differs.
#[test]
fn a_successor_puts_right_what_a_dead_router_left() {
    let mut bed = Testbed::new();
    let (a, b) = (bed.node(1, 1), bed.node(2, 1));
    let (web, app) = (bed.pod(&a, "web", 2), bed.pod(&a, "app", 3));
    let far = bed.pod(&b, "far", 2);
    let _rb = bed.router(&b, &[&far], &[(1, &vtep_mac(1))], "count = 1");
    let mut before = bed.router(
        &a,
        &[&web, &app],
        &[(2, &vtep_mac(2)), (7, &vtep_mac(7))],
        "count = 1",
    );
    before.kill();
    let node = &a.namespace;
    assert!(node.run("ip route").contains("10.244.7.0/24"));
    let after = bed.router(&a, &[&web], &[(2, &vtep_mac(2))], "count = 1");
    wait_for("the stale entries to go", || {
        !node.run("ip route").contains("10.244.7.0/24")
    });
    assert!(
        !node
            .run("bridge fdb show dev viaduct.1")
            .contains("192.0.2.7 ")
    );
    assert!(
        !node
            .run("ip neighbour show dev viaduct.1")
            .contains("10.244.7.0")
    );
    assert!(
        !node
            .run("ip address show dev veth-app")
            .contains("169.254.1.1"),
        "no longer a pod"
    );
    assert!(
        !node.run("ip link show veth-app").contains("xdp"),
        "no longer a pod"
    );
    let forwarding = |pod: &str| node.run(&format!("sysctl -n net.ipv4.conf.{pod}.forwarding"));
    assert_eq!(forwarding("veth-app").trim(), "0", "no longer a pod");
    assert_eq!(forwarding("veth-web").trim(), "1");
    assert_eq!(web.namespace.ping(&far.v4(), 3, 56), 3);
    assert!(after.port("veth-web", "rx_packets") >= 3);
}

/// What somebody else has in a wanted entry's place stays, and is said.
#[test]
fn what_is_somebody_elses_stays_and_is_named() {
    let mut bed = Testbed::new();
    let a = bed.node(1, 1);
    let web = bed.pod(&a, "web", 2);
    flannel(&a, &vtep_mac(1), "nolearning");
    let other = "02:00:00:00:07:07";
    a.namespace.run(&format!(
        "ip neighbour add 10.244.2.0 lladdr {other} dev flannel.1 nud permanent"
    ));
    let router = bed.router(&a, &[&web], &[(2, &vtep_mac(2))], "count = 1");
    wait_for("the neighbour to be named", || {
        let problems = router.ask("status")["slow_path"]["problems"].to_string();
        problems.contains(&format!(
            "there is neighbour 10.244.2.0 {other} on flannel.1"
        ))
    });
    let neighbours = a.namespace.run("ip neighbour show dev flannel.1");
    assert!(neighbours.contains(other), "{neighbours}");
}
