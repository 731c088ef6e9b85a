//! Roots: which page tables a vCPU starts from, and who else holds them.
//!
//! A VM has one [`RootTable`] of all roots, each with its role and the number of its references. A vCPU's MMU
//! ([`VcpuMmu`]) holds the role it wants and a [`RootCache`] of the root in use and three earlier ones, so that switching CR3
//! back and forth finds its root again. Roots with equal roles are shared by all vCPUs if they are direct.
//!
//! The table is shared by all vCPUs and by whoever zaps: references are counted with atomic operations, and
//! [`RootTable::next_root`] visits roots while they come and go. A vCPU's MMU is its own.
//!
//! Invariants: no two valid TDP roots have the same role; a valid TDP root has a reference of the TDP MMU and one for
//! every place in a cache that holds it; a shadow root has one for every place. A root is freed exactly once, when it
//! is invalid and the last reference goes, and nobody takes a reference to a TDP root that has none.
//! [`VcpuMmu::check`] tells whether the root in use has the role that the MMU wants.
//!
//! KVM counterparts: `mmu.c:fast_pgd_switch`, `mmu.c:kvm_mmu_load`, `mmu.c:kvm_mmu_free_roots`,
//! `mmu.c:kvm_mmu_zap_all_fast`, `tdp_mmu.c:kvm_tdp_mmu_alloc_root`, `tdp_mmu.c:kvm_tdp_mmu_put_root`,
//! `tdp_mmu.c:tdp_mmu_next_root`, of Linux 6.12.

mod audit;
mod cache;
mod mmu;
#[cfg(all(test, loom))]
mod model;
mod order;
mod place;
mod request;
mod root;
mod table;
#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests;
mod zap;

pub(crate) use place::Standing;

pub use cache::{Dropped, Found, Pgd, Root, RootCache, RootSet, SpecialRoot, Switch};
pub use mmu::{FlushOnReuse, GuestRoot, Load, NewPgd, Reused, VcpuMmu};
pub use request::{Request, Requests};
pub use root::{
    Acquired, Freed, NextRoot, Payload, Released, RootId, RootKind, RootSelect, TdpMmu,
};
pub use table::RootTable;
