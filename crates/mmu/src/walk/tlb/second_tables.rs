//! Tables of the second stage that its walks begin at.

use core::ops::Range;

use slat_memslot::{Gfn, Level};

use super::context::Context;
use crate::table::{TableId, first, span};
use crate::tdp::Reached;

/// How many tables of level 1 are kept, and how many of level 2.
const SLOTS: [usize; 2] = [64, 16];

/// A table of the second stage: all links above it allow everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SecondTable {
    pub(super) context: Context,
    /// The first frame that it maps.
    pub(super) first: u64,
    pub(super) reached: Reached,
}

impl SecondTable {
    /// The frames that it maps.
    pub(super) const fn frames(&self) -> Range<u64> {
        let frames = span(covered(self.reached.level));
        self.first..self.first + frames
    }
}

/// Each level direct-mapped by frame.
#[derive(Clone, Debug)]
pub(super) struct SecondTables {
    low: [Option<SecondTable>; SLOTS[0]],
    high: [Option<SecondTable>; SLOTS[1]],
}

impl Default for SecondTables {
    fn default() -> Self {
        Self {
            low: [None; SLOTS[0]],
            high: [None; SLOTS[1]],
        }
    }
}

/// The level of the entry that covers what a table of this level maps.
const fn covered(level: Level) -> Level {
    match level {
        Level::L1 => Level::L2,
        _ => Level::L3,
    }
}

/// The place of a table among those of its level.
#[inline]
fn slot(first: u64, level: Level, slots: usize) -> usize {
    let [low, ..] = (first / span(covered(level))).to_le_bytes();
    usize::from(low) % slots
}

impl SecondTables {
    /// The table of level 1 for a frame.
    #[inline]
    pub(super) fn last(&self, context: &Context, gfn: Gfn) -> Option<TableId> {
        let low = first(gfn.raw(), Level::L2);
        let found = matching(&self.low[slot(low, Level::L1, SLOTS[0])], context, low)?;
        Some(found.table)
    }

    /// The lowest table that is kept for a frame.
    #[inline]
    pub(super) fn find(&self, context: &Context, gfn: Gfn) -> Option<Reached> {
        let low = first(gfn.raw(), Level::L2);
        let found = matching(&self.low[slot(low, Level::L1, SLOTS[0])], context, low);
        found.or_else(|| {
            let high = first(gfn.raw(), Level::L3);
            matching(&self.high[slot(high, Level::L2, SLOTS[1])], context, high)
        })
    }

    /// Keeps a table that was come to on the way to a frame, if it is of level 1 or 2.
    pub(super) fn insert(&mut self, context: &Context, gfn: Gfn, reached: Reached) {
        let level = reached.level;
        let first = first(gfn.raw(), covered(level));
        let kept = SecondTable {
            context: *context,
            first,
            reached,
        };
        match level {
            Level::L1 => self.low[slot(first, level, SLOTS[0])] = Some(kept),
            Level::L2 => self.high[slot(first, level, SLOTS[1])] = Some(kept),
            Level::L3 | Level::L4 | Level::L5 => {}
        }
    }

    pub(super) fn retain(&mut self, keep: impl Fn(&SecondTable) -> bool) {
        for slot in self.low.iter_mut().chain(&mut self.high) {
            if slot.as_ref().is_some_and(|table| !keep(table)) {
                *slot = None;
            }
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &SecondTable> {
        self.low.iter().chain(&self.high).flatten()
    }
}

#[inline]
fn matching(slot: &Option<SecondTable>, context: &Context, first: u64) -> Option<Reached> {
    let table = slot.as_ref()?;
    (table.first == first && table.context.same_second(context)).then_some(table.reached)
}
