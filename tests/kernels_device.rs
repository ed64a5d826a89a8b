//! The kernel's VXLAN device where a program has its UDP port, or the underlay's MTU is too small for
//! it: `check`, a start and a run say the same, and it comes when it can.

mod common;

use common::{Daemon, Node, Pod, Testbed, vtep_mac, wait_for};

struct Rig {
    node: Node,
    pod: Pod,
    router: Daemon,
    _bed: Testbed,
}

impl Rig {
    fn new() -> Self {
        let mut bed = Testbed::new();
        let node = bed.node(1, 1);
        let pod = bed.pod(&node, "web", 2);
        let router = bed.router(&node, &[&pod], &[(2, &vtep_mac(2))], "count = 1");
        Self {
            node,
            pod,
            router,
            _bed: bed,
        }
    }

    fn run(&self, words: &str) -> String {
        self.node.namespace.run(words)
    }

    fn check(&self) -> String {
        let mut command = self.node.namespace.command(env!("CARGO_BIN_EXE_viaduct"));
        let output = command
            .args(["check", "--config"])
            .arg(self.router.file())
            .output();
        let output = output.expect("viaduct runs");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }

    /// What is wrong with the kernel's path.
    fn problems(&self) -> String {
        self.router.ask("status")["slow_path"]["problems"].to_string()
    }

    fn says(&self, what: &str) {
        wait_for(what, || self.problems().contains(what));
        let problems = self.problems();
        assert!(!problems.contains("os error"), "{problems}");
    }

    fn is_whole(&self) {
        wait_for("the kernel's path to be whole", || {
            self.problems() == "[]" && self.has_own_address()
        });
    }

    fn has_own_address(&self) -> bool {
        let addresses = self.run("ip -6 address show");
        addresses.contains("fd00:10:244:1::/128")
    }
}

#[test]
fn a_taken_port_is_named_and_tried_again() {
    let mut rig = Rig::new();
    rig.is_whole();
    rig.router.stop();
    assert!(!rig.check().contains("is taken"), "the device's own");
    rig.run("ip link del viaduct.1");
    let socat = rig
        .node
        .namespace
        .spawn("socat -u UDP4-RECV:8472 OPEN:/dev/null");
    wait_for("the port to be taken", || {
        !rig.run("ss -Hlun sport = 8472").is_empty()
    });
    let taken = "UDP port 8472 is taken";
    let check = rig.check();
    assert!(check.contains(taken), "{check}");
    rig.router.start();
    rig.says(taken);
    drop(socat);
    rig.is_whole();
}

#[test]
fn a_small_mtu_of_the_underlay_is_named_and_local_pods_keep_ipv6() {
    let mut rig = Rig::new();
    rig.is_whole();
    let none = "the kernel carries no IPv6 between nodes";
    for restart in [false, true] {
        rig.run("ip link set eth0 mtu 1200");
        if restart {
            rig.router.stop();
            let check = rig.check();
            assert!(check.contains(none) && check.contains("1150"), "{check}");
            rig.router.start();
        }
        rig.says(none);
        wait_for("the host to reach its pod", || {
            let way = rig.run("ip -6 route show");
            way.contains(&format!("{} dev", rig.pod.v6()))
                && rig.node.namespace.ping(&rig.pod.v6(), 1, 56) == 1
        });
        assert!(!rig.has_own_address());
        rig.run("ip link set eth0 mtu 100");
        rig.says("the underlay's MTU leaves 50 bytes");
        rig.run("ip link set eth0 mtu 1500");
        rig.is_whole();
    }
}
