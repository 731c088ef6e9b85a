//! Slots: what setting a region does to shadow pages.

use slat_memslot::{
    ChangeKind, Effects, Gfn, LogSwitch, PageSize, Region, Slot, SlotKey, Zap, ZapReach,
};
use slat_mmu::spte::Format;

use super::ShadowVm;

impl<F: Format> ShadowVm<F> {
    /// `KVM_SET_USER_MEMORY_REGION` or its second version.
    pub fn set_region(&mut self, request: &Region) {
        let result = self.memory.set_region(request);
        // A refused move has zapped before it was refused.
        let effects = match &result {
            Ok(effects) => Some(*effects),
            Err(refusal) => refusal.effects,
        };
        if let Some(effects) = effects {
            self.follow(&effects);
        }
        if let Ok(effects) = &result {
            self.change_limit(effects.kind);
        }
        self.answer(result.map(|_| 0).map_err(|refusal| refusal.errno()));
    }

    /// More or less shadow pages are allowed, since slots have more or less pages.
    fn change_limit(&mut self, kind: ChangeKind) {
        let pages = self.memory.total_pages();
        self.mmu.lock(&mut self.out).commit_region(kind, pages);
        self.spread_requests();
    }

    fn follow(&mut self, effects: &Effects) {
        for zap in [effects.zap, effects.wrap].into_iter().flatten() {
            self.zap(zap);
        }
        match self.memory.log_of_tables(effects) {
            Some(LogSwitch::On) => self.log_on(effects.slot),
            Some(LogSwitch::Off) => self.log_off(effects.slot),
            Some(LogSwitch::OnInitiallySet) | None => {}
        }
    }

    fn zap(&mut self, zap: Zap) {
        match zap.reach {
            ZapReach::AllRoots => self.zap_all_fast(),
            ZapReach::Leafs { as_id, range } => {
                self.mmu.lock(&mut self.out).zap_slot(as_id, range);
                self.spread_requests();
            }
        }
    }

    pub(super) fn zap_all_fast(&mut self) {
        self.mmu.lock(&mut self.out).zap_all_fast();
        self.spread_requests();
    }

    /// Writes to a slot are logged from now on (`x86.c:kvm_mmu_slot_apply_flags`).
    fn log_on(&mut self, key: SlotKey) {
        let Some(range) = self.memory.space(key.as_id).by_id(key.id).map(Slot::range) else {
            return;
        };
        let pml = self.mmu.codec().host().pml();
        let mut locked = self.mmu.lock(&mut self.out);
        let smallest = if pml {
            locked.clear_dirty_range(key.as_id, range);
            PageSize::Size2M
        } else {
            PageSize::Size4K
        };
        locked.write_protect_range(key.as_id, range, smallest);
    }

    /// They are not any more: pages may become huge again.
    fn log_off(&mut self, key: SlotKey) {
        let Some(slot) = self.memory.space(key.as_id).by_id(key.id) else {
            return;
        };
        let host = &self.host;
        let backed = |gfn: Gfn| host.mapping_size(slot, gfn);
        let mut locked = self.mmu.lock(&mut self.out);
        locked.zap_collapsible(&self.memory, slot, backed);
    }
}
