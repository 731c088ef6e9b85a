//! The tables of one TD.

use rustc_hash::FxHashMap;
use slat_memslot::{Gpa, Level};
use slat_mmu::spte::Pfn;

use super::SeptEntry;

/// Entries in a table.
const ENTRIES: usize = 512;

/// Where an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub(crate) table: Pfn,
    pub(crate) index: usize,
    pub(crate) level: Level,
}

/// Where a walk ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Walked {
    pub(crate) place: Place,
    pub(crate) entry: SeptEntry,
}

/// The secure EPT of a TD. Its root is a page of the TD's control structure, and lives as long as the TD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sept {
    root: Pfn,
    root_level: Level,
    tables: FxHashMap<Pfn, Box<[SeptEntry; ENTRIES]>>,
}

impl Sept {
    pub(crate) fn new(root: Pfn, root_level: Level) -> Self {
        let mut sept = Self {
            root,
            root_level,
            tables: FxHashMap::default(),
        };
        sept.add_table(root);
        sept
    }

    /// Pages that hold tables, the root's among them.
    pub(crate) fn len(&self) -> usize {
        self.tables.len()
    }

    pub(crate) fn add_table(&mut self, page: Pfn) {
        self.add_filled(page, |_| SeptEntry::FREE);
    }

    pub(crate) fn add_filled(&mut self, page: Pfn, entry: impl FnMut(usize) -> SeptEntry) {
        let entries = Box::new(core::array::from_fn(entry));
        self.tables.insert(page, entries);
    }

    pub(crate) fn remove_table(&mut self, page: Pfn) {
        self.tables.remove(&page);
    }

    /// The entries of a table.
    ///
    /// # Panics
    /// There is no such table: a link is always to one.
    pub(crate) fn table(&self, page: Pfn) -> &[SeptEntry; ENTRIES] {
        &self.tables[&page]
    }

    pub(crate) fn entry(&self, place: Place) -> SeptEntry {
        self.table(place.table)[place.index]
    }

    pub(crate) fn entry_mut(&mut self, place: Place) -> &mut SeptEntry {
        let table = self.tables.get_mut(&place.table);
        &mut table.expect("a place is in a table")[place.index]
    }

    /// Walks down to the entry of `level`, or to the first one that leads no further.
    pub(crate) fn walk(&self, gpa: Gpa, level: Level) -> Walked {
        let (mut table, mut at) = (self.root, self.root_level);
        loop {
            let index = index(gpa, at);
            let entry = self.table(table)[index];
            let place = Place {
                table,
                index,
                level: at,
            };
            let stops = at == level || entry.permissions() == 0 || entry.state().is_leaf();
            match at.child() {
                Some(below) if !stops => (table, at) = (entry.base(at), below),
                _ => return Walked { place, entry },
            }
        }
    }

    /// Every entry that is in use, from the root down: a table's after the link to it.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(Gpa, Place, SeptEntry)) {
        self.visit(self.root, self.root_level, 0, &mut visit);
    }

    fn visit(
        &self,
        table: Pfn,
        level: Level,
        start: u64,
        visit: &mut impl FnMut(Gpa, Place, SeptEntry),
    ) {
        for (index, entry) in self.table(table).iter().enumerate() {
            let state = entry.state();
            let place = Place {
                table,
                index,
                level,
            };
            let gpa = start + index as u64 * level.pages().bytes();
            if state.is_leaf() || state.is_table() {
                visit(Gpa::new(gpa), place, *entry);
            }
            if let (true, Some(below)) = (state.is_table(), level.child()) {
                self.visit(entry.base(level), below, gpa, visit);
            }
        }
    }
}

/// An address's entry in a table of `level`.
#[expect(clippy::cast_possible_truncation, reason = "the low bits are wanted")]
fn index(gpa: Gpa, level: Level) -> usize {
    (gpa.raw() >> (12 + level.gfn_shift())) as usize & (ENTRIES - 1)
}
