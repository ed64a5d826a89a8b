//! Which node is believed, and what it may announce.

mod common;

use std::fs;
use std::path::Path;

use common::{Authority, Daemon, Node, Setup, Signee, Testbed, wait_for};

/// `check` refuses a node's configuration with these words.
fn refused(node: &Node, file: &Path, why: &str) {
    let output = node
        .namespace
        .command(env!("CARGO_BIN_EXE_viaduct"))
        .args(["check", "--config"])
        .arg(file)
        .output()
        .expect("it runs");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(
        !output.status.success() && said.contains(why),
        "{why}: {said}"
    );
}

/// Waits until a router has refused records for this reason and for no other, and says what it means.
fn refuses(router: &Daemon, reason: &str, meaning: &str) {
    let count = || router.ask("peers")["records_refused"].clone();
    wait_for(reason, || count()[reason].as_u64() > Some(0));
    assert_eq!(
        count().as_object().map(serde_json::Map::len),
        Some(1),
        "{}",
        count()
    );
    let (did, text) = router.command("peers");
    let line = |line: &str| line.contains(reason) && line.contains(meaning);
    assert!(did && text.lines().any(line), "{text}");
}

#[test]
fn who_the_authority_signed_for_is_believed_in_what_it_may_announce() {
    let mut bed = Testbed::new();
    let nodes = [1, 2, 3].map(|n| bed.node(n, 1));
    let authority = Authority::new(&bed, "authority.key");
    let ids = [0, 1].map(|n: usize| bed.identity(&nodes[n]));
    let sign = |node: &Signee, options: &[&str]| {
        fs::write(bed.certificate(&node.name), authority.sign(node, options)).expect("written");
    };
    sign(&ids[0], &[]);
    sign(&ids[1], &["--prefix", "10.244.2.0/24"]);
    let table = authority.table(&bed, 1);
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
    refuses(&first, "no-certificate", "It has no certificate");
    assert_eq!(first.ways(), ["10.244.2.0/24"]);
    let (_, said) = first.command("routes fd00:10:244:2::7");
    assert!(said.contains("outside what is allowed to"), "{said}");
    // A certificate that is damaged is not taken while the node runs, either.
    let own = bed.certificate(&ids[1].name);
    fs::write(&own, "zz").expect("written");
    second.signal("-HUP");
    wait_for("a word about it", || {
        second.log().contains("certificate was not read again")
    });
    assert_eq!(first.ways(), ["10.244.2.0/24"]);
    // A later one for both families counts without a restart.
    let both = [
        "--prefix",
        "10.244.2.0/24",
        "--prefix",
        "fd00:10:244:2::/64",
    ];
    sign(&ids[1], &both);
    second.signal("-HUP");
    wait_for("what the later certificate allows", || {
        let mut ways = first.ways();
        ways.sort();
        ways == ["10.244.2.0/24", "fd00:10:244:2::/64"]
    });
    assert_eq!(first.peer(&third.name), "", "nobody of that name");
    assert!(
        first
            .log()
            .contains("no certificate of the cluster's authority")
    );

    // Another's certificate, or none, is refused at the start, by `check` too.
    second.stop();
    let file = bed.directory.path().join(format!("{}.toml", second.name));
    let check = |node: &Node, why: &str| refused(node, &file, why);
    let sound = fs::read(&own).expect("there");
    fs::copy(bed.certificate(&ids[0].name), &own).expect("copied");
    check(&nodes[1], "is for another node or key");
    fs::write(&own, "zz").expect("written");
    check(&nodes[1], "it is no certificate");
    fs::remove_file(&own).expect("removed");
    check(&nodes[1], "cannot read");
    let other = Authority::new(&bed, "other.key");
    fs::write(&own, other.sign(&ids[1], &[])).expect("written");
    check(&nodes[1], "was not signed by the authority");
    fs::write(&own, sound).expect("written");
    second.start();
    second.knows(&[1]);
}

#[test]
fn who_is_configured_is_believed() {
    let mut bed = Testbed::new();
    let nodes = [1, 2, 3].map(|n| bed.node(n, 1));
    let ids = [0, 1].map(|n: usize| bed.identity(&nodes[n]));
    let mut trust = "trust = \"configured\"".to_owned();
    trust +=
        "\nallowed_prefixes = [\"10.244.0.0/23\", \"fd00:10:244:1::/64\", \"fd00:10:244:2::/64\"]";
    let mut table = bed.trusting(1, &trust);
    let node = |Signee { name, key }: Signee| {
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
    refuses(&first, "unknown-node", "has no node of its name");
    let log = first.log();
    assert!(
        log.contains("[[gossip.nodes]] has no node of its name"),
        "{log}"
    );
    assert_eq!(first.peer(&third.name), "");
    let (_, said) = first.command("routes 10.244.2.7");
    assert!(said.contains("outside allowed_prefixes"), "{said}");
}
