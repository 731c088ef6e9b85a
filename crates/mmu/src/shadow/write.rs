//! Writes to shadowed tables that KVM has emulated (`mmu.c:kvm_mmu_track_write`).

use core::ops::Range;

use slat_memslot::{Gfn, Gpa, Level};

use super::beside::TdpBeside;
use super::held::ShadowLocked;
use super::page::{Page, PageId, SpteRef};
use super::zap::Parentless;
use crate::role::RoleFlag;
use crate::spte::Format;
use crate::sync::Ordering;
use crate::tdp::Observer;

/// A write that was emulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmulatedWrite {
    /// Where.
    pub gpa: Gpa,
    /// How many bytes.
    pub len: u8,
    /// Whether the entry that was written is anything but 0 now.
    pub present: EntryWritten,
}

/// What an entry is after a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryWritten {
    /// All zero, or the write is not of an entry's size.
    Zero,
    /// Anything else.
    NotZero,
}

impl<F: Format, O: Observer<F>, T: TdpBeside<F>> ShadowLocked<'_, F, O, T> {
    /// Zaps what a write has changed in pages that follow the table. A page that is written to too often, or in a way that
    /// no table is, goes altogether.
    pub fn track_write(&mut self, write: &EmulatedWrite) {
        if !self.mmu.has_indirect() {
            return;
        }
        self.mmu.stats.mmu_pte_write += 1;
        let mut flush = false;
        for id in self.followers(write.gpa.gfn()) {
            if self
                .mmu
                .pages
                .try_get(id)
                .is_none_or(|page| page.role.is_invalid())
            {
                continue;
            }
            if is_odd(self.mmu.pages.get(id), write) || self.is_flooded(id) {
                self.prepare_zap(id);
                self.mmu.stats.mmu_flooded += 1;
                continue;
            }
            for index in written(self.mmu.pages.get(id), write.gpa) {
                flush |= self.zap_written(SpteRef { page: id, index }, write);
            }
        }
        self.flush_or_zap(flush);
    }

    fn zap_written(&mut self, at: SpteRef, write: &EmulatedWrite) -> bool {
        let was_present = self.entry(at).is_present();
        self.zap_entry(at, Parentless::Keep);
        let above = self.mmu.pages.get(at.page).level() > Level::L1;
        if write.present == EntryWritten::NotZero && above {
            self.mmu.stats.mmu_pde_zapped += 1;
        }
        was_present
    }

    /// Pages of the last level fall out of step instead, and then their tables can be written to.
    fn is_flooded(&mut self, id: PageId) -> bool {
        let page = self.mmu.pages.get(id);
        if page.level() == Level::L1 {
            return false;
        }
        page.write_flooding.fetch_add(1, Ordering::Relaxed) + 1 >= self.mmu.rules.flood
    }

    /// Zaps the pages that follow a table in a frame, so that the guest can write to it; says whether there were any
    /// (`mmu.c:kvm_mmu_unprotect_gfn_and_retry`).
    pub fn unprotect(&mut self, gfn: Gfn) -> bool {
        let pages = self.followers(gfn);
        for page in &pages {
            if self
                .mmu
                .role_of(*page)
                .is_some_and(|role| !role.is_invalid())
            {
                self.prepare_zap(*page);
            }
        }
        let any = !self.invalid.is_empty();
        self.commit_zap();
        any
    }
}

/// A write that is none of a table's: across entries, or of less than four bytes, unless it is a single byte at the begin of
/// an entry.
fn is_odd<F>(page: &Page<F>, write: &EmulatedWrite) -> bool {
    let size = page.entry_size().bytes();
    let (first, len) = (write.gpa.raw() & 0xfff, u64::from(write.len));
    if first % size == 0 && len == 1 {
        return false;
    }
    let last = first + len.saturating_sub(1);
    first / size != last / size || len < 4
}

/// The entries of a page that follow what was written (`mmu.c:get_written_sptes`).
fn written<F>(page: &Page<F>, gpa: Gpa) -> Range<u16> {
    let entry = gpa.raw() & 0xfff;
    if !page.role.has(RoleFlag::FourByteGpte) {
        let index = low(entry / 8);
        return index..index + 1;
    }
    // Twice as many entries as a page has; one of a page directory takes two, since it covers 4 MiB.
    let (number, each) = match page.level() {
        Level::L1 => (low(entry / 4), 1),
        _ => (low(entry / 4) * 2, 2),
    };
    if number / 512 != page.role.quadrant() as u16 {
        return 0..0;
    }
    let index = number % 512;
    index..index + each
}

fn low(number: u64) -> u16 {
    let [a, b, ..] = number.to_le_bytes();
    u16::from_le_bytes([a, b])
}
