//! What the host's memory management tells KVM.

use slat_memslot::{AsId, GfnRange, Hva};
use slat_mmu::spte::Format;
use slat_mmu::tdp::{Age, Uninterrupted, ZapLeafs};

use super::{HvaRange, TdpVm};

impl<F: Format> TdpVm<F> {
    /// Host addresses are unmapped, or mapped otherwise (`kvm_mmu_notifier_invalidate_range_start` and its end).
    pub fn unmap_hva(&mut self, range: HvaRange) {
        for (as_id, frames) in self
            .memory
            .frames_behind(Hva::new(range.start), Hva::new(range.end))
        {
            self.zap_frames(as_id, frames);
        }
    }

    /// Zaps the leaves of frames whose pages go.
    pub(crate) fn zap_frames(&mut self, as_id: AsId, frames: GfnRange) {
        let locked = &mut self.tables.exclusive(&mut self.out);
        self.invalidation.begin(locked);
        self.invalidation.add(locked, frames);
        let _ = ZapLeafs::of_address_space(as_id, frames).run(locked, &mut Uninterrupted);
        self.nested
            .mmu
            .lock(&mut self.out)
            .zap_frames(as_id, frames);
        let locked = &self.tables.exclusive(&mut self.out);
        self.invalidation.end(locked);
        self.flushed();
    }

    /// Whether host addresses were used since this was last asked (`kvm_mmu_notifier_clear_flush_young` and its kin).
    pub fn age_hva(&mut self, range: HvaRange) -> bool {
        let mut young = false;
        for (as_id, frames) in self
            .memory
            .frames_behind(Hva::new(range.start), Hva::new(range.end))
        {
            let locked = &mut self.tables.exclusive(&mut self.out);
            young |= locked.age(as_id, frames, Age::Take);
            young |= self.nested.mmu.lock(&mut self.out).age(as_id, frames);
        }
        young
    }
}
