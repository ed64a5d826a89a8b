//! What the fuzzer found worth keeping goes through again: each file reaches code that no other
//! does. `./dev fuzz` searches on from here.

use std::fs;
use std::path::Path;

use viaduct_fuzz::forward;

#[test]
fn the_corpus_of_forward() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/forward");
    let mut count = 0;
    for entry in fs::read_dir(corpus).expect("the corpus") {
        let path = entry.expect("a file").path();
        let input = fs::read(&path).expect("readable");
        let checked = std::panic::catch_unwind(|| forward::check_bytes(&input));
        assert!(checked.is_ok(), "{}", path.display());
        count += 1;
    }
    assert!(count > 100, "{count} files");
}
