//! What the host's memory management tells KVM.

use slat_memslot::{AsId, GfnRange, Hva};
use slat_mmu::spte::Format;

use super::ShadowVm;
use crate::tdp_vm::HvaRange;

impl<F: Format> ShadowVm<F> {
    /// The frames behind host addresses, by address space.
    fn frames(&self, range: &HvaRange) -> Vec<(AsId, GfnRange)> {
        let mut found = Vec::new();
        for as_id in (0..self.memory.address_space_count()).filter_map(AsId::new) {
            let (start, end) = (Hva::new(range.start), Hva::new(range.end));
            let slots = self.memory.space(as_id).by_hva(start, end);
            found.extend(slots.map(|(_, frames)| (as_id, frames)));
        }
        found
    }

    /// Host addresses are unmapped, or mapped otherwise (`kvm_mmu_notifier_invalidate_range_start` and its end).
    pub fn unmap_hva(&mut self, range: HvaRange) {
        for (as_id, frames) in self.frames(&range) {
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
        for (as_id, frames) in self.frames(&range) {
            young |= self.mmu.lock(&mut self.out).age(as_id, frames);
        }
        young
    }
}
