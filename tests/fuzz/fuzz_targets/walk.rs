//! Walks of page tables over arbitrary memory, with arbitrary registers.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../../crates/mmu/tests/fuzzed/walk.rs"]
mod walk;

fuzz_target!(|bytes: &[u8]| {
    walk::run(bytes);
});
