//! Making room for a huge leaf where a table is, when nothing needs small leaves any more.

use slat_memslot::{AsId, Gfn, GfnRange, Level, PageSize};

use super::cursor::Cursor;
use super::events::Observer;
use super::hooks::{AccessCheck, External};
use super::lock::{Locked, Shared};
use super::resched::{Progress, Resched};
use super::rootwalk::RootWalk;
use super::store::NotStored;
use crate::roots::RootSelect;
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
            match self.collapse_at(&mut cursor, size, how) {
                Ok(true) => return Collapsed::Done,
                Ok(false) => return Collapsed::NoLeaf,
                Err(NotStored::Busy) => return Collapsed::Busy,
                Err(NotStored::Lost) => {}
            }
        }
    }

    /// Collapses the table that the cursor's entry links to. Says whether it did: it may have no leaf.
    fn collapse_at(
        &mut self,
        cursor: &mut Cursor<F>,
        size: PageSize,
        how: Collapse,
    ) -> Result<bool, NotStored> {
        let Collapse::Recover(nx_huge_pages) = how else {
            return self.zap_atomic(cursor).map(|()| true);
        };
        let Some(huge) = self.huge_leaf(cursor, size, nx_huge_pages) else {
            return Ok(false);
        };
        self.set_atomic(cursor, huge).map(|()| true)
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

/// Collapses the tables of a range that nothing needs any more (`tdp_mmu.c:kvm_tdp_mmu_zap_collapsible_sptes`, since 6.13
/// `kvm_tdp_mmu_recover_huge_pages`), in all valid roots of an address space.
#[derive(Debug)]
#[must_use = "it does nothing until it is run"]
pub struct CollapseTables {
    walk: RootWalk,
    range: GfnRange,
    how: Collapse,
    collapsed: u64,
}

impl CollapseTables {
    /// Tables of the range, usually a slot's, go in this way.
    pub fn new(as_id: AsId, range: GfnRange, how: Collapse) -> Self {
        Self {
            walk: RootWalk::new(RootSelect::Valid, Some(as_id), range),
            range,
            how,
            collapsed: 0,
        }
    }

    /// How many tables went.
    pub const fn collapsed(&self) -> u64 {
        self.collapsed
    }

    /// Collapses until it is over or `resched` wants to give way. `allows` tells whether a page of this size could be mapped
    /// at a frame now; it is asked for tables that begin inside the range.
    pub fn run<F: Format, X: External<F>, C: AccessCheck, O: Observer<F>, R: Resched>(
        &mut self,
        locked: &mut Locked<Shared<'_, F, X, C>, O>,
        resched: &mut R,
        mut allows: impl FnMut(Gfn, PageSize) -> bool,
    ) -> Progress {
        while let Some((root, from)) = self.walk.current(locked) {
            let mut cursor = Cursor::start(locked.tables(), root, Level::L2, from);
            while cursor.is_before(self.walk.end()) {
                if self.walk.gives_way(&cursor, resched) {
                    return Progress::Paused;
                }
                if self.visit(locked, &mut cursor, &mut allows) != Err(NotStored::Lost) {
                    cursor.advance(locked.tables());
                }
            }
            self.walk.next_root();
        }
        Progress::Done
    }

    fn visit<F: Format, X: External<F>, C: AccessCheck, O: Observer<F>>(
        &mut self,
        locked: &mut Locked<Shared<'_, F, X, C>, O>,
        cursor: &mut Cursor<F>,
        allows: &mut impl FnMut(Gfn, PageSize) -> bool,
    ) -> Result<(), NotStored> {
        let gfn = Gfn::new(cursor.gfn());
        let size = match cursor.level() {
            Level::L2 => PageSize::Size2M,
            Level::L3 => PageSize::Size1G,
            Level::L1 | Level::L4 | Level::L5 => return Ok(()),
        };
        let table = cursor.old.is_link(cursor.level());
        if !table || !self.range.contains(gfn) || !allows(gfn, size) {
            return Ok(());
        }
        if locked.collapse_at(cursor, size, self.how)? {
            self.collapsed += 1;
        }
        Ok(())
    }
}
