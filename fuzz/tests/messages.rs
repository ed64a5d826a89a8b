//! Datagrams and messages of gossip, drawn at random and near to sound ones.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use viaduct_fuzz::gossip::{check_opened, check_sealed, examples};
use viaduct_fuzz::sources::check_sources;

#[test]
fn what_a_member_may_well_send() {
    let all = examples();
    for example in &all {
        check_opened(example);
    }
    check_opened(&all.concat());
    check_sealed(&[1]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn whatever_sources_say(data in prop::collection::vec(any::<u8>(), 0..600)) {
        check_sources(&data);
    }
}

proptest! {
    #[test]
    fn any_datagram(data in prop::collection::vec(any::<u8>(), 0..1500)) {
        check_sealed(&data);
    }

    #[test]
    fn a_sound_datagram_changed(changes in prop::collection::vec(any::<[u8; 3]>(), 1..4)) {
        check_sealed(&[&[1], changes.concat().as_slice()].concat());
    }

    #[test]
    fn sound_messages_changed(
        order in prop::collection::vec(any::<prop::sample::Index>(), 1..8),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let all = examples();
        let chosen: Vec<_> = order.iter().map(|at| at.get(&all).clone()).collect();
        let mut data = chosen.concat();
        for (at, byte) in changes {
            let place = at.index(data.len());
            data[place] = byte;
        }
        check_opened(&data);
    }
}

/// Writes what the fuzzers begin with.
#[test]
#[ignore = "writes into the corpus: ./dev fuzz seed"]
fn seeds() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let write = |target: &str, name: &str, bytes: &[u8]| {
        let directory = corpus.join(target);
        fs::create_dir_all(&directory).expect("made");
        fs::write(directory.join(name), bytes).expect("written");
    };
    for (place, example) in examples().iter().enumerate() {
        write("opened", &format!("example-{place}"), example);
    }
    // Long enough for six nodes; the generator draws all else from the bytes.
    for seed in 0..16_u32 {
        let bytes: Vec<u8> = (0..600_u32)
            .map(|at| {
                let drawn = (seed + 1).wrapping_mul(at + 7).wrapping_mul(2_654_435_761);
                drawn.to_be_bytes()[1]
            })
            .collect();
        write("sources", &format!("drawn-{seed}"), &bytes);
    }
    write("sealed", "sound", &[1]);
    write("sealed", "changed", &[1, 0, 30, 1]);
    write("sealed", "empty", &[0]);
}
