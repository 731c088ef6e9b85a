//! The rules that can be broken.

use core::fmt;

use slat_memslot::{Gfn, PageSize};
use slat_mmu::spte::Pfn;
use thiserror::Error;

use crate::rmp::{Asid, Fault, PageState, RmpEntry, RmpSize};

/// A rule that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[non_exhaustive]
pub enum SnpViolation {
    /// N01.
    #[error("N01 private leaf of {gfn:?} maps {pfn:?}, whose entry is {entry:?}")]
    NotAssigned {
        /// The guest frame.
        gfn: Gfn,
        /// The frame.
        pfn: Pfn,
        /// Its entry.
        entry: RmpEntry,
    },
    /// N02.
    #[error("N02 shared leaf of {gfn:?} maps {pfn:?}, which is assigned")]
    SharedAssigned {
        /// The guest frame.
        gfn: Gfn,
        /// The frame.
        pfn: Pfn,
    },
    /// N03.
    #[error("N03 leaf of {gfn:?} is of {leaf}, the entry of its frame of {entry}")]
    LargerThanEntry {
        /// The guest frame.
        gfn: Gfn,
        /// Size of the leaf.
        leaf: PageSize,
        /// Size of the entry.
        entry: RmpSize,
    },
    /// N04.
    #[error("N04 {first:?} and {second:?} are both {gfn:?} of ASID {asid}")]
    Twice {
        /// The guest.
        asid: Asid,
        /// The guest frame.
        gfn: Gfn,
        /// One frame.
        first: Pfn,
        /// The other.
        second: Pfn,
    },
    /// N05.
    #[error("N05 {0:?} is assigned under a head of 2M")]
    TailAssigned(Pfn),
    /// N06.
    #[error("N06 {0:?} is validated, and no guest's")]
    ValidatedByNobody(Pfn),
    /// N07.
    #[error("N07 {0:?} is free, and {1:?}")]
    FreeNotHypervisor(Pfn, PageState),
    /// N08.
    #[error("N08 leaf of {gfn:?} maps {pfn:?}, which is the wrong page")]
    WrongPage {
        /// The guest frame.
        gfn: Gfn,
        /// The frame.
        pfn: Pfn,
    },
    /// N09.
    #[error("N09 {0:?} is mapped as what its attribute does not say")]
    WrongKind(Gfn),
    /// N10.
    #[error("N10 the huge leaf of {0:?} covers private and shared frames")]
    MixedHuge(Gfn),
    /// N11.
    #[error("N11 {pfn:?} is assigned as {gfn:?}, and not in the file")]
    NotInFile {
        /// The frame.
        pfn: Pfn,
        /// The guest frame.
        gfn: Gfn,
    },
    /// N12.
    #[error("N12 the VMSA in {0:?} is huge, not validated, or at a multiple of 2M")]
    BadVmsa(Pfn),
    /// N13.
    #[error("N13 the host faulted at {0:?}: {1}")]
    Oops(Pfn, Fault),
    /// N14.
    #[error("N14 {0:?} is assigned by itself, and the host maps its 2M as a whole")]
    DirectMapNotSplit(Pfn),
    /// N15.
    #[error("N15 the host has tried to change the immutable entry of {0:?}")]
    ImmutableTouched(Pfn),
    /// N16.
    #[error("N16 {0:?} became the hypervisor's while {1}")]
    GivenBackTooEarly(Pfn, Reach),
    /// N17.
    #[error("N17 {0:?} was mapped as private before it was assigned")]
    MappedTooEarly(Pfn),
}

/// How a guest can still reach a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reach {
    /// A leaf maps it.
    Mapped,
    /// No leaf does any more, but TLBs were not flushed since.
    NotFlushed,
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mapped => "it was mapped",
            Self::NotFlushed => "TLBs could hold it",
        })
    }
}

impl SnpViolation {
    /// The rule's code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotAssigned { .. } => "N01",
            Self::SharedAssigned { .. } => "N02",
            Self::LargerThanEntry { .. } => "N03",
            Self::Twice { .. } => "N04",
            Self::TailAssigned(_) => "N05",
            Self::ValidatedByNobody(_) => "N06",
            Self::FreeNotHypervisor(..) => "N07",
            Self::WrongPage { .. } => "N08",
            Self::WrongKind(_) => "N09",
            Self::MixedHuge(_) => "N10",
            Self::NotInFile { .. } => "N11",
            Self::BadVmsa(_) => "N12",
            Self::Oops(..) => "N13",
            Self::DirectMapNotSplit(_) => "N14",
            Self::ImmutableTouched(_) => "N15",
            Self::GivenBackTooEarly(..) => "N16",
            Self::MappedTooEarly(_) => "N17",
        }
    }

    /// All codes.
    pub const CODES: [&'static str; 17] = [
        "N01", "N02", "N03", "N04", "N05", "N06", "N07", "N08", "N09", "N10", "N11", "N12", "N13",
        "N14", "N15", "N16", "N17",
    ];
}
