//! The way down through links that say nothing but where the next table is: most of every walk that hardware makes.

use slat_memslot::Level;

use super::page::Page;
use super::tables::{Tables, table_at};
use crate::spte::{Format, Spte};
use crate::sync::Ordering;
use crate::table::{Finder, Table, TableId, index};

/// A table that a walk has come to through plain links: everything is allowed so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Reached {
    pub(crate) table: TableId,
    pub(crate) level: Level,
}

impl<F: Format, X, C> Tables<F, X, C> {
    /// A root, where walks begin.
    #[inline]
    pub(crate) fn at_root(&self, root: TableId) -> Reached {
        Reached {
            table: root,
            level: self.page(root).role().level(),
        }
    }

    /// Where tables below one are found.
    #[inline]
    pub(super) fn finder(&self, first: TableId) -> Finder<'_, Page> {
        self.arena.finder(first)
    }

    /// Follows plain links down to a table of `lowest`, or to the first entry that is anything else.
    #[inline]
    pub(crate) fn descend(&self, from: Reached, gfn: u64, lowest: Level) -> Reached {
        self.descend_by(&mut self.finder(from.table), from, gfn, lowest)
    }

    /// The same with a finder that may be used further.
    #[inline(always)]
    pub(super) fn descend_by(
        &self,
        finder: &mut Finder<'_, Page>,
        from: Reached,
        gfn: u64,
        lowest: Level,
    ) -> Reached {
        let mut at = from;
        // Level by level rather than in a loop: indexes and masks are constants then.
        for level in [Level::L5, Level::L4, Level::L3, Level::L2] {
            if at.level == level && level > lowest {
                let table = finder.table(at.table);
                if !self.follow(table, level, &mut at, gfn) {
                    return at;
                }
            }
        }
        at
    }

    /// Goes on to the table that an entry links to, if it is a plain link.
    #[inline(always)]
    pub(super) fn follow(&self, table: &Table, level: Level, at: &mut Reached, gfn: u64) -> bool {
        let entry = table[index(gfn, level)].load(Ordering::Acquire);
        let spte = Spte::<F>::from_raw(entry);
        let Some(below) = level.child() else {
            return false;
        };
        if !self.codec.is_plain_link(spte, level) {
            return false;
        }
        *at = Reached {
            table: table_at(self.codec.pfn(spte)),
            level: below,
        };
        true
    }
}
