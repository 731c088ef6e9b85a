//! To whom a cached translation belongs.

use crate::role::PageRole;
use crate::table::TableId;

/// The address space that hardware keeps apart from others: VPID on Intel, ASID on AMD.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressSpaceId(pub u16);

/// A process-context identifier: bits 11 to 0 of CR3 with CR4.PCIDE, else 0 (`mmu.h:kvm_get_pcid`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pcid(u16);

impl Pcid {
    /// The identifier in CR3.
    pub const fn of_cr3(cr3: u64) -> Self {
        let [low, high, ..] = cr3.to_le_bytes();
        Self(u16::from_le_bytes([low, high]) & 0xfff)
    }

    /// The number.
    pub const fn raw(self) -> u16 {
        self.0
    }
}

/// What a cached translation depends on besides the address.
///
/// The role follows from the root; it is kept beside it, so that a root that is used with the wrong role is never served
/// from a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Context {
    /// The root of the second stage.
    pub root: TableId,
    /// Its role.
    pub role: PageRole,
    /// The address space.
    pub space: AddressSpaceId,
    /// The guest's own identifier.
    pub pcid: Pcid,
}

impl Context {
    /// Whether it is the same, by two numbers rather than four.
    #[inline]
    pub(super) const fn is(&self, other: &Self) -> bool {
        self.second() == other.second() && self.first() == other.first()
    }

    /// Whether the second stage is the same: guest-physical mappings know no address space.
    #[inline]
    pub(super) const fn same_second(&self, other: &Self) -> bool {
        self.second() == other.second()
    }

    /// Root and role, in the order in which they lie in memory: one load.
    const fn second(&self) -> u64 {
        (self.role.bits() as u64) << 32 | self.root.raw() as u64
    }

    const fn first(&self) -> u32 {
        (self.pcid.0 as u32) << 16 | self.space.0 as u32
    }
}
