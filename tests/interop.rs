//! Nodes of other makes: the kernel's own VXLAN device, and Open vSwitch.

mod common;

use common::{
    Daemon, Hooks, Node, OpenVswitch, Pod, Testbed, Vxlan, captured_lengths, vtep_mac, wait_for,
};

/// Bytes of a stream.
const STREAM: usize = 500_000;

/// Everything both ways between two pods, IPv4 and IPv6.
fn both_ways(one: &Pod, other: &Pod) {
    for (from, to) in [(one, other), (other, one)] {
        for address in [to.v4(), to.v6()] {
            // Whoever has to look for the other first may lose the first packet.
            wait_for(&address, || from.namespace.ping(&address, 1, 56) == 1);
            for size in [1, 1000, 1400] {
                let answered = from.namespace.ping(&address, 3, size);
                assert_eq!(answered, 3, "{address}, {size} bytes");
            }
            from.tcp(to, &address, STREAM);
            let answers = from.udp(to, &address, &[1, 64, 700, 1400]);
            assert_eq!(answers.answered, 4, "{address}: {answers:?}");
        }
    }
}

/// Runs `work`, and has the workers of this node have carried its packets, not the kernel.
fn by_workers(router: &Daemon, node: &Node, pod: &Pod, work: impl FnOnce()) {
    let workers = || ["rx_bytes", "tx_bytes"].map(|way| router.port(&pod.interface, way));
    let (before, kernel) = (workers(), node.namespace.device_packets("viaduct.1"));
    work();
    for (before, after) in before.iter().zip(&workers()) {
        assert!(after - before > 2 * STREAM as u64, "{before} {after}");
    }
    router.assert_no_drops_of_workers();
    // There hooks have the kernel's device take apart what is merged or has a checksum.
    if Hooks::usual() == Hooks::Settled {
        return;
    }
    // A device that floods tells others of its neighbour discovery, too.
    let by_kernel = node.namespace.device_packets("viaduct.1");
    let few = |n: usize| by_kernel[n] < kernel[n] + 20;
    assert!(few(0) && few(1), "{kernel:?} {by_kernel:?}");
}

/// A NIC does the checksums that hooks and the kernel leave to it; a veth leaves them undone, and Open vSwitch drops what
/// has a wrong one.
fn do_checksums(node: &Node) {
    node.namespace.run("ethtool -K eth0 tx off");
}

/// A pod of a node whose kernel has the VXLAN device.
fn kernel_peer(vxlan: Vxlan<'_>) {
    let mut bed = Testbed::new();
    let (a, k) = (bed.node(1, 1), bed.node(9, 1));
    let (web, far) = (bed.pod(&a, "web", 2), bed.pod(&k, "web", 2));
    k.be_kernel_peer(&far, &[1], vxlan);
    let router = bed.router(&a, &[&web], &[(9, &vtep_mac(9))], "count = 1");
    let device = vxlan.device();
    let before = k.namespace.device_bytes(device);
    let filters = ["vxlan", "_ws.malformed || ip.checksum.status == \"Bad\""];
    let [tunnelled, bad] = captured_lengths(&bed, &a, filters, || {
        by_workers(&router, &a, &web, || both_ways(&web, &far));
        // The kernel node's host: its checksums arrive partial inside VXLAN.
        for address in [web.v4(), web.v6()] {
            assert_eq!(k.namespace.ping(&address, 3, 56), 3, "host to {address}");
        }
    });
    let after = k.namespace.device_bytes(device);
    for (before, after) in before.iter().zip(&after) {
        assert!(after - before > 2 * STREAM as u64, "{before} {after}");
    }
    let tunnelled: usize = tunnelled.iter().sum();
    assert!(
        tunnelled > 4 * STREAM,
        "the capture has the tunnel's packets"
    );
    assert_eq!(bad.len(), 0, "malformed packets");
    let learnt = k.namespace.run(&format!("bridge fdb show dev {device}"));
    let ours = learnt.lines().filter(|line| {
        line.contains(&vtep_mac(1)) && line.contains("dst 192.0.2.1") && !line.contains("permanent")
    });
    assert_eq!(ours.count() > 0, vxlan.learning, "{learnt}");
}

#[test]
fn a_kernel_peer_set_up_as_flannel_does() {
    kernel_peer(Vxlan::default());
}

#[test]
fn a_kernel_peer_that_learns() {
    kernel_peer(Vxlan {
        learning: true,
        ..Vxlan::default()
    });
}

/// Its datapath is in user space, and it alone had the packets.
fn by_open_vswitch(ovs: &OpenVswitch, node: &Node, work: impl FnOnce()) {
    let before = ovs.packets();
    work();
    // It counts packets of its flows some time after they have passed.
    wait_for("Open vSwitch to have had the packets", || {
        let after = ovs.packets();
        after[0] > before[0] + 300 && after[1] > before[1] + 300
    });
    let datapath = ovs.datapath();
    assert!(datapath.contains("netdev@ovs-netdev"), "{datapath}");
    let kernels = node.namespace.run("ip -j link show type vxlan");
    assert_eq!(kernels.trim(), "[]", "no device of the kernel");
}

#[test]
fn open_vswitch_with_af_xdp() {
    let mut bed = Testbed::new();
    let (a, o) = (bed.node(1, 1), bed.node(3, 1));
    let (web, far) = (bed.pod(&a, "web", 2), bed.pod(&o, "far", 2));
    do_checksums(&a);
    let ovs = OpenVswitch::start(&bed, &o, &far, &[1], "afxdp");
    let router = bed.router(&a, &[&web], &[(3, &vtep_mac(3))], "count = 1");
    by_open_vswitch(&ovs, &o, || {
        by_workers(&router, &a, &web, || both_ways(&web, &far));
    });
    assert!(
        ovs.datapath().contains("eth0 1/1: (afxdp"),
        "{}",
        ovs.datapath()
    );
}

/// A cluster of one node of each make: every pod reaches every other.
#[test]
fn viaduct_flannel_and_open_vswitch_together() {
    let mut bed = Testbed::new();
    let (a, k, o) = (bed.node(1, 1), bed.node(2, 1), bed.node(3, 1));
    let pods = [
        bed.pod(&a, "viaduct", 2),
        bed.pod(&k, "flannel", 2),
        bed.pod(&o, "ovs", 2),
    ];
    let [ours, kernels, switchs] = &pods;
    k.be_kernel_peer(kernels, &[1, 3], Vxlan::default());
    do_checksums(&k);
    do_checksums(&a);
    let ovs = OpenVswitch::start(&bed, &o, switchs, &[1, 2], "system");
    let peers = [2, 3].map(|n| (n, vtep_mac(n)));
    let peers = [(peers[0].0, &*peers[0].1), (peers[1].0, &*peers[1].1)];
    let router = bed.router(&a, &[ours], &peers, "count = 1");
    by_workers(&router, &a, ours, || {
        both_ways(ours, kernels);
        by_open_vswitch(&ovs, &o, || both_ways(ours, switchs));
    });
    // The others among themselves: what they have in common is the wire format.
    both_ways(kernels, switchs);
}
