//! Texts as traces of strace: walked over, their slots set on a model.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../../crates/vmm/tests/fuzzed/strace.rs"]
mod strace;

fuzz_target!(|bytes: &[u8]| {
    strace::check(bytes);
});
