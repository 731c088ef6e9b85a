//! The guest's tables: which there are, and what is in them.

use slat_memslot::{Hva, PAGE_SHIFT, PAGE_SIZE};

use super::slots::{END_FRAME, FIRST_FRAME};
use super::{AREAS, HUGE, Writer};
use crate::traces::Op;

/// How many pages may be tables, and the first of them.
pub(super) const TABLES: u64 = 64;
pub(super) const FIRST_TABLE: u64 = 0x10;
/// Which of them are meant for a level: from this one on, so many.
pub(super) const OF_LEVEL: [(u64, u64); 4] = [(20, 44), (8, 12), (3, 5), (0, 3)];

/// How many of a hundred of them have something in the beginning.
const FILLED: [u64; 4] = [85, 95, 100, 100];
/// How many of a hundred links lead to a table that is meant for the level below.
const FITTING: [u64; 4] = [0, 88, 95, 97];

/// Entries from the first one that are in use, by level.
const USED: [u64; 4] = [12, 6, 3, 3];

pub(super) const PRESENT: u64 = 1 << 0;
pub(super) const WRITE: u64 = 1 << 1;
pub(super) const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const PAGE_SIZE_BIT: u64 = 1 << 7;
const NX: u64 = 1 << 63;

/// An entry of a guest's table: which table, and which of its entries.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) table: u64,
    pub(super) index: u64,
}

impl Place {
    pub(super) const fn hva(self) -> Hva {
        let page = AREAS[1].start.raw() + self.table * PAGE_SIZE;
        Hva::new(page + self.index * 8)
    }
}

impl Writer {
    /// Entries before anything runs: most of those that are used.
    pub(super) fn first_tables(&mut self) {
        for level in (0..4).rev() {
            let (first, count) = OF_LEVEL[level];
            for table in first..first + count {
                // Memory begins with an instruction that halts, which is an entry here.
                let begin = if level < 3 { 0 } else { 1 };
                for index in begin..USED[level] {
                    let value = match index == 0 || self.dice.percent(FILLED[level]) {
                        true => self.entry(level),
                        false => continue,
                    };
                    let hva = Place { table, index }.hva();
                    self.push(Op::Poke { hva, value });
                }
            }
        }
    }

    /// An index that tables of a level use.
    pub(super) fn index(&mut self, level: usize) -> u64 {
        match level {
            3 => 1 + self.dice.below(USED[3] - 1),
            _ => self.dice.below(USED[level]),
        }
    }

    /// An address, often in the same few places.
    pub(super) fn address(&mut self, offset: u64) -> u64 {
        let parts = (0..4).map(|level| self.index(level) << (12 + 9 * level));
        parts.sum::<u64>() + offset
    }

    pub(super) fn poke(&mut self) {
        let level = self.some_level();
        let (first, count) = OF_LEVEL[level];
        let table = first + self.dice.below(count);
        let (index, value) = (self.index(level), self.entry(level));
        let hva = Place { table, index }.hva();
        self.push(Op::Poke { hva, value });
    }

    /// A level, from 0 for the last: mostly that.
    pub(super) fn some_level(&mut self) -> usize {
        match self.dice.below(20) {
            0..9 => 0,
            9..14 => 1,
            14..18 => 2,
            _ => 3,
        }
    }

    /// An entry for a table of a level, from 0 for the last.
    pub(super) fn entry(&mut self, level: usize) -> u64 {
        let mut bit = |percent, bit| if self.dice.percent(percent) { bit } else { 0 };
        let rights = match level {
            0 => bit(95, PRESENT) | bit(82, WRITE) | bit(90, USER) | bit(6, NX),
            1 => bit(98, PRESENT) | bit(93, WRITE) | bit(96, USER) | bit(3, NX),
            _ => bit(99, PRESENT) | bit(97, WRITE) | bit(98, USER) | bit(1, NX),
        };
        let marks = bit(45, ACCESSED) | bit(1, 1 << 4) | bit(1, 1 << 8);
        let reserved = if level < 2 { bit(1, 1 << 51) } else { 0 };
        let ignored = bit(2, 1 << 52) | reserved;
        let rights = rights | marks | ignored;
        match level {
            0 => {
                let dirty = if self.dice.percent(40) { DIRTY } else { 0 };
                rights | dirty | self.frame() << PAGE_SHIFT
            }
            1 if self.dice.percent(25) => {
                let dirty = if self.dice.percent(40) { DIRTY } else { 0 };
                let frame = FIRST_FRAME + self.dice.below((END_FRAME - FIRST_FRAME) / HUGE) * HUGE;
                rights | dirty | PAGE_SIZE_BIT | frame << PAGE_SHIFT
            }
            _ => {
                let below = if self.dice.percent(FITTING[level]) {
                    OF_LEVEL[level - 1]
                } else {
                    (3, TABLES - 3)
                };
                let table = below.0 + self.dice.below(below.1);
                rights | (FIRST_TABLE + table) << PAGE_SHIFT
            }
        }
    }

    /// A frame that small leaves map: memory, tables, or nothing.
    pub(super) fn frame(&mut self) -> u64 {
        match self.dice.below(100) {
            0..30 => FIRST_TABLE + 3 + self.dice.below(TABLES - 3),
            30..95 if !self.slots.is_empty() => {
                let slot = self.dice.pick(&self.slots);
                let pages = slot.pages.raw().max(1);
                let offset = match self.dice.below(3) {
                    0 => self.dice.below(pages),
                    _ => self.dice.below(pages.min(12)),
                };
                slot.gfn.raw() + offset
            }
            _ => FIRST_FRAME + self.dice.below(END_FRAME - FIRST_FRAME),
        }
    }
}
