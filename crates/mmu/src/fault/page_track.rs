//! What those who watch the guest's writes have to say to a fault (`page_track.c`).

use slat_memslot::{AsId, Gfn, PageSize};

use crate::shadow::PageInfo;
use crate::spte::Fill;

/// Who watches writes to frames: shadow pages that follow tables in them
/// ([`ShadowBeside`](crate::shadow::ShadowBeside)), or nobody ([`NotTracked`]).
///
/// Faults of several vCPUs ask at the same time, with the lock held for reading.
pub trait PageTrack {
    /// Whether each write to a frame has to be seen, in either address space (`page_track.c:kvm_gfn_is_write_tracked`). Such
    /// a write is emulated, without a look at tables or backing.
    fn is_write_tracked(&self, gfn: Gfn) -> bool;

    /// Whether a leaf of a size may be around a frame, as far as shadowed tables go (`disallow_lpage`).
    fn allows_huge(&self, as_id: AsId, size: PageSize, gfn: Gfn) -> bool;

    /// A leaf for a frame is about to become writable: pages of the last level that follow a table in it fall out of step
    /// (`mmu.c:mmu_try_to_unsync_pages`).
    fn try_to_unsync(&self, gfn: Gfn, fill: Fill) -> Unsync;
}

/// What became of pages that follow a table which is about to be writable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unsync {
    /// It must not be: each write has to be seen.
    pub every_write: bool,
    /// The pages that have fallen out of step, as they were.
    pub unsynced: Vec<PageInfo>,
}

/// Nobody watches: a VM without shadow pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct NotTracked;

impl PageTrack for NotTracked {
    #[inline]
    fn is_write_tracked(&self, _: Gfn) -> bool {
        false
    }

    #[inline]
    fn allows_huge(&self, _: AsId, _: PageSize, _: Gfn) -> bool {
        true
    }

    #[inline]
    fn try_to_unsync(&self, _: Gfn, _: Fill) -> Unsync {
        Unsync::default()
    }
}

impl<T: PageTrack + ?Sized> PageTrack for &T {
    #[inline]
    fn is_write_tracked(&self, gfn: Gfn) -> bool {
        (**self).is_write_tracked(gfn)
    }

    #[inline]
    fn allows_huge(&self, as_id: AsId, size: PageSize, gfn: Gfn) -> bool {
        (**self).allows_huge(as_id, size, gfn)
    }

    #[inline]
    fn try_to_unsync(&self, gfn: Gfn, fill: Fill) -> Unsync {
        (**self).try_to_unsync(gfn, fill)
    }
}
