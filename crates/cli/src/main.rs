//! The slat command.
fn main() {}
