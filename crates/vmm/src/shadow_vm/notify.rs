//! What the host's memory management tells KVM.

use slat_memslot::Hva;
use slat_mmu::spte::Format;

use super::ShadowVm;
use crate::tdp_vm::HvaRange;

impl<F: Format> ShadowVm<F> {
    /// Host addresses are unmapped, or mapped otherwise (`kvm_mmu_notifier_invalidate_range_start` and its end).
    pub fn unmap_hva(&mut self, range: HvaRange) {
        for (as_id, frames) in self
            .memory
            .frames_behind(Hva::new(range.start), Hva::new(range.end))
        {
            let mut locked = self.mmu.lock(&mut self.out);
            self.invalidation.begin(&locked);
            self.invalidation.add(&locked, frames);
            locked.zap_frames(as_id, frames);
            self.invalidation.end(&locked);
        }
        self.spread_requests();
    }

    /// Whether host addresses were used since this was last asked (`kvm_mmu_notifier_clear_flush_young` and its kin).
    pub fn age_hva(&mut self, range: HvaRange) -> bool {
        let mut young = false;
        for (as_id, frames) in self
            .memory
            .frames_behind(Hva::new(range.start), Hva::new(range.end))
        {
            young |= self.mmu.lock(&mut self.out).age(as_id, frames);
        }
        young
    }
}
