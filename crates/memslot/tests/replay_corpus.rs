//! What the fuzzer has found worth keeping, once more.

use std::path::Path;

mod reference;

#[test]
fn the_corpus_of_set_region_agrees() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus/set_region");
    if !folder.is_dir() {
        println!("skipped: {} is absent, as in a package", folder.display());
        return;
    }
    let mut files = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        println!("{}", path.display());
        reference::run(&std::fs::read(&path).unwrap());
        files += 1;
    }
    println!("{files} files");
    assert!(files > 0, "{} is empty", folder.display());
}
