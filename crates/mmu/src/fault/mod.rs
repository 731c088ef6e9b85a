//! Faults on guest memory under the TDP MMU, from the exit to the entry that mends it.
//!
//! [`Locked::page_fault`] follows `mmu.c:kvm_tdp_page_fault` in the kernel's order: write tracking, the fast way, the page and
//! what stands in its way, a last look whether the answer is stale, then the tables. What a fault depends on outside the
//! tables is an [`Env`]: the VM's memory, the pages behind its slots ([`Backing`]), invalidations under way, settings, and who watches
//! writes ([`PageTrack`]).
//!
//! The same in three parts, of which the middle one needs no lock, so that faults and the host's memory management run at
//! the same time: [`Locked::begin_fault`], [`SlowFault::fault_in`], [`Locked::finish_fault`]. Its safety is that of KVM:
//! the number of [`Invalidation`]s is noted before the page is asked for, and looked at again with the lock held.
//!
//! | outcome | KVM | what the vCPU does |
//! |---|---|---|
//! | [`Outcome::Retry`] | `RET_PF_RETRY` | enters the guest again |
//! | [`Outcome::Fixed`], [`Outcome::Spurious`] | the same names | enters the guest again |
//! | [`Outcome::Emulate`] | `RET_PF_EMULATE` | emulates: MMIO, or a write to a read-only slot |
//! | [`Outcome::WriteProtected`] | `RET_PF_WRITE_PROTECTED` | emulates the write |
//! | [`Outcome::MemoryFault`] | `-EFAULT` with `KVM_EXIT_MEMORY_FAULT` | exits to userspace |
//! | [`Outcome::BadPage`] | `-EFAULT` | exits to userspace |
//!
//! KVM counterparts: `mmu.c:kvm_tdp_mmu_page_fault`, `kvm_faultin_pfn`, `kvm_mmu_hugepage_adjust`, `fast_page_fault`,
//! `kvm_tdp_map_page`; kernel 6.12.117.
//!
//! [`Locked::page_fault`]: crate::tdp::Locked::page_fault
//! [`Locked::begin_fault`]: crate::tdp::Locked::begin_fault
//! [`Locked::finish_fault`]: crate::tdp::Locked::finish_fault

mod backing;
mod fault_in;
mod handle;
mod invalidation;
mod mmio;
#[cfg(all(test, shuttle))]
pub(crate) mod model;
mod page_track;
mod plan;
mod prefault;
mod request;
#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;

pub use backing::{Backing, FilePage, HostPage};
pub use fault_in::{FaultedIn, SlowFault};
pub use handle::{Apicv, Begun, Env, Handled, Outcome, Settings};
pub use invalidation::{Invalidation, Sequence};
pub use mmio::{MmioAccess, MmioCache};
pub use page_track::{NotTracked, PageTrack, Unsync};
pub use plan::{Caveat, OutsideBaseMode, PlannedRun, PrefaultPlan, Prefaulter, Stop};
pub use prefault::{Endless, Prefault, PrefaultError, PrefaultOutside};
pub use request::{Fault, Kind, Present};
