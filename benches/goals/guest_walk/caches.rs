//! The floors of caches: packed tables, one comparison of page and tag each.

use slat::mmu::table::TableId;

use super::world::{Floor, word};
use super::{ADDRESS, Flat};

/// Root, role, address space and PCID as one number.
const TAG: u64 = 1;
/// What a kept translation allows.
const READ: u64 = 1;

const PAGES: usize = 4096;
const GUEST_TABLES: usize = 32;
const SECOND_TABLES: usize = 64;

/// A place by the low bits of a number.
#[inline]
fn place<const SLOTS: usize>(number: u64) -> usize {
    let [low, high, ..] = number.to_le_bytes();
    usize::from(u16::from_le_bytes([low, high])) % SLOTS
}

/// Translations of pages.
pub(super) struct PlainTlb {
    /// Page, tag, where it is with its rights.
    pages: Box<[(u64, u64, u64); PAGES]>,
}

impl PlainTlb {
    pub(super) fn new() -> Self {
        Self {
            pages: Box::new([(u64::MAX, 0, 0); PAGES]),
        }
    }

    #[inline]
    pub(super) fn find(&self, address: u64) -> Option<u64> {
        let page = address >> 12;
        let (kept, tag, hpa) = self.pages[place::<PAGES>(page)];
        let hit = kept == page && tag == TAG && hpa & READ != 0;
        hit.then_some(hpa & ADDRESS | address & 0xfff)
    }

    #[inline]
    pub(super) fn insert(&mut self, address: u64, hpa: u64) {
        let page = address >> 12;
        self.pages[place::<PAGES>(page)] = (page, TAG, hpa & ADDRESS | READ);
    }
}

/// All caches of a vCPU, with the guest behind.
pub(super) struct PlainCaches {
    tlb: PlainTlb,
    /// Tables of level 1 of the guest: the part of the address that leads there, tag, where it is for the guest.
    guest_tables: [(u64, u64, u64); GUEST_TABLES],
    /// The same of the second stage.
    second_tables: [(u64, u64, TableId); SECOND_TABLES],
    floor: Floor,
}

impl PlainCaches {
    pub(super) fn new(guest_tables: &Flat, pages: impl Iterator<Item = u64>) -> Self {
        Self {
            tlb: PlainTlb::new(),
            guest_tables: [(u64::MAX, 0, 0); GUEST_TABLES],
            second_tables: [(u64::MAX, 0, TableId::new(0)); SECOND_TABLES],
            floor: Floor::new(guest_tables, pages),
        }
    }

    /// An access under the lock, whose translation is kept.
    #[inline]
    pub(super) fn access(&mut self, address: u64) -> u64 {
        let _pin = self.floor.reader.pin();
        if let Some(hpa) = self.tlb.find(address) {
            return hpa;
        }
        let second = &self.floor.second;
        let mut leaf = |gpa: u64| {
            let prefix = gpa >> 21;
            let (kept, tag, table) = &mut self.second_tables[place::<SECOND_TABLES>(prefix)];
            if *kept != prefix || *tag != TAG {
                (*kept, *tag, *table) = (prefix, TAG, second.last_table(gpa));
            }
            second.leaf(*table, gpa)
        };
        let prefix = address >> 21;
        let (kept, tag, table) = &mut self.guest_tables[place::<GUEST_TABLES>(prefix)];
        if *kept != prefix || *tag != TAG {
            let mut entry = 0;
            for shift in [39, 30, 21] {
                let gpa = (entry & ADDRESS) + ((address >> shift & 511) << 3);
                entry = word(&self.floor.memory, leaf(gpa));
            }
            (*kept, *tag, *table) = (prefix, TAG, entry & ADDRESS);
        }
        let entry = word(
            &self.floor.memory,
            leaf(*table + ((address >> 12 & 511) << 3)),
        );
        let hpa = leaf(entry & ADDRESS | address & 0xfff);
        self.tlb.insert(address, hpa);
        hpa
    }
}
