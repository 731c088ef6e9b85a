//! Dirty logs.

use slat_memslot::{
    AsId, Buffer, ClearBits, Errno, Gfn, ManualProtect, Memory, PageSize, Pages, SlotKey,
};
use slat_mmu::spte::Format;
use slat_mmu::tdp::ByWhat;

use super::ShadowVm;
use crate::traces::Predicted;

/// Pages in a word of a bitmap.
const WORD: u64 = 64;

impl<F: Format> ShadowVm<F> {
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
            self.tell(Predicted::Dirty(pages.iter().collect()));
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

    /// Takes the entries out of a vCPU's dirty ring, and marks them as harvested.
    pub fn harvest_ring(&mut self, vcpu: u32) {
        let index = self.vcpus.keys().position(|id| *id == vcpu);
        let index = index.and_then(|index| u32::try_from(index).ok());
        let index = index.unwrap_or(u32::MAX);
        let taken = self.memory.harvest_dirty_ring(index).unwrap_or_default();
        for note in Predicted::rings(&taken) {
            self.tell(note);
        }
    }

    /// `KVM_RESET_DIRTY_RINGS` by a kernel that forgets what it is for.
    pub(crate) fn forget_rings(&mut self) {
        let freed = self.memory.free_dirty_rings();
        let count = freed.map(|freed| i64::try_from(freed.count).unwrap_or(i64::MAX));
        self.answer(count.map_err(|refusal| refusal.errno()));
    }

    /// `KVM_RESET_DIRTY_RINGS`: what was harvested is watched anew.
    pub fn reset_rings(&mut self) {
        let freed = self.memory.free_dirty_rings();
        for (key, window) in freed.iter().flat_map(|freed| freed.rearm.clone()) {
            self.enable_log(key, window.offset, window.mask);
        }
        let count = freed.map(|freed| i64::try_from(freed.count).unwrap_or(i64::MAX));
        self.answer(count.map_err(|refusal| refusal.errno()));
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
        let manual = self.memory.manual_protect();
        let by = match self.mmu.codec().host().pml() {
            true => ByWhat::DirtyBit,
            false => ByWhat::WriteProtection,
        };
        let mut locked = self.mmu.lock(&mut self.out);
        if manual.contains(ManualProtect::INITIALLY_SET) {
            // Huge pages were left alone when the log was switched on.
            let part = |bits: u32| Gfn::new(first.raw() + u64::from(bits));
            let (start, last) = (part(mask.trailing_zeros()), part(63 - mask.leading_zeros()));
            let huge = PageSize::Size2M;
            locked.write_track(key.as_id, start, huge);
            if start.round_down(huge.level()) != last.round_down(huge.level()) {
                locked.write_track(key.as_id, last, huge);
            }
        }
        locked.clear_dirty_masked(key.as_id, first, mask, by);
    }
}

/// Pages that KVM itself has written to are dirty.
pub(super) fn mark_dirtied(memory: &mut Memory, vcpu: u32, dirtied: Vec<(AsId, Gfn)>) {
    for (as_id, gfn) in dirtied {
        let _ = memory.mark_dirty(vcpu, as_id, gfn);
    }
}
