//! Plans of page-state changes whose buffer changes while it is read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slat_coco::psc::PscPlan;

#[path = "../../../crates/coco/tests/fuzzed/psc.rs"]
mod psc;

fuzz_target!(|bytes: &[u8]| {
    psc::check::<PscPlan>(bytes);
});
