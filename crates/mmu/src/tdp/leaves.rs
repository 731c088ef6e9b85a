//! What is known about the leaves of a table without a look at its entries.

use super::tables::Tables;
use crate::table::{Note, TableId};

/// What is known about a table's entries. It may be less than is true.
///
/// Only whoever has the tables to himself says more and asks, or has a table that nobody else can reach yet. Under the shared
/// lock it is taken back; the lock orders that before the next question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leaves {
    /// Nothing.
    Unknown = 0b00,
    /// Every entry is a leaf.
    All = 0b01,
    /// No entry is a leaf.
    None = 0b10,
}

impl Leaves {
    /// Takes it back in a table's note, if it was known.
    #[inline]
    pub(super) fn forget(self, note: Note<'_>) {
        note.take(self as u8);
    }
}

impl<F, X, C> Tables<F, X, C> {
    /// Whether this is known about a table.
    #[inline]
    pub(super) fn knows(&self, table: TableId, leaves: Leaves) -> bool {
        self.arena.note(table).get() == leaves as u8
    }

    /// Remembers it.
    #[inline]
    pub(super) fn learn(&mut self, table: TableId, leaves: Leaves) {
        self.arena.set_note(table, leaves as u8);
    }

    /// Remembers it of a table that nobody else can reach yet, and of which nothing was known.
    #[inline]
    pub(super) fn learn_of_new(&self, table: TableId, leaves: Leaves) {
        self.arena.note(table).add(leaves as u8);
    }

    /// Takes it back, if it was known: it holds no longer, or is about to.
    #[inline]
    pub(super) fn forget(&self, table: TableId, leaves: Leaves) {
        leaves.forget(self.arena.note(table));
    }

    /// Forgets whatever was known.
    #[inline]
    pub(super) fn forget_all(&self, table: TableId) {
        let all = Leaves::All as u8 | Leaves::None as u8;
        self.arena.note(table).take(all);
    }
}
