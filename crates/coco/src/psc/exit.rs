//! What goes out to the VMM and what comes back, to it and to the guest.

use slat_memslot::{Gfn, GfnRange, Gpa, PageSize, Pages};

use crate::rmp::RmpSize;

/// Which way pages go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// They become private.
    ToPrivate,
    /// They become shared.
    ToShared,
}

/// `KVM_EXIT_HYPERCALL` with `KVM_HC_MAP_GPA_RANGE`: the VMM shall make a range private or shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MapGpaRange {
    /// The frames.
    pub range: GfnRange,
    /// Which way.
    pub to: Direction,
    /// The size that the guest would like. No promise: the range need not be aligned to it.
    pub hint: PageSize,
}

impl MapGpaRange {
    /// The number of the hypercall.
    pub const NR: u64 = 12;
    /// `KVM_MAP_GPA_RANGE_ENCRYPTED`.
    pub const ENCRYPTED: u64 = 1 << 4;

    /// The first address.
    pub const fn gpa(&self) -> Gpa {
        self.range.start().gpa()
    }

    /// The arguments: address, count of 4 KiB pages, attributes (size in bits 3:0, encrypted in bit 4).
    ///
    /// ```
    /// use slat_coco::psc::{Direction, MapGpaRange};
    /// use slat_memslot::{Gfn, GfnRange, PageSize, Pages};
    /// let exit = MapGpaRange {
    ///     range: GfnRange::new(Gfn::new(0x200), Pages::new(512)).unwrap(),
    ///     to: Direction::ToPrivate,
    ///     hint: PageSize::Size2M,
    /// };
    /// assert_eq!(exit.args(), [0x20_0000, 512, 0x11]);
    /// ```
    pub const fn args(&self) -> [u64; 3] {
        let size = match self.hint {
            PageSize::Size4K => 0,
            PageSize::Size2M => 1,
            PageSize::Size1G => 2,
        };
        let encrypted = match self.to {
            Direction::ToPrivate => Self::ENCRYPTED,
            Direction::ToShared => 0,
        };
        [self.gpa().raw(), self.range.pages().raw(), size | encrypted]
    }
}

/// PSMASH or UNSMASH: the VMM may change the size of a range's RMP entries. Nothing depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Resize {
    /// The frames.
    pub range: GfnRange,
    /// The size that the guest would like.
    pub to: RmpSize,
}

/// What the VMM answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// The whole range is done.
    Done,
    /// So many pages from the range's start are done. The guest hears how far it got, and asks again for the rest.
    Partly(Pages),
    /// Nothing is done, or what was done is undone.
    Failed,
}

/// How the event ended, for the guest: SW_EXITINFO2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PscResult {
    /// 0. Whether everything is done, the header tells.
    Success,
    /// The header is invalid (`VMGEXIT_PSC_ERROR_INVALID_HDR`).
    InvalidHeader,
    /// The entry at `cur_entry` is invalid (`VMGEXIT_PSC_ERROR_INVALID_ENTRY`).
    InvalidEntry,
    /// The host could not do it (`VMGEXIT_PSC_ERROR_GENERIC`).
    Generic,
}

impl PscResult {
    /// The value of SW_EXITINFO2.
    pub const fn sw_exit_info_2(self) -> u64 {
        match self {
            Self::Success => 0,
            Self::InvalidHeader => 1 << 32 | 1,
            Self::InvalidEntry => 1 << 32 | 2,
            Self::Generic => 0x100 << 32,
        }
    }
}

/// A range of pages that is not empty, since it comes of an entry.
pub(super) fn range_of(start: Gfn, pages: u64) -> GfnRange {
    GfnRange::new(start, Pages::new(pages)).expect("an entry has pages, and its frame 40 bits")
}
