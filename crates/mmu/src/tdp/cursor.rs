//! Going through the entries of a tree, parents before children (`tdp_iter.c`).
//!
//! A cursor holds numbers of tables, so it is only good while the session that it was made in lasts: whoever gives up the
//! lock keeps nothing but [`Cursor::position`] and starts anew from the root.

use core::ops::Range;

use slat_memslot::Level;

use super::descent::Reached;
use super::page::Parent;
use crate::spte::{Format, Spte};
use crate::table::{ENTRIES, TableId, first, index, span};

use super::tables::Tables;

/// Where in a tree, and what is there.
#[derive(Clone, Copy, Debug)]
pub struct Cursor<F> {
    /// By level, from 1: the tables that lead here.
    path: [TableId; 5],
    root_level: Level,
    min_level: Level,
    level: Level,
    gfn: u64,
    /// The frame that the cursor has come to, at the granularity of pages.
    next: u64,
    /// The frame at which it last gave way.
    yielded: u64,
    /// The entry, as it was read.
    pub(super) old: Spte<F>,
    valid: bool,
}

impl<F: Format> Cursor<F> {
    /// At the root's entry for the frame `from`. Entries below `min_level` are not visited.
    #[inline]
    pub(super) fn start<X, C>(
        tables: &Tables<F, X, C>,
        root: TableId,
        min_level: Level,
        from: u64,
    ) -> Self {
        Self::start_below(tables, tables.at_root(root), min_level, from)
    }

    /// The same below a table, as if it were the root.
    #[inline]
    pub(super) fn start_below<X, C>(
        tables: &Tables<F, X, C>,
        at: Reached,
        min_level: Level,
        from: u64,
    ) -> Self {
        let Reached { table, level } = at;
        let gfn = first(from, level);
        Self {
            path: [table; 5],
            root_level: level,
            min_level,
            level,
            gfn,
            next: from,
            yielded: from,
            old: tables.load(table, index(gfn, level)),
            valid: true,
        }
    }

    /// Whether there is an entry to visit before the frame `end`.
    #[inline]
    pub(super) const fn is_before(&self, end: u64) -> bool {
        self.valid && self.gfn < end
    }

    /// Whether it may give way: only after progress.
    #[inline]
    pub(super) const fn has_progressed(&self) -> bool {
        self.next != self.yielded
    }

    /// From where to start anew after giving way.
    #[inline]
    pub(super) const fn position(&self) -> u64 {
        self.next
    }

    /// The level of the table that the entry is in.
    #[inline]
    pub(super) const fn level(&self) -> Level {
        self.level
    }

    /// The first frame of the entry.
    #[inline]
    pub(super) const fn gfn(&self) -> u64 {
        self.gfn
    }

    /// The entry's table.
    #[inline]
    pub(super) const fn table(&self) -> TableId {
        self.path[self.level as usize - 1]
    }

    /// The entry's number in its table.
    #[inline]
    pub(super) const fn index(&self) -> usize {
        index(self.gfn, self.level)
    }

    /// The entry's place.
    #[inline]
    pub(super) const fn place(&self) -> Parent {
        Parent {
            table: self.table(),
            index: self.index(),
        }
    }

    /// Whether the entry is a present leaf, as far as it was read.
    #[inline]
    pub(super) const fn is_at_leaf(&self) -> bool {
        self.old.is_leaf(self.level)
    }

    /// Goes to the next entry: down, else to the side, else up and to the side.
    #[inline]
    pub(super) fn advance<X, C>(&mut self, tables: &Tables<F, X, C>) {
        if !self.step_down(tables) {
            self.pass(tables);
        }
    }

    /// Goes past everything below the entry: to the side, else up and to the side.
    #[inline]
    pub(super) fn pass<X, C>(&mut self, tables: &Tables<F, X, C>) {
        while !self.step_side(tables) {
            if self.level == self.root_level {
                self.valid = false;
                return;
            }
            self.step_up();
        }
    }

    /// Reads the entry again first, so as not to go into a table that is no longer linked.
    #[inline]
    fn step_down<X, C>(&mut self, tables: &Tables<F, X, C>) -> bool {
        if self.level == self.min_level {
            return false;
        }
        self.old = tables.load(self.table(), self.index());
        self.enter(tables)
    }

    /// Goes down to the table that the entry linked to when it was read, if it did. Right only for whoever has read it just
    /// now.
    #[inline]
    pub(super) fn enter<X, C>(&mut self, tables: &Tables<F, X, C>) -> bool {
        let Some(child) = tables.child_of(self.old, self.level) else {
            return false;
        };
        let Some(level) = self.level.child() else {
            return false;
        };
        self.level = level;
        self.path[level as usize - 1] = child;
        self.gfn = first(self.next, level);
        self.old = tables.load(child, self.index());
        true
    }

    #[inline]
    fn step_side<X, C>(&mut self, tables: &Tables<F, X, C>) -> bool {
        let index = self.index();
        if index == ENTRIES - 1 {
            return false;
        }
        self.gfn += span(self.level);
        self.next = self.gfn;
        self.old = tables.load(self.table(), index + 1);
        true
    }

    #[inline]
    fn step_up(&mut self) {
        if let Some(level) = self.level.parent() {
            self.level = level;
            self.gfn = first(self.gfn, level);
        }
    }

    /// The entries of this table from here to the frame `end`.
    #[inline]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the entries of a table are few"
    )]
    pub(super) fn run(&self, end: u64) -> Range<usize> {
        let start = self.index();
        let frames = (end - self.gfn).div_ceil(span(self.level));
        let left = (ENTRIES - start) as u64;
        start..start + frames.min(left) as usize
    }

    /// Of the table that an entry of level 2 from here on links to: the entries from where the cursor has come to, up to `end`.
    #[inline]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the entries of a table are few"
    )]
    pub(super) fn part_of_child(&self, entry: usize, end: u64) -> Range<usize> {
        let gfn = self.gfn + (entry - self.index()) as u64 * span(self.level);
        let before = self.next.saturating_sub(gfn);
        before as usize..(end - gfn).min(ENTRIES as u64) as usize
    }

    /// Goes to the last entry of a run, all of whose entries have been seen to.
    #[inline]
    pub(super) fn finish(&mut self, run: &Range<usize>) {
        self.gfn += (run.len() as u64 - 1) * span(self.level);
        self.next = self.gfn;
    }
}
