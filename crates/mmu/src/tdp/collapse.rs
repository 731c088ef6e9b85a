//! Making room for a huge leaf where a table is, when nothing needs small leaves any more.

use slat_memslot::{Gfn, Level, PageSize};

use super::cursor::Cursor;
use super::events::Observer;
use super::hooks::{AccessCheck, External};
use super::lock::{Locked, Shared};
use super::store::NotStored;
use crate::spte::{Format, NxHugePages, Spte};
use crate::sync::Ordering;
use crate::table::TableId;

/// How a table makes room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Collapse {
    /// It is zapped, and a fault will put the huge leaf there (`tdp_mmu.c:zap_collapsible_spte_range`, up to 6.12). The
    /// entry stays frozen until TLBs are flushed.
    Zap,
    /// A huge leaf made of its first leaf replaces it (`tdp_mmu.c:recover_huge_pages_range`, since 6.13). TLBs are the
    /// caller's to flush, once for all.
    Recover(NxHugePages),
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Collapsed {
    /// The table is gone.
    Done,
    /// There is no table at this size.
    NoTable,
    /// The table has no leaf from which to tell the page.
    NoLeaf,
    /// The owner of the real tables is busy.
    Busy,
}

impl<F: Format, X: External<F>, C: AccessCheck, O: Observer<F>> Locked<Shared<'_, F, X, C>, O> {
    /// Makes room for a huge leaf at the frame. Whether the page is huge, and the slot allows it, is the caller's to know.
    pub fn collapse(
        &mut self,
        root: TableId,
        gfn: Gfn,
        size: PageSize,
        how: Collapse,
    ) -> Collapsed {
        let level = size.level();
        let mut cursor = Cursor::start(self.tables(), root, level, gfn.raw());
        while cursor.is_before(gfn.raw() + 1) && cursor.level() != level {
            cursor.advance(self.tables());
        }
        loop {
            if cursor.level() != level || !cursor.old.is_link(level) {
                return Collapsed::NoTable;
            }
            let replaced = match how {
                Collapse::Zap => self.zap_atomic(&mut cursor),
                Collapse::Recover(nx_huge_pages) => {
                    let Some(huge) = self.huge_leaf(&cursor, size, nx_huge_pages) else {
                        return Collapsed::NoLeaf;
                    };
                    self.set_atomic(&mut cursor, huge)
                }
            };
            match replaced {
                Ok(()) => return Collapsed::Done,
                Err(NotStored::Busy) => return Collapsed::Busy,
                Err(NotStored::Lost) => {}
            }
        }
    }

    /// The huge leaf that stands for the table at the cursor, made of the first leaf in it
    /// (`tdp_mmu.c:tdp_mmu_make_huge_spte`).
    fn huge_leaf(
        &self,
        cursor: &Cursor<F>,
        size: PageSize,
        nx_huge_pages: NxHugePages,
    ) -> Option<Spte<F>> {
        let tables = self.tables();
        let table = tables.child_of(cursor.old, cursor.level())?;
        let small = self.first_leaf(table, cursor.level().child()?)?;
        tables.codec.make_huge(small, size, nx_huge_pages)
    }

    /// The first leaf below a table; tables without any may come before it.
    fn first_leaf(&self, table: TableId, level: Level) -> Option<Spte<F>> {
        let tables = self.tables();
        let entries = tables.arena.table(table).iter();
        let mut sptes = entries.map(|entry| Spte::from_raw(entry.load(Ordering::Acquire)));
        sptes.find_map(|spte| {
            if spte.is_leaf(level) {
                return Some(spte);
            }
            self.first_leaf(tables.child_of(spte, level)?, level.child()?)
        })
    }
}
