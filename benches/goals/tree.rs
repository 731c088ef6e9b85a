//! Four levels of tables in slat's own arena, with slat's own entries: what floors run over.

use std::sync::atomic::Ordering;

use slat_memslot::{Generation, Gfn, PageSize};
use slat_mmu::host::Host;
use slat_mmu::spte::{Access, AdType, Codec, Ept, LeafRequest, Pfn, bits};
use slat_mmu::table::{Arena, ENTRIES, Table, TableId};

use crate::side::{Filling, Seen};

/// Entries as slat makes them on an EPT host.
#[derive(Clone, Copy)]
pub(crate) struct Values {
    pub(crate) absent: u64,
    pub(crate) frozen: u64,
    /// A leaf for page 0.
    pub(crate) leaf: u64,
    /// A link to table 0.
    pub(crate) link: u64,
    pub(crate) mmio: u64,
}

impl Values {
    pub(crate) fn new() -> Self {
        let codec = Codec::<Ept>::new(&Host::ept(46));
        let request = LeafRequest::new(codec.nonpresent(), PageSize::Size4K, Pfn::new(0));
        let mmio = codec.make_mmio(Gfn::new(0), Access::all(), Generation::new(0));
        Self {
            absent: codec.nonpresent().raw(),
            frozen: codec.frozen().raw(),
            leaf: codec.make_leaf(&request).spte.raw(),
            link: codec.make_link(Pfn::new(0), AdType::Enabled).raw(),
            mmio: mmio.expect("the host remembers MMIO").raw(),
        }
    }

    #[inline]
    pub(crate) fn link_to(&self, table: TableId) -> u64 {
        self.link | u64::from(table.raw()) << 12
    }

    #[inline]
    pub(crate) fn entry(&self, seen: Seen) -> u64 {
        match seen {
            Seen::Absent => self.absent,
            Seen::Page(pfn) => self.leaf | pfn << 12,
            Seen::Protected(pfn) => (self.leaf | pfn << 12) & !bits::WRITABLE,
            Seen::Mmio => self.mmio,
        }
    }
}

/// The table that a present entry leads to.
#[inline]
pub(crate) fn linked(raw: u64) -> Option<TableId> {
    let number = u32::try_from((raw & bits::ADDRESS) >> 12).ok()?;
    (raw & bits::MMU_PRESENT != 0).then_some(TableId::new(number))
}

/// Where a frame's entry is in its table at `level`, counted from 1.
#[inline]
pub(crate) fn index(gfn: u64, level: u32) -> usize {
    usize::from(u16::try_from(gfn >> (9 * (level - 1)) & 511).unwrap_or(0))
}

/// Four levels of tables over a whole number of 2 MiB.
pub(crate) struct Tree {
    pub(crate) arena: Arena<()>,
    pub(crate) values: Values,
    pub(crate) root: TableId,
    /// Tables in nobody's use, with arbitrary contents.
    pub(crate) free: Vec<TableId>,
    pub(crate) pages: u64,
}

impl Tree {
    pub(crate) fn new(pages: u64) -> Self {
        let values = Values::new();
        // Twice what `pages` pages need, for a second root.
        let tables = 2 * (1..=4).map(|level| (pages >> (9 * level)) + 1).sum::<u64>();
        let tables = u32::try_from(tables).expect("tables of a few TiB");
        let arena = Arena::new(values.absent, tables);
        let root = arena.allocate().expect("the first table");
        Self {
            arena,
            values,
            root,
            free: Vec::new(),
            pages,
        }
    }

    #[inline]
    pub(crate) fn child(&self, table: TableId, index: usize) -> Option<TableId> {
        linked(self.arena.table(table)[index].load(Ordering::Relaxed))
    }

    /// A table whose entries are all to be written.
    #[inline]
    pub(crate) fn take(&mut self) -> TableId {
        let fresh = || self.arena.allocate().expect("tables for all pages");
        self.free.pop().unwrap_or_else(fresh)
    }

    /// The child at an index, made with absent entries if it is not there.
    pub(crate) fn grow(&mut self, table: TableId, index: usize) -> TableId {
        if let Some(child) = self.child(table, index) {
            return child;
        }
        let child = self.take();
        for entry in self.arena.table_mut(child) {
            *entry.get_mut() = self.values.absent;
        }
        let link = self.values.link_to(child);
        *self.arena.table_mut(table)[index].get_mut() = link;
        child
    }

    /// The tables of level 2, each with its first frame.
    pub(crate) fn directories(&mut self) -> impl Iterator<Item = (u64, TableId)> + use<> {
        let mut all = Vec::new();
        for gfn in (0..self.pages).step_by(1 << 18) {
            let pointers = self.grow(self.root, index(gfn, 4));
            all.push((gfn, self.grow(pointers, index(gfn, 3))));
        }
        all.into_iter()
    }

    /// Writes every leaf entry, making tables where they are missing.
    pub(crate) fn fill(&mut self, filling: Filling) {
        for (base, directory) in self.directories() {
            for at in 0..ENTRIES {
                let base = base + ((at as u64) << 9);
                if base >= self.pages {
                    return;
                }
                let leaves = self.grow(directory, at);
                let values = self.values;
                for (gfn, entry) in (base..).zip(self.arena.table_mut(leaves)) {
                    *entry.get_mut() = values.entry(filling.at(gfn));
                }
            }
        }
    }

    /// Shows each leaf table to `visit`.
    #[inline]
    pub(crate) fn each_leaf_table(&mut self, mut visit: impl FnMut(&mut Table)) {
        for gfn in (0..self.pages).step_by(1 << 18) {
            let pointers = self.child(self.root, index(gfn, 4));
            let directory = pointers.and_then(|table| self.child(table, index(gfn, 3)));
            let Some(directory) = directory else { continue };
            for at in 0..ENTRIES {
                if let Some(leaves) = self.child(directory, at) {
                    visit(self.arena.table_mut(leaves));
                }
            }
        }
    }

    /// Puts the numbers of all tables below the root among the free ones. No leaf is looked at.
    pub(crate) fn free(&mut self) {
        for top in 0..self.pages.div_ceil(1 << 27) {
            let top = index(top << 27, 4);
            let Some(pointers) = self.child(self.root, top) else {
                continue;
            };
            *self.arena.table_mut(self.root)[top].get_mut() = self.values.absent;
            for next in 0..ENTRIES {
                let Some(directory) = self.child(pointers, next) else {
                    continue;
                };
                let entries = self.arena.table(directory);
                let leaves = entries.iter().map(|e| linked(e.load(Ordering::Relaxed)));
                self.free.extend(leaves.flatten());
                self.free.push(directory);
            }
            self.free.push(pointers);
        }
    }

    pub(crate) fn seen(&self, root: TableId, gfn: u64) -> Seen {
        let mut table = root;
        for level in [4, 3, 2] {
            match self.child(table, index(gfn, level)) {
                Some(child) => table = child,
                None => return Seen::Absent,
            }
        }
        let raw = self.arena.table(table)[index(gfn, 1)].load(Ordering::Relaxed);
        if raw == self.values.mmio {
            Seen::Mmio
        } else {
            let of = match raw & bits::WRITABLE {
                0 => Seen::Protected,
                _ => Seen::Page,
            };
            linked(raw).map_or(Seen::Absent, |page| of(u64::from(page.raw())))
        }
    }
}
