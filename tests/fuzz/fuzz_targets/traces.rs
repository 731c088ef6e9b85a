//! Texts as recordings of an MMU: read, and compared with themselves.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../../crates/vmm/tests/fuzzed/traces.rs"]
mod traces;

fuzz_target!(|bytes: &[u8]| {
    traces::check(bytes);
});
