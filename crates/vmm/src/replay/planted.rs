//! Rules made wrong on purpose.

/// A rule of the model that is made wrong, to show that a comparison finds it ([`predict_wrongly`](super::predict_wrongly)).
///
/// Rules of kernels and machines are made wrong in a [`Machine`](super::Machine); these are the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Planted {
    /// Ageing leaves the accessed bits (`tdp_mmu.c:age_gfn_range`).
    AgeingForgets,
    /// Pages that the host unmaps stay in the tables (`mmu.c:kvm_unmap_gfn_range`).
    UnmapsNothing,
    /// After a fork, pages that are read are mapped writable (`kvm_main.c:hva_to_pfn`).
    ForkedIsWritable,
    /// The same of pages that were merged.
    MergedIsWritable,
    /// Pages that moved are mapped where they were.
    MovedStays,
    /// What a program or a file fills is read as the zero page, and mapped read-only.
    FilledReadsZero,
    /// An SMI leaves the vCPU on its root (`x86.c:kvm_smm_changed`).
    SmiKeepsRoot,
    /// RSM does.
    RsmKeepsRoot,
    /// A hole in a guest_memfd leaves its pages mapped (`guest_memfd.c:kvm_gmem_invalidate_begin`).
    HolesZapNothing,
    /// Freeing a ring's entries does not watch their pages anew (`dirty_ring.c:kvm_reset_dirty_gfn`).
    RingsWatchNothing,
    /// What L1 writes into the tables of its guest is not read (`paging_tmpl.h:sync_spte`, `mmu.c:kvm_mmu_track_write`).
    StoresOfL1Unread,
    /// An L2 without tables of L1's runs on L1's root (`svm/nested.c:nested_svm_load_cr3`).
    L2KeepsRoot,
    /// What L2 executes halts, whatever memory has there.
    ZerosHalt,
}

impl Planted {
    /// Those that need an L1 with an L2.
    pub const NESTED: [Self; 3] = [Self::StoresOfL1Unread, Self::L2KeepsRoot, Self::ZerosHalt];

    /// All others.
    pub const ALL: [Self; 10] = [
        Self::AgeingForgets,
        Self::UnmapsNothing,
        Self::ForkedIsWritable,
        Self::MergedIsWritable,
        Self::MovedStays,
        Self::FilledReadsZero,
        Self::SmiKeepsRoot,
        Self::RsmKeepsRoot,
        Self::HolesZapNothing,
        Self::RingsWatchNothing,
    ];
}
