//! Shadow pages beside the tables of the TDP MMU: L1 runs on these, L2 on those, and a table that L1 makes for L2 is a page to
//! the one and followed by the other.
//!
//! Two questions cross. A shadow page that begins to follow a table protects the table's frame in all tables of the VM
//! ([`TdpBeside`]). And a fault of the TDP MMU asks whether the frame is followed ([`PageTrack`]): a write to an upper table is
//! emulated, one to a last-level table lets its pages fall out of step, and around either no leaf is huge.

use slat_memslot::{AsId, Gfn, PageSize};

use super::ShadowMmu;
use super::track::Asker;
use crate::fault::{PageTrack, Unsync};
use crate::spte::{Fill, Format};
use crate::sync::{Mutex, lock};
use crate::tdp::{AccessCheck, External, Observer, Tables};

/// What the tables of the TDP MMU have to follow of shadow pages.
pub trait TdpBeside<F: Format> {
    /// Makes the leaf of a frame, if it has at least this size, neither writable nor MMU-writable; says whether TLBs have to be
    /// flushed (`tdp_mmu.c:kvm_tdp_mmu_write_protect_gfn`).
    fn write_protect(
        &mut self,
        as_id: AsId,
        gfn: Gfn,
        smallest: PageSize,
        out: &mut impl Observer<F>,
    ) -> bool;
}

/// The TDP MMU is off, or there is no second stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct NoTdp;

impl<F: Format> TdpBeside<F> for NoTdp {
    fn write_protect(&mut self, _: AsId, _: Gfn, _: PageSize, _: &mut impl Observer<F>) -> bool {
        false
    }
}

impl<F: Format, T: TdpBeside<F>> TdpBeside<F> for &mut T {
    fn write_protect(
        &mut self,
        as_id: AsId,
        gfn: Gfn,
        smallest: PageSize,
        out: &mut impl Observer<F>,
    ) -> bool {
        (**self).write_protect(as_id, gfn, smallest, out)
    }
}

impl<F: Format, X: External<F>, C: AccessCheck> TdpBeside<F> for Tables<F, X, C> {
    fn write_protect(
        &mut self,
        as_id: AsId,
        gfn: Gfn,
        smallest: PageSize,
        out: &mut impl Observer<F>,
    ) -> bool {
        self.exclusive(out).write_track(as_id, gfn, smallest)
    }
}

/// The shadow pages of a VM while `mmu_lock` is held for reading. Many threads may ask at once; pages fall out of step one after
/// the other (`mmu_unsync_pages_lock`).
///
/// Nothing else can happen to them meanwhile, so a VM without pages that follow tables is known to stay one.
#[derive(Debug)]
pub struct ShadowBeside<'m, F: Format> {
    mmu: Mutex<&'m mut ShadowMmu<F>>,
    /// Whether any page follows a table (`indirect_shadow_pages`).
    follows: bool,
}

impl<'m, F: Format> ShadowBeside<'m, F> {
    pub(super) fn new(mmu: &'m mut ShadowMmu<F>) -> Self {
        Self {
            follows: mmu.has_indirect(),
            mmu: Mutex::new(mmu),
        }
    }
}

impl<F: Format> PageTrack for ShadowBeside<'_, F> {
    fn is_write_tracked(&self, gfn: Gfn) -> bool {
        self.follows && lock(&self.mmu).is_write_tracked(gfn)
    }

    fn allows_huge(&self, as_id: AsId, size: PageSize, gfn: Gfn) -> bool {
        !self.follows || lock(&self.mmu).allows_huge(as_id, size, gfn)
    }

    fn try_to_unsync(&self, gfn: Gfn, fill: Fill) -> Unsync {
        if !self.follows {
            return Unsync::default();
        }
        let asker = match fill {
            Fill::Prefetch => Asker::Prefetch,
            Fill::Fault => Asker::Fault,
            Fill::Sync => Asker::Sync,
        };
        lock(&self.mmu).try_to_unsync(gfn, asker)
    }
}
