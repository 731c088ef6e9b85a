//! What the fuzzer has found worth keeping, once more, and random inputs beside it.

use std::path::Path;

use slat_coco::psc::{Psc, PscPlan};

#[path = "fuzzed/psc.rs"]
mod psc;

fn replay(target: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus");
    let folder = folder.join(target);
    if !folder.is_dir() {
        println!("skipped: {} is absent, as in a package", folder.display());
        return;
    }
    let mut files = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        println!("{}", path.display());
        check(&std::fs::read(&path).unwrap());
        files += 1;
    }
    println!("{files} files");
    assert!(files > 0, "{} is empty", folder.display());
}

#[test]
fn the_corpus_of_psc_holds() {
    replay("psc", psc::check::<Psc>);
}

#[test]
fn the_corpus_of_psc_plan_holds() {
    replay("psc_plan", psc::check::<PscPlan>);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(20_000))]

    /// With a header that lets the engine go on.
    #[test]
    fn random_inputs_hold(
        cur in 0..8u8,
        end in 0..40u8,
        mut bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 10..600),
    ) {
        bytes[2..10].copy_from_slice(&[cur, 0, end, 0, 0, 0, 0, 0]);
        psc::check::<Psc>(&bytes);
        psc::check::<PscPlan>(&bytes);
    }
}
