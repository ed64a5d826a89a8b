//! How long packets may be on the way to another node: interface, route, and what routers on the
//! way say; and which way the host's routing rules choose.

mod common;

use common::{Daemon, Namespace, Node, Pod, Setup, Testbed, vtep_mac, wait_for};
use serde_json::Value;

/// Two nodes on networks of their own, and a router of the underlay between them.
struct Site {
    routers: [Daemon; 2],
    nodes: [Node; 2],
    pods: [Pod; 2],
    gateway: Namespace,
    /// Of the underlay.
    v6: bool,
    /// Without it nobody answers for pods' IPv6 gateway.
    kernels_path: bool,
    _bed: Testbed,
}

impl Site {
    fn new(v6: bool, setup: &Setup<'_>) -> Self {
        Self::with(v6, setup, |_, _| {})
    }

    /// `prepare` is given the first node and the bed, before the routers start.
    fn with(v6: bool, setup: &Setup<'_>, prepare: impl FnOnce(&mut Testbed, &Node)) -> Self {
        let mut bed = Testbed::new();
        let (a, b) = (bed.node(1, 1), bed.node(2, 1));
        let (web, far) = (bed.pod(&a, "web", 2), bed.pod(&b, "far", 2));
        let gateway = bed.namespace("gateway");
        gateway.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        let port = &b.switch_port;
        let into = format!("ip link set {port} nomaster netns {}", gateway.name);
        b.switch.run(&into);
        gateway.run(&format!("ip link set {port} name right"));
        let left = format!(
            "ip link add left type veth peer name gw netns {}",
            a.switch.name
        );
        gateway.run(&left);
        a.switch.run("ip link set gw master br0 up");
        for (side, v4, v6) in [
            ("left", "192.0.2.254/24", "fd00:99::fe/64"),
            ("right", "198.51.100.254/24", "fd00:98::fe/64"),
        ] {
            gateway.run(&format!("ip link set {side} up"));
            gateway.run(&format!("ip address add {v4} dev {side}"));
            gateway.run(&format!("ip address add {v6} dev {side} nodad"));
        }
        b.namespace.run("ip address flush dev eth0 scope global");
        for address in ["198.51.100.2/24", "fd00:98::2/64 nodad"] {
            let add = format!("ip address add dev eth0 {address}");
            b.namespace.run(&add);
        }
        for (node, family, by) in [
            (&a, "-4", "192.0.2.254"),
            (&a, "-6", "fd00:99::fe"),
            (&b, "-4", "198.51.100.254"),
            (&b, "-6", "fd00:98::fe"),
        ] {
            let add = format!("ip {family} route add default via {by}");
            node.namespace.run(&add);
        }
        prepare(&mut bed, &a);
        let vteps: [(u8, &str); 2] = if v6 {
            [(1, "fd00:99::1"), (2, "fd00:98::2")]
        } else {
            [(1, "192.0.2.1"), (2, "198.51.100.2")]
        };
        let setup = Setup {
            vteps: &vteps,
            ..*setup
        };
        let routers = [
            bed.router_with(&a, &[&web], &[(2, &vtep_mac(2))], &setup),
            bed.router_with(&b, &[&far], &[(1, &vtep_mac(1))], &setup),
        ];
        let site = Self {
            routers,
            nodes: [a, b],
            pods: [web, far],
            gateway,
            v6,
            kernels_path: setup.slow_path.is_empty(),
            _bed: bed,
        };
        for router in &site.routers {
            wait_for("the route to be resolved", || {
                route(router)["state"] == "resolved"
            });
        }
        site
    }

    /// Both links between gateway and the second node get this MTU, as one link.
    fn right_mtu(&self, mtu: u16) {
        let [_, b] = &self.nodes;
        self.gateway.run(&format!("ip link set right mtu {mtu}"));
        b.namespace.run(&format!("ip link set eth0 mtu {mtu}"));
    }

    /// Waits until the first node's way to the second is so long, for this reason.
    fn wait_for_mtu(&self, mtu: u16, by: &str) {
        let overhead = if self.v6 { 70 } else { 50 };
        wait_for(&format!("{mtu} by {by}"), || {
            let route = route(&self.routers[0]);
            route["mtu"] == mtu && route["mtu_by"] == by && route["pod_mtu"] == mtu - overhead
        });
    }

    /// Has the first node's pod send packets that are longer than a link of `mtu` takes, until the
    /// node knows.
    fn discover(&self, mtu: u16) {
        let [web, far] = &self.pods;
        wait_for("a router's word to be heard", || {
            web.namespace.ping(&far.v4(), 1, 1372);
            route(&self.routers[0])["mtu_by"] == "path"
        });
        self.wait_for_mtu(mtu, "path");
    }

    /// Packets of all lengths pass both ways, by the workers, cut where they may be.
    fn all_lengths_pass(&self, mtu: u16) {
        let [web, far] = &self.pods;
        let room = u32::from(mtu) - if self.v6 { 70 } else { 50 };
        let before = self.routers[0].port("underlay", "tx_packets");
        let strict: &[&str] = &["-M", "do"];
        let ping = |options: &[&str], size| web.namespace.ping_with(options, &far.v4(), 3, size);
        assert_eq!(ping(strict, room - 28), 3, "what fits");
        assert_eq!(
            ping(strict, room - 27),
            0,
            "what does not, and must not be cut"
        );
        assert_eq!(ping(&["-M", "dont"], room - 27), 3, "what may be cut");
        assert_eq!(ping(&["-M", "dont"], 1400), 3, "what may be cut");
        web.tcp(far, &far.v4(), 300_000);
        far.tcp(web, &web.v4(), 300_000);
        if self.kernels_path {
            // The sender of IPv6 is told, and cuts.
            wait_for("long packets of IPv6", || {
                web.namespace.ping(&far.v6(), 1, 1350) == 1
            });
            web.tcp(far, &far.v6(), 300_000);
        }
        let sent = self.routers[0].port("underlay", "tx_packets") - before;
        assert!(sent > 200, "by the workers: {sent}");
        for router in &self.routers {
            router.assert_balanced();
        }
    }
}

/// What a router says of its one route.
fn route(router: &Daemon) -> Value {
    router.ask("routes")["routes"][0].clone()
}

fn a_short_link_on_the_way(v6: bool, setup: &Setup<'_>) {
    let mut site = Site::new(v6, setup);
    site.wait_for_mtu(1500, "interface");
    // What is known of a flow has to be forgotten.
    let [web, far] = &site.pods;
    let stream = web.tcp_stream(far, &far.v4(), 5003);
    site.right_mtu(1400);
    stream.goes_on();
    site.discover(1400);
    stream.goes_on();
    drop(stream);
    site.all_lengths_pass(1400);

    // What the kernel has learned is known after a restart, and stays so in the kernel's path.
    if site.kernels_path {
        site.routers[0].stop();
        let [web, far] = &site.pods;
        web.tcp(far, &far.v4(), 100_000);
        assert_eq!(
            web.namespace.ping_with(&["-M", "dont"], &far.v4(), 3, 1400),
            3
        );
        site.routers[0].start();
        site.wait_for_mtu(1400, "path");
        site.all_lengths_pass(1400);
    }
}

#[test]
fn a_short_link_on_the_way_over_ipv4() {
    a_short_link_on_the_way(false, &Setup::default());
}

#[test]
fn a_short_link_on_the_way_over_ipv6() {
    a_short_link_on_the_way(true, &Setup::default());
}

/// The kernel itself learns nothing here: it has no device for the tunnel.
#[test]
fn a_short_link_on_the_way_without_the_kernels_path() {
    for v6 in [false, true] {
        let setup = Setup {
            slow_path: "enabled = false",
            ..Setup::default()
        };
        a_short_link_on_the_way(v6, &setup);
    }
}

#[test]
fn a_path_mtu_expires() {
    for v6 in [false, true] {
        let site = Site::new(v6, &Setup::default());
        let node = &site.nodes[0].namespace;
        node.run("sysctl -qw net.ipv4.route.mtu_expires=4 net.ipv6.route.mtu_expires=4");
        site.right_mtu(1400);
        site.discover(1400);
        site.right_mtu(1500);
        site.wait_for_mtu(1500, "interface");
        let [web, far] = &site.pods;
        assert_eq!(web.namespace.ping(&far.v4(), 3, 1372), 3);
    }
}

#[test]
fn a_routes_metric_limits_and_an_interface_too() {
    for v6 in [false, true] {
        let site = Site::new(v6, &Setup::default());
        let node = &site.nodes[0].namespace;
        let (family, by) = if v6 {
            ("-6", "fd00:98::/64 via fd00:99::fe")
        } else {
            ("-4", "198.51.100.0/24 via 192.0.2.254")
        };
        let set = |mtu: &str| node.run(&format!("ip {family} route replace {by} {mtu}"));
        set("mtu 1400");
        site.wait_for_mtu(1400, "route");
        let [web, far] = &site.pods;
        assert_eq!(
            web.namespace.ping_with(&["-M", "dont"], &far.v4(), 3, 1400),
            3
        );
        set("mtu lock 1350");
        site.wait_for_mtu(1350, "route");
        site.all_lengths_pass(1350);
        set("");
        site.wait_for_mtu(1500, "interface");
        node.run("ip link set eth0 mtu 1420");
        site.wait_for_mtu(1420, "interface");
    }
}

#[test]
fn a_way_too_short_for_ipv6_is_named() {
    let site = Site::new(false, &Setup::default());
    let node = &site.nodes[0].namespace;
    node.run("ip route replace 198.51.100.0/24 via 192.0.2.254 mtu 1300");
    site.wait_for_mtu(1300, "route");
    let warning = route(&site.routers[0])["warning"].to_string();
    assert!(
        warning.contains("1250") && warning.contains("1280"),
        "{warning}"
    );
    let [web, far] = &site.pods;
    let ping = |size| {
        let whole = &["-M", "dont"];
        web.namespace.ping_with(whole, &far.v4(), 3, size)
    };
    assert_eq!(ping(1400), 3, "IPv4 is cut");
}

/// A node whose default route leaves by a management network, and whose tunnels' addresses have a
/// table of their own.
#[test]
fn rules_choose_the_way_of_outer_packets_as_for_the_kernels() {
    for v6 in [false, true] {
        let site = Site::with(v6, &Setup::default(), |bed, a| {
            let office = bed.namespace("office");
            let node = &a.namespace;
            let peer = format!(
                "ip link add eth1 type veth peer name e0 netns {}",
                office.name
            );
            node.run(&peer);
            office.run("ip link set e0 up");
            node.run("ip link set eth1 up");
            for (family, address, rule, by, office) in [
                (
                    "-4",
                    "203.0.113.1/24",
                    "192.0.2.1",
                    "192.0.2.254",
                    "203.0.113.254",
                ),
                (
                    "-6",
                    "fd00:97::1/64 nodad",
                    "fd00:99::1",
                    "fd00:99::fe",
                    "fd00:97::fe",
                ),
            ] {
                node.run(&format!("ip {family} address add dev eth1 {address}"));
                node.run(&format!("ip {family} route replace default via {office}"));
                node.run(&format!("ip {family} route add default via {by} table 100"));
                node.run(&format!(
                    "ip {family} rule add from {rule} lookup 100 pref 1000"
                ));
            }
        });
        let [web, far] = &site.pods;
        assert_eq!(web.namespace.ping(&far.v4(), 3, 56), 3);
        let node = &site.nodes[0].namespace;
        let family = if v6 { "-6" } else { "-4" };
        node.run(&format!("ip {family} rule delete pref 1000"));
        wait_for("the way by the other interface to be seen", || {
            let route = route(&site.routers[0]);
            let reason = route["reason"].as_str().unwrap_or_default().to_owned();
            reason.contains("another interface (eth1)")
        });
        let table = "lookup 100 pref 1000 ipproto udp dport 8472";
        node.run(&format!("ip {family} rule add {table}"));
        wait_for("the rule to be followed", || {
            route(&site.routers[0])["state"] == "resolved"
        });
        assert_eq!(web.namespace.ping(&far.v6(), 3, 56), 3);
    }
}

/// What somebody else sends about packets that were never sent is not believed.
#[test]
fn forged_answers_are_not_believed() {
    let site = Site::new(false, &Setup::default());
    let before = site.nodes[0].namespace.run("ip route get 198.51.100.2");
    assert!(!before.contains("mtu"), "{before}");
    for words in [
        // From the underlay, about another VTEP, VNI or source.
        "198.51.100.9 192.0.2.1 8472 1",
        "198.51.100.2 192.0.2.9 8472 1",
        "198.51.100.2 192.0.2.1 8472 9",
        "198.51.100.2 192.0.2.1 4789 1",
    ] {
        site.gateway.run(&format!(
            "python3 {}/tests/common/too_big.py 192.0.2.1 1300 {words}",
            env!("CARGO_MANIFEST_DIR")
        ));
    }
    let genuine = "198.51.100.2 192.0.2.1 8472 1";
    let say = |who: &Namespace, to: &str| {
        who.run(&format!(
            "python3 {}/tests/common/too_big.py {to} 1300 {genuine}",
            env!("CARGO_MANIFEST_DIR")
        ));
    };
    // Pods, of this node and of another, by all of the node's addresses: the kernel, too, does not
    // believe them.
    let [web, far] = &site.pods;
    for pod in [web, far] {
        for to in ["192.0.2.1", "10.244.1.0"] {
            say(&pod.namespace, to);
        }
    }
    assert_eq!(web.namespace.ping(&far.v4(), 3, 56), 3);
    site.wait_for_mtu(1500, "interface");
    let known = site.nodes[0].namespace.run("ip route get 198.51.100.2");
    assert!(!known.contains("mtu"), "{known}");
    // A router of the underlay.
    say(&site.gateway, "192.0.2.1");
    site.wait_for_mtu(1300, "path");
}
