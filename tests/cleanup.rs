//! `viaduct cleanup` touches what the node that it names has left in this network namespace, and
//! nothing else.

mod common;

use std::fs;
use std::path::Path;
use std::process::Output;

use common::{Namespace, Pair, Setup, Testbed, vtep_mac};

/// All that a cleanup might touch.
fn everything(at: &Namespace) -> String {
    [
        "ip link show",
        "ip address show",
        "ip route show",
        "ip -6 route show",
        "ip neighbour show nud permanent",
        "nft -s list ruleset",
        "sysctl net.ipv4.conf.eth0.forwarding net.ipv4.conf.veth-web.forwarding \
         net.ipv4.conf.veth-web.proxy_arp net.ipv6.conf.veth-web.accept_ra",
    ]
    .iter()
    .map(|words| at.run(words))
    .collect()
}

/// The files of a folder, and of bpffs.
fn files(pair: &Testbed) -> Vec<String> {
    let of = |folder: &Path| -> Vec<String> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.path().display().to_string())
            .collect()
    };
    let mut all = of(pair.directory.path());
    all.extend(of(&pair.pins()));
    all.sort();
    all
}

fn cleanup(at: &Namespace, bed: &Testbed, node: &str, directory: &Path) -> Output {
    let mut command = at.command(env!("CARGO_BIN_EXE_viaduct"));
    command
        .args(["cleanup", "--node", node, "--directory"])
        .arg(directory)
        .arg("--bpffs")
        .arg(bed.pins());
    command.output().expect("viaduct runs")
}

/// It must fail, say this, and change nothing in any of these namespaces.
fn refused(pair: &Pair, at: &Namespace, node: &str, directory: &Path, says: &str) {
    let [a, b] = &pair.nodes;
    let before = [everything(&a.namespace), everything(&b.namespace)];
    let there = files(&pair.bed);
    let output = cleanup(at, &pair.bed, node, directory);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(says), "{says}: {said}");
    assert!(output.stdout.is_empty(), "nothing was done");
    assert_eq!(everything(&a.namespace), before[0], "{node}");
    assert_eq!(everything(&b.namespace), before[1], "{node}");
    assert_eq!(files(&pair.bed), there, "{node}");
}

#[test]
fn a_wrong_name_and_a_wrong_namespace_change_nothing() {
    let mut pair = Pair::new(&Setup::default());
    let here = pair.bed.directory.path().to_owned();
    let elsewhere = pair.bed.namespace("elsewhere");
    let [a, b] = [0, 1].map(|n: usize| pair.nodes[n].namespace.clone());
    let [name, other] = [0, 1].map(|n: usize| pair.routers[n].name.clone());

    refused(&pair, &a, &name, &here, "is running");
    let empty = tempfile::tempdir().expect("a folder");
    refused(&pair, &a, &name, empty.path(), "is running");

    // One is killed, one is stopped cleanly: both leave their path in the kernel.
    pair.routers[0].kill();
    pair.routers[1].stop();
    refused(&pair, &a, "typo", &here, &format!("node {name}'s"));
    refused(&pair, &elsewhere, "typo", &here, "nothing of a node typo");
    refused(&pair, &b, &name, &here, &format!("node {other}'s"));
    refused(&pair, &elsewhere, &name, &here, "another network namespace");
    let [web, far] = &pair.pods;
    assert_eq!(web.namespace.ping(&far.v4(), 3, 56), 3, "by the kernel");

    // Without the folder the marks in the kernel say whose it is.
    let output = cleanup(&a, &pair.bed, &name, empty.path());
    assert!(output.status.success(), "{output:?}");
    assert_eq!(a.run("ip route show proto 118"), "");
    assert_eq!(a.run("nft list tables"), "");
    assert_eq!(a.run("ip -j link show type vxlan").trim(), "[]");
    let output = cleanup(&b, &pair.bed, &other, &here);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(b.run("ip route show proto 118"), "");
    let forwarding = b.run("sysctl -n net.ipv4.conf.veth-web.forwarding");
    assert_eq!(forwarding.trim(), "0", "restored");
}

#[test]
fn settings_of_an_earlier_boot_are_not_restored() {
    let mut bed = Testbed::new();
    let node = bed.node(1, 1);
    let web = bed.pod(&node, "web", 2);
    let mut router = bed.router(&node, &[&web], &[(2, &vtep_mac(2))], "count = 1");
    router.kill();
    let file = bed
        .directory
        .path()
        .join(format!("{}.settings", router.name));
    let text = fs::read_to_string(&file).expect("the settings");
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("a boot");
    assert!(text.contains(boot.trim()), "{text}");
    fs::write(&file, text.replace(boot.trim(), "another")).expect("written");
    router.cleanup();
    assert!(!file.exists());
    let forwarding = node
        .namespace
        .run("sysctl -n net.ipv4.conf.veth-web.forwarding");
    assert_eq!(forwarding.trim(), "1", "this boot's are somebody else's");
}
