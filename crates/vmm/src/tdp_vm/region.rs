//! Slots: what setting a region does to the tables.

use slat_memslot::{
    Call, Effects, Gfn, LogOff, LogSwitch, PageSize, Refusal, Region, Slot, SlotKey, Zap, ZapReach,
};
use slat_mmu::roots::Request;
use slat_mmu::spte::Format;
use slat_mmu::tdp::{
    Collapse, CollapseTables, SplitHugePages, Uninterrupted, Weaken, ZapInvalidated,
};

use super::{EagerSplit, TdpVm};

impl<F: Format> TdpVm<F> {
    /// `KVM_SET_USER_MEMORY_REGION` or its second version.
    pub fn set_region(&mut self, request: &Region) {
        let _ = self.call(&Call::SetRegion(*request));
    }

    pub(super) fn change_region(&mut self, request: &Region) -> Result<(), Refusal> {
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
            let pages = self.memory.total_pages();
            let mut locked = self.nested.mmu.lock(&mut self.out);
            locked.commit_region(effects.kind, pages);
        }
        result.map(drop)
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
                self.zap_frames(as_id, range);
                self.nested.mmu.lock(&mut self.out).zap_slot(as_id, range);
            }
        }
    }

    /// Makes all roots unusable and zaps them (`mmu.c:kvm_mmu_zap_all_fast`).
    pub(super) fn zap_all_fast(&mut self) {
        self.tables.exclusive(&mut self.out).invalidate_roots();
        self.request_all(Request::FreeObsoleteRoots);
        self.nested.mmu.lock(&mut self.out).make_obsolete();
        let mut locked = self.tables.shared(&mut self.reader, &mut self.out);
        let _ = ZapInvalidated::new(self.passes).run(&mut locked, &mut Uninterrupted);
        drop(locked);
        self.flushed();
    }

    fn slot(&self, key: SlotKey) -> Option<&Slot> {
        self.memory.space(key.as_id).by_id(key.id)
    }

    /// Writes to a slot are logged from now on (`x86.c:kvm_mmu_slot_apply_flags`).
    fn log_on(&mut self, key: SlotKey) {
        let Some(range) = self.slot(key).map(Slot::range) else {
            return;
        };
        self.split_eagerly(key, range);
        self.protect_nested(key, range);
        let mut locked = self.tables.shared(&mut self.reader, &mut self.out);
        let smallest = if locked.tables().codec().host().pml() {
            let mut clear = Weaken::clear_dirty(key.as_id, range);
            let _ = clear.run(&mut locked, &mut Uninterrupted);
            PageSize::Size2M
        } else {
            PageSize::Size4K
        };
        let mut protect = Weaken::write_protect(key.as_id, range, smallest);
        let _ = protect.run(&mut locked, &mut Uninterrupted);
    }

    /// The same for what L2s run on.
    fn protect_nested(&mut self, key: SlotKey, range: slat_memslot::GfnRange) {
        let pml = self.tables.codec().host().pml();
        let mut locked = self.nested.mmu.lock(&mut self.out);
        let smallest = match pml {
            true => {
                locked.clear_dirty_range(key.as_id, range);
                PageSize::Size2M
            }
            false => PageSize::Size4K,
        };
        locked.write_protect_range(key.as_id, range, smallest);
    }

    /// Splits the huge leaves of a range, those that L2s run on first, if that is to be done ahead of time.
    pub(super) fn split_eagerly(&mut self, key: SlotKey, range: slat_memslot::GfnRange) {
        if self.eager_split == EagerSplit::On {
            let size = PageSize::Size4K;
            let mut split = SplitHugePages::new(key.as_id, range, size, self.nx_huge_pages);
            let mut locked = self.nested.mmu.lock(&mut self.out);
            let (of, nx) = ((key.as_id, range), self.nx_huge_pages);
            let _ = locked.split_huge(of, size, nx, &mut Uninterrupted);
            let mut locked = self.tables.shared(&mut self.reader, &mut self.out);
            // Without tables, what is left is split by writes.
            let _ = split.run(&mut locked, &mut Uninterrupted);
        }
    }

    /// They are not any more: pages may become huge again.
    fn log_off(&mut self, key: SlotKey) {
        let Some(slot) = self.memory.space(key.as_id).by_id(key.id) else {
            return;
        };
        let how = match self.memory.profile().log_off.get() {
            LogOff::Recover => Collapse::Recover(self.nx_huge_pages),
            LogOff::Zap => Collapse::Zap,
        };
        let (memory, host) = (&self.memory, &self.host);
        // Slots that are logged have no private side: that a frame is private limits nothing (`kvm_mmu_max_mapping_level`).
        let allows = |gfn: Gfn, size: PageSize| {
            memory.allows_huge(key, size, gfn) && host.mapping_size(slot, gfn) >= size
        };
        let mut locked = self.nested.mmu.lock(&mut self.out);
        locked.zap_collapsible(memory, slot, |gfn| host.mapping_size(slot, gfn));
        let mut locked = self.tables.shared(&mut self.reader, &mut self.out);
        let mut collapse = CollapseTables::new(key.as_id, slot.range(), how);
        let _ = collapse.run(&mut locked, &mut Uninterrupted, allows);
    }
}
