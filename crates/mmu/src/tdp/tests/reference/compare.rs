//! The comparison of what is mapped.

use super::model::{Page, Root, base, frames};
use super::world::{World, same};
use super::*;
use crate::host::SecondStage;
use crate::spte::{Access, Entry, Leaf};

impl<F: Format, const EVENTS: bool, const HARVEST: bool> World<F, EVENTS, HARVEST> {
    /// The counts, and each place in each root.
    pub(super) fn compare(&self) -> Result<(), String> {
        let leaves = |level| {
            let pages = self.roots.iter().flat_map(|root| root.pages.values());
            pages.filter(|page| page.level == level).count() as u64
        };
        let tables = self.roots.iter().map(|root| root.finer.len() as u64).sum();
        let totals = Totals {
            pages_4k: leaves(1),
            pages_2m: leaves(2),
            pages_1g: leaves(3),
            tables,
            lost: 0,
            lost_pages: 0,
        };
        same("totals", self.tables.totals(), totals)?;
        same(
            "tables in use",
            self.tables.arena.in_use() as u64,
            self.in_use(),
        )?;
        same("roots", self.tables.roots().len(), self.roots.len())?;
        if HARVEST {
            same(
                "harvested",
                (self.watch.accessed, self.watch.dirty),
                self.harvest,
            )?;
        }
        for root in &self.roots {
            let references = self.tables.roots().references(root.id);
            same(
                "references",
                references,
                Some(root.held + u32::from(root.own)),
            )?;
            for gfn in self
                .places
                .iter()
                .copied()
                .filter(|gfn| *gfn < frames(root.level + 1))
            {
                self.compare_frame(root, gfn)?;
            }
        }
        Ok(())
    }

    /// Compares what is mapped at a frame and gives the level at which a walk for it ends.
    fn compare_frame(&self, root: &Root, gfn: u64) -> Result<u8, String> {
        let table = self
            .tables
            .roots()
            .payload(root.id)
            .ok_or("a root has no table")?;
        let found = self.tables.find(table, gfn);
        let depth = root.depth(gfn);
        same(&format!("depth of {gfn:#x}"), found.level as u8, depth)?;
        let entry = self.tables.codec().decode(found.spte, found.level);
        let same_entry = match (entry, root.page(gfn), root.mmio.get(&gfn)) {
            (Entry::Absent, None, None) => self.tables.codec().is_nonpresent(found.spte),
            (Entry::Mmio(mmio), None, Some(generation)) => {
                mmio.gfn.raw() == self.rules.mmio_gfn(gfn)
                    && mmio.generation.raw() == *generation
                    && depth == 1
            }
            (Entry::Leaf(leaf), Some((start, page)), None) => {
                start == base(gfn, page.level) && self.is_page(root, &leaf, &page)
            }
            _ => false,
        };
        if same_entry {
            return Ok(depth);
        }
        let (page, mmio) = (root.page(gfn), root.mmio.get(&gfn));
        Err(format!(
            "{gfn:#x} of {:?}: the tables say {entry:?}, the reference {page:?} {mmio:?}",
            root.id
        ))
    }

    /// Every frame of every root, entry by entry.
    pub(super) fn compare_all(&self) -> Result<(), String> {
        for root in &self.roots {
            let (mut gfn, end) = (0, self.rules.end.min(frames(root.level + 1)));
            while gfn < end {
                let level = self.compare_frame(root, gfn)?;
                gfn = base(gfn, level) + frames(level);
            }
        }
        Ok(())
    }

    /// What a page that can be read allows.
    pub(super) fn read(&self) -> Access {
        let host = self.tables.codec().host();
        match (host.layout, host.second_stage) {
            (Layout::P1 | Layout::P2, _) => Access::USER,
            (Layout::P3, SecondStage::Ept) => Access::READ,
            (Layout::P3, _) => Access::READ | Access::USER,
        }
    }

    /// Whether a leaf is what the reference says.
    fn is_page(&self, root: &Root, leaf: &Leaf, page: &Page) -> bool {
        let host = self.tables.codec().host();
        let execute = |yes: bool| match (yes, self.rules.user_execute) {
            (false, _) => Access::empty(),
            (true, false) => Access::EXECUTE,
            (true, true) => Access::EXECUTE | Access::USER,
        };
        let saved = page
            .tracked
            .map_or(Access::empty(), |saved| self.read() | execute(saved));
        let read = if page.tracked.is_none() {
            self.read()
        } else {
            Access::empty()
        };
        let access = read | execute(page.execute);
        let writable = (
            leaf.writability.host,
            leaf.writability.mmu,
            leaf.writability.hardware,
        );
        let encrypted = host.second_stage == SecondStage::Npt && host.encryption != Encryption::Off;
        (leaf.pfn.raw(), leaf.level as u8) == (page.pfn, page.level)
            && leaf.access == access
            && leaf.saved == saved
            && writable == (page.host_writable, page.mmu_writable, page.write)
            && (leaf.accessed, leaf.dirty) == (page.accessed, page.dirty)
            && (leaf.ad == AdType::Disabled) == root.no_ad
            && leaf.encrypted == encrypted
    }
}
