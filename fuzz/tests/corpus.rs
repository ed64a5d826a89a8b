//! What the fuzzer found worth keeping goes through again: each file reaches code that no other
//! does. `./dev fuzz` searches on from here.

use std::fs;
use std::path::Path;

use viaduct_fuzz::{forward, gossip, sources};

fn replay(target: &str, at_least: usize, check: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    let mut count = 0;
    for entry in fs::read_dir(corpus).expect("the corpus") {
        let path = entry.expect("a file").path();
        let input = fs::read(&path).expect("readable");
        let checked = std::panic::catch_unwind(|| check(&input));
        assert!(checked.is_ok(), "{}", path.display());
        count += 1;
    }
    assert!(count >= at_least, "{count} files");
}

#[test]
fn the_corpus_of_forward() {
    replay("forward", 100, forward::check_bytes);
}

#[test]
fn the_corpus_of_sources() {
    replay("sources", 16, sources::check_sources);
}

#[test]
fn the_corpus_of_gossip() {
    replay("sealed", 3, gossip::check_sealed);
    replay("opened", 14, gossip::check_opened);
}
