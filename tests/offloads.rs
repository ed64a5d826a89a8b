//! What pods and other nodes leave to hardware (segments, checksums, VLAN tags), through real devices: hooks and workers
//! send the same.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use common::{
    Daemon, Hooks, Namespace, Node, PYTHON, Pod, Setup, Testbed, capture, must, script, vtep_mac,
    wait_for,
};

/// Packets of each kind.
const COUNT: usize = 5_000;
const ETHERNET: usize = 14;
const IPV4: usize = 20;
/// Bytes of an outer header over IPv4, up to the inner IP header.
const OUTER: usize = ETHERNET + IPV4 + 8 + 8 + ETHERNET;

/// The same node with each kind of hooks, one after the other, and another one that only listens and speaks.
struct Site {
    bed: Testbed,
    node: Node,
    other: Node,
    web: Pod,
}

impl Site {
    fn new() -> Self {
        let mut bed = Testbed::new();
        let (node, other) = (bed.node(1, 1), bed.node(9, 1));
        let web = bed.pod(&node, "web", 2);
        // What arrives is for whoever captures it.
        other.namespace.run("nft add table ip deaf");
        other
            .namespace
            .run("nft add chain ip deaf input { type filter hook input priority 0; }");
        other
            .namespace
            .run("nft add rule ip deaf input udp dport 8472 drop");
        // The kernel cuts and sums what leaves the node.
        node.namespace
            .run("ethtool -K eth0 tso off gso off tx off tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off");
        Self {
            bed,
            node,
            other,
            web,
        }
    }

    /// Has a router run while `work` is done; what it returns, and how many packets hooks have carried of port `name`.
    fn with<T>(&mut self, hooks: Hooks, work: impl FnOnce(&Self) -> T) -> (T, u64) {
        let setup = Setup {
            hooks: Some(hooks),
            ..Setup::default()
        };
        let ways = [(9, vtep_mac(9))];
        let ways = ways.each_ref().map(|(n, mac)| (*n, mac.as_str()));
        let mut router = self
            .bed
            .router_with(&self.node, &[&self.web], &ways, &setup);
        wait_for("the way", || {
            router.ask("routes")["routes"][0]["state"] == "resolved"
        });
        let done = work(self);
        router.assert_balanced();
        let carried = router.ask("status")["carried"].as_u64().expect("a count");
        Daemon::stop(&mut router);
        router.cleanup();
        (done, carried)
    }
}

/// What `offload.py` sends from a namespace; how many packets the kernel took.
fn send(from: &Namespace, words: &[&str]) -> usize {
    let mut python = from.command(PYTHON);
    let said = must(python.arg(script("offload.py")).args(words));
    said.trim().parse().expect("a count")
}

/// The frames of a capture.
fn frames(file: &Path) -> Vec<Vec<u8>> {
    let all = fs::read(file).expect("the capture");
    let mut rest = all.get(24..).unwrap_or_default();
    let mut frames = Vec::new();
    while let Some((header, behind)) = rest.split_at_checked(16) {
        let length = u32::from_le_bytes(header[8..12].try_into().expect("four")) as usize;
        let (frame, behind) = behind.split_at(length);
        frames.push(frame.to_vec());
        rest = behind;
    }
    frames
}

fn bytes_of(mac: &str) -> Vec<u8> {
    let bytes = mac.split(':').map(|byte| u8::from_str_radix(byte, 16));
    bytes.collect::<Result<_, _>>().expect("a MAC")
}

fn holds(frame: &[u8], word: &[u8]) -> bool {
    frame.windows(word.len()).any(|part| part == word)
}

fn counted(frames: Vec<Vec<u8>>) -> BTreeMap<Vec<u8>, i32> {
    let mut counts = BTreeMap::new();
    for frame in frames {
        *counts.entry(frame).or_default() += 1;
    }
    counts
}

/// Both have the same frames.
fn assert_same(hooks: Vec<Vec<u8>>, workers: Vec<Vec<u8>>) {
    assert!(
        hooks.iter().all(|frame| !holds(frame, b"tagged")),
        "a VLAN's packet"
    );
    let (hooks, workers) = (counted(hooks), counted(workers));
    let only = |a: &BTreeMap<Vec<u8>, i32>, b: &BTreeMap<Vec<u8>, i32>| {
        let only = a.iter().filter(|(frame, n)| b.get(*frame) != Some(n));
        let only: Vec<String> = only
            .map(|(frame, n)| format!("{n} x {frame:02x?}"))
            .collect();
        format!(
            "{}, as {}",
            only.len(),
            only.first().cloned().unwrap_or_default()
        )
    };
    assert!(
        hooks == workers,
        "of {} and {}; only by hooks: {}; only by workers: {}",
        hooks.len(),
        workers.len(),
        only(&hooks, &workers),
        only(&workers, &hooks)
    );
}

/// A pod's packets on the underlay. The outer ID is left out: of a packet that the kernel cuts it counts up, and says nothing
/// where nothing may be fragmented (RFC 6864, section 4.1).
#[test]
fn what_pods_leave_to_hardware_leaves_the_node_the_same() {
    let mut site = Site::new();
    let sent = |site: &Site| {
        let (web, node) = (&site.web, &site.node.namespace);
        let gateway = node.mac(&web.interface);
        let own = web.namespace.mac("eth0");
        let count = COUNT.to_string();
        let (v4, v6) = (web.v4(), web.v6());
        let words = [
            "from-pod",
            "eth0",
            "20",
            &count,
            &own,
            &gateway,
            &v4,
            &v6,
            "10.244.9.7",
            "fd00:10:244:9::7",
        ];
        let place = (&site.node.switch, site.node.switch_port.as_str());
        let file = capture(&site.bed, place, (node, "eth0"), || {
            let taken = send(&web.namespace, &words);
            assert!(taken > COUNT * 9 / 10, "{taken}");
        });
        let underlay = bytes_of(&node.mac("eth0"));
        let mut frames = frames(&file);
        frames.retain(|frame| {
            let tunnel = frame.get(6..12) == Some(&underlay) && frame.len() > OUTER;
            tunnel && frame[36..38] == 8472_u16.to_be_bytes()
        });
        for frame in &mut frames {
            frame[ETHERNET + 4..ETHERNET + 6].fill(0);
            frame[ETHERNET + 10..ETHERNET + 12].fill(0);
        }
        frames
    };
    let (hooks, carried) = site.with(Hooks::Settled, sent);
    let (workers, none) = site.with(Hooks::Tc, sent);
    assert!(carried > COUNT as u64, "{carried} by hooks: segments count");
    assert_eq!(none, 0);
    assert!(hooks.len() > COUNT, "{}", hooks.len());
    assert_same(hooks, workers);
}

/// Another node's packets at the pod. A hook leaves to the pod's kernel what it knows to be finished by it.
#[test]
fn what_nodes_leave_to_hardware_reaches_the_pod_the_same() {
    let mut site = Site::new();
    let sent = |site: &Site| {
        let (web, node) = (&site.web, &site.node.namespace);
        let other = &site.other.namespace;
        let count = COUNT.to_string();
        let (own, to) = (other.mac("eth0"), node.mac("eth0"));
        let (v4, v6, vtep_mac) = (web.v4(), web.v6(), vtep_mac(1));
        let words = [
            "tunnelled",
            "eth0",
            "21",
            &count,
            &own,
            &to,
            "10.244.9.7",
            "fd00:10:244:9::7",
            &v4,
            &v6,
            "192.0.2.9",
            "192.0.2.1",
            &vtep_mac,
        ];
        let file = capture(
            &site.bed,
            (&web.namespace, "eth0"),
            (node, &web.interface),
            || {
                let taken = send(other, &words);
                assert!(taken > COUNT * 9 / 10, "{taken}");
            },
        );
        let mut frames = frames(&file);
        // Not the pod's answers.
        let pod = bytes_of(&web.namespace.mac("eth0"));
        frames.retain(|frame| {
            let ours = [b"partial".as_slice(), b"whole", b"tagged"];
            frame.starts_with(&pod) && ours.iter().any(|word| holds(frame, word))
        });
        for frame in &mut frames {
            if holds(frame, b"partial") {
                let at = checksum(frame);
                frame[at..at + 2].fill(0);
            }
        }
        frames
    };
    let (hooks, carried) = site.with(Hooks::Settled, sent);
    let (workers, none) = site.with(Hooks::Tc, sent);
    let (in_xdp, _) = site.with(Hooks::Xdp, sent);
    assert!(in_xdp.iter().all(|frame| !holds(frame, b"tagged")));
    assert!(carried > COUNT as u64 / 3, "{carried} by hooks");
    assert_eq!(none, 0);
    assert!(hooks.len() > COUNT / 2, "{}", hooks.len());
    assert_same(hooks, workers);
}

/// Where the transport checksum of a frame stands.
fn checksum(frame: &[u8]) -> usize {
    let (header, protocol) = if frame[12] == 8 {
        (usize::from(frame[ETHERNET] & 15) * 4, frame[ETHERNET + 9])
    } else {
        (40, frame[ETHERNET + 6])
    };
    ETHERNET + header + if protocol == 6 { 16 } else { 6 }
}
