//! benches/pktgen: what the kernel's generator would be told, and what is made of its answer.
//!
//! A directory of plain files takes the place of /proc/net/pktgen: all commands are appended there.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{Namespace, Testbed};
use serde_json::Value;
use tempfile::TempDir;

const WAY: &str =
    "--interface v0 --gateway 02:00:00:00:00:01 --destination 192.0.2.9 --duration 0.1";
const IDLE: &str = "Running: \nStopped: \nResult: NA\n";

/// As the kernel's documentation shows it (Documentation/networking/pktgen.rst).
const ANSWER: &str = "\
Params: count 0  min_pkt_size: 64  max_pkt_size: 64
     Flags: NO_TIMESTAMP
Current:
     pkts-sofar: 100000  errors: 0
     started: 623913381008us  stopped: 623913396439us idle: 25us
Result: OK: 15430(c15405+d25) usec, 100000 (64byte,0frags)
  6480881pps 3318Mb/sec (3318211060bps) errors: 0
";

/// A namespace with v0, and what stands for pktgen there.
struct Fake {
    _bed: Testbed,
    inside: Namespace,
    root: TempDir,
}

impl Fake {
    fn new(cpus: &[u8]) -> Self {
        let mut bed = Testbed::new();
        let inside = bed.namespace("a");
        inside.run("ip link add v0 type veth peer name v1");
        inside.run("ip address add 192.0.2.1/24 dev v0");
        inside.run("ip link set v0 up");
        inside.run("ip link set v1 up");
        let root = TempDir::new().expect("a directory");
        fs::write(root.path().join("pgctrl"), "").expect("a file");
        let fake = Self {
            _bed: bed,
            inside,
            root,
        };
        for cpu in cpus {
            fake.put(&format!("kpktgend_{cpu}"), IDLE);
            fake.put(&format!("v0@{cpu}"), ANSWER);
        }
        fake
    }

    fn put(&self, name: &str, text: &str) {
        fs::write(self.root.path().join(name), text).expect("a file");
    }

    /// What was written behind what stood there.
    fn commands(&self, name: &str, behind: &str) -> Vec<String> {
        let text = fs::read_to_string(self.root.path().join(name)).expect("a file");
        let rest = text.strip_prefix(behind).expect("appended");
        rest.lines().map(str::to_owned).collect()
    }

    /// Whether it went well, and all that it said.
    fn run(&self, words: &str) -> (bool, String) {
        script(
            self.root.path(),
            &format!("{words} --netns {}", self.inside.name),
        )
    }

    fn report(&self, words: &str) -> Value {
        let (ok, text) = self.run(&format!("{words} --json"));
        assert!(ok, "{text}");
        serde_json::from_str(&text).expect("JSON")
    }
}

fn script(root: &Path, words: &str) -> (bool, String) {
    let output = Command::new("benches/pktgen/kernel.py")
        .args(words.split_whitespace())
        .env("PKTGEN_ROOT", root)
        .output()
        .expect("python3 runs");
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

#[test]
fn one_flow_as_fast_as_possible() {
    let fake = Fake::new(&[0]);
    let report = fake.report(WAY);
    assert_eq!(
        fake.commands("kpktgend_0", IDLE),
        ["add_device v0@0", "rem_device_all"]
    );
    assert_eq!(
        fake.commands("v0@0", ANSWER),
        [
            "count 0",
            "clone_skb 0",
            "queue_map_min 0",
            "queue_map_max 0",
            "pkt_size 64",
            "dst_mac 02:00:00:00:00:01",
            "src_min 192.0.2.1",
            "src_max 192.0.2.1",
            "dst_min 192.0.2.9",
            "dst_max 192.0.2.9",
            "udp_src_min 1024",
            "udp_src_max 1025",
            "udp_dst_min 9",
            "udp_dst_max 9",
            "flag NO_TIMESTAMP",
            "delay 0",
        ]
    );
    assert_eq!(fake.commands("pgctrl", ""), ["start", "stop"]);
    assert_eq!(report["sent"], 100_000);
    assert_eq!(report["sent_bytes"], 6_400_000);
    assert_eq!(report["seconds"], 0.01543);
    let rate = report["sent_per_s"].as_f64().expect("a rate");
    assert!((6_480_881.0 - rate).abs() < 1.0, "{rate}");
    for unknown in [
        "wanted_per_s",
        "received",
        "lost",
        "reordered",
        "latency_us",
    ] {
        assert_eq!(report[unknown], Value::Null, "{unknown}");
    }
}

/// Flows, rate and queues are divided among processors; each has ports of its own.
#[test]
fn many_flows_from_two_processors() {
    let fake = Fake::new(&[0, 1]);
    let mixed = ANSWER.replace(
        "     started",
        "     imix_size_counts: 64,70 594,40 1514,10 \n     started",
    );
    let mixed = mixed.replace("usec, 100000 (64byte", "usec, 120 (594byte");
    fake.put("v0@1", &mixed);
    let words = "--cpus 0,1 --flows 1000 --destinations 10 --rate 50000 --size imix --receive v0";
    let (netns, more) = (&fake.inside.name, "--source 192.0.2.7");
    let report = fake.report(&format!("{WAY} {words} {more} --receive-netns {netns}"));
    for (name, behind, ports) in [
        ("v0@0", ANSWER, (1024, 1524)),
        ("v0@1", mixed.as_str(), (1524, 2024)),
    ] {
        let told = fake.commands(name, behind);
        for command in [
            "imix_weights 64,7 594,4 1514,1",
            "src_min 192.0.2.7",
            "dst_max 192.0.2.18",
            &format!("udp_src_min {}", ports.0),
            &format!("udp_src_max {}", ports.1),
            &format!("queue_map_min {}", &name[3..]),
            "ratep 25000",
        ] {
            assert!(told.iter().any(|t| t == command), "{command}: {told:?}");
        }
        assert!(!told.iter().any(|t| t.starts_with("delay")), "{told:?}");
    }
    assert_eq!(report["sent"], 100_120);
    assert_eq!(
        report["sent_bytes"],
        6_400_000 + 64 * 70 + 594 * 40 + 1514 * 10
    );
    assert_eq!(report["wanted_per_s"], 50_000);
    // Nothing was sent, so at most the veth's own few packets came.
    let (received, lost) = (report["received"].as_u64(), report["lost"].as_u64());
    let (received, lost) = (received.expect("counted"), lost.expect("counted"));
    assert!(received < 100, "{report}");
    assert_eq!(lost, 100_120 - received);
}

#[test]
fn flags_choose_the_order_of_flows() {
    for (words, wanted) in [
        (
            "--flows 1000000 --destinations 1000 --random",
            vec![
                "udp_src_max 2024",
                "dst_max 192.0.5.240",
                "flag UDPSRC_RND",
                "flag IPDST_RND",
            ],
        ),
        (
            "--flows 20 --destinations 20 --train 8",
            vec![
                "udp_src_max 1025",
                "dst_max 192.0.2.28",
                "flag FLOW_SEQ",
                "flows 20",
                "flowlen 8",
            ],
        ),
    ] {
        let fake = Fake::new(&[0]);
        let (ok, text) = fake.run(&format!("{WAY} {words}"));
        assert!(ok && text.contains("100000 packets, 6480881/s"), "{text}");
        let told = fake.commands("v0@0", ANSWER);
        for command in wanted {
            assert!(told.iter().any(|t| t == command), "{command}: {told:?}");
        }
    }
}

#[test]
fn what_cannot_be_is_refused_with_advice() {
    let fake = Fake::new(&[0]);
    for (words, wanted) in [
        ("--flows 7 --destinations 2", "take a multiple of 2"),
        ("--flows 70000", "more than the 64512 source ports"),
        ("--cpus 3", "no thread on processor 3, but kpktgend_0"),
        ("--size 4000", "does not fit v0, whose MTU is 1500"),
        ("--receive v9", "no interface v9"),
        ("--interface v9", "no interface v9"),
        (
            "--receive v0 --receive-netns nowhere-at-all",
            "no network namespace nowhere-at-all",
        ),
    ] {
        let (ok, text) = fake.run(&format!("{WAY} {words}"));
        assert!(
            !ok && text.contains(wanted) && !text.contains("Traceback"),
            "{words}: {text}"
        );
        assert!(
            fake.commands("pgctrl", "").is_empty(),
            "{words}: nothing is sent"
        );
    }
    // Others' devices would be sent on, too.
    fake.put("kpktgend_0", "Running: \nStopped: eth7@0 \nResult: OK\n");
    let (ok, text) = fake.run(WAY);
    assert!(
        !ok && text.contains("kpktgend_0 already has eth7@0"),
        "{text}"
    );
    fake.put("kpktgend_0", IDLE);
    // What was added is removed again when the run did not go well.
    fake.put("v0@0", "Result: Idle\n");
    let (ok, text) = fake.run(WAY);
    assert!(
        !ok && text.contains("pktgen did not send") && text.contains("Idle"),
        "{text}"
    );
    assert_eq!(
        fake.commands("kpktgend_0", IDLE),
        ["add_device v0@0", "rem_device_all"]
    );
}

#[test]
fn a_kernel_without_pktgen_is_said_so() {
    let (ok, text) = script(Path::new("/nowhere"), &WAY.replace("v0", "lo"));
    assert!(!ok && text.contains("this kernel has no pktgen"), "{text}");
    assert!(
        text.contains("modprobe pktgen") && text.contains("CONFIG_NET_PKTGEN"),
        "{text}"
    );
}
