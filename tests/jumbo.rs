//! Networks that carry more than 1,500 bytes: hooks carry what is settled, and the kernel what is too long for a worker.

mod common;

use common::{Hooks, Namespace, Node, Pair, Setup, wait_for};

/// The MTU of the underlay, and what of it is the pods' over IPv4.
const UNDERLAY: u32 = 9000;
const PODS: u32 = 8950;

fn widen(node: &Node) {
    node.namespace
        .run(&format!("ip link set eth0 mtu {UNDERLAY}"));
    for name in [node.switch_port.as_str(), "br0"] {
        node.switch
            .run(&format!("ip link set {name} mtu {UNDERLAY}"));
    }
}

fn jumbo(hooks: Hooks) -> Pair {
    let setup = Setup {
        hooks: Some(hooks),
        ..Setup::default()
    };
    let pair = Pair::with_queues(&setup, 1, 1, widen);
    for (node, pod) in pair.nodes.iter().zip(&pair.pods) {
        let host = &pod.interface;
        node.namespace
            .run(&format!("ip link set {host} mtu {PODS}"));
        pod.namespace.run(&format!("ip link set eth0 mtu {PODS}"));
    }
    for router in &pair.routers {
        wait_for("the pods' MTU", || {
            router.ask("status")["underlay"]["problem"].is_null()
                && router.ask("status")["pod_mtu"] == PODS
        });
    }
    pair
}

/// Whether a packet of so many bytes of payload that must not be cut gets there and back.
fn whole(from: &Namespace, to: &str, size: u32) -> bool {
    let mut ping = from.command("ping");
    let ping = ping.args([
        "-q",
        "-c",
        "2",
        "-W",
        "2",
        "-M",
        "do",
        "-s",
        &size.to_string(),
        to,
    ]);
    ping.output().expect("ping").status.success()
}

#[test]
fn hooks_carry_long_packets() {
    let pair = jumbo(Hooks::Settled);
    let [web, far] = &pair.pods;
    let kernel = pair.by_kernel();
    for (address, headers) in [(far.v4(), 28), (far.v6(), 48)] {
        let before = pair.by_hooks();
        assert!(whole(&web.namespace, &address, PODS - headers), "{address}");
        assert_eq!(pair.by_hooks(), before + 2, "{address}");
        web.tcp(far, &address, 2_000_000);
        let packets = pair.by_hooks() - before;
        assert!(
            (220..1000).contains(&packets),
            "{packets} of up to 8,950 bytes"
        );
    }
    assert_eq!(pair.by_kernel(), kernel, "nothing was the kernel's");
    // One byte more: the sender learns what fits.
    web.namespace.run("ip link set eth0 mtu 9000");
    let long = (PODS - 28 + 1).to_string();
    let mut ping = web.namespace.command("ping");
    let said = ping
        .args(["-c", "1", "-W", "2", "-M", "do", "-s", &long, &far.v4()])
        .output();
    let said = String::from_utf8_lossy(&said.expect("ping").stdout).into_owned();
    assert!(said.contains("mtu") && said.contains("8950"), "{said}");
}

/// Short packets are the workers', long ones the kernel's.
#[test]
fn without_settled_long_packets_are_the_kernels() {
    let pair = jumbo(Hooks::Tc);
    let [web, far] = &pair.pods;
    for address in [far.v4(), far.v6()] {
        let (worker, kernel) = (pair.by_worker(), pair.by_kernel());
        assert!(whole(&web.namespace, &address, 1000), "{address}");
        assert!(
            pair.by_worker() >= worker + 2 && pair.by_kernel() == kernel,
            "{address}"
        );
        let worker = pair.by_worker();
        assert!(whole(&web.namespace, &address, 8000), "{address}");
        assert!(pair.by_kernel() >= kernel + 2, "{address}");
        assert_eq!(pair.by_worker(), worker, "{address}");
        web.tcp(far, &address, 2_000_000);
    }
}
