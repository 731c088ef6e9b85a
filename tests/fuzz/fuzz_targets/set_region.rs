//! Sequences of set-region calls against the reference of `crates/memslot/tests`.
//!
//! The input is taken as it is, twelve bytes an operation, rather than through a derived `Arbitrary`: the test suite
//! replays the corpus with the same decoder, and a mutation in one operation leaves the others alone.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../../crates/memslot/tests/reference/mod.rs"]
mod reference;

fuzz_target!(|bytes: &[u8]| {
    reference::run(bytes);
});
