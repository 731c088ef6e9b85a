//! The test's tables: where they are, what is in them, and which addresses go through them.

use std::cell::Cell;

use slat_memslot::{Gpa, Gva};
use slat_mmu::fault::Kind;
use slat_mmu::role::Cr4;
use slat_mmu::walk::{Exchange, PagingMode, Privilege, TableMemory};

use super::super::{CpuState, Memory, RAM_PAGES};
use super::{ProtectionKeys, Tried, UserHalf};
use crate::differential::dice::Dice;

/// The first of the pages that hold the test's tables.
pub const TEST_TABLES: u64 = 32;
/// How many there are.
pub const TABLE_PAGES: u64 = 8;
/// Where the pages begin that accesses may reach: 2 MiB.
pub const DATA: u64 = 2 << 20;
/// All pages of the guest.
pub const MEMORY_PAGES: u64 = 1024;
/// Where the pages that accesses may reach are a second time, seen from these addresses: each with other bits above 32.
pub const HIGH: [u64; 4] = [1 << 32, 0xa << 32, 0x31 << 32, 0xc0 << 32];

/// What memory is filled with that accesses may reach.
const HALTS: u64 = 0xf4f4_f4f4_f4f4_f4f4;
/// The words of a page.
const PAGE_WORDS: usize = 512;

/// Where a word of the list of words is: the top table comes first, then the test's tables.
pub const fn place_of(index: usize) -> u64 {
    let byte = 8 * index as u64;
    match index {
        0..PAGE_WORDS => byte,
        _ => byte - (1 << 12) + (TEST_TABLES << 12),
    }
}

/// Where an address is in the pages that accesses may reach, from address 0 of the guest's memory on.
pub const fn data_offset(gpa: Gpa) -> Option<u64> {
    let (base, offset) = (gpa.raw() & !0xffff_ffff, gpa.raw() & 0xffff_ffff);
    let [a, b, c, d] = HIGH;
    if !matches!(base, 0) && base != a && base != b && base != c && base != d {
        return None;
    }
    match offset {
        DATA..MEMORY_END => Some(offset),
        _ => None,
    }
}

const MEMORY_END: u64 = MEMORY_PAGES << 12;

/// The tables for the model: the words that the guest has.
#[derive(Debug)]
pub(super) struct Tables(Vec<Cell<u64>>);

impl Tables {
    pub(super) fn new(words: &[u64]) -> Self {
        Self(words.iter().copied().map(Cell::new).collect())
    }

    pub(super) fn words(&self) -> Vec<u64> {
        self.0.iter().map(Cell::get).collect()
    }

    /// Whether an address is in one of the tables.
    pub(super) fn has(at: Gpa) -> bool {
        Self::index(at).is_some()
    }

    fn index(at: Gpa) -> Option<usize> {
        let (page, word) = (at.raw() >> 12, at.raw() >> 3 & 0x1ff);
        let table = match page {
            0 => 0,
            TEST_TABLES.. if page < TEST_TABLES + TABLE_PAGES => page - TEST_TABLES + 1,
            _ => return None,
        };
        usize::try_from(table << 9 | word).ok()
    }

    fn word(&self, at: Gpa) -> Option<&Cell<u64>> {
        self.0.get(Self::index(at)?)
    }
}

impl TableMemory for Tables {
    fn read_u64(&self, at: Gpa) -> Option<u64> {
        match self.word(at) {
            Some(word) => Some(word.get()),
            // Memory that is there: no table of the test's links there but by a flipped bit, and no such walk counts.
            None if at.raw() < MEMORY_END => Some(HALTS),
            None => None,
        }
    }

    fn compare_exchange_u64(&self, at: Gpa, current: u64, new: u64) -> Exchange {
        match self.word(at) {
            None => Exchange::Failed,
            Some(word) if word.get() != current => Exchange::Changed,
            Some(word) => {
                word.set(new);
                Exchange::Done
            }
        }
    }
}

/// How the test's tables hang together, so that walks go deep.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// The level of each.
    levels: [u8; 8],
    /// The level of the guest's top table, which is no test's.
    top: u8,
}

impl Plan {
    const fn of(mode: PagingMode) -> Self {
        let (levels, top) = match mode {
            PagingMode::Level5 => ([4, 3, 2, 2, 1, 1, 1, 1], 5),
            PagingMode::Pae => ([2, 2, 2, 2, 1, 1, 1, 1], 3),
            PagingMode::Bits32 | PagingMode::Bits32Pse => ([1; 8], 2),
            _ => ([3, 3, 2, 2, 1, 1, 1, 1], 4),
        };
        Self { levels, top }
    }

    /// One of the tables below a level.
    fn below(self, level: u8, choice: u64) -> u64 {
        let is_below = |table: &u64| {
            let index = usize::try_from(*table).unwrap_or(0);
            self.levels[index] + 1 == level
        };
        let count = (0..TABLE_PAGES).filter(is_below).count() as u64;
        let nth = usize::try_from(choice % count.max(1)).unwrap_or(0);
        TEST_TABLES + (0..TABLE_PAGES).filter(is_below).nth(nth).unwrap_or(0)
    }
}

/// Generated entries, moved to where the test's tables are, with leaves in the pages that accesses may reach.
pub(super) fn tables(state: &CpuState, generated: &Memory, dice: &mut Dice) -> Vec<u64> {
    let plan = Plan::of(state.mode);
    let narrow = matches!(state.mode, PagingMode::Bits32 | PagingMode::Bits32Pse);
    let count = PAGE_WORDS * (1 + usize::try_from(TABLE_PAGES).unwrap_or(0));
    (0..count)
        .map(|index| {
            let word = generated.ram[index % generated.ram.len()].get();
            let level = match (index / PAGE_WORDS).checked_sub(1) {
                None => plan.top,
                Some(table) => plan.levels[table],
            };
            let mut moved = |entry| moved(entry, (plan, level), state.mode, dice);
            match (narrow, state.mode, index) {
                (true, ..) => moved(word & 0xffff_ffff) | moved(word >> 32) << 32,
                // A pointer that can be loaded: no bit but the first. Behind the pointers is nothing.
                (_, PagingMode::Pae, 0..4) => {
                    let present = u64::from(word & 0xf != 0);
                    plan.below(plan.top, word >> 12) << 12 | present
                }
                (_, PagingMode::Pae, 4..PAGE_WORDS) => 0,
                _ => moved(word),
            }
        })
        .collect()
}

/// An entry of a table.
fn moved(entry: u64, (plan, level): (Plan, u8), mode: PagingMode, dice: &mut Dice) -> u64 {
    let leaf = level == 1 || entry & 1 << 7 != 0 && mode != PagingMode::Bits32;
    let long = matches!(mode, PagingMode::Level4 | PagingMode::Level5);
    let narrow = matches!(mode, PagingMode::Bits32 | PagingMode::Bits32Pse);
    let frame = entry >> 12 & 0xff_ffff;
    let low = entry & !(0xff_ffff << 12);
    if frame >= RAM_PAGES && entry & 1 << 7 == 0 {
        // Meant to be wrong.
        return entry;
    }
    if !leaf {
        return low | plan.below(level, frame) << 12;
    }
    let base = match level {
        1 => (DATA >> 12) + frame % RAM_PAGES,
        // The leaf that begins at 2 MiB; larger ones begin at 0 and have these pages in them.
        2 if !narrow && dice.percent(80) => DATA >> 12,
        2 | 3 if dice.percent(80) => 0,
        _ => frame,
    };
    let high = if dice.percent(25) {
        dice.pick(&HIGH)
    } else {
        0
    };
    let high = match (narrow, level) {
        (false, _) => high,
        // PSE-36: bits 20 to 13 of the leaf.
        (true, 2) => high >> 32 << 13,
        (true, _) => 0,
    };
    let key = if long { dice.below(16) << 59 } else { 0 };
    low | base << 12 | high | key
}

/// An access through the test's tables.
pub(super) fn tried(
    state: &CpuState,
    half: UserHalf,
    keys: ProtectionKeys,
    dice: &mut Dice,
) -> Tried {
    let privilege = dice.pick(&[Privilege::User, Privilege::Supervisor]);
    let lower = privilege == Privilege::User && half == UserHalf::Lower;
    let kind = dice.pick(&[Kind::Read, Kind::Write, Kind::Execute]);
    let mut address = address(state.mode, lower, dice);
    if kind == Kind::Execute {
        // The emulator reads up to 15 bytes of an instruction: they must be in the same page, or the next one is marked as
        // accessed too.
        address = address & !0xfff | ((address & 0xfff) % 0xff0);
    }
    let pkru = match keys {
        ProtectionKeys::Work if state.cr4.contains(Cr4::PKE) => {
            let [low, high] = [dice.bits(), dice.bits()].map(|bits| bits & 0xffff_ffff);
            // Most keys allow everything.
            u32::try_from(low & high).unwrap_or(0)
        }
        _ => 0,
    };
    Tried {
        kind,
        privilege,
        address: Gva::new(address),
        pkru,
    }
}

fn address(mode: PagingMode, lower: bool, dice: &mut Dice) -> u64 {
    let bits = dice.bits();
    // The first entry of the top table is the guest's own.
    let mut top = |entries: u64, first: u64| {
        let entries = if lower { entries / 2 } else { entries };
        first + dice.below(entries - first)
    };
    let address = match mode {
        PagingMode::Level5 => top(512, 1) << 48 | bits & 0xffff_ffff_ffff,
        PagingMode::Pae => top(4, 1) << 30 | bits & 0x3fff_ffff,
        PagingMode::Bits32 | PagingMode::Bits32Pse => top(1024, 2) << 22 | bits & 0x3f_ffff,
        _ => top(512, 1) << 39 | bits & 0x7f_ffff_ffff,
    };
    // In leaves of 1 GiB and 4 MiB only the second 2 MiB may be reached.
    let address = match mode {
        PagingMode::Bits32 | PagingMode::Bits32Pse if dice.percent(50) => address | 1 << 21,
        PagingMode::Level4 | PagingMode::Level5 if dice.percent(25) => {
            address & !(0x1ff << 21) | 1 << 21
        }
        _ => address,
    };
    match mode {
        PagingMode::Level4 if address >> 47 != 0 => address | 0xffff << 48,
        PagingMode::Level5 if address >> 56 != 0 => address | 0x7f << 57,
        _ => address,
    }
}
