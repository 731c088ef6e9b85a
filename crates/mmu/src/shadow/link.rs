//! Links between pages, and leaves in the lists of their frames.

use slat_memslot::{AsId, Gfn, Level};

use super::beside::TdpBeside;
use super::held::ShadowLocked;
use super::page::{PageId, SpteRef};
use crate::access::Access;
use crate::role::RoleFlag;
use crate::spte::{AdType, Format, Pfn, Spte};
use crate::tdp::Observer;

/// The most leaves that a frame's list may have (`RMAP_RECYCLE_THRESHOLD`).
const MOST_LEAFS: usize = 1000;

impl<F: Format, O: Observer<F>, T: TdpBeside<F>> ShadowLocked<'_, F, O, T> {
    /// Links a page (`mmu.c:link_shadow_page`). What the entry held goes.
    pub(super) fn link(&mut self, at: SpteRef, page: PageId) {
        self.link_instead(at, page, true);
    }

    /// The same, where whether TLBs have to be flushed for what goes is known.
    pub(super) fn link_instead(&mut self, at: SpteRef, page: PageId, flush: bool) {
        if self.entry(at).is_present() {
            self.zap_entry(at, super::zap::Parentless::Zap);
            self.flush_or_zap(flush);
        }
        let child = self.mmu.pages.get(page);
        let ad = match child.role.has(RoleFlag::AdDisabled) {
            true => AdType::Disabled,
            false => AdType::Enabled,
        };
        let out_of_step = child.unsync || child.unsync_children.count > 0;
        let link = self.mmu.codec.make_link(Pfn::new(page.raw().into()), ad);
        self.store(at, link);
        let (pages, lists) = (&mut self.mmu.pages, &mut self.mmu.lists);
        lists.add(&mut pages.get_mut(page).parents, at);
        if out_of_step {
            self.mmu.mark_unsync(at);
        }
    }

    /// Takes an entry out of the list of the page that it links.
    ///
    /// # Panics
    /// It is not there: the lists are corrupt (`KVM_BUG_ON_DATA_CORRUPTION`).
    pub(super) fn forget_parent(&mut self, page: PageId, at: SpteRef) {
        let (pages, lists) = (&mut self.mmu.pages, &mut self.mmu.lists);
        let found = lists.remove(&mut pages.get_mut(page).parents, at);
        assert!(found, "{at:?} links {page:?} and is not among its parents");
    }

    /// Empties a link (`mmu.c:drop_parent_pte`).
    pub(super) fn unlink(&mut self, at: SpteRef) {
        let child = self.child(self.entry(at));
        self.forget_parent(child, at);
        self.clear_entry(at);
    }

    /// Stores the empty value.
    pub(super) fn clear_entry(&mut self, at: SpteRef) -> Spte<F> {
        let empty = self.mmu.codec.nonpresent();
        self.store(at, empty)
    }

    /// The address space whose frames a page's leaves are of.
    pub(super) fn space_of(&self, page: PageId) -> AsId {
        self.mmu.pages.get(page).role.as_id()
    }

    /// A leaf is there now: it goes into its frame's list (`mmu.c:rmap_add`).
    pub(super) fn add_leaf(&mut self, at: SpteRef, gfn: Gfn, access: Access) {
        let page = self.mmu.pages.get_mut(at.page);
        page.set_translation(at.index, gfn, access);
        let (as_id, level) = (page.role.as_id(), page.level());
        *self.mmu.stats.leafs_at(level) += 1;
        let mut head = self.mmu.frames.leafs(as_id, level, gfn);
        let count = self.mmu.lists.add(&mut head, at);
        self.mmu.frames.set_leafs(as_id, level, gfn, head);
        if count > MOST_LEAFS {
            self.zap_leafs_of(as_id, level, gfn);
            self.flush();
        }
    }

    /// Empties a leaf and takes it out of its frame's list (`mmu.c:drop_spte`).
    pub(super) fn drop_leaf(&mut self, at: SpteRef) -> Spte<F> {
        let page = self.mmu.pages.get(at.page);
        let (as_id, level, gfn) = (page.role.as_id(), page.level(), page.gfn_of(at.index));
        let mut head = self.mmu.frames.leafs(as_id, level, gfn);
        let found = self.mmu.lists.remove(&mut head, at);
        assert!(found, "{at:?} maps {gfn} and is not in its list");
        self.mmu.frames.set_leafs(as_id, level, gfn, head);
        self.clear_leaf(at, level)
    }

    /// Empties a leaf that is in no list any more (`mmu.c:mmu_spte_clear_track_bits`).
    fn clear_leaf(&mut self, at: SpteRef, level: Level) -> Spte<F> {
        let old = self.clear_entry(at);
        *self.mmu.stats.leafs_at(level) -= 1;
        old
    }

    /// Zaps all leaves of a level over a frame; says whether there was one (`mmu.c:kvm_zap_all_rmap_sptes`).
    pub(super) fn zap_leafs_of(&mut self, as_id: AsId, level: Level, gfn: Gfn) -> bool {
        let mut head = self.mmu.frames.leafs(as_id, level, gfn);
        if head.is_empty() {
            return false;
        }
        let leafs = self.mmu.lists.take(&mut head);
        self.mmu.frames.set_leafs(as_id, level, gfn, head);
        for leaf in leafs {
            self.clear_leaf(leaf, level);
        }
        true
    }
}
