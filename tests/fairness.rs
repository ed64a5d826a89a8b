//! Pods at full rate take no more than their share from another: a worker goes round its ports' queues
//! and takes at most 64 packets from each; on its trunk a port has a share of the places.

mod common;

use std::thread::sleep;
use std::time::Duration;

use common::{Daemon, Hooks, Pod, Setup, Testbed, vtep_mac};
use serde_json::Value;

/// Of one pod's packets.
#[derive(Clone, Copy, Debug)]
struct Sent {
    /// The worker took them.
    taken: u64,
    /// The kernel or a hook dropped them in front of the worker: the ring, or the pod's share of the trunk, was full.
    kept_out: u64,
    /// A hook did.
    refused: u64,
    /// The worker took them, and dropped them.
    dropped: u64,
    /// That its queue has for receiving, its own and what it is lent.
    frames: u64,
}

fn sent(ports: &Value, pod: &Pod) -> Sent {
    let all = ports["ports"].as_array().expect("ports");
    let port = all.iter().find(|port| port["name"] == pod.interface[..]);
    let count = |name: &str| port.expect("its port")[name].as_u64().expect("a number");
    Sent {
        taken: count("rx_packets"),
        kept_out: count("kernel_drops"),
        refused: port.expect("its port")["hooks"]["refused"]
            .as_u64()
            .expect("a number"),
        dropped: count("drops"),
        frames: count("receive_frames"),
    }
}

fn add(router: &Daemon, pod: &Pod) {
    let (interface, address) = (&pod.interface, pod.v4());
    let (did, said) = router.command(&format!(
        "port add --interface {interface} --address {address}"
    ));
    assert!(did, "{said}");
}

/// `greedy` pods send as fast as they can; one sends a steady 500 datagrams a second by the same
/// worker, for some seconds. Of its packets as many are taken as of theirs, or all.
fn beside(greedy: u8, hooks: Hooks) {
    let mut bed = Testbed::new();
    let (a, b) = (bed.node(1, 1), bed.node(2, 1));
    let (far, modest) = (bed.pod(&b, "far", 2), bed.pod(&a, "modest", 2));
    let others: Vec<_> = (0..greedy)
        .map(|n| bed.pod(&a, &format!("g{n}"), 10 + n))
        .collect();
    let setup = |workers| Setup {
        workers,
        hooks: Some(hooks),
        ..Setup::default()
    };
    let many = setup("count = 1\nmax_ports = 64");
    let ra = bed.router_with(&a, &[&modest], &[(2, &vtep_mac(2))], &many);
    let one = setup("count = 1");
    let _rb = bed.router_with(&b, &[&far], &[(1, &vtep_mac(1))], &one);
    for pod in &others {
        add(&ra, pod);
    }
    let stream = modest.udp_stream(&far, &far.v4(), 5005, 500);
    let before = sent(&ra.ask("ports"), &modest);
    let floods: Vec<_> = others.iter().map(|pod| pod.flood(&far.v4())).collect();
    sleep(Duration::from_secs(4));
    drop(floods);
    let ports = ra.ask("ports");
    let modest = sent(&ports, &modest);
    let (taken, kept_out) = (
        modest.taken - before.taken,
        modest.kept_out - before.kept_out,
    );
    let others: Vec<_> = others.iter().map(|pod| sent(&ports, pod)).collect();
    let total: u64 = others.iter().map(|sent| sent.taken).sum();
    let average = total / u64::from(greedy);
    println!(
        "{greedy} greedy pods, average {average} taken: {others:?}; of the modest one's {taken} taken, {kept_out} not"
    );
    let refused: u64 = others.iter().map(|sent| sent.refused).sum();
    let offered: u64 = others.iter().map(|sent| sent.taken + sent.kept_out).sum();
    assert!(offered > 10 * (taken + kept_out), "they were busy");
    // 49 batches are more than the underlay's transmit ring holds: it is sent more than once in a turn.
    let dropped: u64 = others.iter().map(|sent| sent.dropped).sum();
    assert_eq!(dropped, 0, "of what was taken: {}", ra.ask("drops"));
    if hooks == Hooks::Xdp {
        assert_frames(greedy, &others);
    } else {
        assert!(refused > 0, "the hooks had a say: {others:?}");
    }
    let share = average.min(taken + kept_out);
    assert!(taken * 10 >= share * 9, "{taken} of a share of {share}");
    stream.goes_on();
}

fn assert_frames(greedy: u8, others: &[Sent]) {
    // Of 64 ports each has 1,024 frames of its own, of which one whose packets come fast and without bursts
    // uses 128; all together are lent 8,192 at most.
    let frames: u64 = others.iter().map(|sent| sent.frames).sum();
    let (least, own) = (128 * u64::from(greedy), 1024 * u64::from(greedy));
    assert!(frames >= least && frames <= own + 8192, "{frames} frames");
}

#[test]
fn a_greedy_pod_leaves_another_its_share() {
    beside(1, Hooks::Xdp);
}

#[test]
fn forty_nine_greedy_pods_leave_another_its_share() {
    beside(49, Hooks::Xdp);
}

#[test]
fn a_greedy_pod_leaves_another_its_share_of_the_trunk() {
    beside(1, Hooks::Tc);
}

#[test]
fn forty_nine_greedy_pods_leave_another_its_share_of_the_trunk() {
    beside(49, Hooks::Tc);
}
