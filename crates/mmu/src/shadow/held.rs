//! The lock, held for writing.

use core::fmt;

use slat_memslot::{AsId, Gfn};

use super::ShadowMmu;
use super::beside::{NoTdp, TdpBeside};
use super::page::{PageId, SpteRef};
use crate::roots::Request;
use crate::spte::{Format, Spte};
use crate::tdp::{Event, Observer};

/// Shadow pages with `mmu_lock` held for writing, and an observer: what changes them is a method of this.
///
/// `T` is what the TDP MMU's tables beside have to follow of it.
pub struct ShadowLocked<'m, F: Format, O, T = NoTdp> {
    pub(super) mmu: &'m mut ShadowMmu<F>,
    pub(super) out: O,
    pub(super) tdp: T,
    /// Pages that are to be freed when no vCPU can use them any more (`invalid_list`).
    pub(super) invalid: Vec<PageId>,
    /// Frames that pages brought into step have made writable in logged slots.
    pub(super) dirtied: Vec<(AsId, Gfn)>,
}

impl<F: Format, O, T> fmt::Debug for ShadowLocked<'_, F, O, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShadowLocked")
            .field("mmu", &self.mmu)
            .finish_non_exhaustive()
    }
}

impl<'m, F: Format, O: Observer<F>, T: TdpBeside<F>> ShadowLocked<'m, F, O, T> {
    pub(super) fn new(mmu: &'m mut ShadowMmu<F>, out: O, tdp: T) -> Self {
        Self {
            mmu,
            out,
            tdp,
            invalid: Vec::new(),
            dirtied: Vec::new(),
        }
    }

    /// Frames that are to be marked dirty since something was brought into step.
    #[must_use = "the log would miss them"]
    pub fn take_dirtied(&mut self) -> Vec<(AsId, Gfn)> {
        core::mem::take(&mut self.dirtied)
    }

    /// The pages, to be looked at.
    pub fn mmu(&self) -> &ShadowMmu<F> {
        self.mmu
    }

    pub(super) fn tell(&mut self, event: Event<F>) {
        if O::EVENTS {
            self.out.event(event);
        }
    }

    pub(super) fn entry(&self, at: SpteRef) -> Spte<F> {
        self.mmu.pages.get(at.page).entry(at.index)
    }

    pub(super) fn store(&mut self, at: SpteRef, spte: Spte<F>) -> Spte<F> {
        self.mmu.pages.get_mut(at.page).replace(at.index, spte)
    }

    /// The page that a link leads to.
    pub(super) fn child(&self, link: Spte<F>) -> PageId {
        let [a, b, c, d, ..] = self.mmu.codec.pfn(link).raw().to_le_bytes();
        PageId::new(u32::from_le_bytes([a, b, c, d]))
    }

    /// All vCPUs forget their translations (`kvm_flush_remote_tlbs`).
    pub(super) fn flush(&mut self) {
        self.mmu.stats.remote_tlb_flush += 1;
        self.mmu.requests.insert(Request::TlbFlush);
    }
}
