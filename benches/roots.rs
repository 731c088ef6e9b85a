//! Switching between the four roots of a cache, beside a scan of four plain entries that moves its hit to the front.
//!
//! The method is that of `docs/performance.md`; the lines have the same form.

#[expect(dead_code, reason = "the other benches use more of it")]
mod paired;
#[path = "goals/root_switch.rs"]
mod root_switch;

fn main() {
    // `cargo test --all-targets` runs benches too, and wants no measurements.
    if std::env::args().all(|argument| argument != "--bench") {
        return;
    }
    for mut target in root_switch::targets() {
        target.report();
    }
}
