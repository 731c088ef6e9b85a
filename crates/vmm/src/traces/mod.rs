//! Recordings of what real kernels' MMUs did, and the comparison with what the model says they do.
//!
//! A recording is a text: operations, and between them every trace event that they caused, in the order in which it
//! happened. [`Recording::parse`] reads one, [`builtin()`] has those that come with the crate, and a [`Comparer`] holds a
//! prediction against one.
//!
//! ```text
//! # scenario aging-4k status 0
//! OP KVM_CREATE_VM type=0                         an operation
//! RET 5                                           what it returned
//! NOTE backing gfn=400 pfn=143d33                 what the recorded program saw
//!   kvm_mmu_spte_requested: gfn 400 pfn 143d33 level 1      a trace event
//!   fn tdp_mmu_zap_all:                           a probe on a function
//! ```
//!
//! An operation, event or function that nobody knows is not an error, so that a new scenario can be read; a line that is
//! none of the five kinds is one, and so is a known event with other fields.
//!
//! ```
//! use slat_vmm::traces::{Op, Recording, Traced, What};
//!
//! let text = "\
//! OP KVM_SET_USER_MEMORY_REGION slot=1 as=0 flags=0 gfn=400 npages=0
//!   kvm_tdp_mmu_spte_changed: as id 0 gfn 400 level 1 old_spte 143d33e67 new_spte 8000000000000000
//! RET 0
//! ";
//! let recording = Recording::parse(text)?;
//! assert!(matches!(recording.items[0].what, What::Op(Op::SetRegion(region)) if region.slot == 1));
//! assert!(matches!(recording.items[1].what, What::Event(Traced::SpteChanged { old: 0x143d33e67, .. })));
//! assert_eq!(recording.items[2].line, 3);
//! # Ok::<(), slat_vmm::traces::ParseError>(())
//! ```
#![warn(clippy::indexing_slicing)]

mod builtin;
mod compare;
mod event;
pub mod kernel;
mod lex;
mod note;
mod op;
mod parse;
mod probe;
#[cfg(test)]
mod tests;

pub use crate::parse_error::ParseError;
pub use builtin::{Builtin, Machine, builtin};
pub use compare::{
    Adopted, Agreement, Comparer, Difference, Kind, Kinds, Mismatch, Predicted, Renaming,
};
pub use event::{MmioAccess, Traced, TracedAccess, TracedPage};
pub use note::{Exit, Leaves, Note, Ret};
pub use op::{GuestAct, HostWork, Op, SetRegion, Sregs};
pub use probe::Probe;

/// As many pages stand in one note: the kernel's trace takes no longer lines.
pub(crate) const MOST_IN_A_NOTE: usize = 40;

/// A recording.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recording<'a> {
    /// The scenario's name, from the first line.
    pub scenario: Option<&'a str>,
    /// How the recorded program ended, as `wait` says it; 0 is well.
    pub status: Option<u32>,
    /// Whether the recording was cut off: later events are missing.
    pub truncated: bool,
    /// Everything else, in order.
    pub items: Vec<Item<'a>>,
}

/// One line of a recording.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item<'a> {
    /// The line, from 1.
    pub line: u32,
    /// Its text.
    pub text: &'a str,
    /// What it says.
    pub what: What<'a>,
}

/// What a line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What<'a> {
    /// An operation starts.
    Op(Op<'a>),
    /// The system call is over.
    Ret(Ret),
    /// The recorded program saw something.
    Note(Note<'a>),
    /// A trace event.
    Event(Traced<'a>),
    /// A probe on a function.
    Probe(Probe<'a>),
}
