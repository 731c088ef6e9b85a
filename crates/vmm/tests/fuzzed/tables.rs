//! What holds for any text as a dump and as a script of table operations; called by the fuzz target and by the replay of its
//! corpus.

use slat_mmu::tdp::dump::{Detail, Dump};
use slat_vmm::tables::{self, Options};

/// Reads `bytes` as both.
pub(crate) fn check(bytes: &[u8]) {
    let Ok(text) = core::str::from_utf8(bytes) else {
        return;
    };
    let lines = text.split('\n').count();
    match text.parse::<Dump>() {
        Ok(dump) => {
            assert_eq!(written(&dump), dump);
            let dump = dump.normalised();
            assert_eq!(written(&dump), dump);
            assert!(dump.diff(&dump).is_empty());
        }
        Err(error) => assert!((1..=lines).contains(&(error.line as usize)), "{error}"),
    }
    match tables::parse(text) {
        Ok(script) => play(&script),
        Err(error) => {
            assert!((1..=lines).contains(&(error.line as usize)), "{error}");
            assert!(error.column >= 1, "{error}");
        }
    }
}

/// A dump, written and read back.
fn written(dump: &Dump) -> Dump {
    let text = dump.to_string();
    text.parse()
        .unwrap_or_else(|error| panic!("{error} in\n{text}"))
}

/// Plays a script twice, which gives the same, and reads back what its tables hold.
fn play(script: &tables::Script) {
    let options = Options {
        tables: 512,
        detail: Detail::Entries,
    };
    let report = tables::run(script, &options);
    assert_eq!(report.steps.len(), script.steps.len());
    assert_eq!(tables::run(script, &options), report);
    assert_eq!(written(&report.dump), report.dump);
}
