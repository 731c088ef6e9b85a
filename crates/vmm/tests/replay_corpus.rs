//! What the fuzzer has found worth keeping, once more.

use std::path::Path;

#[path = "fuzzed/scenario.rs"]
mod scenario;
#[path = "fuzzed/strace.rs"]
mod strace;
#[path = "fuzzed/tables.rs"]
mod tables;
#[path = "fuzzed/traces.rs"]
mod traces;

/// Puts every file of a target's corpus through `check`.
fn replay(target: &str, check: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fuzz/corpus")
        .join(target);
    if !folder.is_dir() {
        println!("skipped: {} is absent, as in a package", folder.display());
        return;
    }
    let mut files = 0;
    for entry in std::fs::read_dir(&folder).expect("a folder that can be read") {
        let path = entry.expect("an entry that can be read").path();
        println!("{}", path.display());
        check(&std::fs::read(&path).expect("a file that can be read"));
        files += 1;
    }
    println!("{files} files");
    assert!(files > 0, "{} is empty", folder.display());
}

#[test]
fn the_corpus_of_scenario_holds() {
    replay("scenario", scenario::check);
}

#[test]
fn the_corpus_of_strace_holds() {
    replay("strace", strace::check);
}

#[test]
fn the_corpus_of_tables_holds() {
    replay("tables", tables::check);
}

#[test]
fn the_corpus_of_traces_holds() {
    replay("traces", traces::check);
}
