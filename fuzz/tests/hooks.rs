//! The programs of the tc hooks, run by the kernel, against `forward()`: never a disagreement.
//!
//! Frames given so have no segmentation offload, no checksum that is left to hardware, and no VLAN
//! tag beside them.

mod shape;

use std::collections::BTreeMap;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use shape::{damaged, shape};
use viaduct_fuzz::forward::{Input, Side, mend};
use viaduct_fuzz::hooks::Hooks;
use viaduct_router::Tried;

/// Frames of each kind.
const CASES: usize = 100_000;
/// Where the UDP checksum of a tunnel packet over IPv4 is.
const OUTER_CHECKSUM: usize = 40;
/// Where the inner frame of a tunnel packet over IPv4 begins.
const TO_INNER: usize = 50;
/// Bytes of a tunnel packet's headers: outer over IPv4, inner up to TCP's.
const HEADERS: usize = 64 + 40;

/// A frame as it arrives, the outer headers of another node's included, without an outer checksum.
fn wire(input: &Input) -> Input {
    let mut frame = input.on_the_wire();
    let side = match input.side {
        Side::Pod => Side::Pod,
        Side::Underlay => Side::Underlay,
        Side::Tunnel(_) => {
            frame[OUTER_CHECKSUM..OUTER_CHECKSUM + 2].fill(0);
            Side::Underlay
        }
    };
    Input {
        frame,
        side,
        resolved: input.resolved,
    }
}

/// Changes one byte of the headers: each in its turn, to each value. Every other time checksums and
/// lengths are made to fit, so that what a hook checks behind them is reached.
fn damage(frame: &mut [u8], n: usize, tunnel: bool) {
    let len = frame.len().clamp(1, HEADERS);
    if let Some(byte) = frame.get_mut(n % len) {
        *byte = (n / len).to_le_bytes()[0];
    }
    if (n / len).is_multiple_of(2) {
        return;
    }
    if tunnel && let Some(inner) = frame.get_mut(TO_INNER..) {
        mend(inner);
    }
    mend(frame);
}

#[test]
fn a_hook_does_what_a_worker_does_or_hands_over() {
    compare(&mut Hooks::new(false), CASES);
}

/// By the kernel's routes and neighbours, the packet is the same.
#[test]
fn a_hook_without_its_router_does_so_too() {
    unshare(CloneFlags::CLONE_NEWNET).expect("a namespace of this thread's own");
    for words in [
        "link set lo up",
        "route add 192.0.2.2/32 dev lo",
        "-6 route add fd99::2/128 dev lo",
    ] {
        let ip = Command::new("ip").args(words.split(' ')).status();
        assert!(ip.expect("ip runs").success(), "{words}");
    }
    compare(&mut Hooks::new(true), CASES / 4);
}

fn compare(hooks: &mut Hooks, cases: usize) {
    let mut runner = TestRunner::deterministic();
    let mut carried = BTreeMap::new();
    for n in 0..cases {
        let input = shape().new_tree(&mut runner).expect("a shape").current();
        let input = input.input();
        let mut other = wire(&input);
        let (plain, over_v6) = (hooks.check(&other).v4, hooks.check(&input).v6);
        for (v6, tried) in [(false, plain), (true, over_v6)] {
            if let Tried::Carried(port, _) = tried {
                *carried.entry((v6, input.ingress(), port)).or_insert(0) += 1;
            }
        }
        let tunnel = matches!(input.side, Side::Tunnel(_));
        damage(&mut other.frame, n, tunnel);
        hooks.check(&other);
        let damaged = damaged().new_tree(&mut runner).expect("a frame").current();
        hooks.check(&damaged);
        hooks.check(&wire(&damaged));
    }
    // The pod to the other node, to itself and to the pod beside it, and the other node to both; over
    // IPv4 and IPv6.
    assert_eq!(carried.len(), 10, "{carried:?}");
    assert!(carried.values().all(|n| *n > cases / 1000), "{carried:?}");
}
