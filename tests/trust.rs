//! Which node is believed, and what it may announce.

mod common;

use std::fs;
use std::process::Command;

use common::{CLUSTER, Node, Setup, Testbed, wait_for};

/// A command that needs no router: whether it did, and what it said.
fn viaduct(words: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_viaduct"))
        .args(words)
        .output()
        .expect("viaduct runs");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    (output.status.success(), said)
}

fn good(words: &[&str]) -> String {
    let (did, said) = viaduct(words);
    assert!(did, "{words:?}: {said}");
    said
}

/// An authority's key in a file, and its public key.
fn authority(bed: &Testbed, name: &str) -> (String, String) {
    let file = bed.directory.path().join(name).display().to_string();
    let public = good(&["authority", "new", &file]);
    assert!(
        !viaduct(&["authority", "new", &file]).0,
        "never over another"
    );
    (file, public)
}

/// The name and key of node N, which has not run yet.
fn identity(bed: &Testbed, node: &Node) -> (String, String) {
    let file = bed
        .directory
        .path()
        .join(format!("identity-{}.toml", node.n));
    let text = format!(
        "[node]\nname = \"{}-{}\"\n[underlay]\ninterface = \"eth0\"\n{}\n[[networks]]\nname = \"default\"\n\
         vni = 1\npod_prefixes = [\"10.244.1.0/24\"]\ncluster_prefixes = [\"10.244.0.0/16\"]\n",
        bed.id,
        node.n,
        bed.gossip(1, CLUSTER),
    );
    fs::write(&file, text).expect("written");
    let said = good(&["identity", "--config", &file.display().to_string()]);
    let (name, key) = said.split_once(' ').expect("two words");
    (name.to_owned(), key.to_owned())
}

fn trusting(bed: &Testbed, trust: &str) -> String {
    let table = bed.gossip(1, CLUSTER);
    assert!(table.contains("trust = \"first-sight\""));
    table.replace("trust = \"first-sight\"", trust)
}

#[test]
fn who_the_authority_signed_for_is_believed_in_what_it_may_announce() {
    let mut bed = Testbed::new();
    let nodes = [1, 2, 3].map(|n| bed.node(n, 1));
    let (key, public) = authority(&bed, "authority.key");
    let ids = [0, 1].map(|n: usize| identity(&bed, &nodes[n]));
    let sign = |node: &(String, String), prefixes: &[&str]| {
        let mut words = vec!["authority", "sign", "--key", &key, "--cluster", CLUSTER.0];
        for prefix in prefixes {
            words.extend(["--prefix", prefix]);
        }
        words.extend([&node.0[..], &node.1]);
        let file = bed
            .directory
            .path()
            .join("state")
            .join(format!("{}.cert", node.0));
        fs::write(file, good(&words)).expect("written");
    };
    sign(&ids[0], &[]);
    sign(&ids[1], &["10.244.2.0/24"]);
    let table = trusting(
        &bed,
        &format!("trust = \"authority\"\nauthority = \"{public}\""),
    );
    let setup = Setup {
        more: &table,
        ..Setup::default()
    };
    let first = bed.router_with(&nodes[0], &[], &[], &setup);
    let mut second = bed.router_with(&nodes[1], &[], &[], &setup);
    // It has the cluster's key, and nobody's signature; it believes everybody.
    let third = bed.gossiping_router(&nodes[2], &[], 1);
    wait_for("what is allowed", || first.ways() == ["10.244.2.0/24"]);
    second.knows(&[1]);
    third.knows(&[1, 2]);
    wait_for("the third's record", || {
        first.ask("peers")["records_refused"]
            .as_u64()
            .expect("a number")
            > 0
    });
    assert_eq!(first.ways(), ["10.244.2.0/24"]);
    assert_eq!(first.peer(&third.name), "", "nobody of that name");
    assert!(
        first
            .log()
            .contains("no certificate of the cluster's authority")
    );
    let (_, said) = first.command("routes fd00:10:244:2::7");
    assert!(said.contains("outside what is allowed to"), "{said}");

    // Another's certificate, or none, is refused at the start, by `check` too.
    second.stop();
    let states = bed.directory.path().join("state");
    let own = states.join(format!("{}.cert", ids[1].0));
    let check = |node: &Node, why: &str| {
        let file = bed.directory.path().join(format!("node-{}.toml", node.n));
        let output = node
            .namespace
            .command(env!("CARGO_BIN_EXE_viaduct"))
            .args(["check", "--config"])
            .arg(file)
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && said.contains(why),
            "{why}: {said}"
        );
    };
    let sound = fs::read(&own).expect("there");
    fs::copy(states.join(format!("{}.cert", ids[0].0)), &own).expect("copied");
    check(&nodes[1], "is for another node or key");
    fs::write(&own, "zz").expect("written");
    check(&nodes[1], "it is no certificate");
    fs::remove_file(&own).expect("removed");
    check(&nodes[1], "cannot read");
    let (other, _) = authority(&bed, "other.key");
    let words = [
        "authority",
        "sign",
        "--key",
        &other,
        "--cluster",
        CLUSTER.0,
        &ids[1].0,
        &ids[1].1,
    ];
    fs::write(&own, good(&words)).expect("written");
    check(&nodes[1], "was not signed by the authority");
    fs::write(&own, sound).expect("written");
    second.start();
    second.knows(&[1]);
}

#[test]
fn who_is_configured_is_believed() {
    let mut bed = Testbed::new();
    let nodes = [1, 2, 3].map(|n| bed.node(n, 1));
    let ids = [0, 1].map(|n: usize| identity(&bed, &nodes[n]));
    let mut trust = "trust = \"configured\"".to_owned();
    trust +=
        "\nallowed_prefixes = [\"10.244.0.0/23\", \"fd00:10:244:1::/64\", \"fd00:10:244:2::/64\"]";
    let mut table = trusting(&bed, &trust);
    let node = |(name, key): (String, String)| {
        format!("[[gossip.nodes]]\nname = \"{name}\"\nkey = \"{key}\"\n")
    };
    table.extend(ids.map(node));
    let setup = Setup {
        more: &table,
        ..Setup::default()
    };
    let first = bed.router_with(&nodes[0], &[], &[], &setup);
    let second = bed.router_with(&nodes[1], &[], &[], &setup);
    let third = bed.gossiping_router(&nodes[2], &[], 1);
    second.knows(&[1]);
    third.knows(&[1, 2]);
    wait_for("what the pool has", || {
        first.ways() == ["fd00:10:244:2::/64"]
    });
    wait_for("the third's record", || {
        first
            .log()
            .contains("[[gossip.nodes]] has no node of its name")
    });
    assert_eq!(first.peer(&third.name), "");
    let (_, said) = first.command("routes 10.244.2.7");
    assert!(said.contains("outside allowed_prefixes"), "{said}");
}
