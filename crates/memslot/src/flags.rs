//! Bit sets of the memory interface, under KVM's names.

bitflags::bitflags! {
    /// `KVM_MEM_*`: flags of a memory slot.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
    #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
    pub struct SlotFlags: u32 {
        /// `KVM_MEM_LOG_DIRTY_PAGES`: keep a dirty log.
        const LOG_DIRTY_PAGES = 1 << 0;
        /// `KVM_MEM_READONLY`: guest writes exit as MMIO.
        const READONLY = 1 << 1;
        /// `KVM_MEM_GUEST_MEMFD`: bound to a guest_memfd.
        const GUEST_MEMFD = 1 << 2;
        /// `KVM_MEM_ZAP_LEAFS_ONLY`, proposed on the kvm list in May 2024 and not merged; known only to a profile
        /// that turns the experiment on.
        const ZAP_LEAFS_ONLY = 1 << 3;
    }

    /// `GUEST_MEMFD_FLAG_*`: flags of `KVM_CREATE_GUEST_MEMFD`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
    #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
    pub struct GmemFlags: u64 {
        /// `GUEST_MEMFD_FLAG_MMAP`: the file can be mapped.
        const MMAP = 1 << 0;
        /// `GUEST_MEMFD_FLAG_INIT_SHARED`: its pages start shared, so that a mapping can be touched.
        const INIT_SHARED = 1 << 1;
    }

    /// `KVM_MEMORY_ATTRIBUTE_*`: per-page attributes.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
    #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
    pub struct Attributes: u64 {
        /// `KVM_MEMORY_ATTRIBUTE_PRIVATE`.
        const PRIVATE = 1 << 3;
    }

    /// `KVM_DIRTY_LOG_*`: modes of `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
    #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
    pub struct ManualProtect: u64 {
        /// `KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE`: GET does not clear, CLEAR does.
        const ENABLE = 1 << 0;
        /// `KVM_DIRTY_LOG_INITIALLY_SET`: new bitmaps start with every bit set.
        const INITIALLY_SET = 1 << 1;
    }
}

impl SlotFlags {
    /// The flags that a kernel without experiments knows.
    pub const UPSTREAM: Self = Self::LOG_DIRTY_PAGES
        .union(Self::READONLY)
        .union(Self::GUEST_MEMFD);
}
