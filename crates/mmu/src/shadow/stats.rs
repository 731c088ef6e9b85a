//! What KVM counts of shadow pages (`struct kvm_vm_stat`).

use slat_memslot::{Level, PageSize};

/// Numbers with KVM's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShadowStats {
    /// Pages taken apart.
    pub mmu_shadow_zapped: u64,
    /// Emulated writes while any table was shadowed.
    pub mmu_pte_write: u64,
    /// Entries above the last level that such writes have zapped.
    pub mmu_pde_zapped: u64,
    /// Pages zapped since their tables were written to too often, or in an odd way.
    pub mmu_flooded: u64,
    /// Pages zapped to make room.
    pub mmu_recycled: u64,
    /// Pages that were not found and had to be made.
    pub mmu_cache_miss: u64,
    /// Pages that are out of step with the guest's tables now.
    pub mmu_unsync: u64,
    /// Leaves of 4 KiB.
    pub pages_4k: u64,
    /// Leaves of 2 MiB.
    pub pages_2m: u64,
    /// Leaves of 1 GiB.
    pub pages_1g: u64,
    /// Pages that stand in for huge ones which the mitigation of iTLB multihit forbids, and could be recovered.
    pub nx_lpage_splits: u64,
    /// The most pages of other frames that a search has met in its bucket.
    pub max_mmu_page_hash_collisions: u64,
    /// Flushes of all vCPUs' TLBs.
    pub remote_tlb_flush: u64,
}

impl ShadowStats {
    /// Leaves of a size.
    pub const fn leafs(&self, size: PageSize) -> u64 {
        match size {
            PageSize::Size4K => self.pages_4k,
            PageSize::Size2M => self.pages_2m,
            PageSize::Size1G => self.pages_1g,
        }
    }

    pub(super) const fn leafs_at(&mut self, level: Level) -> &mut u64 {
        match level {
            Level::L1 => &mut self.pages_4k,
            Level::L2 => &mut self.pages_2m,
            Level::L3 | Level::L4 | Level::L5 => &mut self.pages_1g,
        }
    }
}
