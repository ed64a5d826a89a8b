//! The cluster's prefixes and what of the host's lies inside them.

mod common;

use std::fs;
use std::process::Output;

use common::{Namespace, Node, Testbed, vtep_mac, wait_for};

/// A node whose host reaches `remote` by its default route.
struct Site {
    bed: Testbed,
    node: Node,
    far: Namespace,
}

impl Site {
    fn new(remote: &str) -> Self {
        let mut bed = Testbed::new();
        let node = bed.node(1, 1);
        let far = bed.node(9, 1).namespace;
        far.run(&format!("ip address add {remote}/16 dev lo"));
        node.namespace.run("ip route add default via 192.0.2.9");
        Self { bed, node, far }
    }

    /// `viaduct check` or a `run` that must end, with these prefixes of the cluster's.
    fn say(&self, verb: &str, cluster: &str) -> Output {
        let config = format!(
            "[node]\nname = \"x\"\n[underlay]\ninterface = \"eth0\"\n[workers]\nmax_ports = 4\n\
             [runtime]\ndirectory = \"{}\"\nbpffs = \"{}\"\n\
             [[networks]]\nname = \"default\"\nvni = 1\nvtep_mac = \"{}\"\n\
             pod_prefixes = [\"10.244.1.0/24\"]\ncluster_prefixes = [{cluster}]\n",
            self.bed.directory.path().display(),
            self.bed.pins().display(),
            vtep_mac(1),
        );
        let file = self.bed.directory.path().join("overlap.toml");
        fs::write(&file, config).expect("the configuration is written");
        let mut command = self.node.namespace.command("timeout");
        command
            .args(["20", env!("CARGO_BIN_EXE_viaduct"), verb, "--config"])
            .arg(&file);
        command.output().expect("viaduct runs")
    }

    fn everything(&self) -> String {
        ["ip link", "ip address", "ip route", "nft -s list ruleset"]
            .map(|words| self.node.namespace.run(words))
            .concat()
    }
}

#[test]
fn what_would_cut_nodes_off_is_refused_by_check_and_start() {
    let site = Site::new("10.9.0.1");
    let host = &site.node.namespace;
    for (prepare, undo, part) in [
        (
            "ip address add 10.8.0.5/24 dev eth0",
            "ip address del 10.8.0.5/24 dev eth0",
            "contains 10.8.0.5, an address of this host on eth0",
        ),
        (
            "ip route replace default via 10.8.0.1 dev eth0 onlink",
            "ip route replace default via 192.0.2.9",
            "contains 10.8.0.1, the gateway",
        ),
    ] {
        host.run(prepare);
        let before = site.everything();
        for verb in ["check", "run"] {
            let output = site.say(verb, "\"10.244.0.0/16\", \"10.8.0.0/16\"");
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said);
            assert_eq!(output.status.code(), Some(1), "{verb}: {said}");
            assert!(said.contains(part), "{part}: {said}");
        }
        assert_eq!(site.everything(), before);
        host.run(undo);
    }
}

#[test]
fn what_the_host_needs_stays_reachable() {
    let mut site = Site::new("10.9.0.1");
    let reaches = |site: &Site| site.node.namespace.ping("10.9.0.1", 2, 56) == 2;
    assert!(reaches(&site));
    // Named by check, which lets it start.
    let output = site.say("check", "\"10.0.0.0/8\"");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("10.0.0.0/8 is wider than a cluster"),
        "{said}"
    );
    let web = site.bed.pod(&site.node, "web", 2);
    let mut router = site
        .bed
        .router(&site.node, &[&web], &[(2, &vtep_mac(2))], "count = 1");
    let unreachable = |prefix: &str| {
        let ours = site.node.namespace.run("ip route show proto 118");
        ours.contains(&format!("unreachable {prefix}"))
    };
    assert!(
        unreachable("10.244.0.0/16"),
        "nothing of the host's is inside"
    );
    router.stop();
    router.reconfigured("10.244.0.0/16", "10.0.0.0/8");
    router.start();
    let problems = || router.ask("status")["slow_path"]["problems"].to_string();
    assert!(problems().contains("10.0.0.0/8 is wider"), "{}", problems());
    wait_for("the other route to go", || !unreachable("10.244.0.0/16"));
    assert!(!unreachable("10.0.0.0/8"));
    assert!(reaches(&site), "while it runs");
    // By workers that do not know it, and the host's kernel: the pods, too.
    site.far.run("ip route add 10.244.1.0/24 via 192.0.2.1");
    assert_eq!(web.namespace.ping("10.9.0.1", 2, 56), 2);
    // A route inside it is named while it runs.
    site.node
        .namespace
        .run("ip route add 10.77.0.0/16 via 192.0.2.9");
    wait_for("the route to be named", || {
        problems().contains("10.77.0.0/16")
    });
    router.stop();
    assert!(reaches(&site), "after a stop");
}
