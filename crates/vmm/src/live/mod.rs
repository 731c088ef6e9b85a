//! Operations made on a real kernel, told line by line as recordings have them.
//!
//! A [`Driver`] does what the program did that made the recordings ([`crate::traces`]): it makes a VM whose guest halts,
//! reads, writes and jumps, sets slots, changes the host's memory, and writes each operation, its result and what it saw
//! into a [`Journal`]. Where the journal is the kernel's own trace buffer, the events that an operation causes stand
//! between its lines, and the whole is a recording. It holds its inputs completely: where slots are in the host, and
//! which page the host has behind a frame, how large it maps it.
//!
//! A recording made so is predicted like any other ([`crate::replay`]).

mod abilities;
mod areas;
mod compare;
mod driver;
mod execute;
mod guest;
mod machine;
mod pagemap;
mod random;
mod sort;
mod tables;
mod trace;

pub use abilities::{Abilities, HostAbilities};
pub use areas::{Area, Areas, Kind};
pub(crate) use compare::quiet;
pub use compare::{Config, Finding, Live, LiveError, Outcome, Programs};
pub use driver::{DriveError, Driver, Journal};
pub use machine::{abilities, here, here_nested, here_shadowed};
pub use random::Program;
pub use trace::{Trace, TraceError};
