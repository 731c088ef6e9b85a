//! Dirty logs.

use slat_memslot::{
    Buffer, ClearBits, Errno, Gfn, GfnRange, ManualProtect, PageSize, Pages, SlotKey,
};
use slat_mmu::spte::Format;
use slat_mmu::tdp::ByWhat;

use super::TdpVm;
use crate::traces::Predicted;

/// Pages in a word of a bitmap.
const WORD: u64 = 64;

impl<F: Format> TdpVm<F> {
    /// `KVM_GET_DIRTY_LOG`: what is read is watched anew, unless that is done by hand.
    pub fn get_dirty_log(&mut self, slot: u32) {
        let key = self.memory.check_get_dirty_log(slot);
        let pages = self.memory.get_dirty_log(slot, Buffer::Good);
        let manual = self.memory.manual_protect().contains(ManualProtect::ENABLE);
        if let (Ok(key), Ok(pages), false) = (&key, &pages, manual) {
            self.watch_anew(*key, &pages.to_words());
        }
        self.answer(pages.as_ref().map(|_| 0).map_err(|r| r.errno()));
        if let Ok(pages) = pages {
            self.out
                .events
                .push(Predicted::Dirty(pages.iter().collect()));
        }
    }

    /// `KVM_CLEAR_DIRTY_LOG` with all bits set: what was dirty is watched anew.
    pub fn clear_dirty_log(&mut self, slot: u32, first: u64, pages: Pages) {
        let result = self.clear(slot, first, pages);
        self.answer(result.map(|()| 0));
    }

    fn clear(&mut self, slot: u32, first: u64, pages: Pages) -> Result<(), Errno> {
        let (memory, bits) = (&mut self.memory, ClearBits::All);
        let count = u32::try_from(pages.raw()).map_err(|_| Errno::EINVAL)?;
        let key = memory.check_clear_dirty_log(slot, first, count, &bits);
        let key = key.map_err(|refusal| refusal.errno())?;
        let log = memory.slot(slot).and_then(slat_memslot::Slot::dirty);
        let mut words = log.map(|log| log.get().to_words()).unwrap_or_default();
        let cleared = memory.clear_dirty_log(slot, first, count, &bits);
        cleared.map_err(|refusal| refusal.errno())?;
        let wanted = first..first + pages.raw();
        for (at, word) in (0..).zip(&mut words) {
            let bit = |bit: u64| u64::from(wanted.contains(&(at * WORD + bit))) << bit;
            *word &= (0..WORD).map(bit).sum::<u64>();
        }
        self.watch_anew(key, &words);
        Ok(())
    }

    fn watch_anew(&mut self, key: SlotKey, words: &[u64]) {
        for (at, mask) in (0..).zip(words) {
            if *mask != 0 {
                self.enable_log(key, at * WORD, *mask);
            }
        }
    }

    /// Lets the next writes to some of 64 pages of a slot show (`mmu.c:kvm_arch_mmu_enable_log_dirty_pt_masked`).
    fn enable_log(&mut self, key: SlotKey, offset: u64, mask: u64) {
        let slot = self.memory.space(key.as_id).by_id(key.id);
        let Some(start) = slot.map(|slot| slot.range().start()) else {
            return;
        };
        let first = start + Pages::new(offset);
        let initially_set = self
            .memory
            .manual_protect()
            .contains(ManualProtect::INITIALLY_SET);
        if initially_set {
            self.protect_huge(key, first, mask);
        }
        let by = if self.tables.codec().host().pml() {
            ByWhat::DirtyBit
        } else {
            ByWhat::WriteProtection
        };
        let mut locked = self.tables.exclusive(&mut self.out);
        locked.clear_dirty(key.as_id, by).word(first, mask);
    }

    /// Huge pages were left alone when the log was switched on: now they are split, or at least protected.
    fn protect_huge(&mut self, key: SlotKey, first: Gfn, mask: u64) {
        let start = first + Pages::new(u64::from(mask.trailing_zeros()));
        let last = first + Pages::new(u64::from(63 - mask.leading_zeros()));
        let end = last + Pages::new(1);
        if let Some(range) = GfnRange::between(start, end) {
            self.split_eagerly(key, range);
        }
        let mut locked = self.tables.exclusive(&mut self.out);
        locked.write_track(key.as_id, start, PageSize::Size2M);
        let level = PageSize::Size2M.level();
        if start.round_down(level) != last.round_down(level) {
            locked.write_track(key.as_id, last, PageSize::Size2M);
        }
    }
}
