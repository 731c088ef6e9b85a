//! Entries as memory holds them: two words, of which the lower is laid out as on family 19h (`struct rmpentry`, not
//! architectural).
//!
//! | bits of the lower word | |
//! |---|---|
//! | 0 | assigned |
//! | 1 | page size, 1 is 2 MiB |
//! | 2 | immutable |
//! | 11:3 | reserved; here a count of changes, so that a reader of both words knows that they belong together |
//! | 50:12 | guest frame |
//! | 60:51 | ASID |
//! | 61 | VMSA |
//! | 62 | validated |
//! | 63 | reserved; here a lock |
//!
//! The upper word holds permissions, four bits a level from bit 0, and what firmware knows. Hardware keeps the same there
//! in a layout of its own.

use slat_memslot::Gfn;

use super::entry::{FirmwareUse, RmpEntry, RmpSize};
use super::id::{Asid, Permissions, Vmpl, VmplPermissions};

pub(super) const ASSIGNED: u64 = 1;
pub(super) const SIZE_2M: u64 = 1 << 1;
pub(super) const IMMUTABLE: u64 = 1 << 2;
const CHANGES_SHIFT: u32 = 3;
const CHANGES: u64 = 0x1ff << CHANGES_SHIFT;
/// Both words are being written: the count is odd.
const WRITING: u64 = 1 << CHANGES_SHIFT;
const GFN_SHIFT: u32 = 12;
const GFN: u64 = (1 << 39) - 1;
const ASID_SHIFT: u32 = 51;
const ASID: u64 = (1 << Asid::BITS) - 1;
const VMSA: u64 = 1 << 61;
const VALIDATED: u64 = 1 << 62;
/// Somebody is changing the entry.
pub(super) const LOCK: u64 = 1 << 63;

const PERMISSIONS: u64 = 0xffff;
const USE_SHIFT: u32 = 16;
const IN_USE: u64 = 1 << 18;

/// The first frame that no entry can name.
pub(super) const END_GFN: u64 = GFN + 1;

/// An entry of 2 MiB is in force.
#[inline]
pub(super) const fn is_huge(low: u64) -> bool {
    low & (ASSIGNED | SIZE_2M) == ASSIGNED | SIZE_2M
}

/// What both words must have so that a level of a guest may do something with a page of 4 KiB: it is the guest's at this
/// frame, validated, not immutable, and permits it to the level. Nobody is writing it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// The lower word without the frame.
    low: u64,
    gfn: u64,
    /// Bits that the upper word has at least.
    high: u64,
}

impl Wanted {
    const LOW: u64 = ASSIGNED | SIZE_2M | IMMUTABLE | WRITING | ASID << ASID_SHIFT | VALIDATED;

    #[inline(always)]
    pub(super) const fn new(asid: Asid, gfn: Gfn, vmpl: Vmpl, needs: Permissions) -> Self {
        Self {
            low: ASSIGNED | VALIDATED | (asid.raw() as u64) << ASID_SHIFT,
            gfn: gfn.raw(),
            high: (needs.bits() as u64) << (4 * vmpl as u32),
        }
    }

    #[inline(always)]
    pub(super) const fn are_in(&self, low: u64, high: u64) -> bool {
        low & Self::LOW == self.low
            && low >> GFN_SHIFT & GFN == self.gfn
            && high & self.high == self.high
    }
}

/// The upper word of a page that is fixed to the hypervisor.
#[inline]
pub(super) const fn is_fixed(high: u64) -> bool {
    high >> USE_SHIFT & 3 == 3
}

/// Without the two things that are slat's own.
#[inline]
pub(super) const fn visible(low: u64) -> u64 {
    low & !(LOCK | CHANGES)
}

/// What a lower word is while both words are written: locked, with an odd count.
#[inline]
pub(super) const fn writing(before: u64) -> u64 {
    next(before, before) | LOCK
}

/// What it is then: unlocked, with the next even count.
#[inline]
pub(super) const fn written(before: u64, after: u64) -> u64 {
    next(writing(before), after)
}

/// Whether both words are being written.
#[inline]
pub(super) const fn is_writing(low: u64) -> bool {
    low & WRITING != 0
}

const fn next(before: u64, after: u64) -> u64 {
    visible(after) | ((before & CHANGES) + WRITING) & CHANGES
}

impl RmpEntry {
    /// The lower word as family 19h has it, reserved bits 0.
    ///
    /// ```
    /// use slat_coco::rmp::{Asid, RmpEntry, RmpSize};
    /// use slat_memslot::Gfn;
    /// let entry = RmpEntry::guest(Asid::new(5).unwrap(), Gfn::new(0x40000), RmpSize::Size2M);
    /// assert_eq!(entry.raw(), 0x0028_0000_4000_0003);
    /// assert_eq!(RmpEntry { permissions: RmpEntry::HYPERVISOR.permissions, ..entry }, RmpEntry::from_raw(entry.raw()));
    /// ```
    pub const fn raw(&self) -> u64 {
        let size = matches!(self.size, RmpSize::Size2M);
        self.assigned as u64
            | (size as u64) << 1
            | (self.immutable as u64) << 2
            | (self.gfn.raw() & GFN) << GFN_SHIFT
            | (self.asid.raw() as u64) << ASID_SHIFT
            | (self.vmsa as u64) << 61
            | (self.validated as u64) << 62
    }

    /// From the lower word alone, as a dump of a machine's table has it: nobody is permitted anything. Reserved bits do not
    /// count.
    pub const fn from_raw(low: u64) -> Self {
        Self::from_words(low, 0)
    }

    pub(super) const fn from_words(low: u64, high: u64) -> Self {
        let asid = match Asid::new((low >> ASID_SHIFT & ASID) as u32) {
            Some(asid) => asid,
            None => Asid::HOST,
        };
        Self {
            assigned: low & ASSIGNED != 0,
            size: if low & SIZE_2M != 0 {
                RmpSize::Size2M
            } else {
                RmpSize::Size4K
            },
            immutable: low & IMMUTABLE != 0,
            gfn: Gfn::new(low >> GFN_SHIFT & GFN),
            asid,
            vmsa: low & VMSA != 0,
            validated: low & VALIDATED != 0,
            permissions: VmplPermissions::from_bits(high & PERMISSIONS),
            firmware: match high >> USE_SHIFT & 3 {
                1 => FirmwareUse::Context,
                2 => FirmwareUse::Metadata,
                3 => FirmwareUse::HvFixed,
                _ => FirmwareUse::None,
            },
            in_use: high & IN_USE != 0,
        }
    }

    pub(super) const fn high(&self) -> u64 {
        let used_for = match self.firmware {
            FirmwareUse::None => 0,
            FirmwareUse::Context => 1,
            FirmwareUse::Metadata => 2,
            FirmwareUse::HvFixed => 3,
        };
        let in_use = if self.in_use { IN_USE } else { 0 };
        self.permissions.bits() | used_for << USE_SHIFT | in_use
    }
}
