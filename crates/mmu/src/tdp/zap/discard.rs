//! Freeing all tables of invalid roots without a look at their leaves: what a zap costs at the very least.

use slat_memslot::Level;

use crate::roots::{RootId, RootSelect};
use crate::spte::{Format, Spte};
use crate::sync::{AtomicU64, Ordering, set_value};
use crate::table::{ENTRIES, TableId};
use crate::tdp::events::{Event, Observer};
use crate::tdp::hooks::{AccessCheck, External};
use crate::tdp::leaves::Leaves;
use crate::tdp::lock::{Exclusive, Locked};
use crate::tdp::rootwalk::RootWalk;
use crate::tdp::tables::Tables;
use crate::tdp::zap::root::EVERYTHING;

impl<F: Format, X: External<F>, C: AccessCheck, O: Observer<F>> Locked<Exclusive<'_, F, X, C>, O> {
    /// Frees what the roots map that were invalidated, and gives up the TDP MMU's reference to each. Gives how many tables
    /// were freed below them.
    ///
    /// An experiment, which no kernel does: leaves are neither reported nor harvested. They are counted, which needs no look
    /// at a table that is known to be full.
    pub fn discard_invalidated(&mut self) -> u64 {
        let mut walk = RootWalk::new(RootSelect::All, None, EVERYTHING);
        let mut count = 0;
        while let Some((table, _)) = walk.current(self) {
            let root = walk.root();
            if let Some(root) = root.filter(|root| self.tables().roots.take_scheduled(*root)) {
                count += self.discard_root(root, table);
            }
            walk.next_root();
        }
        self.audit_after_step();
        count
    }

    fn discard_root(&mut self, root: RootId, table: TableId) -> u64 {
        let tables = &mut *self.side.tables;
        let freed = tables.arena.take_recycled();
        let before = freed.len();
        let mut discard = Discard {
            freed,
            leaves: [0; 5],
            forgets: tables.nx_splits() > 0,
        };
        let level = tables.page(table).role().level();
        discard.children(tables, &mut self.observer, table, level);
        let count = discard.freed.len() - before;
        tables.arena.return_recycled(discard.freed);
        let empty = tables.codec.nonpresent().raw();
        for entry in tables.arena.table_mut(table) {
            set_value(entry, empty);
        }
        self.counts().add_tables(-(count as i64));
        for (level, leaves) in Level::ALL.into_iter().zip(discard.leaves) {
            self.counts().add_leaves(level, -leaves);
        }
        if let Some(gone) = self.tables().roots.put_own(root).freed() {
            self.free_root(gone);
        }
        count as u64
    }
}

/// What has been found so far.
struct Discard {
    freed: Vec<TableId>,
    /// By level, from 1.
    leaves: [i64; 5],
    /// Some tables are remembered for the sake of execution. If not, none has to be looked up.
    forgets: bool,
}

impl Discard {
    /// Notes the tables below one of level 2 or above, and counts the leaves in all of them.
    fn children<F: Format, X, C, O: Observer<F>>(
        &mut self,
        tables: &Tables<F, X, C>,
        observer: &mut O,
        table: TableId,
        level: Level,
    ) {
        let Some(below) = level.child() else {
            return;
        };
        let first = self.freed.len();
        let entries = tables.arena.table(table).iter().map(entry);
        let links = entries.filter_map(|spte| tables.child_of(spte, level));
        self.freed.extend(links);
        let found = first..self.freed.len();
        if found.len() < ENTRIES {
            self.leaves[level as usize - 1] += leaves_in(tables, table, level);
        }
        // Nothing is to be done about the tables of level 1, unless somebody wants to know of them.
        if O::EVENTS || self.forgets || below != Level::L1 {
            for number in found {
                self.child(tables, observer, self.freed[number], below);
            }
        }
        if below == Level::L1 {
            self.count_small(tables, first);
        }
    }

    /// Sees to a table that was found at a level.
    fn child<F: Format, X, C, O: Observer<F>>(
        &mut self,
        tables: &Tables<F, X, C>,
        observer: &mut O,
        table: TableId,
        level: Level,
    ) {
        if O::EVENTS {
            let page = tables.page(table);
            let (gfn, role) = (page.gfn(), page.role());
            observer.event(Event::PageZapped { table, gfn, role });
        }
        if self.forgets {
            tables.forget_nx(table);
        }
        self.children(tables, observer, table, level);
    }

    /// Counts the leaves in the tables of level 1 that were found from this one on, most of which are known to be full.
    fn count_small<F: Format, X, C>(&mut self, tables: &Tables<F, X, C>, first: usize) {
        let mut notes = tables.arena.notes();
        let leaves_of = |table: &TableId| match notes.get(*table) == Leaves::All as u8 {
            true => ENTRIES as i64,
            false => leaves_in(tables, *table, Level::L1),
        };
        self.leaves[0] += self.freed[first..].iter().map(leaves_of).sum::<i64>();
    }
}

fn entry<F>(entry: &AtomicU64) -> Spte<F> {
    Spte::from_raw(entry.load(Ordering::Relaxed))
}

fn leaves_in<F, X, C>(tables: &Tables<F, X, C>, table: TableId, level: Level) -> i64 {
    let entries = tables.arena.table(table).iter().map(entry::<F>);
    entries.filter(|spte| spte.is_leaf(level)).count() as i64
}
