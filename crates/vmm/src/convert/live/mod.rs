//! Random conversions on the kernel that this runs on, every event of which is predicted.
//!
//! [`program`] writes a program: a software-protected VM with slots that touch, leave holes, alias and lack files; a guest that asks for
//! ranges across all of that and accesses memory on both sides of every border; a VMM that plans each conversion, carries it out, and
//! in some of them fails at one step and takes the others back. [`Comparison`] makes it on `/dev/kvm` and holds what the kernel's MMU
//! did and answered against the model.

mod program;
mod run;
mod write;

pub use program::{Conversions, Tally, program};
pub use run::{Comparison, Difference};
