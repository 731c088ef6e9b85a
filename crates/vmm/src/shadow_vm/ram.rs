//! The words of guest memory that matter: its page tables.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use slat_memslot::{AsId, Gpa, Memory, Slot};
use slat_mmu::fault::Settings;
use slat_mmu::role::PageRole;
use slat_mmu::shadow::Shadowed;
use slat_mmu::walk::{Exchange, GuestPaging, TableMemory};

use crate::tdp_vm::{Paging, SecondStageOfL2};

/// Guest memory, all zero but for the words that were written.
#[derive(Debug, Default)]
pub(crate) struct Ram {
    /// What was made in the guest's own addresses, wherever slots have them.
    words: BTreeMap<u64, AtomicU64>,
    /// What was written into the host's memory.
    host: BTreeMap<u64, AtomicU64>,
}

/// Present, writable, for user mode; and a page of 2 MiB.
const LINK: u64 = 7;
const HUGE_LEAF: u64 = 0x87;

impl Ram {
    /// What an address space has of it.
    pub(super) const fn view<'v>(&'v self, memory: &'v Memory, as_id: AsId) -> RamView<'v> {
        RamView {
            ram: self,
            memory,
            as_id,
        }
    }

    pub(super) fn write(&mut self, at: u64, word: u64) {
        self.words.insert(at & !7, AtomicU64::new(word));
    }

    /// Memory of the host is written to: some low bytes of a value, inside of a word.
    pub(crate) fn write_host(&mut self, at: u64, (len, value): (u8, u64)) {
        let word = self.host.entry(at & !7).or_default().get_mut();
        let shift = (at & 7) * 8;
        let mask = match len {
            8 => u64::MAX,
            len => ((1 << (u32::from(len) * 8)) - 1) << shift,
        };
        *word = *word & !mask | value << shift & mask;
    }

    /// Makes the tables of a guest in long mode.
    pub(super) fn make_tables(&mut self, paging: &Paging) {
        let Paging::Long { cr3, pages } = paging else {
            return;
        };
        let table = |number: u64| cr3.raw() + (number << 12);
        self.write(table(0), table(1) | LINK);
        self.write(table(1), table(2) | LINK);
        for huge in 0..512 {
            self.write(table(2) + huge * 8, huge << 21 | HUGE_LEAF);
        }
        for (gva, gpa) in pages {
            let (gib, huge) = (gva >> 30 & 0x1ff, gva >> 21 & 0x1ff);
            self.write(table(1) + gib * 8, table(2 + gib) | LINK);
            self.write(table(2 + gib) + huge * 8, gpa.raw() | HUGE_LEAF);
        }
    }

    /// Makes the tables that the recorded programs give to L2: 16 small pages from 0, and a huge one at 4 MiB. Frames are the
    /// same for L1.
    pub(crate) fn make_l2_tables(&mut self, tables: &SecondStageOfL2) {
        // A program that writes its tables itself writes all of them.
        if !self.host.is_empty() {
            return;
        }
        let (top, memory_type) = match tables {
            SecondStageOfL2::Npt { cr3 } => (cr3.raw(), 0),
            SecondStageOfL2::Ept { pointer } => (pointer & !0xfff, WRITE_BACK),
        };
        let table = |number: u64| top + (number << 12);
        for number in 0..3 {
            self.write(table(number), table(number + 1) | LINK);
        }
        self.write(table(2) + 2 * 8, 0x40_0000 | HUGE_LEAF | memory_type);
        for page in 0..16 {
            self.write(table(3) + page * 8, page << 12 | LINK | memory_type);
        }
    }
}

/// The memory type of EPT leaves.
const WRITE_BACK: u64 = 6 << 3;

/// The memory of an address space.
#[derive(Clone, Copy, Debug)]
pub(super) struct RamView<'v> {
    ram: &'v Ram,
    memory: &'v Memory,
    as_id: AsId,
}

impl RamView<'_> {
    /// What shadow pages follow there.
    pub(super) const fn followed<'g>(
        &'g self,
        paging: &'g GuestPaging,
        settings: Settings,
        role: PageRole,
    ) -> Shadowed<'g, Self> {
        Shadowed {
            paging,
            tables: self,
            memory: self.memory,
            settings,
            role,
        }
    }

    fn slot(&self, at: Gpa) -> Option<&Slot> {
        self.memory.space(self.as_id).by_gfn(at.gfn())
    }

    fn word(&self, slot: &Slot, at: Gpa) -> Option<&AtomicU64> {
        let in_host = || {
            let hva = slot.hva_of(at.gfn())?.raw() | at.raw() & 0xfff;
            self.ram.host.get(&hva)
        };
        self.ram.words.get(&at.raw()).or_else(in_host)
    }
}

impl TableMemory for RamView<'_> {
    fn read_u64(&self, at: Gpa) -> Option<u64> {
        let word = self.word(self.slot(at)?, at);
        Some(word.map_or(0, |word| word.load(Ordering::Acquire)))
    }

    fn compare_exchange_u64(&self, at: Gpa, current: u64, new: u64) -> Exchange {
        let Some(slot) = self.slot(at) else {
            return Exchange::Failed;
        };
        if slot.is_readonly() {
            return Exchange::ReadOnly;
        }
        let Some(word) = self.word(slot, at) else {
            return Exchange::Failed;
        };
        match word.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Exchange::Done,
            Err(_) => Exchange::Changed,
        }
    }
}
