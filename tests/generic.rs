//! XDP after the driver: asked for, or because the driver has no XDP.

mod common;

use common::{Daemon, Hooks, Node, Pod, Setup, Testbed, vtep_mac};

const FALLBACK: &str = "XDP runs in generic mode, which is slower";

fn router(bed: &Testbed, node: &Node, pod: &Pod, peer: u8, underlay: &str) -> Daemon {
    let setup = Setup {
        workers: "count = 1",
        underlay,
        hooks: Some(Hooks::Xdp),
        ..Setup::default()
    };
    bed.router_with(node, &[pod], &[(peer, &vtep_mac(peer))], &setup)
}

/// The XDP mode of the underlay, as `status` says.
fn mode(router: &Daemon) -> String {
    let status = router.ask("status");
    let mode = status["underlay"]["device"]["xdp"].as_str();
    mode.expect("a mode").to_owned()
}

fn carries(web: &Pod, far: &Pod, router: &Daemon) {
    let before = router.port("underlay", "rx_packets");
    for (there, largest) in [(far.v4(), 1422), (far.v6(), 1402)] {
        for size in [1, 56, largest] {
            let answered = web.namespace.ping(&there, 5, size);
            assert_eq!(answered, 5, "{there} with {size} bytes");
        }
        web.tcp(far, &there, 300_000);
    }
    let carried = router.port("underlay", "rx_packets") - before;
    assert!(carried >= 30, "by the workers: {carried}");
}

#[test]
fn generic_mode_is_used_when_asked_for_and_carries_traffic() {
    let mut bed = Testbed::new();
    let (a, b) = (bed.node(1, 1), bed.node(2, 1));
    let (web, far) = (bed.pod(&a, "web", 2), bed.pod(&b, "web", 2));
    // What GRO puts together is longer than a frame.
    a.namespace.run("ethtool -K eth0 gro on");
    let mut ra = router(&bed, &a, &web, 2, "xdp = \"generic\"");
    let rb = router(&bed, &b, &far, 1, "xdp = \"generic\"");
    for router in [&ra, &rb] {
        assert_eq!(mode(router), "generic");
        assert!(!router.log().contains(FALLBACK), "it was asked for");
    }
    // Generic XDP at a pod's veth leaves the pod its segmentation offload, whose
    // packets of up to 64 KiB fit no frame: TCP would go on by retransmissions.
    for pod in [&web, &far] {
        pod.namespace.run("ethtool -K eth0 tso off gso off");
    }
    let gro = || {
        let all = a.namespace.run("ethtool -k eth0");
        all.contains("generic-receive-offload: on")
    };
    assert!(!gro(), "GRO is on in front of generic XDP");
    carries(&web, &far, &ra);
    ra.stop();
    assert!(gro(), "it was on before");
}

/// Puts a device of a kind without native XDP between node and underlay.
fn falls_back(make: &str, join: Option<&str>) {
    let mut bed = Testbed::new();
    let (a, b) = (bed.node(1, 1), bed.node(2, 1));
    let node = &a.namespace;
    node.run("ip link set eth0 down");
    node.run("ip address flush dev eth0");
    node.run("ip link set eth0 name phys0");
    node.run(make);
    if let Some(join) = join {
        node.run(join);
    }
    node.run("ip link set phys0 up");
    node.run("ip address add 192.0.2.1/24 dev eth0");
    node.run("ip link set eth0 up");
    let (web, far) = (bed.pod(&a, "web", 2), bed.pod(&b, "web", 2));
    let generic = router(&bed, &a, &web, 2, "");
    let native = router(&bed, &b, &far, 1, "");
    assert_eq!(mode(&generic), "generic");
    assert!(generic.log().contains(FALLBACK), "{}", generic.log());
    assert_eq!(mode(&native), "native");
    assert!(!native.log().contains(FALLBACK), "{}", native.log());
    carries(&web, &far, &generic);
    carries(&far, &web, &native);
}

#[test]
fn an_underlay_on_a_bridge_falls_back_to_generic_mode_with_a_warning() {
    let join = "ip link set phys0 master eth0";
    falls_back("ip link add eth0 type bridge", Some(join));
}

#[test]
fn an_underlay_on_a_macvlan_falls_back_to_generic_mode_with_a_warning() {
    falls_back(
        "ip link add eth0 link phys0 type macvlan mode private",
        None,
    );
}
