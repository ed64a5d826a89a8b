//! The packet generator: what it sends, what it counts, what it refuses.

mod common;

use std::collections::BTreeSet;
use std::process::Command;

use common::{Namespace, Testbed, captured, vtep_mac, wait_for};
use serde_json::Value;

/// 192.0.2.1 and .2, with one veth pair between them.
fn two_ends(bed: &mut Testbed) -> [Namespace; 2] {
    let ends = ["a", "b"].map(|name| bed.namespace(name));
    let [a, b] = &ends;
    a.run(&format!(
        "ip link add v0 type veth peer name v0 netns {}",
        b.name
    ));
    for (end, host) in ends.iter().zip([1, 2]) {
        end.run(&format!("ip address add 192.0.2.{host}/24 dev v0"));
        end.run("ip link set v0 up");
    }
    ends
}

fn mac(end: &Namespace, interface: &str) -> String {
    let links: Value =
        serde_json::from_str(&end.run(&format!("ip -json link show {interface}"))).expect("JSON");
    links[0]["address"].as_str().expect("a MAC").to_owned()
}

fn pktgen(words: &str) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_viaduct"));
    let output = command
        .arg("pktgen")
        .args(words.split_whitespace())
        .output()
        .expect("it runs");
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

fn report(words: &str) -> Value {
    let (ok, text) = pktgen(&format!("{words} --json"));
    assert!(ok, "{words}: {text}");
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn all_that_is_sent_is_counted() {
    let mut bed = Testbed::new();
    let [a, b] = two_ends(&mut bed);
    let way = format!(
        "--netns {} --interface v0 --receive-netns {} --receive v0 --gateway {} --destination 192.0.2.2 --duration 1",
        a.name,
        b.name,
        mac(&b, "v0")
    );
    for engine in ["frames", "af-xdp"] {
        for what in [
            "--size 64 --flows 1",
            "--size imix --flows 1000 --destinations 10",
            "--size 1464 --flows 3 --tunnel 192.0.2.2 --vtep-mac 02:00:00:00:01:01 --peer-vtep-mac 02:00:00:00:01:02",
        ] {
            let got = report(&format!("{way} --engine {engine} --rate 20000 {what}"));
            let number = |name: &str| {
                got[name]
                    .as_u64()
                    .unwrap_or_else(|| panic!("no {name}: {got}"))
            };
            assert!(
                (5_000..21_000).contains(&number("sent")),
                "{engine} {what}: {got}"
            );
            assert_eq!(number("received"), number("sent"), "{engine} {what}: {got}");
            assert_eq!(number("received_bytes"), number("sent_bytes"));
            assert_eq!(
                [number("lost"), number("reordered"), number("foreign")],
                [0; 3]
            );
            assert!(got["latency_us"]["p999"].as_f64().expect("a number") > 0.0);
        }
    }
    // Flat out, what is lost is what has not come.
    let got = report(&format!("{way} --size 64"));
    let number = |name: &str| got[name].as_u64().expect("a number");
    assert!(number("sent") > 20_000 && number("received") > 0, "{got}");
    assert_eq!(number("lost"), number("sent") - number("received"));
}

/// What others make of the packets: flows, lengths, checksums.
#[test]
fn packets_are_sound() {
    let mut bed = Testbed::new();
    let [a, b] = two_ends(&mut bed);
    // Else no frame enters a veth without an XDP program at its other end.
    b.run("ethtool -K v0 gro on");
    let way = format!(
        "--netns {} --interface v0 --gateway {} --rate 1000 --duration 0.5",
        a.name,
        mac(&b, "v0")
    );
    for engine in ["frames", "af-xdp"] {
        for (what, filter, inner) in [
            (
                "--destination 192.0.2.100 --destinations 5 --step 2 --flows 20",
                "udp and net 192.0.2.0/24",
                0,
            ),
            (
                "--destination 10.244.2.2 --destinations 5 --step 2 --flows 20 --source 10.244.1.2 --tunnel 192.0.2.2 \
                 --vtep-mac 02:00:00:00:01:01 --peer-vtep-mac 02:00:00:00:01:02",
                "udp and port 8472",
                1,
            ),
        ] {
            let file = bed.directory.path().join(format!("{engine}-{inner}.pcap"));
            let mut capture = b.capture("v0", &file, 120, filter);
            let _ = report(&format!("{way} --engine {engine} --size imix {what}"));
            capture.ended("the capture");
            let fields = [
                "ip.dst",
                "udp.srcport",
                "udp.dstport",
                "frame.len",
                "ip.checksum.status",
                "vxlan.vni",
            ];
            let lines = captured(&file, "udp", &["ip.check_checksum:TRUE"], &fields);
            assert_eq!(lines.len(), 120, "{engine} {what}");
            let (mut flows, mut lengths) = (BTreeSet::new(), Vec::new());
            for line in &lines {
                let fields: Vec<_> = line.split('\t').collect();
                let at = |n: usize| fields[n].split(',').collect::<Vec<_>>();
                assert!(
                    at(4).iter().all(|status| *status == "1"),
                    "checksums: {line}"
                );
                assert_eq!(fields[5], if inner == 1 { "1" } else { "" });
                flows.insert((
                    at(0)[inner].to_owned(),
                    at(1)[inner].to_owned(),
                    at(2)[inner].to_owned(),
                ));
                lengths.push(fields[3].parse::<usize>().expect("a length") - 50 * inner);
            }
            assert_eq!(flows.len(), 20, "{flows:?}");
            let long = 1514 - 50 * inner;
            let count = |length| lengths.iter().filter(|l| **l == length).count();
            assert_eq!([64, 594, long].map(count), [70, 40, 10], "{engine}");
        }
    }
}

/// From a pod to the underlay, and back.
#[test]
fn through_a_router() {
    let mut bed = Testbed::new();
    let nodes = [1, 2].map(|n| bed.node(n, 1));
    let pod = bed.pod(&nodes[0], "web", 2);
    let router = bed.router(&nodes[0], &[&pod], &[(2, &vtep_mac(2))], "count = 1");
    wait_for("the way", || router.ways().len() == 2);
    // A veth without an XDP program takes frames where it has GRO.
    nodes[1].switch.run("ethtool -K u2 gro on");
    for device in ["veth-web", "eth0"] {
        nodes[0]
            .namespace
            .run(&format!("ethtool -K {device} gro on"));
    }
    let [gateway, node] =
        [("veth-web", &nodes[0]), ("eth0", &nodes[0])].map(|(name, at)| mac(&at.namespace, name));
    let from_pod = format!(
        "--netns {} --interface eth0 --gateway {gateway} --destination 10.244.2.2 --receive-netns {} --receive eth0",
        pod.namespace.name, nodes[1].namespace.name
    );
    let to_pod = format!(
        "--netns {} --interface eth0 --gateway {node} --source 10.244.2.2 --destination 10.244.1.2 --tunnel 192.0.2.1 \
         --vtep-mac {} --peer-vtep-mac {} --receive-netns {} --receive eth0 --receive-hook tc",
        nodes[1].namespace.name,
        vtep_mac(2),
        vtep_mac(1),
        pod.namespace.name
    );
    for way in [&from_pod, &to_pod] {
        for engine in ["frames", "af-xdp"] {
            let got = report(&format!(
                "{way} --engine {engine} --rate 2000 --duration 0.5 --flows 16 --size 200"
            ));
            assert_eq!(
                (&got["lost"], &got["reordered"]),
                (&0.into(), &0.into()),
                "{engine} {way}: {got}"
            );
            assert!(got["received"].as_u64().expect("a number") > 100, "{got}");
        }
    }
    let (ok, text) = pktgen(&format!(
        "search {from_pod} --duration 0.2 --rate 4000 --engine af-xdp"
    ));
    assert!(ok && text.contains("NDR") && text.contains("PDR"), "{text}");
    router.assert_balanced();
}

#[test]
fn what_cannot_be_done_is_said() {
    let mut bed = Testbed::new();
    let [a, b] = two_ends(&mut bed);
    a.run(&format!(
        "ip link add v1 type veth peer name v1 netns {}",
        b.name
    ));
    let names = [a.name.as_str(), b.name.as_str()];
    let good = format!(
        "--netns {} --gateway 02:00:00:00:00:01 --duration 0.1",
        names[0]
    );
    for (words, expected) in [
        (
            "--interface nix --destination 192.0.2.2",
            "no interface nix",
        ),
        (
            "--interface v0 --destination 192.0.2.2 --receive nix",
            "no interface nix",
        ),
        (
            "--interface v0 --destination 192.0.2.2 --size 1600",
            "MTU of 1500 leaves 1514",
        ),
        (
            "--interface v0 --destination 192.0.2.2 --size 63",
            "64 bytes or more",
        ),
        (
            "--interface v0 --destination 192.0.2.2 --rate 0",
            "rate of 0",
        ),
        (
            "--interface v0 --destination 192.0.2.2 --flows 1000001",
            "1 to 1000000",
        ),
        (
            "--interface v0 --destination 255.255.255.0 --destinations 300",
            "no 300 addresses",
        ),
        (
            "--interface v0 --destination 192.0.2.2 --cpu 4095",
            "no processor 4095",
        ),
        (
            "--interface v1 --destination 192.0.2.2",
            "v1 has no IPv4 address",
        ),
        ("search --interface v0 --destination 192.0.2.2", "--receive"),
        (
            "--interface v0 --destination 192.0.2.2 --tunnel 192.0.2.2",
            "--vtep-mac",
        ),
    ] {
        let (ok, text) = pktgen(&format!("{words} {good}"));
        assert!(!ok && text.contains(expected), "{words}: {text}");
    }
    let (ok, text) = pktgen(
        "--interface v0 --destination 192.0.2.2 --gateway 02:00:00:00:00:01 --netns nix-there",
    );
    assert!(
        !ok && text.contains("no network namespace at /run/netns/nix-there"),
        "{text}"
    );
    // Busy: another generator receives there.
    let way = format!(
        "{good} --interface v0 --destination 192.0.2.2 --receive-netns {} --receive v0",
        names[1]
    );
    let mut first = Command::new(env!("CARGO_BIN_EXE_viaduct"))
        .arg("pktgen")
        .args(
            way.replace("--duration 0.1", "--duration 20 --rate 10")
                .split_whitespace(),
        )
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("it runs");
    wait_for("the other's program", || {
        b.run("ip link show v0").contains("xdp")
    });
    let (ok, text) = pktgen(&way);
    assert!(!ok && text.contains("cannot receive on v0"), "{text}");
    // A signal ends it, with its report; the program is gone.
    let pid = i32::try_from(first.id()).expect("a pid");
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid),
        nix::sys::signal::Signal::SIGINT,
    )
    .expect("sent");
    assert!(first.wait().expect("it ends").success());
    wait_for("its program to go", || {
        !b.run("ip link show v0").contains("xdp")
    });
    // A rate that no generator reaches.
    let (ok, text) = pktgen(&format!("{way} --rate 900000000"));
    assert!(ok && text.contains("was not reached"), "{text}");
}
