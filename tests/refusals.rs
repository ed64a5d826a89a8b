//! What a router refuses, in words, and that it then leaves everything as it was.

mod common;

use std::fs;

use common::{CLUSTER, Namespace, Testbed, write_key};

/// Runs `viaduct run` with a configuration that it must refuse; returns what
/// it says.
fn refused(bed: &Testbed, namespace: &Namespace, pod: &str, more: &str) -> String {
    let directory = bed.directory.path().join("other");
    let config = format!(
        "[node]\nname = \"other\"\n[underlay]\ninterface = \"eth0\"\n{more}\n\
         [runtime]\ndirectory = \"{}\"\nbpffs = \"{}\"\n\
         [[networks]]\nname = \"default\"\nvni = 1\npod_prefixes = [\"10.244.1.0/24\"]\n\
         cluster_prefixes = [\"10.244.0.0/16\"]\n[[pods]]\ninterface = \"{pod}\"\naddresses = [\"10.244.1.2\"]\n",
        directory.display(),
        bed.pins().display(),
    );
    let file = bed.directory.path().join("refused.toml");
    fs::write(&file, config).expect("the configuration is written");
    let mut command = namespace.command("timeout");
    command
        .args(["10", env!("CARGO_BIN_EXE_viaduct"), "run", "--config"])
        .arg(&file);
    let output = command.output().expect("viaduct runs");
    assert_eq!(output.status.code(), Some(1), "refused");
    assert!(!directory.join("other.sock").exists() && !directory.join("other.lock").exists());
    assert!(!bed.pins().join("other").exists(), "no pins stay behind");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn xdp(namespace: &Namespace) -> usize {
    namespace.run("ip -d link show").matches("prog/xdp").count()
}

#[test]
fn each_refusal_names_the_place_and_changes_nothing() {
    let mut bed = Testbed::new();
    let a = bed.node(1, 1);
    let _web = bed.pod(&a, "web", 2);
    let says = refused(&bed, &a.namespace, "veth-gone", "");
    assert!(
        says.contains("refused.toml:15") && says.contains("veth-gone"),
        "{says}"
    );
    let says = refused(&bed, &a.namespace, "veth-web", "[workers]\ncpus = [1000]");
    assert!(says.contains("CPU 1000"), "{says}");
    assert_eq!(xdp(&a.namespace), 0);
}

#[test]
fn a_queue_that_nobody_would_own_is_refused() {
    let mut bed = Testbed::new();
    let a = bed.node(1, 2);
    let _web = bed.pod(&a, "web", 2);
    let says = refused(&bed, &a.namespace, "veth-web", "queues = 1");
    assert!(
        says.contains("eth0") && says.contains("2 receive queues"),
        "{says}"
    );
    assert_eq!(xdp(&a.namespace), 0);
}

#[test]
fn a_foreign_xdp_program_is_named_and_left_alone() {
    let mut bed = Testbed::new();
    let a = bed.node(1, 1);
    let web = bed.pod(&a, "web", 2);
    // Another node's router is as foreign as any program.
    let mut owner = bed.router(&a, &[&web], &[], "count = 1");
    let says = refused(&bed, &a.namespace, "veth-web", "");
    assert!(says.contains("another XDP program (id "), "{says}");
    assert_eq!(xdp(&a.namespace), 2, "the owner's programs stay");
    owner.stop();
}

#[test]
fn gossip_without_its_key_or_port_is_refused() {
    let mut bed = Testbed::new();
    let a = bed.node(1, 1);
    let _web = bed.pod(&a, "web", 2);
    let table = bed.gossip(1, CLUSTER);
    let named = table.lines().find(|line| line.starts_with("key_file"));
    let key = named
        .and_then(|line| line.split('"').nth(1))
        .expect("its file")
        .to_owned();
    let key = std::path::Path::new(&key);
    for text in ["abc", ""] {
        write_key(key, text);
        let says = refused(&bed, &a.namespace, "veth-web", &table);
        assert!(says.contains("64 hexadecimal digits"), "{says}");
    }
    std::fs::remove_file(key).expect("removed");
    let says = refused(&bed, &a.namespace, "veth-web", &table);
    assert!(
        says.contains("cannot read the cluster's key from"),
        "{says}"
    );
    let table = bed.gossip(1, CLUSTER);
    let words = "socat -u UDP4-RECV:7946,bind=0.0.0.0 OPEN:/dev/null";
    let _other = a.namespace.spawn(words);
    let taken = || !a.namespace.run("ss -Hlun sport = 7946").is_empty();
    common::wait_for("the port to be taken", taken);
    let says = refused(&bed, &a.namespace, "veth-web", &table);
    assert!(
        says.contains("cannot listen for gossip on UDP port 7946"),
        "{says}"
    );
}
