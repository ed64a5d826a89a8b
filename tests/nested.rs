//! Tunnels of pods' own: their kernels leave the checksums inside to hardware that is not there.

mod common;

use common::{Namespace, Pair, Pod, Setup};

/// A device of a pod with these words of `ip link add`, and a subnet of its own inside.
fn device(pod: &Pod, name: &str, words: &str, subnet: u8, n: u8) {
    let inside = &pod.namespace;
    inside.run(&format!("ip link add {name} mtu 1380 {words}"));
    inside.run(&format!("ip address add 172.30.{subnet}.{n}/24 dev {name}"));
    inside.run(&format!(
        "ip address add fd00:30:{subnet}::{n}/64 dev {name} nodad"
    ));
    inside.run(&format!("ip link set {name} up"));
}

/// Whether this kernel has a kind of device.
fn has(namespace: &Namespace, words: &str) -> bool {
    let mut ip = namespace.command("ip");
    let words = format!("link add probe0 {words}");
    let made = ip.args(words.split_whitespace()).output();
    let made = made.expect("ip runs").status.success();
    if made {
        namespace.run("ip link delete probe0");
    }
    made
}

/// Both pods' ends of one tunnel; `between` gives the device's words for own and other address.
fn join(pods: &[Pod; 2], name: &str, subnet: u8, between: impl Fn(&str, &str) -> String) -> bool {
    let [web, far] = pods;
    let six = between("", "").contains("v6") || name.ends_with('6');
    let address = |pod: &Pod| if six { pod.v6() } else { pod.v4() };
    if !has(&web.namespace, &between(&address(web), &address(far))) {
        return false;
    }
    device(web, name, &between(&address(web), &address(far)), subnet, 1);
    device(far, name, &between(&address(far), &address(web)), subnet, 2);
    true
}

/// TCP and UDP through a tunnel, by workers.
fn carries(pair: &Pair, subnet: u8) {
    let [web, far] = &pair.pods;
    let before = finished(pair);
    web.tcp(far, &format!("172.30.{subnet}.2"), 100_000);
    web.tcp(far, &format!("fd00:30:{subnet}::2"), 100_000);
    assert!(finished(pair) > before, "by workers");
}

fn finished(pair: &Pair) -> u64 {
    let status = pair.routers[0].ask("status");
    let workers = status["workers"].as_array().expect("workers");
    let each = workers.iter().map(|w| w["checksums_finished"].as_u64());
    each.map(|n| n.expect("a number")).sum()
}

/// The words that make a tunnel's device, from its ends' addresses.
type DeviceOf = fn(&str, &str) -> String;

#[test]
fn tcp_passes_inside_pods_own_tunnels() {
    let pair = Pair::new(&Setup::default());
    let pods = &pair.pods;
    let tunnels: [(&str, DeviceOf); 8] = [
        ("vx4", |a, b| {
            format!("type vxlan id 42 local {a} remote {b} dstport 4789 dev eth0")
        }),
        ("vx6", |a, b| {
            format!("type vxlan id 43 local {a} remote {b} dstport 14789 dev eth0 udp6zerocsumrx")
        }),
        ("vu4", |a, b| {
            format!("type vxlan id 44 local {a} remote {b} dstport 4790 dev eth0 noudpcsum")
        }),
        ("gn4", |_, b| format!("type geneve id 45 remote {b}")),
        ("gt4", |a, b| {
            format!("type gretap local {a} remote {b} key 7")
        }),
        ("gr4", |a, b| format!("type gre local {a} remote {b}")),
        ("ip4", |a, b| {
            format!("type ipip local {a} remote {b} mode any")
        }),
        ("gt6", |a, b| format!("type ip6gretap local {a} remote {b}")),
    ];
    let mut carried = Vec::new();
    for (subnet, (name, between)) in (1u8..).zip(tunnels) {
        if join(pods, name, subnet, between) {
            carries(&pair, subnet);
            carried.push(name);
        } else {
            println!("this kernel has no such device: {name}");
        }
    }
    assert!(carried.len() >= 3, "{carried:?}");

    // One in the other: the first device is the underlay of the second.
    let [web, far] = pods;
    for (pod, own, other, n) in [
        (web, "172.30.1.1", "172.30.1.2", 1),
        (far, "172.30.1.2", "172.30.1.1", 2),
    ] {
        let words = format!("type vxlan id 50 local {own} remote {other} dstport 8473 dev vx4");
        pod.namespace
            .run(&format!("ip link add vx9 mtu 1300 {words}"));
        pod.namespace
            .run(&format!("ip address add 172.30.9.{n}/24 dev vx9"));
        pod.namespace
            .run(&format!("ip address add fd00:30:9::{n}/64 dev vx9 nodad"));
        pod.namespace.run("ip link set vx9 up");
    }
    carries(&pair, 9);
}
