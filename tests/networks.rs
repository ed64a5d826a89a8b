//! Several networks on a node, with the same addresses: no packet crosses, on either path.

mod common;

use common::{Daemon, Node, Pod, Setup, Testbed, vtep_mac, wait_for};

/// Two nodes; on each a pod of the default network and one of "red" that have the same addresses,
/// and on the first a pod that only the default network has.
struct Site {
    routers: [Daemon; 2],
    nodes: [Node; 2],
    default: [Pod; 2],
    red: [Pod; 2],
    single: Pod,
    _bed: Testbed,
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
            _bed: bed,
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

    // Without workers the kernel has the default network, and nobody the other.
    site.routers[0].kill();
    wait_for("the kernel's path", || {
        let [from, to] = &site.default;
        from.namespace.ping(&to.v4(), 1, 56) == 1
    });
    assert_eq!(site.heard(), [vec!["default"; 2], vec![]], "killed");
    site.routers[0].start();
    assert_eq!(site.heard(), [vec!["default"; 2], vec!["red"; 2]]);
    site.routers[0].stop();
    assert_eq!(site.heard(), [vec!["default"; 2], vec![]], "stopped");
    // And back: the other node's pods of "red" have no way here either.
    assert_eq!(site.red[1].namespace.ping(&site.red[0].v4(), 2, 56), 0);
}
