//! `viaduct check` finds what a start would, says all of it, and touches nothing.

mod common;

use std::fs;
use std::path::Path;
use std::process::Output;

use common::{CLUSTER, Namespace, Node, Testbed, vtep_mac, wait_for, write_key};

/// A configuration of node `name` with the bed's folders; `more` follows the pod.
fn config(bed: &Testbed, name: &str, more: &str) -> String {
    format!(
        "[node]\nname = \"{name}\"\n[underlay]\ninterface = \"eth0\"\n\
         [runtime]\ndirectory = \"{}\"\nbpffs = \"{}\"\n\
         [[networks]]\nname = \"default\"\nvni = 1\nvtep_mac = \"{}\"\npod_prefixes = [\"10.244.1.0/24\"]\n\
         cluster_prefixes = [\"10.244.0.0/16\"]\n[[pods]]\ninterface = \"veth-web\"\naddresses = [\"10.244.1.2\"]\n{more}\n",
        bed.directory.path().join("run").display(),
        bed.pins().display(),
        vtep_mac(1),
    )
}

/// Runs `viaduct COMMAND --config` with this configuration; a wrapper may come before it.
fn viaduct(
    bed: &Testbed,
    namespace: &Namespace,
    wrapper: &str,
    command: &str,
    text: &str,
) -> Output {
    let file = bed.directory.path().join("checked.toml");
    fs::write(&file, text).expect("the configuration is written");
    let mut words =
        wrapper
            .split_whitespace()
            .chain(["timeout", "20", env!("CARGO_BIN_EXE_viaduct")]);
    let mut process = namespace.command(words.next().expect("a program"));
    process.args(words).args([command, "--config"]).arg(&file);
    process.output().expect("viaduct runs")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), output.stderr.as_slice()].concat())
        .into_owned()
}

/// What `check` says, and that it would have refused or not.
fn checked(
    bed: &Testbed,
    namespace: &Namespace,
    wrapper: &str,
    text: &str,
    refused: bool,
) -> String {
    let output = viaduct(bed, namespace, wrapper, "check", text);
    let said = said(&output);
    assert_eq!(output.status.code(), Some(i32::from(refused)), "{said}");
    assert!(!bed.directory.path().join("run").exists(), "touched");
    assert!(!bed.pins().exists(), "touched");
    said
}

/// Both `check` and `run` refuse, with these words.
fn both_refuse(bed: &Testbed, namespace: &Namespace, wrapper: &str, text: &str, words: &[&str]) {
    let from_check = checked(bed, namespace, wrapper, text, true);
    let output = viaduct(bed, namespace, wrapper, "run", text);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    for says in [from_check, said(&output)] {
        for word in words {
            assert!(says.contains(word), "{word}: {says}");
        }
    }
    let _ = fs::remove_dir(bed.directory.path().join("run"));
}

fn node(bed: &mut Testbed) -> Node {
    let node = bed.node(1, 1);
    let _ = bed.pod(&node, "web", 2);
    node
}

#[test]
fn a_sound_host_is_good() {
    let mut bed = Testbed::new();
    let a = node(&mut bed);
    let says = checked(&bed, &a.namespace, "env", &config(&bed, "good", ""), false);
    assert!(says.contains("good; underlay eth0 192.0.2.1"), "{says}");
    assert!(!says.contains("warning"), "{says}");
}

#[test]
fn all_problems_are_said_at_once() {
    let mut bed = Testbed::new();
    let a = node(&mut bed);
    a.namespace.run("ip link set eth0 mtu 9000");
    a.namespace.run("ip link set veth-web down");
    let socat = a
        .namespace
        .spawn("socat -u UDP4-RECV:17946,bind=0.0.0.0 OPEN:/dev/null");
    wait_for("the port to be taken", || {
        !a.namespace.run("ss -Hlun sport = 17946").is_empty()
    });
    let gossip = bed
        .gossip(1, CLUSTER)
        .replace("[gossip]", "[gossip]\nport = 17946");
    let more = format!(
        "[[pods]]\ninterface = \"veth-gone\"\naddresses = [\"10.244.1.3\"]\n\
         [[routes]]\nprefixes = [\"10.244.2.0/24\"]\nvtep = \"192.0.2.1\"\nvtep_mac = \"{}\"\n{gossip}",
        vtep_mac(2)
    );
    let own = "interface = \"eth0\"";
    let text = config(&bed, "bad", &more).replacen(own, &format!("{own}\nhook = \"xdp\""), 1);
    let says = checked(&bed, &a.namespace, "env", &text, false);
    for word in [
        "checked.toml:4: underlay eth0: it has an MTU of 9000",
        "pod veth-web on veth-web: its interface is down",
        "pod veth-gone on veth-gone: its interface does not exist",
        "192.0.2.1 is this host's own address",
        "UDP port 17946 is taken",
        "a router would start; warnings above: 5",
    ] {
        assert!(says.contains(word), "{word}: {says}");
    }
    drop(socat);
    // What would be refused comes first.
    let key = text
        .lines()
        .find_map(|line| line.strip_prefix("key_file = "))
        .expect("a key");
    write_key(Path::new(key.trim_matches('"')), "abc");
    let text = text.replace("[runtime]", "[workers]\ncpus = [1000]\n[runtime]");
    let says = checked(&bed, &a.namespace, "env", &text, true);
    let lines: Vec<&str> = says.lines().collect();
    assert!(
        lines[0].contains("error: cannot pin a worker to CPU 1000"),
        "{says}"
    );
    assert!(
        lines[1].contains("error: ") && lines[1].contains("64 hexadecimal digits"),
        "{says}"
    );
    assert!(
        says.contains("warning: ") && says.contains("errors above: 2"),
        "{says}"
    );
}

#[test]
fn what_others_have_made_is_named() {
    let mut bed = Testbed::new();
    let a = node(&mut bed);
    let text = config(&bed, "beside", "");
    a.namespace.run("ip link add viaduct.1 type bridge");
    both_refuse(
        &bed,
        &a.namespace,
        "env",
        &text,
        &["another interface has this name", "slow_path.device"],
    );
    a.namespace.run("ip link delete viaduct.1");
    let flannel = "ip link add flannel.1 type vxlan id 1 dstport 8472 local 192.0.2.1 dev eth0";
    a.namespace.run(flannel);
    both_refuse(
        &bed,
        &a.namespace,
        "env",
        &text,
        &["flannel.1", "it learns addresses", "vtep_mac"],
    );
    a.namespace.run("ip link delete flannel.1");
    // The other family's device has a MAC of its own.
    a.namespace.run(
        "ip link add flannel-v6.1 address 02:00:00:00:06:01 mtu 1430 type vxlan id 1 dstport 8472 \
         local fd00:99::1 dev eth0 nolearning",
    );
    let route = format!(
        "{text}[[routes]]\nprefixes = [\"10.244.2.0/24\"]\nvtep = \"fd00:99::2\"\nvtep_mac = \"{}\"\n",
        vtep_mac(2)
    );
    let wrong = ["flannel-v6.1", "02:00:00:00:06:01", "set vtep_mac6 to it"];
    both_refuse(&bed, &a.namespace, "env", &route, &wrong);
    let own = "vni = 1\nvtep_mac6 = \"02:00:00:00:06:01\"";
    let mended = route.replace("vni = 1", own);
    let says = checked(&bed, &a.namespace, "env", &mended, false);
    assert!(!says.contains("flannel-v6.1"), "{says}");
    a.namespace.run("ip link delete flannel-v6.1");
    let text = text.replace("10.244.1.2", "10.244.1.1");
    let says = checked(&bed, &a.namespace, "env", &text, false);
    assert!(
        says.contains("pod veth-web has 10.244.1.1, which is the gateway"),
        "{says}"
    );
}

#[test]
fn what_this_process_may_not_do_is_named() {
    let mut bed = Testbed::new();
    let a = node(&mut bed);
    let text = config(&bed, "bound", "");
    for (dropped, name) in [
        ("-net_admin", "CAP_NET_ADMIN"),
        ("-net_raw", "CAP_NET_RAW"),
        ("-bpf,-sys_admin", "CAP_BPF"),
    ] {
        let wrapper = format!("setpriv --bounding-set {dropped} --inh-caps {dropped}");
        both_refuse(&bed, &a.namespace, &wrapper, &text, &[name, "is missing"]);
    }
    let wrapper = "prlimit --memlock=8388608 setpriv --bounding-set -ipc_lock --inh-caps -ipc_lock";
    both_refuse(
        &bed,
        &a.namespace,
        wrapper,
        &text,
        &["RLIMIT_MEMLOCK, 8 MB", "CAP_IPC_LOCK"],
    );
    let folder = bed.directory.path().display().to_string();
    let elsewhere = text.replace(&bed.pins().display().to_string(), &folder);
    both_refuse(
        &bed,
        &a.namespace,
        "env",
        &elsewhere,
        &["is not in a BPF filesystem", "mount -t bpf"],
    );
}

/// What a container may lack is told apart.
#[test]
fn what_a_container_lacks_is_named() {
    let mut bed = Testbed::new();
    let a = node(&mut bed);
    let text = config(&bed, "inside", "");
    let without = |name: &str, mounts: &str| {
        let script = bed.directory.path().join(name);
        fs::write(&script, format!("set -e\n{mounts}\nexec \"$@\"\n")).expect("written");
        format!("unshare --mount sh {}", script.display())
    };
    let settings = without(
        "settings",
        "mount --bind /proc/sys /proc/sys\nmount -o remount,ro,bind /proc/sys",
    );
    both_refuse(
        &bed,
        &a.namespace,
        &settings,
        &text,
        &[
            "cannot change network settings",
            "Read-only",
            "/proc/sys writable",
        ],
    );
    let tun = without("tun", "mount -t tmpfs none /dev/net");
    both_refuse(
        &bed,
        &a.namespace,
        &tun,
        &text,
        &["cannot open /dev/net/tun", "modprobe tun"],
    );
    let bpffs = without(
        "bpffs",
        "umount /sys/fs/bpf || mount -t tmpfs none /sys/fs/bpf",
    );
    both_refuse(
        &bed,
        &a.namespace,
        &bpffs,
        &text,
        &["is not in a BPF filesystem", "mount -t bpf"],
    );
    let nft = without("nft", "mount --bind /dev/null \"$(command -v nft)\"");
    let says = checked(&bed, &a.namespace, &nft, &text, false);
    assert!(
        says.contains("there is no program nft") && says.contains("forged packets"),
        "{says}"
    );
}

/// Limits below what is allowed are raised.
#[test]
fn limits_are_raised_as_far_as_allowed() {
    let mut bed = Testbed::new();
    let a = bed.node(1, 1);
    let web = bed.pod(&a, "web", 2);
    let router = bed.router(&a, &[&web], &[], "count = 1");
    let limits = fs::read_to_string(format!("/proc/{}/limits", router.pid())).expect("its limits");
    for name in ["Max locked memory", "Max open files"] {
        let limit = limits
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .expect("a limit");
        let values: Vec<&str> = limit.split_whitespace().take(2).collect();
        assert_eq!(values[0], values[1], "{name}");
    }
}

#[test]
fn a_namespace_has_one_router() {
    let mut bed = Testbed::new();
    let a = bed.node(1, 1);
    let web = bed.pod(&a, "web", 2);
    let mut owner = bed.router(&a, &[&web], &[], "count = 1");
    let text = config(&bed, "second", "");
    let run = bed.directory.path().join("run");
    for command in ["check", "run"] {
        let output = viaduct(&bed, &a.namespace, "env", command, &text);
        let says = said(&output);
        assert_eq!(output.status.code(), Some(1), "{says}");
        let named = format!(
            "node {}'s router is running in this network namespace",
            owner.name
        );
        assert!(says.contains(&named), "{says}");
        assert!(!run.join("second.sock").exists() && !run.join("second.lock").exists());
    }
    assert_eq!(owner.ask("status")["ready"], true);
    // Its own `check` finds it, and nothing in the way.
    let own = a
        .namespace
        .command(env!("CARGO_BIN_EXE_viaduct"))
        .args(["check", "--config"])
        .arg(owner.file())
        .output();
    let own = own.expect("viaduct runs");
    assert!(own.status.success(), "{}", said(&own));
    owner.kill();
    let second = viaduct(&bed, &a.namespace, "timeout -s TERM 2", "run", &text);
    assert!(
        !said(&second).contains("is running in"),
        "{}",
        said(&second)
    );
}
