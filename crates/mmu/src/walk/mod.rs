//! Walks of a guest's own page tables: every mode, every check, exact faults.
//!
//! - [`GuestPaging`]: how a guest pages, computed once from registers and CPUID. [`GuestPaging::translate`] is all that a
//!   VMM needs who has the guest's memory at hand; [`GuestPaging::walk`] adds a second stage and an observer;
//!   [`GuestPaging::translate_batch`] does many at a time.
//! - [`TableMemory`]: where tables are read and marked.
//! - [`ErrorCode`], [`PageFault`], [`WalkFault`]: what an access is, and the fault that it gets.
//! - [`second`]: the second dimension; [`tlb`]: what a vCPU remembers of walks, and whether it still holds.
//! - [`Step`], [`WalkTrail`], [`Ladder`]: each step of a walk, for who wants to know.
//!
//! # What is exact
//! | | |
//! |---|---|
//! | order of checks | that of KVM: from the top, present before reserved bits, rights at the end |
//! | error code | as pushed, with the protection-key bit beside others where KVM sets it |
//! | fetches | told with EFER.NX or CR4.SMEP, in 32-bit paging without PAE too, where hardware wants SMEP |
//! | marks | from the top down by compare-exchange, after the last check only; a changed entry starts the walk again |
//! | read-only memory | the mark is left out and the walk succeeds (a read-only slot) |
//! | reserved bits | by MAXPHYADDR, vendor, level, EFER.NX, CR4.PSE and the largest page; bits 62:52 of long mode are ignored |
//! | canonical addresses | checked as hardware does, not as KVM's walker, which leaves it to its callers |
//! | protection keys | of user pages; KVM knows none for supervisor pages |
//! | linear-address masking | not applied: KVM takes the tag off before it walks, and so has the caller |
//!
//! KVM counterparts: `paging_tmpl.h`, `mmu.h:permission_fault`; kernel 6.12.117.

mod batch;
mod cpu;
mod entry;
mod error_code;
mod fault;
mod format;
mod guest;
mod ladder;
mod log;
mod memory;
mod mode;
mod paging;
mod permission;
mod pointers;
mod reserved;
pub mod second;
mod stage;
#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests;
pub mod tlb;

pub use cpu::{GuestCpu, GuestVendor};
pub use entry::GuestEntry;
pub use error_code::{ErrorCode, Privilege};
pub use fault::{Cause, PageFault, WalkFault};
pub use guest::{LeafSize, Translation};
pub use ladder::{Dimension, Ladder, LadderObserver, Reference};
pub use log::{Mark, Step, WalkEvent, WalkObserver, WalkTrail};
pub use memory::{Exchange, ReadOnly, TableAddress, TableMemory};
#[cfg(feature = "vm-memory")]
pub use memory::{GuestVirtual, Marks, VmMemory};
pub use mode::PagingMode;
pub use paging::{GuestPaging, NestedEptRoot};
pub use permission::AlignmentCheck;
pub use pointers::{PointerError, Pointers};
pub use stage::{Stage, Unnested};
