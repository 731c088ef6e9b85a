//! A guest's own tables: 4 levels, of which the last is one table of pages and one that shows the tables themselves.

use std::sync::atomic::{AtomicU64, Ordering};

use slat_memslot::Gpa;

use crate::role::{Cr0, Cr4, Efer, VcpuState};
use crate::walk::{Exchange, TableMemory};

/// Frames of the tables: top, then down; the last-level tables of pages and of the window.
const TOP: u64 = 0x50;
pub(super) const PAGES: u64 = TOP + 3;
const WINDOW: u64 = TOP + 4;
/// Where the guest sees frame 0 by the window.
pub(super) const SEEN: u64 = 2 << 20;
/// Pages that the guest uses, and frames that they may be.
pub(super) const USED: u64 = 8;
pub(super) const FIRST: u64 = 0x10;
pub(super) const CHOICE: u64 = 0x30;
/// Present, writable, user.
const LINK: u64 = 7;

/// The words of the tables. Threads that look at them hold no lock.
#[derive(Debug)]
pub(super) struct Ram(Vec<AtomicU64>);

impl Ram {
    pub(super) fn new() -> Self {
        let ram = Self((0..5 * 512).map(|_| AtomicU64::new(0)).collect());
        for table in 0..3 {
            ram.set((TOP + table) << 12, (TOP + table + 1) << 12 | LINK);
        }
        ram.set(((TOP + 2) << 12) + 8, WINDOW << 12 | LINK);
        for table in TOP..=WINDOW {
            ram.set((WINDOW << 12) + table * 8, table << 12 | LINK | 0x60);
        }
        ram
    }

    /// The registers of a guest with these tables.
    pub(super) fn registers() -> VcpuState {
        VcpuState {
            cr0: Cr0::PG | Cr0::PE | Cr0::WP,
            cr3: TOP << 12,
            cr4: Cr4::PAE,
            efer: Efer::LME | Efer::LMA | Efer::NX,
            ..VcpuState::default()
        }
    }

    fn at(&self, place: u64) -> Option<&AtomicU64> {
        let word = place.checked_sub(TOP << 12)? / 8;
        self.0.get(usize::try_from(word).ok()?)
    }

    pub(super) fn set(&self, place: u64, word: u64) {
        self.at(place).unwrap().store(word, Ordering::Release);
    }
}

impl TableMemory for Ram {
    fn read_u64(&self, at: Gpa) -> Option<u64> {
        Some(self.at(at.raw())?.load(Ordering::Acquire))
    }

    fn compare_exchange_u64(&self, at: Gpa, current: u64, new: u64) -> Exchange {
        let Some(word) = self.at(at.raw()) else {
            return Exchange::Failed;
        };
        match word.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Exchange::Done,
            Err(_) => Exchange::Changed,
        }
    }
}
