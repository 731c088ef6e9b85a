//! What the fuzzer has found worth keeping, once more; and random inputs of the same shape.

use std::path::Path;

use proptest::prelude::*;

#[path = "fuzzed/walk.rs"]
mod walk;

#[test]
fn the_corpus_of_walks_holds() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus/walk");
    if !folder.is_dir() {
        println!("skipped: {} is absent, as in a package", folder.display());
        return;
    }
    let mut files = 0;
    for entry in std::fs::read_dir(&folder).expect("readable") {
        let path = entry.expect("readable").path();
        println!("{}", path.display());
        walk::run(&std::fs::read(&path).expect("readable"));
        files += 1;
    }
    println!("{files} files");
    assert!(files > 0, "{} is empty", folder.display());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_walked(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        walk::run(&bytes);
    }
}
