//! Hooks in tc: which tier carries a packet, by its counters, and what becomes of hooks when a router ends.

mod common;

use common::{
    Daemon, Hooks, Namespace, PYTHON, Pair, Pod, Setup, Testbed, script, vtep_mac, wait_for,
};
use serde_json::Value;

fn settled() -> Setup<'static> {
    Setup {
        hooks: Some(Hooks::Settled),
        ..Setup::default()
    }
}

/// What hooks have carried from a port, and what workers have.
fn tiers(router: &Daemon, name: &str) -> [u64; 2] {
    let ports = router.ask("ports");
    let ports = ports["ports"].as_array().expect("ports");
    let port = ports.iter().find(|port| port["name"] == name);
    let port = port.unwrap_or(&Value::Null);
    let count = |it: &Value| it["rx_packets"].as_u64().expect("a count");
    [count(&port["hooks"]), count(port)]
}

/// Interfaces of the first node with pinned hooks in tc, and its trunks.
fn hooked(pair: &Pair) -> Vec<String> {
    let links = pair.nodes[0].namespace.run("ip -j link show");
    let links: Value = serde_json::from_str(&links).expect("JSON");
    let links = links.as_array().expect("links");
    let folders = std::fs::read_dir(pair.bed.pins()).into_iter().flatten();
    let folder = folders.flatten().map(|folder| folder.path());
    let own = folder.filter(|path| path.to_string_lossy().ends_with("-1"));
    let pins = own.flat_map(|path| std::fs::read_dir(path).into_iter().flatten());
    let pins: Vec<String> = pins
        .flatten()
        .map(|pin| pin.file_name().to_string_lossy().into_owned())
        .collect();
    let mut names: Vec<String> = links
        .iter()
        .filter_map(|link| {
            let name = link["ifname"].as_str()?.to_owned();
            let pinned = pins.contains(&format!("link-tc-{}", link["ifindex"]));
            (pinned || name.starts_with("viaduct-t")).then_some(name)
        })
        .collect();
    names.sort();
    names
}

/// What one ping says, whether it is answered or not.
fn said(namespace: &Namespace, options: &[&str], to: &str) -> String {
    let mut ping = namespace.command("ping");
    ping.args(["-c", "1", "-W", "2"]).args(options).arg(to);
    let output = ping.output().expect("ping");
    let all = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&all).into_owned()
}

#[test]
fn settled_packets_never_reach_a_worker() {
    let pair = Pair::new(&settled());
    let [web, far] = &pair.pods;
    let [near, other] = &pair.routers;
    let by_kernel = pair.by_kernel();
    for address in [far.v4(), far.v6()] {
        assert_eq!(web.namespace.ping(&address, 5, 1000), 5, "{address}");
        // Both small packets and merged ones.
        web.tcp(far, &address, 2_000_000);
        far.tcp(
            web,
            &if address.contains(':') {
                web.v6()
            } else {
                web.v4()
            },
            2_000_000,
        );
    }
    for router in [near, other] {
        for port in ["veth-web", "underlay"] {
            let [hooks, workers] = tiers(router, port);
            // 2 MB there and 2 MB back, in packets of 1,450 bytes, over each family.
            assert!(hooks > 2_500, "{port}: {hooks} by hooks");
            assert_eq!(workers, 0, "{port}");
        }
        assert_eq!(router.port("veth-web", "drops"), 0);
    }
    assert_eq!(pair.by_kernel(), by_kernel, "nothing was the kernel's");
}

#[test]
fn what_is_not_settled_is_a_workers() {
    let pair = Pair::new(&settled());
    let [web, far] = &pair.pods;
    let router = &pair.routers[0];
    assert_eq!(web.namespace.ping(&far.v4(), 3, 56), 3);
    let [hooks, workers] = tiers(router, "veth-web");
    // Its time to live is over at this node, who says so.
    let trace = said(&web.namespace, &["-t", "1"], &far.v4());
    assert!(trace.contains("Time to live exceeded"), "{trace}");
    assert_eq!(tiers(router, "veth-web"), [hooks, workers + 1]);
    // No such pod anywhere.
    assert_eq!(web.namespace.ping("10.244.77.2", 1, 56), 0);
    assert!(tiers(router, "veth-web")[1] >= workers + 2);
    // What is too long for the tunnel: the sender learns how much it takes.
    pair.nodes[0].namespace.run("ip link set veth-web mtu 1500");
    web.namespace.run("ip link set eth0 mtu 1500");
    let long = said(&web.namespace, &["-M", "do", "-s", "1460"], &far.v4());
    assert!(long.contains("mtu") && long.contains("1450"), "{long}");
    router.assert_balanced();
}

#[test]
fn without_settled_all_is_the_workers() {
    let pair = Pair::new(&Setup {
        hooks: Some(Hooks::Tc),
        ..Setup::default()
    });
    let [web, far] = &pair.pods;
    for address in [far.v4(), far.v6()] {
        assert_eq!(web.namespace.ping(&address, 3, 1000), 3, "{address}");
        web.tcp(far, &address, 500_000);
    }
    for router in &pair.routers {
        let [pod, underlay] = ["veth-web", "underlay"].map(|port| tiers(router, port));
        assert_eq!([pod[0], underlay[0]], [0, 0], "by hooks");
        // 1 MB in packets of 1,450 bytes one way; how many acknowledgements come back varies.
        let workers = pod[1] + underlay[1];
        assert!(workers > 700, "{workers}");
        router.assert_balanced();
    }
}

/// A pod's own key says where its packets are looked at, while others go on; at a reload, too.
#[test]
fn a_pod_has_sockets_beside_pods_with_hooks() {
    let pair = Pair::new(&settled());
    let [web, far] = &pair.pods;
    let router = &pair.routers[0];
    let hook = || {
        let ports = router.ask("ports");
        let ports = ports["ports"].as_array().expect("ports").clone();
        let port = ports.into_iter().find(|port| port["name"] == "veth-web");
        port.map_or(Value::Null, |port| port["device"]["hook"].clone())
    };
    assert_eq!(hook(), "tc");
    let own = "interface = \"veth-web\"";
    let with = format!("{own}\nattach = \"xsk\"");
    router.reload(|file| file.replace(own, &with));
    wait_for("sockets at the pod", || hook() == "xdp");
    let before = tiers(router, "veth-web");
    for address in [far.v4(), far.v6()] {
        wait_for(&address, || web.namespace.ping(&address, 1, 56) == 1);
        web.tcp(far, &address, 500_000);
    }
    let [hooks, workers] = tiers(router, "veth-web");
    assert_eq!(hooks, before[0], "its packets come by its own queue");
    // 1 MB in packets of 1,450 bytes.
    assert!(workers > before[1] + 700, "{workers}");
    router.reload(|file| file.replace(&with, own));
    wait_for("a hook at the pod", || hook() == "tc");
    wait_for("its packets", || web.namespace.ping(&far.v4(), 1, 56) == 1);
    let before = tiers(router, "veth-web");
    web.tcp(far, &far.v4(), 500_000);
    assert!(
        tiers(router, "veth-web")[0] > before[0] + 300,
        "by the hook"
    );
    router.assert_balanced();
}

/// Hooks send straight into a pod, past XDP in the driver of its veth. They do not where the pod has such a program.
#[test]
fn a_pods_own_xdp_sees_its_packets() {
    let mut bed = Testbed::new();
    let (a, b) = (bed.node(1, 1), bed.node(2, 1));
    let (web, app, far) = (
        bed.pod(&a, "web", 2),
        bed.pod(&a, "app", 3),
        bed.pod(&b, "far", 2),
    );
    let router = bed.router_with(&a, &[&web, &app], &[(2, &vtep_mac(2))], &settled());
    let other = bed.router_with(&b, &[&far], &[(1, &vtep_mac(1))], &settled());
    let reaches = |from: &Pod| from.namespace.ping(&web.v4(), 1, 56) == 1;
    wait_for("the pods", || reaches(&app) && reaches(&far));
    let program = web
        .namespace
        .spawn(&format!("{PYTHON} {} eth0", script("xdp.py")));
    let mut program = program;
    assert_eq!(program.line(), "ready");
    // Seen when the pod's interface is looked at again; an event of the host's end has that done at once.
    a.namespace.run("ip link set veth-web alias looked-at");
    wait_for("the program to get what it drops", || {
        !reaches(&app) && !reaches(&far)
    });
    // What workers send, too: the time to live ends here, and what a worker says of it is for the pod.
    let expired = said(&web.namespace, &["-t", "1"], &far.v4());
    assert!(expired.contains("0 received"), "{expired}");
    drop(program);
    a.namespace
        .run("ip link set veth-web alias looked-at-again");
    wait_for("packets", || reaches(&app) && reaches(&far));
    let carried = |router: &Daemon| router.ask("status")["carried"].as_u64();
    let before = carried(&router);
    assert_eq!(app.namespace.ping(&web.v4(), 3, 56), 3);
    assert!(carried(&router) >= before.map(|n| n + 6), "by hooks");
    drop(other);
}

#[test]
fn hooks_outlive_their_router_and_are_taken_over() {
    let mut pair = Pair::new(&settled());
    let streams = pair.streams();
    let all = ["eth0", "veth-web", "viaduct-t0", "viaduct.1"];
    assert_eq!(hooked(&pair), all);
    pair.routers[0].kill();
    pair.goes_on_alone(&streams);
    // The trunk was the process's own.
    wait_for("the trunk to go", || {
        hooked(&pair) == ["eth0", "veth-web", "viaduct.1"]
    });
    pair.routers[0].start();
    assert_eq!(hooked(&pair).len(), 4);
    pair.goes_on_by_worker(&streams);
    let [hooks, workers] = tiers(&pair.routers[0], "veth-web");
    assert!(hooks > 20, "{hooks} by hooks, {workers} by workers");
    pair.routers[0].stop();
    assert_eq!(hooked(&pair), ["eth0", "veth-web", "viaduct.1"]);
    pair.goes_on_alone(&streams);
    pair.routers[0].start();
    pair.routers[0].kill();
    assert!(pair.routers[0].cleanup().contains("3 BPF links removed"));
    wait_for("the links to detach", || hooked(&pair).is_empty());
}

#[test]
fn a_pod_keeps_its_offloads() {
    let pair = Pair::new(&settled());
    let offloads = |namespace: &Namespace| namespace.run("ethtool -k eth0");
    let mut fresh = common::Testbed::new();
    let node = fresh.node(3, 1);
    let never_attached = fresh.pod(&node, "other", 2);
    assert_eq!(
        offloads(&pair.pods[0].namespace),
        offloads(&never_attached.namespace)
    );
}

#[test]
fn a_withdrawn_route_is_out_of_the_hooks() {
    let pair = Pair::new(&settled());
    let [web, far] = &pair.pods;
    let stream = web.udp_stream(far, &far.v4(), 5005, 10_000);
    stream.goes_on();
    let out = || pair.routers[0].port("underlay", "tx_packets");
    assert!(out() > 200);
    let own = &pair.routers[0];
    let withdrawn = std::cell::RefCell::new(String::new());
    own.reload(|text| {
        let (rest, all) = text.split_once("[[routes]]").expect("a route");
        withdrawn.replace(format!("[[routes]]{all}"));
        rest.to_owned()
    });
    let after = out();
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(out(), after, "no packet after the change is acknowledged");
    own.reload(|text| text + &withdrawn.take());
    stream.goes_on();
    assert!(out() > after, "and again with the route");
}

#[test]
fn fail_closed_drops_what_was_settled() {
    let mut pair = Pair::new(&Setup {
        slow_path: "on_exit = \"fail-closed\"",
        ..settled()
    });
    let passes = |pair: &Pair| {
        let [web, far] = &pair.pods;
        [
            web.namespace.ping(&far.v4(), 3, 56),
            far.namespace.ping(&web.v6(), 3, 56),
        ]
    };
    assert_eq!(passes(&pair), [3, 3]);
    pair.routers[0].kill();
    assert_eq!(passes(&pair), [0, 0]);
    pair.routers[0].start();
    assert_eq!(passes(&pair), [3, 3]);
    pair.routers[0].stop();
    assert_eq!(passes(&pair), [0, 0]);
    pair.routers[0].cleanup();
}
