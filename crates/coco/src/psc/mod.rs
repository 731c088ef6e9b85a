//! Page-state changes: a guest asks its host to make pages private or shared.
//!
//! A guest does it through a buffer in its GHCB, up to 253 entries an exit ([`Psc`]), or before it has a GHCB through the
//! GHCB's MSR, a page an exit ([`MsrRequest`]). Both end in the same exit to userspace, [`MapGpaRange`].
//!
//! [`PscPlan`] reads a whole buffer at once and gives the same ranges, for a VMM that wants to see all of them first.
//!
//! The buffer stays the guest's while it is worked on: another vCPU may write it at any moment. So each word is read once,
//! what is used is what was checked, and nothing the guest writes leads outside the buffer or makes the work longer than
//! 253 entries. Nothing is allocated.
//!
//! Where KVM does otherwise than the specification asks for, or could do better, there is a switch: [`PscQuirks::kvm`] is
//! the kernel, [`PscQuirks::strict`] is for a VMM that handles the event itself.
//!
//! Specification: GHCB, revision 2, 4.1.6. KVM counterparts: `sev.c:snp_begin_psc`, `snp_complete_one_psc`,
//! `snp_begin_psc_msr`, `setup_vmgexit_scratch`; kernel 6.12.117.

mod batch;
mod buffer;
mod engine;
mod exit;
mod glance;
mod msr;
mod plan;
mod quirks;
mod scratch;
#[cfg(test)]
mod tests;

pub use buffer::{MAX_ENTRIES, PscBuffer, PscEntry, PscHeader, PscOperation};
pub use engine::{Psc, PscSettings, PscStep};
pub use exit::{Answer, Direction, MapGpaRange, PscResult, Resize};
pub use msr::{MsrRequest, MsrResponse};
pub use plan::PscPlan;
pub use quirks::{
    CursorBeyondEnd, HeaderReads, Merge, OtherOperations, PscQuirks, Reserved, SizeHint,
};
pub use scratch::{Malformed, SCRATCH_END, SCRATCH_START, Scratch};
