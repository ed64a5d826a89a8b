//! Packets of every shape, sound and damaged, from either side.
//!
//! `PROPTEST_CASES=1000000 cargo test --release -p viaduct-fuzz --test shapes` runs for long; what
//! it finds goes to `shapes.proptest-regressions`, which is committed and run first.

mod shape;

use std::fs;
use std::path::Path;

use etherparse::PacketBuilder;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use viaduct_fib::PortId;
use viaduct_fuzz::decode::ip_frame;
use viaduct_fuzz::fixture::{GATEWAY, HEADROOM, POD, chunk};
use viaduct_fuzz::forward::{Input, Side, check, check_bytes};
use viaduct_router::{Exception, Verdict};

use shape::{damaged, shape};

proptest! {
    #[test]
    fn packets_of_every_shape(shape in shape()) {
        check(&shape.input());
    }

    #[test]
    fn damaged_packets(input in damaged()) {
        check(&input);
    }

    #[test]
    fn noise(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        check_bytes(&bytes);
    }
}

/// Gives the fuzzer frames that come far, which it would be long in guessing.
#[test]
#[ignore = "writes to target/fuzz/found/forward: ./dev fuzz seed"]
fn seeds() {
    let found = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/fuzz/found/forward");
    fs::create_dir_all(&found).expect("a directory");
    let mut runner = TestRunner::deterministic();
    for n in 0..2000 {
        let shape = shape().new_tree(&mut runner).expect("a shape").current();
        let mut input = shape.input();
        // What lies behind the headers adds nothing.
        input.frame.iter_mut().skip(110).for_each(|byte| *byte = 0);
        fs::write(found.join(format!("seed-{n}")), input.to_bytes()).expect("written");
        let read = Input::from_bytes(&input.to_bytes()).expect("whole");
        assert_eq!(
            (read.frame, read.resolved),
            (input.frame.clone(), input.resolved)
        );
        // A tunnel's outer headers, too, for the fuzzer to work on.
        let wire = Input {
            frame: input.on_the_wire(),
            side: if input.side == Side::Pod {
                Side::Pod
            } else {
                Side::Underlay
            },
            ..input
        };
        fs::write(found.join(format!("wire-{n}")), wire.to_bytes()).expect("written");
    }
}

/// The shapes do come everywhere, or the rest would show little.
#[test]
fn every_kind_of_verdict_is_met() {
    let mut runner = TestRunner::deterministic();
    let mut met = [0; 6];
    for _ in 0..4000 {
        let shape = shape().new_tree(&mut runner).expect("a shape").current();
        met[match check(&shape.input()) {
            Verdict::Send(PortId::UNDERLAY) => 0,
            Verdict::Send(_) => 1,
            Verdict::Punt(_) => 2,
            Verdict::Drop(_) => 3,
            Verdict::Exception(Exception::IcmpError { .. }) => 4,
            Verdict::Exception(Exception::Fragment { .. }) => 5,
        }] += 1;
    }
    assert!(met.iter().all(|&count| count > 20), "{met:?}");
}

/// The decoder does see faults: the checks can fail.
#[test]
fn the_decoder_finds_faults() {
    let (chunk, len) = chunk([10, 244, 1, 2], [10, 244, 2, 2], 64, 20);
    let frame = &chunk[HEADROOM..HEADROOM + len];
    assert_eq!(ip_frame(frame).hop_limit, 64);
    for at in [14 + 8, 14 + 3] {
        let mut bad = frame.to_vec();
        bad[at] ^= 1;
        let caught = std::panic::catch_unwind(|| ip_frame(&bad));
        assert!(caught.is_err(), "byte {at}");
    }
    let mut built = Vec::new();
    PacketBuilder::ethernet2(POD.0, GATEWAY.0)
        .ipv6([0; 16], [0; 16], 9)
        .udp(1, 2)
        .write(&mut built, &[0; 30])
        .expect("a packet");
    assert_eq!(ip_frame(&built).hop_limit, 9);
}
