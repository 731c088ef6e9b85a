//! Finding a table by where it is.

use slat_memslot::{Gfn, Level};

use super::lock::{Locked, Side};
use crate::table::{TableId, index};

impl<S: Side, O> Locked<S, O> {
    /// The table of a level that a walk for a frame goes through, if the walk comes as far.
    #[inline]
    pub fn table_of(&self, root: TableId, gfn: Gfn, level: Level) -> Option<TableId> {
        let top = self.tables().page(root).role().level();
        self.table_below((root, top), gfn, level)
    }

    /// The same from a root whose level is known.
    #[inline]
    pub(super) fn table_below(
        &self,
        (root, top): (TableId, Level),
        gfn: Gfn,
        level: Level,
    ) -> Option<TableId> {
        let (mut table, mut at, tables) = (root, top, self.tables());
        while at > level {
            let spte = tables.load(table, index(gfn.raw(), at));
            table = tables.child_of(spte, at)?;
            at = at.child()?;
        }
        (at == level).then_some(table)
    }
}
