//! The first packets of a pod that has been silent: bursts that come before its worker has seen any of them.

mod common;

use common::{Daemon, Pod, Process, Testbed, must, vtep_mac};

/// No port of the router has lost a packet for want of a frame or of room, and no worker has dropped one.
fn assert_nothing_lost(router: &Daemon, what: &str) {
    for port in router.ask("ports")["ports"].as_array().expect("ports") {
        let kernel = &port["kernel"];
        for count in ["rx_dropped", "rx_ring_full", "fill_ring_empty"] {
            assert_eq!(kernel[count], 0, "{what}: {port}");
        }
        assert_eq!(port["drops"], 0, "{what}: {port}");
    }
}

/// Two nodes with pods of which each is used once.
struct Cold {
    // Dropped in this order: a router's log is in the testbed's folder.
    routers: [Daemon; 2],
    here: Vec<Pod>,
    there: Vec<Pod>,
    _bed: Testbed,
}

impl Cold {
    fn new(pods: u8, workers: &str) -> Self {
        let mut bed = Testbed::new();
        let (a, b) = (bed.node(1, 1), bed.node(2, 1));
        let here: Vec<_> = (0..pods)
            .map(|n| bed.pod(&a, &format!("p{n}"), 2 + n))
            .collect();
        let there: Vec<_> = (0..pods)
            .map(|n| bed.pod(&b, &format!("p{n}"), 2 + n))
            .collect();
        let (near, remote): (Vec<_>, Vec<_>) = (here.iter().collect(), there.iter().collect());
        let ra = bed.router(&a, &near, &[(2, &vtep_mac(2))], workers);
        let rb = bed.router(&b, &remote, &[(1, &vtep_mac(1))], workers);
        for (from, to) in here.iter().zip(&there) {
            // ARP, and the way, are known: a single packet each way is no burst.
            common::wait_for("the way to the other node", || {
                from.namespace.ping(&to.v4(), 1, 56) == 1
            });
        }
        Self {
            routers: [ra, rb],
            here,
            there,
            _bed: bed,
        }
    }

    fn assert_nothing_lost(&self, what: &str) {
        for router in &self.routers {
            assert_nothing_lost(router, what);
        }
    }
}

#[test]
fn a_fresh_connection_loses_no_segment() {
    let cold = Cold::new(9, "count = 1\nmax_ports = 110");
    let sizes = [10_000, 100_000, 1_000_000].into_iter().cycle();
    for ((from, to), size) in cold.here.iter().zip(&cold.there).zip(sizes) {
        from.tcp(to, &to.v4(), size);
        cold.assert_nothing_lost(&format!("{size} bytes from {}", from.interface));
    }
    // Between pods of one node, whose receivers have answered so far at most.
    for (n, size) in [(0, 1_000_000), (2, 100_000), (4, 10_000)] {
        let (from, to) = (&cold.there[n], &cold.there[n + 1]);
        from.tcp(to, &to.v6(), size);
        cold.assert_nothing_lost(&format!("{size} bytes within a node"));
    }
}

/// 500 datagrams at once, from a pod, by the underlay, and within a node.
#[test]
fn a_burst_of_datagrams_to_and_from_silent_pods_is_not_lost() {
    let cold = Cold::new(3, "count = 1\nmax_ports = 110");
    let (here, there) = (&cold.here, &cold.there);
    for (from, to) in [
        (&here[0], &there[0]),
        (&there[1], &here[1]),
        (&here[2], &here[0]),
    ] {
        from.udp_burst(&to.v4(), 500);
        cold.assert_nothing_lost(&format!("{} to {}", from.interface, to.interface));
    }
}

/// A transfer: milliseconds, segments sent again, and how many of these had not been lost.
fn transfer(from: &Pod, to: &Pod, bytes: usize) -> (f64, u64, u64) {
    const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/transfer.py");
    let address = to.v4();
    let mut receiver = to.namespace.command("python3");
    receiver.args([PROGRAM, "receive", &address]);
    let mut receiver = Process::start(receiver);
    assert_eq!(receiver.line().trim(), "ready");
    let mut sender = from.namespace.command("python3");
    sender.args([PROGRAM, "send", &address, &bytes.to_string()]);
    let said = must(&mut sender);
    let (took, again) = said.trim().split_once(' ').expect("two numbers");
    let (twice, _) = receiver.finish();
    let number = |text: &str| text.trim().parse().expect("a number");
    (
        took.parse().expect("milliseconds"),
        number(again),
        number(&twice),
    )
}

/// One line of the table: transfers between pods that have not been used before.
fn measured(cold: &Cold, what: &str, pods: std::ops::Range<usize>, bytes: usize) {
    let pairs = cold.here.iter().zip(&cold.there);
    let pairs = pairs.skip(pods.start).take(pods.len());
    let all: Vec<_> = pairs.map(|(from, to)| transfer(from, to, bytes)).collect();
    let mut times: Vec<_> = all.iter().map(|(took, _, _)| *took).collect();
    times.sort_by(f64::total_cmp);
    let again: u64 = all.iter().map(|(_, again, _)| again).sum();
    let lost: u64 = (all.iter())
        .map(|(_, again, twice)| again.saturating_sub(*twice))
        .sum();
    println!(
        "{what:8} {bytes:>9} B {:>4} transfers  median {:>6.2} ms  p90 {:>6.2} ms  longest {:>6.2} ms  \
         segments sent again {again:>3}, lost {lost:>3}",
        times.len(),
        times[times.len() / 2],
        times[times.len() * 9 / 10],
        times[times.len() - 1],
    );
}

#[test]
#[ignore = "a measurement of three minutes: ./dev bench cold"]
fn cold_transfers() {
    println!("Each transfer is the first between its two pods, on two nodes.");
    for pods in [1, 16, 110] {
        println!("{pods} pods a node:");
        for bytes in [10_000, 100_000, 1_000_000] {
            // As many transfers each time: what has one pod only is made anew.
            for _ in 0..if pods == 1 { 4 } else { 1 } {
                let mut cold = Cold::new(pods, "count = 1\nmax_ports = 110");
                let half = usize::from(pods).div_ceil(2);
                measured(&cold, "workers", 0..half, bytes);
                if pods > 1 {
                    for router in &cold.routers {
                        assert_nothing_lost(router, "by workers");
                    }
                    cold.routers.iter_mut().for_each(Daemon::stop);
                    measured(&cold, "kernel", half..usize::from(pods), bytes);
                }
            }
        }
    }
}
