//! Documents that are written out of what the crate says.

use std::path::Path;

/// Asserts that a document under `docs/` is what it should be. `SLAT_BLESS=1` writes it anew.
pub(crate) fn assert_is(name: &str, expected: &str, source: &str) {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let docs = workspace.join("docs");
    // A vendored copy of the crate may lie two folders below somebody else's documents.
    if !docs.is_dir() || !workspace.join("crates/memslot").is_dir() {
        println!("skipped: {} is not the workspace's", docs.display());
        return;
    }
    let path = docs.join(name);
    if std::env::var_os("SLAT_BLESS").is_some_and(|value| value == "1") {
        std::fs::write(&path, expected).expect("a document that can be written");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = found.lines().zip(expected.lines()).find(|(a, b)| a != b);
    assert!(
        found == expected,
        "{} is not what {source}; SLAT_BLESS=1 rewrites it; first difference: {differs:?}",
        path.display()
    );
}
