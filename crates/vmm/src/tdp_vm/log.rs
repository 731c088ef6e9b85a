//! Dirty logs.

use slat_memslot::{
    Buffer, Call, ClearBits, DirtyBitmap, DirtyPages, DirtyWindow, Gfn, GfnRange, ManualProtect,
    Outcome, PageSize, Pages, Refusal, SlotKey,
};
use slat_mmu::spte::Format;
use slat_mmu::tdp::ByWhat;

use super::TdpVm;
use super::call::to_clear;
use crate::traces::Predicted;

impl<F: Format> TdpVm<F> {
    /// `KVM_GET_DIRTY_LOG`: what is read is watched anew, unless that is done by hand.
    pub fn get_dirty_log(&mut self, slot: u32) {
        let _ = self.call(&Call::GetDirtyLog {
            slot,
            buffer: Buffer::Good,
        });
    }

    /// `KVM_CLEAR_DIRTY_LOG` with all bits set: what was dirty is watched anew.
    pub fn clear_dirty_log(&mut self, slot: u32, first: u64, pages: Pages) {
        let _ = self.call(&Call::ClearDirtyLog {
            slot,
            first_page: first,
            num_pages: u32::try_from(pages.raw()).unwrap_or(u32::MAX),
            bits: ClearBits::All,
        });
    }

    /// The log of a slot as it is. With a buffer that cannot be written, pages are watched anew all the same.
    pub(super) fn read_dirty_log(
        &mut self,
        slot: u32,
        buffer: Buffer,
    ) -> Result<DirtyPages, Refusal> {
        let key = self.memory.check_get_dirty_log(slot)?;
        let dirty = self.dirty_pages(key);
        let result = self.memory.get_dirty_log(slot, buffer);
        let manual = self.memory.manual_protect().contains(ManualProtect::ENABLE);
        if let (Some(dirty), false) = (dirty, manual) {
            self.watch_anew(key, dirty.windows());
        }
        result
    }

    pub(super) fn forget_dirty(
        &mut self,
        slot: u32,
        first: u64,
        count: u32,
        bits: &ClearBits,
    ) -> Result<Outcome, Refusal> {
        let key = self
            .memory
            .check_clear_dirty_log(slot, first, count, bits)?;
        let dirty = self.dirty_pages(key);
        let result = self.memory.clear_dirty_log(slot, first, count, bits)?;
        if let Some(dirty) = dirty {
            self.watch_anew(key, to_clear(&dirty, first, count, bits));
        }
        Ok(result)
    }

    fn dirty_pages(&self, key: SlotKey) -> Option<DirtyPages> {
        let slot = self.memory.space(key.as_id).by_id(key.id)?;
        slot.dirty().map(DirtyBitmap::get)
    }

    fn watch_anew(&mut self, key: SlotKey, windows: impl IntoIterator<Item = DirtyWindow>) {
        for window in windows {
            self.enable_log(key, window.offset, window.mask);
        }
    }

    /// Takes the entries out of a vCPU's dirty ring, and marks them as harvested.
    pub fn harvest_ring(&mut self, vcpu: u32) {
        let index = self.vcpus.get(&vcpu).map_or(u32::MAX, |vcpu| vcpu.index);
        let taken = self.memory.harvest_dirty_ring(index).unwrap_or_default();
        self.out.events.extend(Predicted::rings(&taken));
    }

    /// `KVM_RESET_DIRTY_RINGS`: what was harvested is watched anew.
    pub fn reset_rings(&mut self) {
        let _ = self.call(&Call::ResetDirtyRings);
    }

    /// `KVM_RESET_DIRTY_RINGS` by a kernel that forgets what it is for.
    pub(crate) fn forget_rings(&mut self) {
        let result = self.memory.reset_dirty_rings();
        let count = match result {
            Ok(Outcome::Value(count)) => Ok(i64::try_from(count).unwrap_or(i64::MAX)),
            Ok(_) => Ok(0),
            Err(refusal) => Err(refusal.errno()),
        };
        self.answer(count);
    }

    /// `KVM_RESET_DIRTY_RINGS`: the pages of harvested entries are watched anew (`dirty_ring.c:kvm_dirty_ring_reset`).
    pub(super) fn free_rings(&mut self) -> Result<Outcome, Refusal> {
        let freed = self.memory.free_dirty_rings()?;
        for (key, window) in freed.rearm {
            self.watch_anew(key, [window]);
        }
        Ok(Outcome::Value(freed.count))
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
        let mut locked = self.nested.mmu.lock(&mut self.out);
        locked.clear_dirty_masked(key.as_id, first, mask, by);
    }

    /// Huge pages were left alone when the log was switched on: now they are split, or at least protected.
    fn protect_huge(&mut self, key: SlotKey, first: Gfn, mask: u64) {
        let start = first + Pages::new(u64::from(mask.trailing_zeros()));
        let last = first + Pages::new(u64::from(63 - mask.leading_zeros()));
        let end = last + Pages::new(1);
        if let Some(range) = GfnRange::between(start, end) {
            self.split_eagerly(key, range);
        }
        let mut nested = self.nested.mmu.lock_beside(&mut self.out, &mut self.tables);
        nested.write_track(key.as_id, start, PageSize::Size2M);
        // KVM rounds up, so that it takes the first frame of a huge page for one of the page before.
        let huge = PageSize::Size2M.pages().raw();
        if start.raw().next_multiple_of(huge) != last.raw().next_multiple_of(huge) {
            nested.write_track(key.as_id, last, PageSize::Size2M);
        }
    }
}
