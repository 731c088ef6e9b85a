//! What follows when an entry has changed (`tdp_mmu.c:handle_changed_spte`), and how a table that was unlinked is taken
//! apart (`tdp_mmu.c:handle_removed_pt`).

use slat_memslot::{AsId, Gfn, Level};

use super::cursor::Cursor;
use super::events::{Event, Harvest, Harvesting, Observer};
use super::hooks::External;
use super::leaves::Leaves;
use super::lock::{Locked, Side};
use super::page::Page;
use crate::role::RoleFlag;
use crate::spte::{AdMasks, Codec, Format, Marks, Pfn, Spte};
use crate::sync::{AtomicU64, Ordering, spin};
use crate::table::{ENTRIES, TableId, span};

/// An entry, as far as its consequences go.
#[derive(Clone, Copy, Debug)]
pub struct At {
    pub(super) as_id: AsId,
    pub(super) gfn: u64,
    pub(super) level: Level,
}

impl At {
    /// The entry that a cursor is at, in the table that this is known of.
    #[inline]
    pub(super) fn of<F: Format>(page: &Page, cursor: &Cursor<F>) -> Self {
        Self {
            as_id: page.role().as_id(),
            gfn: cursor.gfn(),
            level: cursor.level(),
        }
    }

    /// An entry of the table that begins here.
    #[inline]
    pub(super) const fn entry(self, index: usize) -> Self {
        Self {
            gfn: self.gfn + index as u64 * span(self.level),
            ..self
        }
    }

    /// An entry of the table of level 1 that an entry of level 2 links to.
    #[inline]
    pub(super) const fn child(self, index: usize) -> Self {
        Self {
            gfn: self.gfn + index as u64,
            level: Level::L1,
            ..self
        }
    }
}

impl<S: Side, O: Observer<S::Format>> Locked<S, O> {
    /// Accounts for a change that has been made.
    #[inline]
    pub(super) fn changed(&mut self, at: At, old: Spte<S::Format>, new: Spte<S::Format>) {
        if old == new {
            return;
        }
        self.report_change(at, old, new);
        let (was_leaf, is_leaf) = (old.is_leaf(at.level), new.is_leaf(at.level));
        if was_leaf != is_leaf {
            let difference = i64::from(is_leaf) - i64::from(was_leaf);
            self.counts().add_leaves(at.level, difference);
        }
        if O::HARVEST != Harvesting::Nothing && was_leaf {
            let codec = &self.side.tables().codec;
            harvest_change(&mut self.observer, codec, at.level, old, new);
        }
        if old.is_link(at.level) && !new.is_link(at.level) {
            if let Some(child) = self.tables().child_of(old, at.level) {
                self.take_apart(child);
            }
        }
    }

    #[inline]
    pub(super) fn report_change(&mut self, at: At, old: Spte<S::Format>, new: Spte<S::Format>) {
        report(&mut self.observer, at, old, new);
    }

    /// Passes on the marks of a leaf that is gone, in a table whose masks are known.
    #[inline]
    pub(super) fn harvest_leaf(&mut self, level: Level, old: Spte<S::Format>, masks: AdMasks) {
        let pfn = self.tables().codec.pfn(old);
        pass_on(&mut self.observer, pfn, level, masks.marks(old));
    }

    /// What tells accessed and dirty in the leaves of a table.
    pub(super) fn ad_masks(&self, table: TableId) -> AdMasks {
        let tables = self.tables();
        let role = tables.page(table).role();
        tables.codec.ad_masks(tables.codec.ad_type_of_table(role))
    }

    /// Whether an entry of this table belongs to a mirror.
    #[inline]
    pub(super) fn is_mirror(&self, table: TableId) -> bool {
        S::External::PRESENT && self.tables().page(table).role().has(RoleFlag::IsMirror)
    }

    /// Empties a table that was unlinked, and the tables below it, and frees them.
    pub(super) fn take_apart(&mut self, table: TableId) {
        let page = self.tables().page(table);
        let (role, gfn) = (page.role(), page.gfn());
        self.tables().forget(table, Leaves::All);
        if O::EVENTS {
            self.observer.event(Event::PageZapped { table, gfn, role });
        }
        self.counts().add_tables(-1);
        self.tables().forget_nx(table);
        let at = At {
            as_id: role.as_id(),
            gfn: gfn.raw(),
            level: role.level(),
        };
        if S::SHARED {
            debug_assert!(!self.is_mirror(table), "mirrors are zapped exclusively");
            self.freeze_all(table, at);
        } else {
            self.clear_all(table, at);
        }
        if self.is_mirror(table) && self.free_external(table, at).is_err() {
            // Its owner still uses it: it can never be given out again.
            self.counts().lose_table();
            return;
        }
        self.side.free_table(table);
    }

    /// Keeps everybody away from all entries, one after the other: a fault that came through the link before it was gone
    /// can still install one.
    fn freeze_all(&mut self, table: TableId, at: At) {
        if at.level == Level::L1 {
            self.freeze_leaves(table, at);
            return;
        }
        let frozen = self.tables().codec.frozen();
        for index in 0..ENTRIES {
            let old = freeze(self.tables().entry(table, index), frozen);
            self.changed(at.entry(index), old, frozen);
        }
    }

    /// The same for leaves, which have nothing below them.
    fn freeze_leaves(&mut self, table: TableId, at: At) {
        let masks = self.ad_masks(table);
        let tables = self.side.tables();
        let (codec, mut leaves) = (&tables.codec, 0);
        let frozen = codec.frozen();
        for (index, entry) in tables.arena.table(table).iter().enumerate() {
            let old = freeze(entry, frozen);
            report(&mut self.observer, at.entry(index), old, frozen);
            if old.is_present() {
                leaves += 1;
                pass_on(
                    &mut self.observer,
                    codec.pfn(old),
                    at.level,
                    masks.marks(old),
                );
            }
        }
        self.counts().add_leaves(at.level, -leaves);
    }

    /// The same with the tables to oneself: what is not present stays, since nobody can come here any more.
    fn clear_all(&mut self, table: TableId, at: At) {
        let frozen = self.tables().codec.frozen();
        let mirror = self.is_mirror(table);
        for index in 0..ENTRIES {
            let old = self.tables().load(table, index);
            if !old.is_present() {
                continue;
            }
            let at = at.entry(index);
            let entry = self.tables().entry(table, index);
            entry.store(frozen.raw(), Ordering::Relaxed);
            self.changed(at, old, frozen);
            if mirror && old.is_leaf(at.level) {
                self.remove_external(at, old);
            }
        }
    }

    /// Tells the owner of the real tables, who does not refuse here: KVM has made sure of that before.
    fn remove_external(&self, at: At, old: Spte<S::Format>) {
        let empty = self.tables().codec.nonpresent();
        if self.tell_external(at, old, empty).is_err() {
            self.counts().lose_page();
        }
    }

    fn free_external(&self, table: TableId, at: At) -> Result<(), super::Busy> {
        let external = &self.tables().external;
        external.free_table(Gfn::new(at.gfn), at.level, table)
    }
}

/// Passes on the marks that a change has removed. A link is another page: a split passes on all marks of the huge leaf.
pub(super) fn harvest_change<F: Format, O: Observer<F>>(
    observer: &mut O,
    codec: &Codec<F>,
    level: Level,
    old: Spte<F>,
    new: Spte<F>,
) {
    let gone = !new.is_leaf(level);
    let marks = Marks {
        accessed: codec.is_accessed(old) && (gone || !codec.is_accessed(new)),
        dirty: codec.is_dirty(old) && (gone || !codec.is_dirty(new)),
    };
    pass_on(observer, codec.pfn(old), level, marks);
}

/// Tells an observer of marks, in the way it wants it.
#[inline]
pub(super) fn pass_on<F, O: Observer<F>>(observer: &mut O, pfn: Pfn, level: Level, marks: Marks) {
    match O::HARVEST {
        Harvesting::Nothing => {}
        Harvesting::Numbers => observer.harvest_numbers(Harvest {
            accessed: u64::from(marks.accessed),
            dirty: u64::from(marks.dirty),
        }),
        Harvesting::EveryPage => {
            if marks != Marks::default() {
                observer.harvest(pfn, level, marks);
            }
        }
    }
}

/// Reports a change.
#[inline]
pub(super) fn report<F, O: Observer<F>>(observer: &mut O, at: At, old: Spte<F>, new: Spte<F>) {
    if O::EVENTS && old != new {
        observer.event(Event::SpteChanged {
            as_id: at.as_id,
            gfn: Gfn::new(at.gfn),
            level: at.level,
            old,
            new,
        });
    }
}

/// Freezes an entry and gives what it was. Another thread may hold it frozen, and would then overwrite it.
#[inline]
fn freeze<F>(entry: &AtomicU64, frozen: Spte<F>) -> Spte<F> {
    if cfg!(slat_mutant = "no_freeze") {
        return Spte::from_raw(entry.load(Ordering::Acquire));
    }
    loop {
        let old = Spte::from_raw(entry.swap(frozen.raw(), Ordering::AcqRel));
        if old != frozen {
            return old;
        }
        spin();
    }
}
