//! The underlay over IPv6, beside IPv4, and mixed by peer.

mod common;

use common::{Daemon, Node, Pod, Setup, Testbed, Vxlan, captured_lengths, vtep_mac};

/// Bytes of a stream.
const STREAM: usize = 500_000;

/// Bytes of packets of these lengths.
fn bytes(lengths: &[usize]) -> usize {
    lengths.iter().sum()
}

/// Everything between two pods, inner IPv4 and IPv6, and that workers carried it.
fn all_between(near: &Pod, far: &Pod, router: &Daemon) {
    let before = router.port(&near.interface, "rx_packets");
    for address in [far.v4(), far.v6()] {
        // The longest packet that fits is shorter by 20 bytes than over IPv4; with these the
        // sender learns it.
        for size in [1, 1000, 1380] {
            assert_eq!(
                near.namespace.ping(&address, 3, size),
                3,
                "{address}, {size} bytes"
            );
        }
        near.tcp(far, &address, STREAM);
    }
    assert!(
        router.port(&near.interface, "rx_packets") > before + 200,
        "by the worker"
    );
}

#[test]
fn all_four_combinations_and_a_mix_of_peers() {
    let mut bed = Testbed::new();
    let (a, b, c) = (bed.node(1, 1), bed.node(2, 1), bed.node(3, 1));
    let (web, far, other) = (
        bed.pod(&a, "web", 2),
        bed.pod(&b, "far", 2),
        bed.pod(&c, "other", 2),
    );
    let to = |over_v6| Setup {
        over_v6,
        ..Setup::default()
    };
    let macs = [1, 2, 3].map(vtep_mac);
    let peer = |n: u8| (n, macs[usize::from(n) - 1].as_str());
    // b is reached over IPv6, c over IPv4.
    let ra = bed.router_with(&a, &[&web], &[peer(2), peer(3)], &to(&[2]));
    let rb = bed.router_with(&b, &[&far], &[peer(1), peer(3)], &to(&[1, 3]));
    let rc = bed.router_with(&c, &[&other], &[peer(1), peer(2)], &to(&[2]));
    let counts = captured_lengths(
        &bed,
        &a,
        [
            "ipv6.dst == fd00:99::2 && vxlan && udp.checksum != 0",
            "ipv6.dst == fd00:99::1 && vxlan",
            "ip.dst == 192.0.2.3 && vxlan",
            "ip.dst == 192.0.2.2 && vxlan",
            "_ws.malformed || ip.checksum.status == \"Bad\" || icmpv6.checksum.status == \"Bad\"",
        ],
        || {
            all_between(&web, &far, &ra);
            all_between(&web, &other, &ra);
        },
    );
    for sent in [&counts[0], &counts[2]] {
        assert!(bytes(sent) > 2 * STREAM, "{counts:?}");
    }
    // Echo replies; how often the receiver of a stream acknowledges is its own affair.
    assert!(counts[1].len() > 18, "{counts:?}");
    assert_eq!(counts[3].len(), 0, "over IPv4 to b");
    assert_eq!(counts[4].len(), 0, "malformed");
    all_between(&far, &other, &rb);
    let routes = ra.ask("routes");
    assert_eq!(routes["routes"][0]["vtep"], "fd00:99::2");
    assert_eq!(routes["routes"][0]["state"], "resolved");
    // Host to pod, by the kernel's device of the peer's family.
    for address in [far.v4(), far.v6(), other.v4(), other.v6()] {
        assert_eq!(a.namespace.ping(&address, 3, 56), 3, "host to {address}");
    }
    for router in [&ra, &rb, &rc] {
        assert_eq!(router.port("underlay", "drops"), 0);
    }
}

#[test]
fn the_kernel_carries_it_when_the_router_is_gone() {
    let mut bed = Testbed::new();
    let (a, b) = (bed.node(1, 1), bed.node(2, 1));
    let (web, far) = (bed.pod(&a, "web", 2), bed.pod(&b, "far", 2));
    let setup = Setup {
        over_v6: &[1, 2],
        ..Setup::default()
    };
    let mut ra = bed.router_with(&a, &[&web], &[(2, &vtep_mac(2))], &setup);
    let _rb = bed.router_with(&b, &[&far], &[(1, &vtep_mac(1))], &setup);
    let stream = web.tcp_stream(&far, &far.v4(), 5003);
    ra.kill();
    stream.goes_on();
    let sent = || {
        let out = a.namespace.run("ip -j -s link show viaduct6.1");
        let all: serde_json::Value = serde_json::from_str(&out).expect("JSON");
        all[0]["stats64"]["tx"]["packets"]
            .as_u64()
            .expect("a count")
    };
    let before = sent();
    stream.goes_on();
    assert!(sent() > before + 20, "by the kernel's device over IPv6");
    assert_eq!(web.namespace.ping(&far.v6(), 3, 56), 3);
    ra.start();
    stream.goes_on();
    let before = ra.port("veth-web", "rx_packets");
    assert_eq!(web.namespace.ping(&far.v6(), 3, 56), 3);
    assert!(
        ra.port("veth-web", "rx_packets") >= before + 3,
        "by the worker"
    );
}

/// A router whose kernel peer has these options, and whose routes have these lines.
fn with_kernel_peer(options: &str, route: &str) -> (Testbed, Node, Pod, Pod, Daemon) {
    let mut bed = Testbed::new();
    let a = bed.node(1, 1);
    let web = bed.pod(&a, "web", 2);
    let k = bed.node(9, 1);
    let far = bed.pod(&k, "far", 2);
    let vxlan = Vxlan {
        over_v6: true,
        options,
        ..Vxlan::default()
    };
    k.be_kernel_peer(&far, &[1], vxlan);
    let setup = Setup {
        over_v6: &[9],
        route,
        ..Setup::default()
    };
    let router = bed.router_with(&a, &[&web], &[(9, &vtep_mac(9))], &setup);
    (bed, a, web, far, router)
}

#[test]
fn a_kernel_peer_that_takes_zero_checksums() {
    let route = "udp_checksum6 = \"zero\"";
    let (bed, a, web, far, router) = with_kernel_peer("udp6zerocsumtx udp6zerocsumrx", route);
    let [zero, computed] = captured_lengths(
        &bed,
        &a,
        [
            "ipv6.dst == fd00:99::9 && vxlan && udp.checksum == 0",
            "ipv6.dst == fd00:99::9 && vxlan && udp.checksum != 0",
        ],
        || all_between(&web, &far, &router),
    );
    assert!(bytes(&zero) > 2 * STREAM, "{zero:?}");
    assert_eq!(computed.len(), 0);
    far.tcp(&web, &web.v6(), 200_000);
}

/// A kernel takes no UDP over IPv6 without a checksum unless it was told to (RFC 6936): what
/// flannel makes is not. Both the workers and the kernel's path reach it without being told.
#[test]
fn a_kernel_peer_that_wants_checksums() {
    let zero = "udp_checksum6 = \"zero\"";
    let (_bed, _a, web, far, _router) = with_kernel_peer("", zero);
    assert_eq!(web.namespace.ping(&far.v4(), 3, 56), 0, "zero is refused");
    let (bed, a, web, far, mut router) = with_kernel_peer("", "");
    // A NIC does the checksums that are left to it; a veth leaves them undone.
    a.namespace.run("ethtool -K eth0 tx off");
    let counts = captured_lengths(
        &bed,
        &a,
        [
            "ipv6.dst == fd00:99::9 && vxlan && udp.checksum != 0",
            "ipv6.dst == fd00:99::9 && vxlan && udp.checksum.status != \"Good\"",
            "_ws.malformed",
        ],
        || all_between(&web, &far, &router),
    );
    assert!(bytes(&counts[0]) > 2 * STREAM, "{counts:?}");
    assert!(counts[1..].iter().all(Vec::is_empty), "{counts:?}");
    far.tcp(&web, &web.v4(), 200_000);
    router.stop();
    for address in [far.v4(), far.v6()] {
        assert_eq!(web.namespace.ping(&address, 3, 56), 3, "by the kernel");
    }
    web.tcp(&far, &far.v4(), 200_000);
}
