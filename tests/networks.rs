//! Several networks on a node, with the same addresses: no packet crosses, on either path.

mod common;

use common::{Daemon, Ears, Hooks, Namespace, Node, Pod, Setup, Testbed, vtep_mac, wait_for};

/// Two nodes; on each a pod of the default network and one of "red" that have the same addresses,
/// and on the first a pod that only the default network has.
struct Site {
    routers: [Daemon; 2],
    nodes: [Node; 2],
    default: [Pod; 2],
    red: [Pod; 2],
    single: Pod,
    bed: Testbed,
}

/// The other network of a node.
fn red(n: u8) -> String {
    let other = 3 - n;
    let mac = |n: u8| format!("02:00:00:00:02:{n:02x}");
    format!(
        "[[networks]]\nname = \"red\"\nvni = 2\nvtep_mac = \"{}\"\n\
         pod_prefixes = [\"10.244.{n}.0/24\", \"fd00:10:244:{n}::/64\"]\n\
         cluster_prefixes = [\"10.244.0.0/16\", \"fd00:10:244::/48\"]\n\
         [[pods]]\nnetwork = \"red\"\ninterface = \"veth-red\"\n\
         addresses = [\"10.244.{n}.2\", \"fd00:10:244:{n}::2\"]\n\
         [[routes]]\nnetwork = \"red\"\nvtep = \"192.0.2.{other}\"\nvtep_mac = \"{}\"\n\
         prefixes = [\"10.244.{other}.0/24\", \"fd00:10:244:{other}::/64\"]\n",
        mac(n),
        mac(other),
    )
}

impl Site {
    fn new() -> Self {
        let mut bed = Testbed::new();
        let nodes = [bed.node(1, 1), bed.node(2, 1)];
        let [a, b] = &nodes;
        let default = [bed.pod(a, "web", 2), bed.pod(b, "web", 2)];
        let red_pods = [bed.pod(a, "red", 2), bed.pod(b, "red", 2)];
        let single = bed.pod(a, "single", 3);
        let start = |node: &Node, pods: &[&Pod], peer: u8| {
            let more = red(node.n);
            let setup = Setup {
                more: &more,
                ..Setup::default()
            };
            bed.router_with(node, pods, &[(peer, &vtep_mac(peer))], &setup)
        };
        let routers = [
            start(a, &[&default[0], &single], 2),
            start(b, &[&default[1]], 1),
        ];
        Self {
            routers,
            nodes,
            default,
            red: red_pods,
            single,
            bed,
        }
    }

    /// A word from each pod of the first node to the second, by the same addresses: who hears it.
    fn heard(&self) -> [Vec<String>; 2] {
        let (to4, to6) = (self.default[1].v4(), self.default[1].v6());
        let hear = |pod: &Pod| pod.namespace.hear(&[&to4, &to6]);
        let ears = [hear(&self.default[1]), hear(&self.red[1])];
        for (pod, name) in [(&self.default[0], "default"), (&self.red[0], "red")] {
            for (from, to) in [(pod.v4(), &to4), (pod.v6(), &to6)] {
                pod.namespace.forge(&format!("say {from} {to} {name}"));
            }
        }
        // What comes late would be a word more.
        std::thread::sleep(std::time::Duration::from_millis(500));
        ears.map(|ears| ears.take())
    }
}

#[test]
fn networks_with_the_same_addresses_do_not_meet() {
    let mut site = Site::new();
    assert_eq!(
        site.heard(),
        [vec!["default"; 2], vec!["red"; 2]],
        "running"
    );
    for [near, far] in [&site.default, &site.red] {
        for address in [far.v4(), far.v6()] {
            assert_eq!(near.namespace.ping(&address, 3, 1000), 3, "{address}");
            near.tcp(far, &address, 200_000);
        }
    }
    let router = &site.routers[0];
    assert!(router.port("veth-red", "rx_packets") > 100, "by the worker");

    // What only the default network, the host or the outside has.
    let red = &site.red[0].namespace;
    for target in [
        site.single.v4(),
        site.single.v6(),
        "10.244.1.0".into(),
        "fd00:10:244:1::".into(),
        "192.0.2.1".into(),
        "fd00:99::1".into(),
        "192.0.2.2".into(),
    ] {
        assert_eq!(red.ping(&target, 2, 56), 0, "{target}");
    }
    assert!(router.dropped("no-route") >= 4, "a miss is a drop");
    let refused = || router.ask("status")["xdp"]["no_slow_path"].as_u64();
    assert!(
        refused() >= Some(6),
        "nothing for the kernel: {:?}",
        refused()
    );
    let host = &site.nodes[0].namespace;
    for pod in [&site.red[0].v4(), &site.red[0].v6()] {
        // The host means the default network's pod of this address.
        let before = router.port("veth-red", "tx_packets");
        assert_eq!(host.ping(pod, 2, 56), 2);
        assert_eq!(router.port("veth-red", "tx_packets"), before);
    }

    // Hooks carry on what is settled. Without them the kernel has the default network, and nobody the other.
    let settles = Hooks::usual() == Hooks::Settled;
    let red = if settles { vec!["red"; 2] } else { vec![] };
    for (what, end) in [
        ("killed", Daemon::kill as fn(&mut Daemon)),
        ("stopped", Daemon::stop),
    ] {
        end(&mut site.routers[0]);
        wait_for("a way without a router", || {
            let [from, to] = &site.default;
            from.namespace.ping(&to.v4(), 1, 56) == 1
        });
        // Until the last heartbeat is too old.
        std::thread::sleep(std::time::Duration::from_millis(600));
        assert_eq!(site.heard(), [vec!["default"; 2], red.clone()], "{what}");
        // And back.
        let back = site.red[1].namespace.ping(&site.red[0].v4(), 2, 56);
        assert_eq!(back, if settles { 2 } else { 0 }, "{what}");
        site.routers[0].start();
        assert_eq!(site.heard(), [vec!["default"; 2], vec!["red"; 2]]);
    }
}

/// Neighbour discovery that is for somebody beyond the link is none: the kernel forwards it with
/// whatever is inside. It is sent to every address of the first network and of the underlay.
#[test]
fn neighbour_discovery_is_no_way_out_of_a_network() {
    let mut site = Site::new();
    let beyond = site.bed.node(9, 1).namespace;
    let [a, b] = [&site.nodes[0].namespace, &site.nodes[1].namespace];
    for host in [a, b] {
        host.run("sysctl -qw net.ipv6.conf.all.forwarding=1");
    }
    let places = [
        &site.single.namespace,
        &site.default[0].namespace,
        &site.default[1].namespace,
        a,
        b,
        &beyond,
    ];
    let ears = places.map(Namespace::hear_icmpv6);
    let far = site.default[1].v6();
    let targets = [
        site.single.v6(),
        far.clone(),
        "fd00:10:244:1::".to_owned(),
        "fd00:99::1".to_owned(),
        "fd00:99::2".to_owned(),
        "fd00:99::9".to_owned(),
    ];
    let silent = |site: &Site, state: &str| {
        // From a pod of the other network with its own address; from one of the first with
        // another's. Neither may be heard anywhere.
        let host = &site.nodes[0].namespace;
        for (pod, from) in [
            (&site.red[0], site.red[0].v6()),
            (&site.single, far.clone()),
        ] {
            let (own, to) = (pod.namespace.mac("eth0"), host.mac(&pod.interface));
            let list = targets.join(" ");
            pod.namespace
                .forge(&format!("probe eth0 {own} {to} {from} leak {list}"));
        }
        // An honest word to each, behind which nothing comes late.
        let single = &site.single.namespace;
        let (own, to) = (single.mac("eth0"), host.mac(&site.single.interface));
        let (from, list) = (site.single.v6(), targets[1..].join(" "));
        single.forge(&format!("probe eth0 {own} {to} {from} leaktold {list}"));
        let told = ["leaktold-200-64-none".to_owned()];
        let mut heard: Vec<String> = ears[2..]
            .iter()
            .flat_map(|ears| ears.until(&told))
            .collect();
        heard.extend(ears[..2].iter().flat_map(Ears::take));
        heard.retain(|word| !word.starts_with("leaktold"));
        assert!(heard.is_empty(), "{state}: {heard:?}");
    };
    silent(&site, "running");
    site.routers[0].kill();
    silent(&site, "killed");
    site.routers[0].start();
    site.routers[0].stop();
    silent(&site, "stopped");
    // Discovery itself still works for it.
    let red = &site.red[0].namespace;
    red.run("ip -6 neighbour flush dev eth0");
    red.ping("fe80::1%eth0", 1, 56);
    let known = red.run("ip -6 neighbour show dev eth0");
    assert!(known.contains("lladdr"), "{known}");
}
