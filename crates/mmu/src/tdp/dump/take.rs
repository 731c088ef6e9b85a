//! From tables to a dump.

use slat_memslot::{Gfn, GfnRange, Level, Pages};

use super::{Content, Detail, Dump, Range, RawTable, Root, RootNumber, push};
use crate::host::{Host, SecondStage};
use crate::role::PageRole;
use crate::roots::RootId;
use crate::spte::{Codec, Entry, Format, Spte};
use crate::table::{ENTRIES, TableId, span};
use crate::tdp::lock::{Exclusive, Locked};
use crate::tdp::tables::Tables;

impl<F: Format, X, C> Tables<F, X, C> {
    /// What the tables hold.
    pub fn dump(&mut self, detail: Detail) -> Dump {
        take(self, detail)
    }
}

impl<F: Format, X, C, O> Locked<Exclusive<'_, F, X, C>, O> {
    /// What the tables hold.
    pub fn dump(&self, detail: Detail) -> Dump {
        take(self.side.tables, detail)
    }
}

/// With the tables to oneself.
fn take<F: Format, X, C>(tables: &Tables<F, X, C>, detail: Detail) -> Dump {
    let roots = tables.roots.iter();
    let root = |(root, role): (RootId, PageRole)| {
        let table = tables.roots.payload(root)?;
        let (place, generation) = root.parts();
        let mut walk = Walk {
            tables,
            detail,
            root: Root {
                number: RootNumber { place, generation },
                role,
                references: tables.roots.references(root)?,
                tables: [0; 5],
                ranges: Vec::new(),
                entries: Vec::new(),
            },
        };
        walk.table(table, role.level(), 0);
        Some(walk.root)
    };
    Dump {
        host: host_of(&tables.codec),
        roots: roots.filter_map(root).collect(),
    }
}

/// The host, with the second stage that the entries are read by.
fn host_of<F: Format>(codec: &Codec<F>) -> Host {
    let host = *codec.host();
    let second_stage = match host.second_stage {
        _ if F::EXECUTE != 0 => SecondStage::Ept,
        SecondStage::Ept | SecondStage::Npt => SecondStage::Npt,
        SecondStage::Off => SecondStage::Off,
    };
    Host {
        second_stage,
        ..host
    }
}

struct Walk<'t, F, X, C> {
    tables: &'t Tables<F, X, C>,
    detail: Detail,
    root: Root,
}

impl<F: Format, X, C> Walk<'_, F, X, C> {
    /// A table and what is below it.
    fn table(&mut self, table: TableId, level: Level, first: u64) {
        if let Some(count) = self.root.tables.get_mut(level as usize - 1) {
            *count += 1;
        }
        if self.detail == Detail::Entries {
            self.raw(table, level, first);
        }
        for index in 0..ENTRIES {
            let gfn = first + index as u64 * span(level);
            let spte = self.tables.load(table, index);
            match (self.tables.child_of(spte, level), level.child()) {
                (Some(child), Some(below)) => self.table(child, below, gfn),
                _ => self.entry(spte, level, Gfn::new(gfn)),
            }
        }
    }

    fn entry(&mut self, spte: Spte<F>, level: Level, gfn: Gfn) {
        let codec = &self.tables.codec;
        if codec.is_nonpresent(spte) {
            return;
        }
        let content = match codec.decode(spte, level) {
            Entry::Leaf(leaf) => Content::Leaf(leaf),
            Entry::Mmio(mmio) => Content::Mmio {
                gfn: mmio.gfn,
                access: mmio.access,
                generation: mmio.generation,
            },
            Entry::Frozen => Content::Frozen,
            Entry::Absent | Entry::Link(_) => return,
        };
        if let Some(frames) = GfnRange::new(gfn, Pages::new(span(level))) {
            let range = Range {
                frames,
                level,
                content,
            };
            push(&mut self.root.ranges, range);
        }
    }

    fn raw(&mut self, table: TableId, level: Level, first: u64) {
        let entries = (0_u16..).zip(0..ENTRIES).filter_map(|(index, at)| {
            let spte = self.tables.load(table, at);
            let empty = self.tables.codec.is_nonpresent(spte);
            (!empty).then_some((index, spte.raw()))
        });
        let raw = RawTable {
            table: table.raw(),
            level,
            gfn: Gfn::new(first),
            entries: entries.collect(),
        };
        self.root.entries.push(raw);
    }
}
