//! Pages that stand in for huge ones which the mitigation of iTLB multihit forbids, and the way back (`kvm.nx_huge_pages`).
//!
//! KVM 6.12 keeps them on one list with those of the TDP MMU; each of the two has its own here, as kernels since 6.18 have.

use slat_memslot::{AsId, Gfn};

use super::beside::TdpBeside;
use super::direct::Goal;
use super::held::ShadowLocked;
use super::page::{NxDisallowed, PageId, SpteRef};
use super::size_at;
use crate::spte::{Format, Pfn};
use crate::tdp::Observer;

impl<F: Format, O: Observer<F>, T: TdpBeside<F>> ShadowLocked<'_, F, O, T> {
    /// Where a table stands in for a huge page that must not be executable, it stays
    /// (`mmu.c:disallowed_hugepage_adjust`).
    pub(super) fn respect_nx(&self, at: SpteRef, gfn: Gfn, goal: &mut Option<Goal>) {
        let level = self.level_of(at);
        let Some(goal) = goal.as_mut().filter(|goal| goal.size.level() == level) else {
            return;
        };
        let spte = self.entry(at);
        if !spte.is_link(level) {
            return;
        }
        let child = self.mmu.pages.get(self.child(spte));
        if child.nx == NxDisallowed::No {
            return;
        }
        let smaller = size_at(child.level());
        let part = goal.size.pages().raw() - smaller.pages().raw();
        goal.pfn = Pfn::new(goal.pfn.raw() | gfn.raw() & part);
        goal.size = smaller;
    }

    /// Notes that a page stands in for a huge one (`mmu.c:account_nx_huge_page`).
    pub(super) fn account_nx(&mut self, page: PageId, recoverable: bool) {
        use NxDisallowed::{No, Recoverable, Yes};
        let nx = &mut self.mmu.pages.get_mut(page).nx;
        match (*nx, recoverable) {
            (Recoverable, _) | (Yes, false) => {}
            (No, false) => *nx = Yes,
            (No | Yes, true) => {
                *nx = Recoverable;
                self.mmu.possible_nx.push(page);
                self.mmu.stats.nx_lpage_splits += 1;
            }
        }
    }

    /// A page does not any more, or goes (`mmu.c:unaccount_nx_huge_page`).
    pub(super) fn unaccount_nx(&mut self, id: PageId) {
        let nx = core::mem::take(&mut self.mmu.pages.get_mut(id).nx);
        if nx == NxDisallowed::Recoverable {
            self.mmu.possible_nx.retain(|other| *other != id);
            self.mmu.stats.nx_lpage_splits -= 1;
        }
    }

    /// Lets pages become huge again: the first of the remembered pages go, as many as the `ratio`th part of all, rounded up
    /// (`mmu.c:kvm_recover_nx_huge_pages`). Where `is_logged` says that the slot of a page's first frame is logged, a page is
    /// only forgotten: it would be split again. Gives how many pages were zapped.
    ///
    /// A ratio of 0 zaps nothing.
    pub fn recover_nx(&mut self, ratio: u64, is_logged: impl Fn(AsId, Gfn) -> bool) -> u64 {
        let all = self.mmu.stats.nx_lpage_splits;
        let mut left = if ratio == 0 { 0 } else { all.div_ceil(ratio) };
        let mut zapped = 0;
        while let Some(id) = self.mmu.possible_nx.first().copied().filter(|_| left > 0) {
            left -= 1;
            let page = self.mmu.pages.get(id);
            if is_logged(page.role.as_id(), page.gfn) {
                self.unaccount_nx(id);
            } else {
                self.prepare_zap(id);
                zapped += 1;
            }
        }
        self.commit_zap();
        zapped
    }
}
