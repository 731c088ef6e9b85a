//! Texts as scenarios: read, written, read back, and run on models.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../../crates/vmm/tests/fuzzed/scenario.rs"]
mod scenario;

fuzz_target!(|bytes: &[u8]| {
    scenario::check(bytes);
});
