//! The two sides of `mmu_lock`, as types.

use core::fmt;

use super::count::Counts;
use super::hooks::{AccessCheck, External};
use super::tables::Tables;
use crate::spte::Format;
use crate::table::{Pin, Reader, TableId};

mod sealed {
    pub trait Sealed {}
    impl<F, X, C> Sealed for super::Shared<'_, F, X, C> {}
    impl<F, X, C> Sealed for super::Exclusive<'_, F, X, C> {}

    pub trait Held {}
    impl<F, X, C, O> Held for super::Locked<super::Exclusive<'_, F, X, C>, O> {}
    impl<F: crate::spte::Format, O, T> Held for crate::shadow::ShadowLocked<'_, F, O, T> {}
}

/// A side of the lock: [`Shared`] or [`Exclusive`], a closed set.
pub trait Side: sealed::Sealed {
    /// The format of the entries.
    type Format: Format;
    /// The owner of mirror tables.
    type External: External<Self::Format>;
    /// The check of accesses.
    type Check: AccessCheck;
    /// Whether others may change entries meanwhile.
    const SHARED: bool;

    /// The tables.
    fn tables(&self) -> &Tables<Self::Format, Self::External, Self::Check>;

    #[doc(hidden)]
    fn place(&self) -> usize;

    /// Takes back a table that is not linked any more, once nobody can be walking through it.
    #[doc(hidden)]
    fn free_table(&mut self, table: TableId);
}

/// The lock is held for reading: faults, and whatever else works with compare-exchange.
pub struct Shared<'t, F, X, C> {
    pub(super) tables: &'t Tables<F, X, C>,
    place: usize,
    /// Tables that were linked when it was taken stay what they are.
    _pin: Pin<'t>,
}

impl<'t, F, X, C> Shared<'t, F, X, C> {
    #[inline]
    pub(super) fn new(tables: &'t Tables<F, X, C>, reader: &'t mut Reader) -> Self {
        Self {
            tables,
            place: reader.number(),
            _pin: reader.pin(),
        }
    }
}

impl<F: Format, X: External<F>, C: AccessCheck> Side for Shared<'_, F, X, C> {
    type Format = F;
    type External = X;
    type Check = C;
    const SHARED: bool = true;

    #[inline]
    fn tables(&self) -> &Tables<F, X, C> {
        self.tables
    }

    #[inline]
    fn place(&self) -> usize {
        self.place
    }

    fn free_table(&mut self, table: TableId) {
        self.tables.epochs.retire(table);
    }
}

/// The lock is held for writing: nobody else looks at the tables.
pub struct Exclusive<'t, F, X, C> {
    pub(super) tables: &'t mut Tables<F, X, C>,
}

impl<'t, F, X, C> Exclusive<'t, F, X, C> {
    #[inline]
    pub(super) fn new(tables: &'t mut Tables<F, X, C>) -> Self {
        Self { tables }
    }
}

impl<F: Format, X: External<F>, C: AccessCheck> Side for Exclusive<'_, F, X, C> {
    type Format = F;
    type External = X;
    type Check = C;
    const SHARED: bool = false;

    #[inline]
    fn tables(&self) -> &Tables<F, X, C> {
        self.tables
    }

    #[inline]
    fn place(&self) -> usize {
        self.tables.counts.len() - 1
    }

    fn free_table(&mut self, table: TableId) {
        self.tables.arena.recycle(table);
    }
}

/// The proof that the lock is held for writing, for what is guarded by it beside the tables.
pub trait HeldForWriting: sealed::Held {}

impl<F, X, C, O> HeldForWriting for Locked<Exclusive<'_, F, X, C>, O> {}
impl<F: Format, O, T> HeldForWriting for crate::shadow::ShadowLocked<'_, F, O, T> {}

/// The tables with the lock held on one side, and an observer: what all operations are methods of.
pub struct Locked<S, O> {
    pub(super) side: S,
    pub(super) observer: O,
}

impl<S, O> Locked<S, O> {
    #[inline]
    pub(super) const fn new(side: S, observer: O) -> Self {
        Self { side, observer }
    }
}

impl<S: Side, O> Locked<S, O> {
    /// The tables.
    #[inline]
    pub fn tables(&self) -> &Tables<S::Format, S::External, S::Check> {
        self.side.tables()
    }

    #[inline]
    pub(super) fn counts(&self) -> &Counts {
        &self.tables().counts[self.side.place()]
    }
}

impl<S: Side, O> fmt::Debug for Locked<S, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = if S::SHARED { "shared" } else { "exclusive" };
        write!(f, "Locked({side}, {:?})", self.tables().totals())
    }
}

impl<F, X, C> fmt::Debug for Shared<'_, F, X, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shared")
    }
}

impl<F, X, C> fmt::Debug for Exclusive<'_, F, X, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Exclusive")
    }
}
