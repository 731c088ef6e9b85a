//! What each change of the mirror becomes.

use slat_memslot::{Gfn, Level};
use slat_mmu::spte::{Ept, Pfn, Spte};
use slat_mmu::table::TableId;
use slat_mmu::tdp::{Busy, EntryChange, External};

use super::backend::{Backend, Bug, HookGen, Omit, Owner, Stage};
use crate::tdx::{Answer, GpaMapping, Seamcall};

/// The page that a leaf maps: bits 51:12.
const fn pfn(leaf: Spte<Ept>) -> Pfn {
    Pfn::new((leaf.raw() & ((1 << 52) - 1)) >> 12)
}

impl External<Ept> for Owner {
    fn change(&self, change: &EntryChange<Ept>) -> Result<(), Busy> {
        if self.0.omits(Omit::Calls) {
            return Ok(());
        }
        if self.0.hooks == HookGen::Unified {
            self.0.judge(change)?;
        }
        // The page of a link that goes is given back when its entries are gone.
        self.by_kind(change)
    }

    fn set_leaf(&self, gfn: Gfn, level: Level, spte: Spte<Ept>) -> Result<(), Busy> {
        self.0.set(gfn, level, pfn(spte))
    }

    fn link_table(&self, gfn: Gfn, level: Level, table: TableId) -> Result<(), Busy> {
        self.0.link(gfn, level, table)
    }

    fn split_leaf(&self, gfn: Gfn, _: Level, _: TableId) -> Result<(), Busy> {
        self.0.broken(Bug::PresentChanged(gfn))
    }

    fn remove_leaf(&self, gfn: Gfn, level: Level, spte: Spte<Ept>) -> Result<(), Busy> {
        self.0.zap(gfn, level, pfn(spte))
    }

    fn free_table(&self, gfn: Gfn, level: Level, table: TableId) -> Result<(), Busy> {
        self.0.free(gfn, level, table)
    }
}

impl Backend {
    /// A page is to be mapped (`tdx_sept_set_private_spte`).
    fn set(&self, gfn: Gfn, level: Level, page: Pfn) -> Result<(), Busy> {
        if level != Level::L1 {
            return self.broken(Bug::HugeLeaf(gfn, level));
        }
        let at = GpaMapping::new(gfn.gpa(), level);
        match self.stage() {
            Stage::Initialized => self.add(gfn, at, page),
            Stage::Runnable => {
                let augmented = self.module.tdh_mem_page_aug(self.td, at, page);
                self.on_the_way_in(Seamcall::MemPageAug, augmented)
            }
            Stage::KeyFreed => self.broken(Bug::PresentChanged(gfn)),
        }
    }

    /// A table is to be linked (`tdx_sept_link_private_spt`).
    fn link(&self, gfn: Gfn, level: Level, table: TableId) -> Result<(), Busy> {
        let Some(page) = self.state().pages.take() else {
            return self.broken(Bug::NoPage);
        };
        let at = GpaMapping::around(gfn.gpa(), level);
        let added = self.module.tdh_mem_sept_add(self.td, at, page);
        let added = self.on_the_way_in(Seamcall::MemSeptAdd, added);
        let mut state = self.state();
        match added {
            Ok(()) => {
                state.external.insert(table, page);
            }
            Err(Busy) => state.pages.give_back(page),
        }
        added
    }

    /// A page is to be unmapped (`tdx_sept_remove_private_spte`).
    fn zap(&self, gfn: Gfn, level: Level, page: Pfn) -> Result<(), Busy> {
        if level != Level::L1 {
            return self.broken(Bug::HugeLeaf(gfn, level));
        }
        let at = GpaMapping::new(gfn.gpa(), level);
        let removed = match self.stage() {
            Stage::KeyFreed => self.reclaim(page),
            Stage::Initialized | Stage::Runnable => self.remove(at, page),
        };
        removed.or_else(|bug| self.broken(bug))
    }

    /// A table is to be freed (`tdx_sept_free_private_spt`).
    fn free(&self, gfn: Gfn, level: Level, table: TableId) -> Result<(), Busy> {
        if self.stage() != Stage::KeyFreed {
            return self.broken(Bug::TableBeforeKey(gfn, level));
        }
        let Some(page) = self.state().external.remove(&table) else {
            return Ok(());
        };
        let reclaimed = self.reclaim(page);
        if reclaimed.is_ok() {
            self.state().pages.give_back(page);
        }
        reclaimed.or_else(|bug| self.broken(bug))
    }

    /// Whether TDX has calls for a change of this kind (one hook for all).
    fn judge(&self, change: &EntryChange<Ept>) -> Result<(), Busy> {
        let was_leaf = change.old.is_leaf(change.level);
        let was_link = change.old.is_present() && !was_leaf;
        if was_leaf && change.new.is_present() || was_link && change.new.is_present() {
            return self.broken(Bug::PresentChanged(change.gfn));
        }
        if was_link && self.stage() != Stage::KeyFreed {
            return self.broken(Bug::TableBeforeKey(change.gfn, change.level));
        }
        Ok(())
    }

    /// Gives the VM up. For the page tables that is the same as being busy: the entry stays what it was.
    fn broken(&self, bug: Bug) -> Result<(), Busy> {
        self.give_up(bug);
        Err(Busy)
    }

    /// A page that is added while the TD is built, with content.
    fn add(&self, gfn: Gfn, at: GpaMapping, page: Pfn) -> Result<(), Busy> {
        let Some(source) = self.state().source.clone() else {
            return self.broken(Bug::NoSource(gfn));
        };
        let added = self.module.tdh_mem_page_add(self.td, at, page, source);
        self.on_the_way_in(Seamcall::MemPageAdd, added)
    }

    /// A busy module means another try; anything else that it refuses is a bug.
    fn on_the_way_in(&self, leaf: Seamcall, answer: Answer) -> Result<(), Busy> {
        match answer {
            Ok(()) => Ok(()),
            Err(refusal) if refusal.is_busy() => Err(Busy),
            Err(refusal) => self.broken(Bug::Refused(leaf, refusal)),
        }
    }

    /// Takes a page away from a TD that lives: nobody can reach it any more when it comes back to the host.
    fn remove(&self, at: GpaMapping, page: Pfn) -> Result<(), Bug> {
        let td = self.td;
        self.without_vcpus(Seamcall::MemRangeBlock, |module| {
            module.tdh_mem_range_block(td, at)
        })?;
        self.track()?;
        self.without_vcpus(Seamcall::MemPageRemove, |module| {
            module.tdh_mem_page_remove(td, at)
        })?;
        self.flush_and_clear(page)
    }

    fn flush_and_clear(&self, page: Pfn) -> Result<(), Bug> {
        self.without_vcpus(Seamcall::PhymemPageWbinvd, |module| {
            module.tdh_phymem_page_wbinvd(page)
        })?;
        self.module.host_clears(page);
        Ok(())
    }

    /// Takes a page back from a TD that is no more.
    fn reclaim(&self, page: Pfn) -> Result<(), Bug> {
        self.without_vcpus(Seamcall::PhymemPageReclaim, |module| {
            module.tdh_phymem_page_reclaim(page)
        })?;
        self.module.host_clears(page);
        Ok(())
    }
}
