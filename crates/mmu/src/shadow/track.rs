//! Which frames the guest must not write to unseen, and what becomes of pages whose tables it may write to.

use slat_memslot::{AsId, Gfn, Level};

use super::beside::TdpBeside;
use super::held::ShadowLocked;
use super::page::{PageId, PageInfo, SpteRef};
use super::rmap::LEAF_LEVELS;
use super::{ShadowMmu, size_at};
use crate::fault::Unsync;
use crate::spte::{Format, Spte};
use crate::tdp::{Event, Observer};

/// Who asks whether a frame may be written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asker {
    /// A fault: pages of the last level may fall out of step.
    Fault,
    /// A prefetch: those that are out of step already may stay so, others may not become so.
    Prefetch,
    /// A page that is being brought into step: none may be out of it.
    Sync,
}

impl<F: Format> ShadowMmu<F> {
    /// Lets the guest write to a frame, if that can be (`mmu.c:mmu_try_to_unsync_pages`).
    pub(super) fn try_to_unsync(&mut self, gfn: Gfn, asker: Asker) -> Unsync {
        let mut asked = Unsync {
            every_write: self.is_write_tracked(gfn),
            ..Unsync::default()
        };
        let mut at = self.pages.first_in_bucket(gfn);
        while let Some(id) = at.filter(|_| !asked.every_write) {
            let page = self.pages.get(id);
            at = page.next_in_bucket;
            if page.gfn != gfn || !page.has_gptes() || self.is_obsolete(id) {
                continue;
            }
            match (asker, page.unsync) {
                (Asker::Sync, _) | (Asker::Prefetch, false) => asked.every_write = true,
                (Asker::Fault | Asker::Prefetch, true) => {}
                (Asker::Fault, false) => asked.unsynced.push(self.make_unsync(id)),
            }
        }
        asked
    }

    /// A page falls out of step (`mmu.c:kvm_unsync_page`). Gives what it was.
    fn make_unsync(&mut self, id: PageId) -> PageInfo {
        let info = self.info(id);
        self.stats.mmu_unsync += 1;
        self.pages.get_mut(id).unsync = true;
        self.mark_parents_unsync(id);
        info
    }

    /// Tells the pages above an entry that there is something unsync below it (`mmu.c:mark_unsync`).
    pub(super) fn mark_unsync(&mut self, at: SpteRef) {
        let children = &mut self.pages.get_mut(at.page).unsync_children;
        let (new, first) = (children.set(at.index), children.count == 1);
        if new && first {
            self.mark_parents_unsync(at.page);
        }
    }

    /// The same for all entries that link a page (`mmu.c:kvm_mmu_mark_parents_unsync`).
    fn mark_parents_unsync(&mut self, page: PageId) {
        let parents = self.pages.get(page).parents;
        let parents: Vec<SpteRef> = self.lists.iter(parents).collect();
        for parent in parents {
            self.mark_unsync(parent);
        }
    }
}

impl<F: Format, O: Observer<F>, T: TdpBeside<F>> ShadowLocked<'_, F, O, T> {
    /// A page follows a table of the guest's from now on: writes to the table have to be seen (`mmu.c:account_shadowed`).
    pub(super) fn account_shadowed(&mut self, id: PageId) {
        self.mmu.indirect += 1;
        let page = self.mmu.pages.get(id);
        let (as_id, gfn, level) = (page.role.as_id(), page.gfn, page.level());
        if level > Level::L1 {
            self.mmu.frames.track(as_id, gfn);
        }
        self.mmu.frames.disallow_huge(as_id, gfn);
        if self.write_protect(as_id, gfn, Level::L1) {
            self.flush();
        }
    }

    /// It does not any more (`mmu.c:unaccount_shadowed`).
    pub(super) fn unaccount_shadowed(&mut self, id: PageId) {
        self.mmu.indirect -= 1;
        let page = self.mmu.pages.get(id);
        let (as_id, gfn, level) = (page.role.as_id(), page.gfn, page.level());
        if level > Level::L1 {
            self.mmu.frames.untrack(as_id, gfn);
        }
        self.mmu.frames.allow_huge(as_id, gfn);
    }

    /// Lets no leaf of a frame be written to, nor become writable without asking, from a level on; says whether one could
    /// (`mmu.c:kvm_mmu_slot_gfn_write_protect`). The tables of the TDP MMU follow.
    pub(super) fn write_protect(&mut self, as_id: AsId, gfn: Gfn, from: Level) -> bool {
        let codec = self.mmu.codec;
        let mut flush = false;
        for level in LEAF_LEVELS.into_iter().filter(|level| *level >= from) {
            flush |= self.change_leafs_of(as_id, level, gfn, |spte| codec.write_track(spte));
        }
        let smallest = size_at(from);
        flush | self.tdp.write_protect(as_id, gfn, smallest, &mut self.out)
    }

    /// Changes all leaves of a level over a frame; says whether TLBs are to be flushed for it.
    pub(super) fn change_leafs_of(
        &mut self,
        as_id: AsId,
        level: Level,
        gfn: Gfn,
        change: impl Fn(Spte<F>) -> Spte<F>,
    ) -> bool {
        let head = self.mmu.frames.leafs(as_id, level, gfn);
        let leafs: Vec<SpteRef> = self.mmu.lists.iter(head).collect();
        let mut flush = false;
        for leaf in leafs {
            let old = self.entry(leaf);
            let new = change(old);
            if new != old {
                flush |= self.update(leaf, new);
            }
        }
        flush
    }

    /// Replaces a present leaf by one of the same page; says whether TLBs are to be flushed (`mmu.c:mmu_spte_update`).
    pub(super) fn update(&mut self, at: SpteRef, new: Spte<F>) -> bool {
        let old = self.store(at, new);
        let codec = &self.mmu.codec;
        if !old.is_present() {
            return false;
        }
        let unwritable = codec.is_mmu_writable(old) && !new.is_writable();
        let unaccessed = codec.is_accessed(old) && !codec.is_accessed(new);
        let clean = codec.is_dirty(old) && !codec.is_dirty(new);
        unwritable || unaccessed || clean
    }

    /// Lets the guest write to a frame, if that can be: pages of the last level that follow a table in it fall out of step
    /// (`mmu.c:mmu_try_to_unsync_pages`). Says whether each write has to be seen instead.
    pub(super) fn must_see_writes(&mut self, gfn: Gfn, asker: Asker) -> bool {
        let asked = self.mmu.try_to_unsync(gfn, asker);
        for page in asked.unsynced {
            self.tell(Event::PageUnsync { page });
        }
        asked.every_write
    }

    /// A page is in step again, or goes (`mmu.c:kvm_unlink_unsync_page`).
    pub(super) fn unlink_unsync(&mut self, id: PageId) {
        let info = self.mmu.info(id);
        self.tell(Event::PageSync { page: info });
        self.mmu.pages.get_mut(id).unsync = false;
        self.mmu.stats.mmu_unsync -= 1;
    }

    /// Zaps what is out of step below a page that goes; gives how many pages (`mmu.c:mmu_zap_unsync_children`).
    pub(super) fn zap_unsync_children(&mut self, id: PageId) -> u64 {
        if self.mmu.pages.get(id).level() == Level::L1 {
            return 0;
        }
        let mut zapped = 0;
        loop {
            let batch = self.unsync_walk(id);
            if batch.is_empty() {
                return zapped;
            }
            for child in batch {
                // One may have gone with another.
                if self
                    .mmu
                    .pages
                    .try_get(child.page)
                    .is_some_and(|page| page.unsync)
                {
                    self.prepare_zap(child.page);
                    self.clear_parents(&child);
                    zapped += 1;
                }
            }
        }
    }

    /// The first pages below one that are out of step, each once, with a way to it (`mmu.c:mmu_unsync_walk`). Marks that have
    /// become wrong are taken back on the way.
    pub(super) fn unsync_walk(&mut self, top: PageId) -> Vec<UnsyncChild> {
        let mut walk = UnsyncWalk::default();
        if self.mmu.pages.get(top).unsync_children.count > 0 {
            walk.met = 1;
            self.walk_below(top, &mut walk);
        }
        walk.found
    }

    /// Gives how many links lead to pages that are out of step; nothing once enough has been found.
    fn walk_below(&mut self, parent: PageId, walk: &mut UnsyncWalk) -> Option<u32> {
        let mut links = 0;
        let mut next = self.mmu.pages.get(parent).unsync_children.next(0);
        while let Some(index) = next {
            let at = SpteRef {
                page: parent,
                index,
            };
            match self.look_below(at, walk)? {
                0 => self.mmu.pages.get_mut(parent).unsync_children.clear(index),
                below => links += below,
            }
            next = self.mmu.pages.get(parent).unsync_children.next(index + 1);
        }
        Some(links)
    }

    fn look_below(&mut self, at: SpteRef, walk: &mut UnsyncWalk) -> Option<u32> {
        let spte = self.entry(at);
        if !spte.is_present() || spte.is_large() {
            return Some(0);
        }
        let child = self.child(spte);
        let page = self.mmu.pages.get(child);
        let (deeper, unsync) = (page.unsync_children.count > 0, page.unsync);
        walk.way.push(at);
        let links = if deeper {
            walk.meet().and_then(|()| self.walk_below(child, walk))
        } else if unsync {
            walk.find(child).map(|()| 1)
        } else {
            Some(0)
        };
        walk.way.pop();
        links
    }

    /// Nothing is out of step in a page any more: the pages above it learn of it, as far as nothing else is
    /// (`mmu.c:mmu_pages_clear_parents`).
    pub(super) fn clear_parents(&mut self, child: &UnsyncChild) {
        for at in child.way.iter().rev() {
            let Some(_) = self.mmu.pages.try_get(at.page) else {
                return;
            };
            let children = &mut self.mmu.pages.get_mut(at.page).unsync_children;
            children.clear(at.index);
            if children.count > 0 {
                return;
            }
        }
    }
}

/// Pages that a walk meets before those that it has found are brought into step (`KVM_PAGE_ARRAY_NR`).
const BATCH: usize = 16;

/// A page that is out of step, and the links that lead to it from the page where the search began.
#[derive(Clone, Debug)]
pub(super) struct UnsyncChild {
    pub(super) page: PageId,
    pub(super) way: Vec<SpteRef>,
}

/// A search for pages that are out of step (`struct kvm_mmu_pages`).
#[derive(Debug, Default)]
struct UnsyncWalk {
    found: Vec<UnsyncChild>,
    way: Vec<SpteRef>,
    /// Pages on the way count as well.
    met: usize,
}

impl UnsyncWalk {
    /// Meets another page; nothing if that is enough.
    fn meet(&mut self) -> Option<()> {
        self.met += 1;
        (self.met < BATCH).then_some(())
    }

    /// A page may be found on several ways: the first one counts.
    fn find(&mut self, page: PageId) -> Option<()> {
        if self.found.iter().any(|child| child.page == page) {
            return Some(());
        }
        self.found.push(UnsyncChild {
            page,
            way: self.way.clone(),
        });
        self.meet()
    }
}
