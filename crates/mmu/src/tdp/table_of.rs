//! Finding a table by where it is.

use slat_memslot::{Gfn, Level};

use super::lock::{Locked, Side};
use crate::table::{TableId, index};

impl<S: Side, O> Locked<S, O> {
    /// The table of a level that a walk for a frame goes through, if the walk comes as far.
    pub fn table_of(&self, root: TableId, gfn: Gfn, level: Level) -> Option<TableId> {
        let (mut table, tables) = (root, self.tables());
        let mut at = tables.page(root).role().level();
        while at > level {
            let spte = tables.load(table, index(gfn.raw(), at));
            table = tables.child_of(spte, at)?;
            at = at.child()?;
        }
        (at == level).then_some(table)
    }
}
