//! Identifiers: address spaces, slot ids, guest_memfd files, generations.

use core::fmt;

/// User slot ids per address space on x86: `KVM_USER_MEM_SLOTS`, what `KVM_CAP_NR_MEMSLOTS` reports.
pub const USER_SLOTS: u16 = 32764;

/// An address space of a VM: 0 is the normal one, 1 the one that vCPUs in SMM see.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(transparent)
)]
pub struct AsId(u8);

impl AsId {
    /// The address space of vCPUs outside SMM.
    pub const NORMAL: Self = Self(0);
    /// The address space of vCPUs in SMM.
    pub const SMM: Self = Self(1);

    /// The index, 0 or 1.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Address space `index`; `None` above 1, the most that x86 ever has (`KVM_MAX_NR_ADDRESS_SPACES`).
    pub const fn new(index: u8) -> Option<Self> {
        if index < 2 { Some(Self(index)) } else { None }
    }
}

impl fmt::Debug for AsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "as {}", self.0)
    }
}

/// A slot id inside one address space: the low 16 bits of the ioctl's `slot`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(transparent)
)]
pub struct SlotId(u16);

impl SlotId {
    /// The slot of the task state segment that KVM makes for itself on old Intel CPUs.
    pub const TSS: Self = Self(32764);
    /// The slot of the APIC access page that KVM makes for itself.
    pub const APIC_ACCESS: Self = Self(32765);
    /// The slot of the identity page table that KVM makes for itself on old Intel CPUs.
    pub const IDENTITY_MAP: Self = Self(32766);

    /// Wraps an id; ids from 32764 on are KVM's own.
    #[inline]
    pub const fn new(raw: u16) -> Self {
        Self(raw)
    }

    /// The raw id.
    #[inline]
    pub const fn raw(self) -> u16 {
        self.0
    }

    /// Whether the id names a slot that userspace may set.
    #[inline]
    pub const fn is_user(self) -> bool {
        self.0 < USER_SLOTS
    }
}

impl fmt::Debug for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot {}", self.0)
    }
}

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A slot id with its address space: the ioctls' 32-bit `slot`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SlotKey {
    /// The address space, the upper 16 bits.
    pub as_id: AsId,
    /// The id, the lower 16 bits.
    pub id: SlotId,
}

impl SlotKey {
    /// Slot `id` of the normal address space.
    pub const fn normal(id: u16) -> Self {
        Self {
            as_id: AsId::NORMAL,
            id: SlotId(id),
        }
    }

    /// The 32-bit `slot` of the ioctls.
    #[inline]
    pub const fn raw(self) -> u32 {
        (self.as_id.0 as u32) << 16 | self.id.0 as u32
    }
}

impl fmt::Debug for SlotKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot {self}")
    }
}

impl fmt::Display for SlotKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.as_id {
            AsId::NORMAL => write!(f, "{}", self.id),
            as_id => write!(f, "{}:{}", as_id.0, self.id),
        }
    }
}

/// A guest_memfd file of this VM, numbered in the order of creation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(transparent)
)]
pub struct GmemId(u32);

impl GmemId {
    /// The file created as the `index`-th of its VM, from 0.
    pub const fn new(index: u32) -> Self {
        Self(index)
    }

    /// The number in the order of creation, from 0.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Debug for GmemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gmem {}", self.0)
    }
}

/// The generation of one address space's slots (`kvm_memslots.generation`).
///
/// Bit 63 is set while an update is in progress; MMIO entries cached under another generation are stale.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(transparent)
)]
pub struct Generation(u64);

impl Generation {
    /// Set while the slots of an address space are being exchanged (`KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS`).
    pub const UPDATE_IN_PROGRESS: u64 = 1 << 63;

    /// The first generation of an address space: its index.
    pub const fn initial(as_id: AsId) -> Self {
        Self(as_id.0 as u64)
    }

    /// Wraps a raw generation.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The raw generation.
    #[inline]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The generation after `swaps` exchanges in a VM with `address_spaces` address spaces.
    #[inline]
    pub const fn after(self, swaps: u32, address_spaces: u8) -> Self {
        Self(self.0 + swaps as u64 * address_spaces as u64)
    }

    /// The lowest `bits` of it: what an MMIO entry can hold (`MMIO_SPTE_GEN_MASK`). How many depends on the kernel:
    /// [`Profile::mmio_generation_bits`](crate::Profile::mmio_generation_bits).
    #[inline]
    pub const fn low_bits(self, bits: u8) -> u64 {
        match 1_u64.checked_shl(bits as u32) {
            Some(end) => self.0 & (end - 1),
            None => self.0,
        }
    }

    /// Whether this generation makes KVM zap everything, since MMIO entries, which hold the lowest `bits` of it, can no
    /// longer tell generations apart (`mmu.c:kvm_mmu_invalidate_mmio_sptes`).
    #[inline]
    pub const fn wraps_mmio(self, bits: u8, address_spaces: u8) -> bool {
        self.low_bits(bits) & !(address_spaces as u64 - 1) == 0
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "generation {:#x}", self.0)
    }
}
