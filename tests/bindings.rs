//! A pod that a command added stays with the interface that the command meant: another interface of
//! its name, which is another pod's, gets nothing of it, neither by the workers nor by the kernel.

mod common;

use std::fs;

use common::{Daemon, Namespace, Node, Pod, Testbed, wait_for};
use serde_json::Value;

/// A node whose router has the pod `app` by command, on `veth-app`; `oth` is known to nobody.
struct Rig {
    node: Node,
    router: Daemon,
    app: Pod,
    other: Pod,
    _bed: Testbed,
}

impl Rig {
    fn new() -> Self {
        let mut bed = Testbed::new();
        let node = bed.node(1, 1);
        let router = bed.router(&node, &[], &[], "count = 1");
        let (app, other) = (bed.pod(&node, "app", 3), bed.pod(&node, "oth", 5));
        let rig = Self {
            node,
            router,
            app,
            other,
            _bed: bed,
        };
        rig.add(&rig.app);
        rig
    }

    fn add(&self, pod: &Pod) {
        let (v4, v6) = (pod.v4(), pod.v6());
        let words = format!("port add --interface veth-app --address {v4} --address {v6}");
        let (did, said) = self.router.command(&words);
        assert!(did, "{said}");
    }

    fn run(&self, words: &str) -> String {
        self.node.namespace.run(words)
    }

    fn rename(&self, from: &str, to: &str) {
        for words in [
            format!("set {from} down"),
            format!("set {from} name {to}"),
            format!("set {to} up"),
        ] {
            self.run(&format!("ip link {words}"));
        }
    }

    /// The pod's state, and its interface now.
    fn port(&self) -> (String, String) {
        let ports = self.router.ask("ports");
        let ports = ports["ports"].as_array().expect("ports");
        let port = ports.iter().find(|port| port["name"] == "veth-app");
        let port = port.expect("the pod");
        let text = |key: &str| port[key].as_str().unwrap_or_default().to_owned();
        (text("state"), text("interface"))
    }

    fn host_reaches(&self, pod: &Pod) -> bool {
        let routes = ["ip route show", "ip -6 route show"].map(|words| self.run(words));
        [pod.v4(), pod.v6()]
            .iter()
            .zip(routes)
            // Without a route ping fails, and does not count.
            .all(|(address, routes)| {
                routes.contains(&format!("{address} dev"))
                    && self.node.namespace.ping(address, 1, 56) == 1
            })
    }

    fn is_up_on(&self, interface: &str) {
        let up = ("up".to_owned(), interface.to_owned());
        wait_for("the pod to be up on its interface", || self.port() == up);
        wait_for("the kernel's path to it", || self.host_reaches(&self.app));
    }

    /// Another interface has the pod's name: it is said, with what mends it, and nothing is on it.
    fn is_refused(&self, when: &str) {
        wait_for(when, || {
            let problems = self.router.ask("status")["problems"].to_string();
            problems.contains("another interface is called veth-app")
                && problems.contains("viaduct port del veth-app")
        });
        assert_eq!(self.port().0, "down", "{when}");
        wait_for("the kernel to have nothing on it", || {
            let on = |words: &str| self.run(&format!("ip {words}"));
            let routes = [
                "route show dev veth-app proto 118",
                "-6 route show dev veth-app proto 118",
            ]
            .map(on);
            let addresses = on("address show dev veth-app");
            let rules = self.run("nft list table inet viaduct");
            routes.concat().is_empty()
                && !addresses.contains("169.254.1.1")
                && !addresses.contains("fe80::1/64")
                && !rules.contains("veth-app")
        });
        assert!(!self.run("ip link show veth-app").contains("xdp"), "{when}");
    }
}

fn mac(at: &Namespace, interface: &str) -> String {
    let links = at.run(&format!("ip -json link show {interface}"));
    let links: Value = serde_json::from_str(&links).expect("JSON");
    links[0]["address"].as_str().expect("a MAC").to_owned()
}

#[test]
fn another_interface_of_a_pods_name_gets_nothing_of_the_pod() {
    let mut rig = Rig::new();
    rig.is_up_on("veth-app");
    rig.run("ip link del veth-app");
    wait_for("the pod to be down", || rig.port().0 == "down");
    rig.rename("veth-oth", "veth-app");
    rig.is_refused("while the router runs");
    let route = "route add 10.244.78.0/24 --vtep 192.0.2.78 --vtep-mac 02:00:00:00:00:78";
    let (did, said) = rig.router.command(route);
    assert!(did, "{said}");
    rig.is_refused("after another change");
    rig.router.reload(|text| text);
    rig.is_refused("after the file was read again");
    rig.router.stop();
    rig.router.start();
    rig.is_refused("at a start");
    rig.router.kill();
    rig.rename("veth-app", "veth-oth");
    rig.router.start();
    wait_for("a pod without an interface", || {
        let problems = rig.router.ask("status")["problems"].to_string();
        problems.contains("does not exist")
    });
    rig.rename("veth-oth", "veth-app");
    rig.is_refused("after a start without the interface");
    // What `status` says mends it.
    let (did, said) = rig.router.command("port del veth-app");
    assert!(did, "{said}");
    rig.add(&rig.other);
    wait_for("the other pod", || rig.port().0 == "up");
    wait_for("the other pod's way", || rig.host_reaches(&rig.other));
}

#[test]
fn a_pods_own_interface_is_found_again() {
    let mut rig = Rig::new();
    rig.is_up_on("veth-app");
    // Renamed while no router runs, when another has taken its name.
    rig.router.stop();
    rig.rename("veth-app", "veth-own");
    rig.rename("veth-oth", "veth-app");
    rig.router.start();
    rig.is_up_on("veth-own");
    rig.router.kill();
    rig.rename("veth-app", "veth-oth");
    rig.rename("veth-own", "veth-app");
    rig.router.start();
    rig.is_up_on("veth-app");
    // Made anew with its MAC, as by a script.
    let own = mac(&rig.node.namespace, "veth-app");
    rig.run("ip link del veth-app");
    wait_for("the pod to be down", || rig.port().0 == "down");
    rig.rename("veth-oth", "veth-app");
    rig.is_refused("with another MAC");
    rig.run(&format!("ip link set veth-app address {own}"));
    wait_for("the pod to be up again", || rig.port().0 == "up");
}

#[test]
fn the_first_interface_to_come_is_the_pods() {
    let mut rig = Rig::new();
    let (did, said) = rig.router.command("port del veth-app");
    assert!(did, "{said}");
    rig.rename("veth-app", "veth-own");
    rig.add(&rig.app);
    assert_eq!(rig.port().0, "down");
    rig.rename("veth-own", "veth-app");
    rig.is_up_on("veth-app");
    let file = format!("{}.commands", rig.router.name);
    let file = rig.router.directory.join(file);
    let own = mac(&rig.node.namespace, "veth-app");
    wait_for("its interface to be written down", || {
        fs::read_to_string(&file).is_ok_and(|text| text.contains(&own))
    });
    rig.router.stop();
    rig.run("ip link del veth-app");
    rig.rename("veth-oth", "veth-app");
    rig.router.start();
    rig.is_refused("at the next start");
}
