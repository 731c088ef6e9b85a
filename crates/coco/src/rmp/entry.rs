//! What an entry of the reverse map says: its meaning, and the three layouts it is written in.

use core::fmt;

use slat_memslot::{Gfn, PageSize};

use super::id::{Asid, VmplPermissions};

/// The two sizes that the reverse map knows (`RMP_PG_SIZE_4K`, `RMP_PG_SIZE_2M`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum RmpSize {
    /// 4 KiB.
    #[default]
    Size4K,
    /// 2 MiB.
    Size2M,
}

impl RmpSize {
    /// Both, the smaller first.
    pub const ALL: [Self; 2] = [Self::Size4K, Self::Size2M];

    /// How many 4 KiB pages.
    #[inline]
    pub const fn pages(self) -> u64 {
        match self {
            Self::Size4K => 1,
            Self::Size2M => 512,
        }
    }

    /// The size of the entries that a translation of this size is checked against: one of 1 GiB counts as 2 MiB.
    #[inline]
    pub const fn of(size: PageSize) -> Self {
        match size {
            PageSize::Size4K => Self::Size4K,
            PageSize::Size2M | PageSize::Size1G => Self::Size2M,
        }
    }

    /// As the MMU names it.
    #[inline]
    pub const fn page_size(self) -> PageSize {
        match self {
            Self::Size4K => PageSize::Size4K,
            Self::Size2M => PageSize::Size2M,
        }
    }

    /// Whether a frame number is a multiple of it.
    #[inline]
    pub const fn is_aligned(self, frame: u64) -> bool {
        frame & (self.pages() - 1) == 0
    }
}

impl fmt::Display for RmpSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.page_size(), f)
    }
}

/// What firmware uses a page of its own for. No layout shows it; firmware knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum FirmwareUse {
    /// Nothing special.
    #[default]
    None,
    /// A guest's context (`SNP_GCTX_CREATE`).
    Context,
    /// What is known about swapped pages.
    Metadata,
    /// Fixed to the hypervisor for good (`SNP_INIT_EX`'s list of ranges).
    HvFixed,
}

/// The meaning of one entry.
///
/// Frames rather than addresses: an entry says nothing about bits below 12.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RmpEntry {
    /// Whether the page belongs to a guest or to firmware.
    pub assigned: bool,
    /// Its size. An entry of 2 MiB speaks for 512 pages.
    pub size: RmpSize,
    /// Whether only firmware can change the entry.
    pub immutable: bool,
    /// The guest frame, of 39 bits.
    pub gfn: Gfn,
    /// The guest.
    pub asid: Asid,
    /// Whether the page holds a vCPU's register state.
    pub vmsa: bool,
    /// Whether the guest has said that it expects the page.
    pub validated: bool,
    /// What the guest's privilege levels may do.
    pub permissions: VmplPermissions,
    /// What firmware uses it for.
    pub firmware: FirmwareUse,
    /// Whether a vCPU runs on it now, as its register state.
    pub in_use: bool,
}

/// What a page is, from firmware's view. The names are those of AMD's manuals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageState {
    /// The hypervisor's: shared, or not the guest's at all.
    Hypervisor,
    /// Fixed to the hypervisor.
    HvFixed,
    /// A guest's, and not validated.
    GuestInvalid,
    /// A guest's, and validated.
    GuestValid,
    /// The same, with a vCPU's register state in it.
    GuestValidVmsa,
    /// On its way into a guest before launch.
    PreGuest,
    /// On its way out to swap.
    PreSwap,
    /// Firmware's.
    Firmware,
    /// Firmware's: a guest's context.
    Context,
    /// Firmware's: what is known about swapped pages.
    Metadata,
    /// Given back by firmware, not yet taken by the hypervisor.
    Reclaim,
}

impl PageState {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Hypervisor,
        Self::HvFixed,
        Self::GuestInvalid,
        Self::GuestValid,
        Self::GuestValidVmsa,
        Self::PreGuest,
        Self::PreSwap,
        Self::Firmware,
        Self::Context,
        Self::Metadata,
        Self::Reclaim,
    ];
}

impl RmpEntry {
    /// The hypervisor's: all zero, as after reset.
    pub const HYPERVISOR: Self = Self {
        assigned: false,
        size: RmpSize::Size4K,
        immutable: false,
        gfn: Gfn::new(0),
        asid: Asid::HOST,
        vmsa: false,
        validated: false,
        permissions: VmplPermissions::NONE,
        firmware: FirmwareUse::None,
        in_use: false,
    };

    /// A guest's page as RMPUPDATE leaves it: not validated.
    pub const fn guest(asid: Asid, gfn: Gfn, size: RmpSize) -> Self {
        Self {
            assigned: true,
            size,
            gfn,
            asid,
            permissions: VmplPermissions::RESET,
            ..Self::HYPERVISOR
        }
    }

    /// What the page is.
    ///
    /// ```
    /// use slat_coco::rmp::{Asid, PageState, RmpEntry, RmpSize};
    /// use slat_memslot::Gfn;
    /// let page = RmpEntry::guest(Asid::new(5).unwrap(), Gfn::new(0x40000), RmpSize::Size4K);
    /// assert_eq!(page.state(), PageState::GuestInvalid);
    /// assert_eq!(RmpEntry { validated: true, ..page }.state(), PageState::GuestValid);
    /// assert_eq!(RmpEntry::HYPERVISOR.state(), PageState::Hypervisor);
    /// ```
    pub const fn state(&self) -> PageState {
        if let FirmwareUse::HvFixed = self.firmware {
            return PageState::HvFixed;
        }
        if !self.assigned {
            return PageState::Hypervisor;
        }
        match (self.asid.is_host(), self.immutable) {
            (true, false) => PageState::Reclaim,
            (true, true) => match self.firmware {
                FirmwareUse::Context => PageState::Context,
                FirmwareUse::Metadata => PageState::Metadata,
                FirmwareUse::None | FirmwareUse::HvFixed => PageState::Firmware,
            },
            (false, true) if self.validated => PageState::PreSwap,
            (false, true) => PageState::PreGuest,
            (false, false) if !self.validated => PageState::GuestInvalid,
            (false, false) if self.vmsa => PageState::GuestValidVmsa,
            (false, false) => PageState::GuestValid,
        }
    }

    /// The entry that a page has when a head of 2 MiB that covers it is taken apart.
    pub(super) const fn part(self, index: u64) -> Self {
        Self {
            size: RmpSize::Size4K,
            gfn: Gfn::new(self.gfn.raw() + index),
            ..self
        }
    }
}

/// The operand of RMPUPDATE: 16 bytes (`struct rmp_state`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RmpState {
    /// The guest-physical address, in bytes.
    pub gpa: u64,
    /// Whether the page shall belong to a guest or to firmware.
    pub assigned: bool,
    /// Its size.
    pub size: RmpSize,
    /// Whether only firmware shall change it from now on.
    pub immutable: bool,
    /// The guest; 0 for firmware.
    pub asid: u32,
}

impl RmpState {
    /// The hypervisor's (`rmp_make_shared`).
    pub const fn shared(size: RmpSize) -> Self {
        Self {
            gpa: 0,
            assigned: false,
            size,
            immutable: false,
            asid: 0,
        }
    }

    /// A guest's (`rmp_make_private`).
    pub const fn private(asid: Asid, gfn: Gfn, size: RmpSize) -> Self {
        Self {
            gpa: gfn.gpa().raw(),
            assigned: true,
            size,
            immutable: false,
            asid: asid.raw(),
        }
    }

    /// A guest's page for firmware to fill in before launch (`rmp_make_private` with `immutable`).
    pub const fn pre_guest(asid: Asid, gfn: Gfn) -> Self {
        Self {
            immutable: true,
            ..Self::private(asid, gfn, RmpSize::Size4K)
        }
    }

    /// Firmware's (`rmp_mark_pages_firmware`).
    pub const fn firmware() -> Self {
        Self {
            assigned: true,
            immutable: true,
            ..Self::shared(RmpSize::Size4K)
        }
    }

    /// As the instruction reads it: address, assigned, page size, immutable, a reserved byte, ASID.
    pub const fn to_words(self) -> [u64; 2] {
        let size = matches!(self.size, RmpSize::Size2M);
        let flags = self.assigned as u64 | (size as u64) << 8 | (self.immutable as u64) << 16;
        [self.gpa, flags | (self.asid as u64) << 32]
    }

    /// From what the instruction reads; `None` with a reserved bit set or a byte that is neither 0 nor 1.
    pub const fn from_words([gpa, flags]: [u64; 2]) -> Option<Self> {
        if flags & 0xfffe_fefe != 0 {
            return None;
        }
        let size = if flags & 1 << 8 != 0 {
            RmpSize::Size2M
        } else {
            RmpSize::Size4K
        };
        let asid = (flags >> 32) as u32;
        Some(Self {
            gpa,
            assigned: flags & 1 != 0,
            size,
            immutable: flags & 1 << 16 != 0,
            asid,
        })
    }
}

/// What RMPREAD writes: 16 bytes, the only layout that is architectural (CPUID `0x8000001f` EAX bit 21).
///
/// Validated, VMSA and the permissions are not for the host to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RmpReadEntry {
    /// The guest frame.
    pub gfn: Gfn,
    /// Whether the page is assigned.
    pub assigned: bool,
    /// Its size.
    pub size: RmpSize,
    /// Whether another page of the same 2 MiB is assigned. Only told for a frame that is a multiple of 512.
    pub region_in_use: bool,
    /// Whether it is immutable.
    pub immutable: bool,
    /// The guest.
    pub asid: Asid,
}

impl RmpReadEntry {
    /// Address, then a byte each for assigned (bit 0), page size (bit 0) with region status (bit 1), and immutable (bit 0),
    /// a reserved byte, and the ASID.
    pub const fn to_words(self) -> [u64; 2] {
        let size = matches!(self.size, RmpSize::Size2M) as u64;
        let flags = self.assigned as u64
            | size << 8
            | (self.region_in_use as u64) << 9
            | (self.immutable as u64) << 16;
        [self.gfn.gpa().raw(), flags | (self.asid.raw() as u64) << 32]
    }
}
