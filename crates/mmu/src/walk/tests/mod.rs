//! Tests of walks of a guest's tables.
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "fields of entries and addresses are small numbers here"
)]

mod cpu;
mod golden;
mod memory;
mod observers;
mod random;
mod reference;
mod smooth;
mod words;
