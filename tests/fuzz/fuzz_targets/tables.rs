//! Texts as dumps of page tables and as scripts that make some: read, written, read back, and played.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../../crates/vmm/tests/fuzzed/tables.rs"]
mod tables;

fuzz_target!(|bytes: &[u8]| {
    tables::check(bytes);
});
