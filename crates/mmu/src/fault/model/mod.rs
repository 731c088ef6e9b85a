//! Faults among everything that takes pages away from under them.
//!
//! Under `--cfg shuttle`: vCPUs that access memory and fault in KVM's three parts, against the host's memory management,
//! which takes pages back, makes them huge and asks for their age; against dirty logs that are switched on and off, read and
//! cleared; against the deletion of the slot by its leaves or by its roots. Each schedule ends with [`check`].
#![expect(clippy::unwrap_used, reason = "a test may fail anywhere")]

mod check;
mod host;
mod log;
mod notify;
mod schedules;
mod slots;
mod vcpu;
mod world;

pub(crate) use slots::Slots;
