//! Taking pages apart (`mmu.c:__kvm_mmu_prepare_zap_page`), one or many, and making room.

use slat_memslot::{ChangeKind, Gfn, Pages, VmError};

use super::UnsyncChildren;
use super::beside::TdpBeside;
use super::held::ShadowLocked;
use super::page::{ENTRIES, PageId, SpteRef};
use crate::limits::Eviction;
use crate::role::RoleFlag;
use crate::roots::{Freed, Request};
use crate::spte::Format;
use crate::tdp::{Event, Observer, Progress, Resched, Uninterrupted};

/// What becomes of a nested guest's page that loses its last parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parentless {
    /// It goes too: nobody is likely to want it again.
    Zap,
    /// It stays: the guest has written to one entry.
    Keep,
}

/// What zapping a page did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Zapped {
    /// Pages that went as KVM counts them: the page itself unless it is a root, and each child with all below it as one.
    pub(super) pages: u64,
    /// Whether other pages than the page itself went, so that whoever walks the list has to begin anew.
    pub(super) unstable: bool,
}

/// Pages that are zapped before somebody else may have the lock (`BATCH_ZAP_PAGES`).
const BATCH: u64 = 10;

/// There is no room for another page: all are roots (`-ENOSPC`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no shadow page can be had")]
pub struct NoRoom;

impl<F: Format, O: Observer<F>, T: TdpBeside<F>> ShadowLocked<'_, F, O, T> {
    /// Takes a page apart. It is freed by [`ShadowLocked::commit_zap`], or when the last vCPU leaves it.
    pub(super) fn prepare_zap(&mut self, id: PageId) -> Zapped {
        let info = self.mmu.info(id);
        self.tell(Event::ShadowPageZapped { page: info });
        self.mmu.stats.mmu_shadow_zapped += 1;
        let mut pages = match self.mmu.rules.unsync_children {
            UnsyncChildren::Zapped => self.zap_unsync_children(id),
            UnsyncChildren::Kept => 0,
        };
        pages += self.unlink_children(id);
        self.unlink_parents(id);
        let unstable = pages > 0;
        let page = self.mmu.pages.get(id);
        let (was_valid, has_gptes) = (!page.role.is_invalid(), page.has_gptes());
        if was_valid && has_gptes {
            self.unaccount_shadowed(id);
        }
        if self.mmu.pages.get(id).unsync {
            self.unlink_unsync(id);
        }
        let obsolete = self.mmu.is_obsolete(id);
        if was_valid {
            self.mmu.pages.retire(id);
        }
        if info.root_count == 0 {
            pages += 1;
            self.invalid.push(id);
            self.mmu.pages.used -= 1;
        }
        self.unaccount_nx(id);
        let page = self.mmu.pages.get_mut(id);
        page.role = page.role.with(RoleFlag::Invalid);
        if let Some(root) = page.root {
            // Gone from the table of roots if nobody holds it; else those that do find it invalid.
            let _ = self.mmu.roots.zap_shadow(root);
        }
        if info.root_count > 0 && !obsolete {
            self.mmu.requests.insert(Request::FreeObsoleteRoots);
        }
        Zapped { pages, unstable }
    }

    /// Empties all entries of a page; gives how many pages went with them.
    fn unlink_children(&mut self, id: PageId) -> u64 {
        let entries = (0..ENTRIES).map(|index| SpteRef { page: id, index });
        entries.map(|at| self.zap_entry(at, Parentless::Zap)).sum()
    }

    /// Empties one entry; gives how many pages went with it (`mmu.c:mmu_page_zap_pte`).
    pub(super) fn zap_entry(&mut self, at: SpteRef, parentless: Parentless) -> u64 {
        let spte = self.entry(at);
        let level = self.mmu.pages.get(at.page).level();
        if spte.is_leaf(level) {
            self.drop_leaf(at);
        } else if spte.is_present() {
            let child = self.child(spte);
            self.unlink(at);
            if parentless == Parentless::Zap && self.is_forsaken(child) {
                self.prepare_zap(child);
                // However many went with it (`mmu.c:kvm_mmu_prepare_zap_page` says yes or no).
                return 1;
            }
        } else if self.mmu.codec.is_mmio(spte) {
            self.clear_entry(at);
        }
        0
    }

    /// A page of a nested guest that nothing leads to any more.
    fn is_forsaken(&self, id: PageId) -> bool {
        let page = self.mmu.pages.get(id);
        let nested = self.mmu.has_tdp() && page.role.is_guest_mode();
        nested && page.parents.is_empty() && self.mmu.root_count(id) == 0
    }

    fn unlink_parents(&mut self, id: PageId) {
        while let Some(parent) = self.mmu.lists.first(self.mmu.pages.get(id).parents) {
            self.unlink(parent);
        }
    }

    /// Frees what was taken apart, when all vCPUs have forgotten it (`mmu.c:kvm_mmu_commit_zap_page`).
    pub(super) fn commit_zap(&mut self) {
        if self.invalid.is_empty() {
            return;
        }
        self.flush();
        for id in core::mem::take(&mut self.invalid) {
            self.mmu.pages.remove(id);
        }
    }

    /// Frees what was taken apart, or else flushes if asked to (`mmu.c:kvm_mmu_remote_flush_or_zap`).
    pub(super) fn flush_or_zap(&mut self, flush: bool) {
        if self.invalid.is_empty() {
            if flush {
                self.flush();
            }
        } else {
            self.commit_zap();
        }
    }

    /// A vCPU has left a root that was zapped before: it goes now (`mmu.c:mmu_free_root_page`).
    pub(super) fn zap_left_root(&mut self, freed: &Freed<PageId>) {
        self.mmu.pages.get_mut(freed.payload).root = None;
        self.prepare_zap(freed.payload);
    }

    /// Zaps every page (`mmu.c:kvm_mmu_zap_all`), as the end of the VM does.
    pub fn zap_all(&mut self) {
        let mut at = self.mmu.pages.newest();
        while let Some(id) = at {
            let next = self.mmu.pages.get(id).older;
            at = if self.prepare_zap(id).unstable {
                self.mmu.pages.newest()
            } else {
                next
            };
        }
        self.commit_zap();
    }

    /// Makes all pages obsolete and zaps them (`mmu.c:kvm_mmu_zap_all_fast`). All vCPUs are asked to drop their roots.
    pub fn zap_all_fast(&mut self) {
        self.begin_zap_all_fast();
        let _ = self.zap_obsolete(&mut Uninterrupted);
    }

    /// The first half: all pages are obsolete from now on. [`ShadowLocked::zap_obsolete`] is to follow.
    pub fn begin_zap_all_fast(&mut self) {
        let (generation, used) = (self.mmu.generation, self.mmu.used_pages());
        self.tell(Event::ShadowZapAllFast { generation, used });
        self.change_generation();
    }

    /// The same as a part of the TDP MMU's, which says that it begins.
    pub fn make_obsolete(&mut self) {
        self.change_generation();
        let _ = self.zap_obsolete(&mut Uninterrupted);
    }

    fn change_generation(&mut self) {
        self.mmu.generation = self.mmu.generation.next();
        self.mmu.roots.invalidate_all();
        self.mmu.requests.insert(Request::FreeObsoleteRoots);
    }

    /// Zaps pages that are obsolete, the oldest first, up to the first that is not (`mmu.c:kvm_zap_obsolete_pages`). Having
    /// zapped ten or more it gives way if `resched` says so: what others add meanwhile is younger, and not obsolete.
    pub fn zap_obsolete(&mut self, resched: &mut impl Resched) -> Progress {
        let mut batch = 0;
        let mut at = self.mmu.pages.oldest();
        while let Some(id) = at.filter(|id| self.mmu.is_obsolete(*id)) {
            if batch >= BATCH && resched.is_needed() {
                self.commit_zap();
                return Progress::Paused;
            }
            let next = self.mmu.pages.get(id).newer;
            let zapped = self.prepare_zap(id);
            batch += zapped.pages;
            at = match zapped.unstable {
                true => self.mmu.pages.oldest(),
                false => next,
            };
        }
        self.commit_zap();
        Progress::Done
    }

    /// Zaps the oldest pages that are no roots, at least so many if there are (`mmu.c:kvm_mmu_zap_oldest_mmu_pages`).
    fn zap_oldest(&mut self, wanted: u64) -> u64 {
        let mut total = 0;
        let mut at = self.mmu.pages.oldest();
        while let Some(id) = at {
            at = self.mmu.pages.get(id).newer;
            if self.mmu.root_count(id) > 0 {
                continue;
            }
            let zapped = self.prepare_zap(id);
            total += zapped.pages;
            if total >= wanted {
                break;
            }
            if zapped.unstable {
                at = self.mmu.pages.oldest();
            }
        }
        self.commit_zap();
        self.mmu.stats.mmu_recycled += total;
        total
    }

    /// Sees to it that a fault finds room for the pages it may need (`mmu.c:make_mmu_pages_available`).
    ///
    /// # Errors
    /// All pages are roots.
    pub(super) fn make_room(&mut self) -> Result<(), NoRoom> {
        let available = self.mmu.limit.available(self.mmu.used_pages()).raw();
        let rules = self.mmu.rules;
        if available >= rules.least_free {
            return Ok(());
        }
        self.zap_oldest(rules.refilled - available);
        match self.mmu.limit.available(self.mmu.used_pages()).raw() {
            0 => Err(NoRoom),
            _ => Ok(()),
        }
    }

    /// Follows a set-region call: the limit is a part of what the slots have (`x86.c:kvm_arch_commit_memory_region`).
    pub fn commit_region(&mut self, kind: ChangeKind, slot_pages: Pages) {
        let used = self.mmu.used_pages();
        let eviction = self.mmu.limit.commit_region(kind, slot_pages, used);
        self.evict(eviction);
    }

    /// `KVM_SET_NR_MMU_PAGES`.
    ///
    /// # Errors
    /// Fewer pages than a VM needs.
    pub fn set_limit(&mut self, pages: u64) -> Result<(), VmError> {
        let used = self.mmu.used_pages();
        let eviction = self.mmu.limit.set_by_user(pages, used)?;
        self.evict(eviction);
        Ok(())
    }

    fn evict(&mut self, eviction: Option<Eviction>) {
        if let Some(eviction) = eviction {
            self.zap_oldest(eviction.excess.raw());
            let used = self.mmu.used_pages();
            self.mmu.limit.settle(eviction, used);
        }
    }

    /// The valid pages that follow the guest's table in a frame, the newest first.
    pub(super) fn followers(&self, gfn: Gfn) -> Vec<PageId> {
        let pages = &self.mmu.pages;
        let follows = |id: &PageId| {
            let page = pages.get(*id);
            page.gfn == gfn && page.has_gptes() && !self.mmu.is_obsolete(*id)
        };
        pages.in_bucket(gfn).filter(follows).collect()
    }
}
