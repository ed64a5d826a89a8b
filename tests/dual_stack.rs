//! flannel's two devices, one a family of pods, each with a MAC of its own: at a peer, and adopted.

mod common;

use common::{Daemon, Hooks, Namespace, Pod, Setup, Testbed, vtep_mac};

/// The MAC of node N's device over IPv6.
fn vtep_mac6(n: u8) -> String {
    format!("02:00:00:00:06:{n:02x}")
}

/// Makes flannel's devices on a node, and what flannel has on them for node `peer`.
fn flannel(host: &Namespace, n: u8, peer: u8) {
    let common = "type vxlan id 1 dstport 8472 dev eth0 nolearning";
    for (device, mac, mtu, local) in [
        ("flannel.1", vtep_mac(n), 1450, format!("192.0.2.{n}")),
        ("flannel-v6.1", vtep_mac6(n), 1430, format!("fd00:99::{n}")),
    ] {
        host.run(&format!(
            "ip link add {device} address {mac} mtu {mtu} {common} local {local}"
        ));
        host.run(&format!("ip link set {device} up"));
    }
    for (family, device, own, prefix, via, mac, vtep) in [
        (
            "-4",
            "flannel.1",
            format!("10.244.{n}.0/32"),
            format!("10.244.{peer}.0/24"),
            format!("10.244.{peer}.0"),
            vtep_mac(peer),
            format!("192.0.2.{peer}"),
        ),
        (
            "-6",
            "flannel-v6.1",
            format!("fd00:10:244:{n}::/128"),
            format!("fd00:10:244:{peer}::/64"),
            format!("fd00:10:244:{peer}::"),
            vtep_mac6(peer),
            format!("fd00:99::{peer}"),
        ),
    ] {
        for line in [
            format!("ip address add {own} dev {device}"),
            format!("ip {family} route add {prefix} via {via} dev {device} onlink"),
            format!("ip neighbour add {via} lladdr {mac} dev {device} nud permanent"),
            format!("bridge fdb append {mac} dev {device} dst {vtep}"),
        ] {
            host.run(&line);
        }
    }
}

/// Both families, both ways, short and long packets.
fn all_between(near: &Pod, far: &Pod) {
    for (from, to) in [(near, far), (far, near)] {
        for address in [to.v4(), to.v6()] {
            for size in [1, 1300] {
                let arrived = from.namespace.ping(&address, 3, size);
                assert_eq!(arrived, 3, "{address}, {size} bytes");
            }
            from.tcp(to, &address, 200_000);
        }
    }
}

fn counts(router: &Daemon) -> [u64; 3] {
    let of = |port, what| router.port(port, what);
    [
        of("veth-web", "rx_packets"),
        of("veth-web", "tx_packets"),
        of("underlay", "drops"),
    ]
}

#[test]
fn a_node_with_flannels_two_devices_and_a_peer_with_them() {
    let mut bed = Testbed::new();
    let (a, k) = (bed.node(1, 1), bed.node(9, 1));
    let (web, far) = (bed.pod(&a, "web", 2), bed.pod(&k, "far", 2));
    flannel(&a.namespace, 1, 9);
    flannel(&k.namespace, 9, 1);
    far.route_by_hand(&k);
    let own = format!("vtep_mac6 = \"{}\"", vtep_mac6(1));
    let route = |prefix: &str, vtep: &str, mac: &str| {
        format!("[[routes]]\nprefixes = [\"{prefix}\"]\nvtep = \"{vtep}\"\nvtep_mac = \"{mac}\"\n")
    };
    let ways = route("10.244.9.0/24", "192.0.2.9", &vtep_mac(9))
        + &route("fd00:10:244:9::/64", "fd00:99::9", &vtep_mac6(9));
    let setup = Setup {
        network: &own,
        more: &ways,
        // Hooks with settled entries would need neither workers nor the kernel's devices.
        hooks: Some(Hooks::Tc),
        ..Setup::default()
    };
    let mut router = bed.router_with(&a, &[&web], &[], &setup);
    let status = router.ask("status");
    assert_eq!(status["networks"][0]["vtep_mac6"], vtep_mac6(1).as_str());
    let path = &status["slow_path"];
    assert_eq!(path["device"], "flannel.1 and flannel-v6.1");
    assert_eq!(path["adopted"], true);
    assert_eq!(path["problems"], serde_json::json!([]), "flannel's do");
    let device = |name: &str| a.namespace.device_packets(name);
    let before = (counts(&router), device("flannel.1"), device("flannel-v6.1"));
    all_between(&web, &far);
    let after = counts(&router);
    assert!(after[0] > before.0[0] + 24, "{before:?}, {after:?}");
    assert!(after[1] > before.0[1] + 24, "{before:?}, {after:?}");
    assert_eq!(after[2], before.0[2], "nothing was dropped");
    router.kill();
    // The kernel's path, once the heartbeat is old.
    common::wait_for("the kernel's devices to carry", || {
        web.namespace.ping(&far.v4(), 1, 1);
        web.namespace.ping(&far.v6(), 1, 1);
        device("flannel.1")[0] > before.1[0] && device("flannel-v6.1")[0] > before.2[0]
    });
    all_between(&web, &far);
    for (name, before) in [("flannel.1", before.1), ("flannel-v6.1", before.2)] {
        let after = device(name);
        assert!(after[0] > before[0] + 12, "{name}: {before:?}, {after:?}");
        assert!(after[1] > before[1] + 12, "{name}: {before:?}, {after:?}");
    }
    router.start();
    let before = counts(&router);
    all_between(&web, &far);
    let after = counts(&router);
    assert!(after[0] > before[0] + 24, "{before:?}, {after:?}");
    router.stop();
    router.cleanup();
    // What is flannel's stays: the host reaches the other node's pods by it.
    for (name, vtep) in [("flannel.1", "192.0.2.9"), ("flannel-v6.1", "fd00:99::9")] {
        let entries = a.namespace.run(&format!("bridge fdb show dev {name}"));
        assert!(entries.contains(vtep), "{entries}");
    }
    for address in [far.v4(), far.v6()] {
        assert_eq!(a.namespace.ping(&address, 3, 56), 3, "host to {address}");
    }
}

/// Viaduct's own devices have the MAC of their family, too, and so have the workers' packets.
#[test]
fn two_nodes_with_two_macs_each() {
    let mut bed = Testbed::new();
    let (a, b) = (bed.node(1, 1), bed.node(2, 1));
    let (web, far) = (bed.pod(&a, "web", 2), bed.pod(&b, "far", 2));
    let own = [1, 2].map(|n| format!("vtep_mac6 = \"{}\"", vtep_mac6(n)));
    let setup = |n: usize| Setup {
        over_v6: &[1, 2],
        network: &own[n - 1],
        ..Setup::default()
    };
    let mut ra = bed.router_with(&a, &[&web], &[(2, &vtep_mac6(2))], &setup(1));
    let rb = bed.router_with(&b, &[&far], &[(1, &vtep_mac6(1))], &setup(2));
    assert_eq!(a.namespace.mac("viaduct.1"), vtep_mac(1));
    assert_eq!(a.namespace.mac("viaduct6.1"), vtep_mac6(1));
    let before = (counts(&ra), rb.port("underlay", "drops"));
    all_between(&web, &far);
    let after = counts(&ra);
    assert!(after[0] > before.0[0] + 24, "{before:?}, {after:?}");
    assert_eq!(
        (after[2], rb.port("underlay", "drops")),
        (before.0[2], before.1)
    );
    ra.kill();
    let sent = || a.namespace.device_packets("viaduct6.1")[0];
    let before = sent();
    common::wait_for("the kernel's device to carry", || {
        web.namespace.ping(&far.v6(), 1, 1);
        sent() > before
    });
    all_between(&web, &far);
    assert!(sent() > before + 24, "by the kernel");
}

/// A device of one family that cannot be used is a problem, and the other family's works on.
#[test]
fn a_device_that_does_not_fit_leaves_the_other_family_alone() {
    let mut bed = Testbed::new();
    let a = bed.node(1, 1);
    let web = bed.pod(&a, "web", 2);
    flannel(&a.namespace, 1, 9);
    let router = bed.router_with(&a, &[&web], &[(2, &vtep_mac(2))], &Setup::default());
    // Until a route needs it, nobody asks for a device over IPv6.
    assert_eq!(router.ask("status")["slow_path"]["device"], "flannel.1");
    let mac = vtep_mac6(9);
    for words in [
        format!("route add fd00:10:244:7::/64 --vtep fd00:99::7 --vtep-mac {mac}"),
        format!(
            "route add 10.244.8.0/24 --vtep 192.0.2.8 --vtep-mac {}",
            vtep_mac(8)
        ),
    ] {
        let (done, said) = router.command(&words);
        assert!(done, "{said}");
    }
    let of_kernel = || a.namespace.run("ip route show proto 118");
    common::wait_for("the way over IPv4", || {
        of_kernel().contains("10.244.8.0/24")
    });
    let problems = router.ask("status")["slow_path"]["problems"].to_string();
    assert!(problems.contains("flannel-v6.1"), "{problems}");
    assert!(problems.contains("vtep_mac6"), "{problems}");
    let (done, said) = router.command("route del 10.244.8.0/24");
    assert!(done, "{said}");
    common::wait_for("it to go", || !of_kernel().contains("10.244.8.0/24"));
}
