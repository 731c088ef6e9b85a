//! Freeing all tables of invalid roots without a look at their leaves: what a zap costs at the very least.

use slat_memslot::Level;

use crate::roots::{RootId, RootSelect};
use crate::spte::{Format, Spte};
use crate::sync::{Ordering, set_value};
use crate::table::TableId;
use crate::tdp::events::{Event, Observer};
use crate::tdp::hooks::{AccessCheck, External};
use crate::tdp::lock::{Exclusive, Locked};
use crate::tdp::rootwalk::RootWalk;
use crate::tdp::zap::root::EVERYTHING;

impl<F: Format, X: External<F>, C: AccessCheck, O: Observer<F>>
    Locked<'_, Exclusive<'_, F, X, C>, O>
{
    /// Frees what the roots map that were invalidated, and gives up the TDP MMU's reference to each. Gives how many tables
    /// were freed below them.
    ///
    /// An experiment, which no kernel does: leaves are neither reported nor harvested. They are counted, which needs no look
    /// at a table that is known to be full.
    pub fn discard_invalidated(&mut self) -> u64 {
        let mut walk = RootWalk::new(RootSelect::All, None, EVERYTHING);
        let mut freed = Vec::new();
        while let Some((table, _)) = walk.current(self) {
            let root = walk.root();
            if let Some(root) = root.filter(|root| self.tables().roots.take_scheduled(*root)) {
                self.discard_root(root, table, &mut freed);
            }
            walk.next_root();
        }
        let count = freed.len() as u64;
        self.side.tables.arena.recycle_all(freed);
        self.audit_after_step();
        count
    }

    fn discard_root(&mut self, root: RootId, table: TableId, freed: &mut Vec<TableId>) {
        let before = freed.len();
        self.discard_children(table, freed);
        let tables = &mut *self.side.tables;
        let empty = tables.codec.nonpresent().raw();
        for entry in tables.arena.table_mut(table) {
            set_value(entry, empty);
        }
        let count = i64::try_from(freed.len() - before).unwrap_or(0);
        self.counts().add_tables(-count);
        if let Some(gone) = self.tables().roots.put_own(root).freed() {
            self.free_root(gone);
        }
    }

    /// Notes the tables below one, and counts the leaves in it.
    fn discard_children(&mut self, table: TableId, freed: &mut Vec<TableId>) {
        let level = self.tables().page(table).role().level();
        let mut leaves = 0;
        for index in 0..crate::table::ENTRIES {
            let spte = self.tables().load(table, index);
            leaves += i64::from(spte.is_leaf(level));
            if let Some(child) = self.tables().child_of(spte, level) {
                self.discard_table(child, freed);
            }
        }
        self.counts().add_leaves(level, -leaves);
    }

    fn discard_table(&mut self, table: TableId, freed: &mut Vec<TableId>) {
        let page = self.tables().page(table);
        let (role, gfn) = (page.role(), page.gfn());
        if O::EVENTS {
            self.observer.event(Event::PageZapped { table, gfn, role });
        }
        freed.push(table);
        if role.level() > Level::L1 {
            self.discard_children(table, freed);
            return;
        }
        let tables = self.tables();
        let leaves = if tables.page(table).is_full() {
            crate::table::ENTRIES as i64
        } else {
            let entries = tables.arena.table(table).iter();
            let sptes = entries.map(|entry| Spte::<F>::from_raw(entry.load(Ordering::Relaxed)));
            sptes.map(|spte| i64::from(spte.is_leaf(Level::L1))).sum()
        };
        self.counts().add_leaves(Level::L1, -leaves);
    }
}
