//! KVM's mirror of the S-EPT, on the TDP MMU of [`slat_mmu`].
//!
//! Three tables say what private memory maps: KVM's mirror, which only software walks; the S-EPT, which only the module
//! writes; and the guest's own. [`Backend`] is the owner of the mirror ([`slat_mmu::tdp::External`]): each change of an
//! entry becomes the calls that make the same change in the S-EPT, while the entry is frozen. [`TdxMmu`] is a TD's memory as
//! KVM manages it: the lock, the two roots, slots, attributes and pages of guest_memfd.
//!
//! | change | lock | calls | if the module is busy |
//! |---|---|---|---|
//! | nothing to a table | shared | `SEPT.ADD` | the old entry is back, the fault is tried again |
//! | nothing to a page, while the TD is built | shared | `PAGE.ADD` | the same |
//! | nothing to a page, afterwards | shared | `PAGE.AUG` | the same |
//! | page to nothing | exclusive | `RANGE.BLOCK`, `TRACK` and a kick, `PAGE.REMOVE`, `PHYMEM.PAGE.WBINVD`, clear | all vCPUs leave, then once more |
//! | table to nothing | exclusive, key freed | `PHYMEM.PAGE.RECLAIM` | |
//! | page to another page or a table | | none: KVM declares the VM broken | |
//!
//! KVM counterparts: `arch/x86/kvm/vmx/tdx.c`, `tdp_mmu.c`; from 6.16 to 6.19 with a hook for each kind of change, later
//! with one for all ([`HookGen`]).

mod audit;
mod backend;
mod busy;
mod fault;
mod gmem;
mod hooks;
#[cfg(test)]
mod operations;
mod pages;
mod region;
#[cfg(all(test, shuttle))]
#[expect(clippy::unwrap_used, reason = "a test may fail anywhere")]
mod schedules;
#[cfg(all(test, not(shuttle)))]
#[expect(clippy::unwrap_used, reason = "a test may fail anywhere")]
mod tests;
mod vcpu;
mod vm;
mod zap;

pub use audit::{MirrorCode, MirrorViolation};
pub use backend::{Backend, Bug, HookGen, Stage};
pub use fault::{MemoryFault, PrivateFault, Stop, StoppedFault};
pub use gmem::FileId;
pub use region::{InitMemError, Measure, MemRegion};
pub use vcpu::{Touch, Vcpu};
pub use vm::{Config, Slot, TdxMmu};
pub use zap::SlotZap;
