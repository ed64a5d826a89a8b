//! Our nftables table: written so that nothing waits for it, changed element by element, and
//! repaired.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use common::{Daemon, Node, Setup, Testbed, vtep_mac, wait_for};

/// An `nft` that stands first in the path: it notes what it is asked, and lists only while nothing
/// holds it up.
struct FakeNft {
    folder: PathBuf,
}

impl FakeNft {
    fn new(bed: &Testbed) -> Self {
        let folder = bed.directory.path().join("bin");
        fs::create_dir(&folder).expect("a folder");
        let real = common::must(std::process::Command::new("sh").args(["-c", "command -v nft"]));
        let text = format!(
            "#!/bin/sh\nd={}\necho \"$*\" >>$d/asked\n\
             case \"$*\" in *list*) while [ -e $d/held ]; do sleep 0.1; done ;;\n\
             -f*) tee -a $d/scripts | {real} -f -; exit ;; esac\nexec {real} \"$@\"\n",
            folder.display(),
            real = real.trim()
        );
        let file = folder.join("nft");
        fs::write(&file, text).expect("a script");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("its mode");
        fs::write(folder.join("scripts"), "").expect("a file");
        Self { folder }
    }

    fn path(&self) -> String {
        let rest = std::env::var("PATH").expect("a path");
        format!("{}:{rest}", self.folder.display())
    }

    /// From now on listings take for ever, until [`Self::release`].
    fn hold(&self) {
        fs::write(self.folder.join("held"), "").expect("a file");
    }

    fn release(&self) {
        fs::remove_file(self.folder.join("held")).expect("a file");
    }

    fn asked(&self, what: &str) -> usize {
        let asked = fs::read_to_string(self.folder.join("asked")).unwrap_or_default();
        asked.lines().filter(|line| line.contains(what)).count()
    }

    /// Scripts since this length of all of them.
    fn scripts(&self, since: usize) -> String {
        let all = fs::read_to_string(self.folder.join("scripts")).expect("a file");
        all[since..].to_owned()
    }
}

/// A node with `web`, and another peer than its own underlay has.
fn node_with(bed: &mut Testbed, fake: &FakeNft) -> (Node, Daemon) {
    let node = bed.node(1, 1);
    let web = bed.pod(&node, "web", 2);
    let path = fake.path();
    let setup = Setup {
        environment: &[("PATH", &path)],
        ..Setup::default()
    };
    let router = bed.router_with(&node, &[&web], &[(2, &vtep_mac(2))], &setup);
    (node, router)
}

fn done((done, said): (bool, String)) {
    assert!(done, "{said}");
}

#[test]
fn changes_go_on_while_a_listing_is_held_up() {
    let mut bed = Testbed::new();
    let fake = FakeNft::new(&bed);
    let (node, router) = node_with(&mut bed, &fake);
    wait_for("the first looks", || {
        fake.asked("list ruleset") >= 1 && fake.asked("list table") >= 1
    });
    let app = bed.pod(&node, "app", 3);
    fake.hold();
    let before = fake.asked("list table");
    node.namespace
        .run("nft add chain inet viaduct somebody_elses");
    wait_for("a listing to be under way", || {
        fake.asked("list table") > before
    });
    for _ in 0..5 {
        let (interface, address) = (&app.interface, app.v4());
        done(router.command(&format!(
            "port add --interface {interface} --address {address}"
        )));
        assert_eq!(node.namespace.ping(&address, 1, 56), 1, "by the kernel");
        done(router.command(&format!("port del {interface}")));
    }
    // The other node changes its address: the kernel's way is another, and the old is gone.
    done(router.command(&format!(
        "route add 10.244.9.0/24 --vtep 192.0.2.9 --vtep-mac {}",
        vtep_mac(9)
    )));
    wait_for("a new node's way", || {
        node.namespace.run("ip route").contains("10.244.9.0/24")
    });
    assert!(Path::new(&fake.folder.join("held")).exists());
    fake.release();
    wait_for("the chain of somebody else's to go", || {
        let table = node.namespace.run("nft list table inet viaduct");
        !table.contains("somebody_elses")
    });
}

#[test]
fn a_pod_or_a_node_is_an_element_and_not_a_table() {
    let mut bed = Testbed::new();
    let fake = FakeNft::new(&bed);
    let (node, router) = node_with(&mut bed, &fake);
    let app = bed.pod(&node, "app", 3);
    // The pods' MACs come after the table.
    let table = || node.namespace.run("nft list table inet viaduct");
    wait_for("the MAC of the first pod", || {
        table().contains("\"veth-web\" . ") && fake.asked("list table") >= 1
    });
    let begin = fake.scripts(0).len();
    let (interface, address) = (&app.interface, app.v4());
    done(router.command(&format!(
        "port add --interface {interface} --address {address}"
    )));
    for n in 10..60 {
        done(router.command(&format!(
            "route add 10.244.{n}.0/24 --vtep 192.0.2.{n} --vtep-mac {}",
            vtep_mac(n)
        )));
    }
    wait_for("the last node's sources", || {
        table().contains("192.0.2.59 . ")
    });
    done(router.command("route del 10.244.10.0/24"));
    wait_for("a node's sources to go", || {
        !table().contains("192.0.2.10 . ")
    });
    let scripts = fake.scripts(begin);
    assert!(!scripts.contains("table inet viaduct {"), "{scripts}");
    assert!(scripts.contains("add element inet viaduct"), "{scripts}");
    let of = |n: u8| scripts.matches(&format!("192.0.2.{n} . ")).count();
    assert!(of(11) <= 2, "once for its pods, once for itself: {scripts}");
}

#[test]
fn elements_that_somebody_changes_are_put_right() {
    let mut bed = Testbed::new();
    let fake = FakeNft::new(&bed);
    let (node, router) = node_with(&mut bed, &fake);
    let table = || node.namespace.run("nft -s list table inet viaduct");
    wait_for("the first comparison", || fake.asked("list table") >= 1);
    wait_for("the MAC of the pod", || table().contains("\"veth-web\" . "));
    let whole = table();
    for harm in [
        "delete element inet viaduct pods_ip { \"veth-web\" . 10.244.1.2 }",
        "add element inet viaduct pods_ip { \"veth-web\" . 10.244.1.77 }",
        "delete element inet viaduct ports { \"veth-web\" }",
        "flush set inet viaduct nodes_ip",
        "add rule inet viaduct tunnels accept",
        "insert rule inet viaduct guard accept",
        "flush ruleset",
    ] {
        let mut nft = node.namespace.command("nft");
        common::must(nft.arg(harm));
        wait_for(harm, || {
            let listing = node
                .namespace
                .command("nft")
                .args(["-s", "list", "table", "inet", "viaduct"])
                .output()
                .expect("nft runs");
            String::from_utf8_lossy(&listing.stdout) == whole
        });
    }
    // Others' tables are no reason to look at ours.
    let before = fake.asked("list table");
    for n in 0..20 {
        node.namespace.run(&format!("nft add table ip other{n}"));
    }
    let looks = fake.asked("list ruleset");
    wait_for("a look at others' tables", || {
        fake.asked("list ruleset") > looks
    });
    // The clock asks for one comparison each fifteen seconds.
    assert!(fake.asked("list table") <= before + 3);
    assert_eq!(router.ask("status")["ready"], true);
}

#[test]
fn tunnels_are_no_connections_of_the_hosts() {
    for over_v6 in [false, true] {
        let peers: &[u8] = if over_v6 { &[1, 2] } else { &[] };
        let mut pair = common::Pair::new(&Setup {
            over_v6: peers,
            ..Setup::default()
        });
        pair.routers.iter_mut().for_each(Daemon::stop);
        let [web, far] = &pair.pods;
        // Each flow is a tunnel source port of its own.
        let send = format!(
            "import socket\nfor i in range(200):\n \
             socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('{}', 20000 + i))",
            far.v4()
        );
        common::must(web.namespace.command("python3").args(["-c", &send]));
        assert_eq!(web.namespace.ping(&far.v4(), 3, 56), 3);
        let [a, b] = &pair.nodes;
        assert_eq!(a.namespace.ping("192.0.2.2", 1, 56), 1);
        for node in [a, b] {
            let tracked = node.namespace.run("cat /proc/net/nf_conntrack");
            assert!(tracked.contains("icmp"), "it does track: {tracked}");
            assert!(!tracked.contains("dport=8472"), "{tracked}");
        }
    }
}

/// Rules of the host's in the way of either path are named while the workers still carry all, and
/// what is said is gone with them.
#[test]
fn rules_that_are_in_the_way_are_named_before_they_matter() {
    let pair = common::Pair::new(&Setup::default());
    let [router, _] = &pair.routers;
    let host = &pair.nodes[0].namespace;
    let path = |what: &str| router.ask("status")["slow_path"][what].to_string();
    let named = |part: &str| {
        wait_for(part, || path("problems").contains(part));
    };
    let rules = |text: &str| {
        let mut nft = host.command("nft");
        common::must(nft.arg(text));
    };
    rules(
        "add table inet fw; add chain inet fw in { type filter hook input priority 0; policy drop; }; \
         add rule inet fw in ct state established accept; add rule inet fw in iif lo accept; \
         add rule inet fw in udp dport 7946 accept; add rule inet fw in meta l4proto { icmp, ipv6-icmp } accept",
    );
    named("firewall chain inet fw in drops other nodes' tunnel packets (UDP port 8472 on eth0)");
    let [web, far] = &pair.pods;
    assert_eq!(web.namespace.ping(&far.v4(), 3, 56), 3, "by workers");
    assert_eq!(host.ping(&far.v4(), 1, 56), 0, "the host, by the kernel");
    rules("add rule inet fw in udp dport 8472 accept");
    wait_for("nothing to be in the way", || path("problems") == "[]");
    assert_eq!(host.ping(&far.v4(), 3, 56), 3);
    for (rule, part) in [
        (
            "chain inet fw out { type filter hook output priority 0; policy drop; }",
            "inet fw out drops this node's tunnel",
        ),
        (
            "chain inet fw pre { type filter hook prerouting priority -300; policy drop; }",
            "inet fw pre drops other nodes' tunnel",
        ),
        (
            "chain inet fw through { type filter hook forward priority 0; policy drop; }",
            "inet fw through drops packets between pods",
        ),
    ] {
        rules(&format!("add {rule}"));
        named(part);
        let name = rule.split(" {").next().expect("a name");
        rules(&format!("delete {name}"));
    }
    rules(
        "add chain inet fw through { type filter hook forward priority 0; }; \
         add rule inet fw through ip saddr 10.244.1.2 ip daddr 10.244.2.2 drop",
    );
    wait_for("a note", || path("notes").contains("workers pass them"));
    assert_eq!(web.namespace.ping(&far.v4(), 3, 56), 3, "by workers");
    let (_, said) = router.command("status");
    assert!(said.contains("inet fw through"), "text: {said}");
}

/// Rules of iptables-legacy stand in tables of their own, which nft does not show.
#[test]
fn rules_of_iptables_legacy_are_named() {
    let pair = common::Pair::new(&Setup::default());
    let [router, _] = &pair.routers;
    let host = &pair.nodes[0].namespace;
    let mut iptables = host.command("iptables-legacy");
    let rule = "-A INPUT -p udp --dport 8472 -j DROP";
    let added = iptables.args(rule.split(' ')).output();
    if !added.is_ok_and(|output| output.status.success()) {
        println!("skipped: no iptables-legacy on this machine");
        return;
    }
    // No event tells of it: the clock does.
    let problems = || router.ask("status")["slow_path"]["problems"].to_string();
    wait_for("the rule to be named", || {
        problems().contains("ip filter (iptables-legacy) INPUT drops other nodes' tunnel packets")
    });
}
