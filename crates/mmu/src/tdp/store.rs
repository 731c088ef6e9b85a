//! Storing entries: atomically against others, or plainly with the tables to oneself.
//!
//! KVM counterparts: `tdp_mmu.c:tdp_mmu_set_spte_atomic`, `tdp_mmu_zap_spte_atomic`, `tdp_mmu_set_spte`, and for mirrors
//! `set_external_spte_present`, `remove_external_spte`.

use core::ops::Range;

use slat_memslot::{Gfn, GfnRange, Level};

use super::change::At;
use super::cursor::Cursor;
use super::events::{Event, FlushReason, FlushScope, Observer};
use super::hooks::{AccessCheck, Busy, EntryChange, External};
use super::leaves::Leaves;
use super::lock::{Exclusive, Locked, Shared, Side};
use super::log::weakened;
use super::page::Parent;
use crate::spte::{Format, Spte};
use crate::sync::{AtomicU64, Ordering, unfreeze};
use crate::table::{TableId, span};

/// How an entry is replaced on each side of the lock.
pub trait Store: Side + Sized {
    #[doc(hidden)]
    fn replace<O: Observer<Self::Format>>(
        locked: &mut Locked<Self, O>,
        cursor: &mut Cursor<Self::Format>,
        new: Spte<Self::Format>,
    ) -> Result<(), NotStored>;

    /// Takes a bit from the leaves of a run of entries, the first of which is `at`, in a table of level 1 that is no mirror.
    /// Says whether any had it.
    #[doc(hidden)]
    fn take_bit<O: Observer<Self::Format>>(
        locked: &mut Locked<Self, O>,
        table: TableId,
        at: At,
        run: Range<usize>,
        bit: u64,
    ) -> bool;
}

impl<F: Format, X: External<F>, C: AccessCheck> Store for Shared<'_, F, X, C> {
    #[inline]
    fn replace<O: Observer<F>>(
        locked: &mut Locked<Self, O>,
        cursor: &mut Cursor<F>,
        new: Spte<F>,
    ) -> Result<(), NotStored> {
        locked.set_atomic(cursor, new)
    }

    #[inline]
    fn take_bit<O: Observer<F>>(
        locked: &mut Locked<Self, O>,
        table: TableId,
        at: At,
        run: Range<usize>,
        bit: u64,
    ) -> bool {
        locked.take_bit_by_exchange(table, at, run, bit)
    }
}

impl<F: Format, X: External<F>, C: AccessCheck> Store for Exclusive<'_, F, X, C> {
    #[inline]
    fn replace<O: Observer<F>>(
        locked: &mut Locked<Self, O>,
        cursor: &mut Cursor<F>,
        new: Spte<F>,
    ) -> Result<(), NotStored> {
        let at = locked.at(cursor);
        let set = locked.set(cursor.place(), at, cursor.old, new);
        set.map_err(|Busy| NotStored::Busy)
    }

    #[inline]
    fn take_bit<O: Observer<F>>(
        locked: &mut Locked<Self, O>,
        table: TableId,
        at: At,
        run: Range<usize>,
        bit: u64,
    ) -> bool {
        locked.take_bit_telling(table, at, run, bit, weakened)
    }
}

/// Why an entry was not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NotStored {
    /// Another thread changed it first.
    Lost,
    /// The owner of the real tables is busy; the old entry is back.
    Busy,
}

impl<S: Side, O: Observer<S::Format>> Locked<S, O> {
    /// An entry's place for those who account for it.
    #[inline]
    pub(super) fn at(&self, cursor: &Cursor<S::Format>) -> At {
        At::of(self.tables().page(cursor.table()), cursor)
    }

    /// Reports a flush that takes place now.
    pub(super) fn flush_now(&mut self, scope: FlushScope, reason: FlushReason) {
        if O::EVENTS {
            self.observer.event(Event::Flushed { scope, reason });
        }
    }

    /// Reports a flush of the frames of one entry.
    pub(super) fn flush_entry(&mut self, gfn: u64, level: Level, reason: FlushReason) {
        let range = GfnRange::between(Gfn::new(gfn), Gfn::new(gfn + span(level)));
        if let Some(range) = range {
            self.flush_now(FlushScope::Frames(range), reason);
        }
    }

    /// Tells the owner of the real tables of an entry that is about to change.
    pub(super) fn tell_external(
        &self,
        at: At,
        old: Spte<S::Format>,
        new: Spte<S::Format>,
    ) -> Result<(), Busy> {
        let tables = self.tables();
        tables.external.change(&EntryChange {
            gfn: Gfn::new(at.gfn),
            level: at.level,
            old,
            new,
            table: tables.child_of(new, at.level),
        })
    }
}

impl<F: Format, X: External<F>, C: AccessCheck, O: Observer<F>> Locked<Shared<'_, F, X, C>, O> {
    /// Replaces an entry if it is still what the cursor has read; accounts for the change. If it is not, the cursor
    /// reads it again.
    #[inline]
    pub(super) fn set_atomic(
        &mut self,
        cursor: &mut Cursor<F>,
        new: Spte<F>,
    ) -> Result<(), NotStored> {
        let (tables, table) = (self.side.tables, cursor.table());
        let (entries, page, note) = tables.arena.parts(table);
        let (entry, at) = (&entries[cursor.index()], At::of(page, cursor));
        if X::PRESENT && new.is_present() && self.is_mirror(table) {
            self.set_mirror(entry, cursor, at, new)?;
        } else {
            self.exchange(entry, cursor, new)?;
        }
        // Whoever asks for these marks has the tables to himself.
        let leaf_gone = cursor.old.is_leaf(at.level) && !new.is_leaf(at.level);
        if leaf_gone && !cfg!(slat_mutant = "keep_full") {
            Leaves::All.forget(note);
        }
        if new.is_present() && !cfg!(slat_mutant = "keep_empty") {
            Leaves::None.forget(note);
        }
        self.changed(at, cursor.old, new);
        Ok(())
    }

    /// The compare-exchange alone.
    #[inline]
    fn exchange(
        &self,
        entry: &AtomicU64,
        cursor: &mut Cursor<F>,
        new: Spte<F>,
    ) -> Result<(), NotStored> {
        debug_assert!(
            !self.tables().codec.is_frozen(cursor.old),
            "a frozen entry belongs to another thread"
        );
        if cfg!(slat_mutant = "no_recheck") {
            entry.store(new.raw(), Ordering::Release);
            return Ok(());
        }
        let expected = cursor.old.raw();
        let exchanged =
            entry.compare_exchange(expected, new.raw(), Ordering::AcqRel, Ordering::Acquire);
        exchanged.map(|_| ()).map_err(|now| {
            cursor.old = Spte::from_raw(now);
            NotStored::Lost
        })
    }

    /// The same in a mirror: the entry is frozen while the owner of the real tables is told.
    fn set_mirror(
        &self,
        entry: &AtomicU64,
        cursor: &mut Cursor<F>,
        at: At,
        new: Spte<F>,
    ) -> Result<(), NotStored> {
        let frozen = self.tables().codec.frozen();
        self.exchange(entry, cursor, frozen)?;
        let told = self.tell_external(at, cursor.old, new);
        let result = if told.is_ok() { new } else { cursor.old };
        if told.is_ok() || !cfg!(slat_mutant = "no_restore") {
            unfreeze(entry, result.raw());
        }
        told.map_err(|Busy| NotStored::Busy)
    }

    /// Zaps an entry so that nobody puts another in its place before TLBs are flushed: it is frozen in between.
    pub(super) fn zap_atomic(&mut self, cursor: &mut Cursor<F>) -> Result<(), NotStored> {
        let (at, codec) = (self.at(cursor), *self.tables().codec());
        let tables = self.side.tables;
        let entry = tables.entry(cursor.table(), cursor.index());
        self.exchange(entry, cursor, codec.frozen())?;
        self.flush_entry(at.gfn, at.level, FlushReason::ZappedAtomically);
        let empty = codec.nonpresent();
        unfreeze(entry, empty.raw());
        self.changed(at, cursor.old, empty);
        Ok(())
    }
}

impl<F: Format, X: External<F>, C: AccessCheck, O: Observer<F>> Locked<Exclusive<'_, F, X, C>, O> {
    /// Stores an entry and accounts for the change.
    ///
    /// In a mirror the owner of the real tables is told first, and may be busy: then nothing changes.
    pub(super) fn set(
        &mut self,
        place: Parent,
        at: At,
        old: Spte<F>,
        new: Spte<F>,
    ) -> Result<(), Busy> {
        if X::PRESENT && self.is_mirror(place.table) {
            self.tell_external(at, old, new)?;
        }
        let tables = self.tables();
        let entry = tables.entry(place.table, place.index);
        entry.store(new.raw(), Ordering::Relaxed);
        if !new.is_leaf(at.level) {
            tables.forget(place.table, Leaves::All);
        }
        if new.is_present() {
            tables.forget(place.table, Leaves::None);
        }
        self.changed(at, old, new);
        Ok(())
    }
}
