//! Numbers and switches of the shadow MMU.

/// What becomes of pages that are out of step, when a page above them is zapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum UnsyncChildren {
    /// They are zapped along (`mmu.c:mmu_zap_unsync_children`).
    #[default]
    Zapped,
    /// They stay, and are brought into step when they are linked again. A kernel with a paravirtual backend has a switch
    /// for it (`kvm.eager_zap_unsync_children`).
    Kept,
}

/// How the shadow MMU of a kernel differs from others; by default it is upstream's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ShadowRules {
    /// Pages that are out of step below one that goes.
    pub unsync_children: UnsyncChildren,
    /// How many entries are looked at around one that a fault maps: a power of two, 8 upstream (`PTE_PREFETCH_NUM`).
    pub prefetch: u16,
    /// After how many writes to a table without a walk through it nobody takes it for one: 3
    /// (`mmu.c:detect_write_flooding`).
    pub flood: u32,
    /// Free pages below which a fault makes room: 5 (`KVM_MIN_FREE_MMU_PAGES`).
    pub least_free: u64,
    /// How many are free then: 25 (`KVM_REFILL_PAGES`).
    pub refilled: u64,
}

impl ShadowRules {
    /// Those of kernel 6.12.
    pub const UPSTREAM: Self = Self {
        unsync_children: UnsyncChildren::Zapped,
        prefetch: 8,
        flood: 3,
        least_free: 5,
        refilled: 25,
    };
}

impl Default for ShadowRules {
    fn default() -> Self {
        Self::UPSTREAM
    }
}
