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
    let says = refused(&bed, &a.namespace, "eth0", "");
    assert!(
        says.contains("refused.toml:15") && says.contains("the underlay's interface"),
        "{says}"
    );
    let says = refused(&bed, &a.namespace, "veth-web", "[workers]\ncpus = [1000]");
    assert!(says.contains("CPU 1000"), "{says}");
    assert_eq!(xdp(&a.namespace), 0);
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
}
