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
}

impl Planted {
    /// All of them.
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
