//! What guests of scenes do: they fetch their instructions, then write to page after page.

use slat_memslot::{Gfn, Gpa, PAGE_SHIFT, PAGE_SIZE};
use slat_mmu::fault::Kind;

use crate::tdp_vm::{Activity, Paging};

/// The page of the instructions.
pub(super) const CODE: u64 = PAGE_SIZE;
/// Where the guest's own tables begin, if it has any: one top, one below it, one for the first GiB.
pub(super) const TABLES: u64 = 0x1_0000;

/// How a guest sees its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    /// By guest-physical addresses.
    Flat,
    /// In long mode, through tables that map the first GiB to itself by pages of 2 MiB.
    Long,
}

impl View {
    pub(super) fn paging(self) -> Paging {
        match self {
            Self::Flat => Paging::Off,
            Self::Long => Paging::Long {
                cr3: Gpa::new(TABLES),
                pages: Vec::new(),
            },
        }
    }
}

/// Writes to a word of each frame.
pub(super) fn writes(frames: impl IntoIterator<Item = Gfn>) -> Activity {
    let mut activity = Activity::halt(Gpa::new(CODE));
    for gfn in frames {
        activity = activity.step(Kind::Write, gfn.raw() << PAGE_SHIFT);
    }
    activity
}
