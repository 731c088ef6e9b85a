//! Userspace: its slot comes and goes, and it copies the memory by its dirty log.

use core::num::NonZeroU32;

use slat_memslot::{Gfn, PageSize, Region, SlotFlags, SlotKey};

use super::world::{FRAMES, World, everything};
use crate::sync::lock;
use crate::tdp::{ByWhat, Every, Progress};

/// The only slot.
const SLOT: SlotKey = SlotKey::normal(0);

/// How the mappings of a deleted slot go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Removal {
    /// Its leaves, and the pages that follow tables in it.
    Leafs,
    /// All pages.
    Everything,
}

impl World {
    pub(super) fn has_slot(&self) -> bool {
        self.slots.read(|memory| memory.slot(0).is_some())
    }

    pub(super) fn set_slot(&self, flags: SlotFlags) {
        let region = Region::new(SLOT, 0, FRAMES << 12, 0x7f00_0000_0000).with_flags(flags);
        self.slots.exchange(|memory| {
            let _effects = memory.set_region(&region).unwrap();
        });
    }

    pub(super) fn create(&self) {
        let _held = lock(&self.slots_lock);
        if !self.has_slot() {
            self.set_slot(SlotFlags::empty());
        }
    }

    /// `kvm_main.c:kvm_invalidate_memslot`, `mmu.c:kvm_arch_flush_shadow_memslot`, `kvm_main.c:kvm_delete_memslot`.
    pub(super) fn delete(&self, removal: Removal) {
        let _held = lock(&self.slots_lock);
        if !self.has_slot() {
            return;
        }
        self.slots
            .exchange(|memory| memory.invalidate_slot(SLOT).unwrap());
        match removal {
            Removal::Leafs => {
                self.exclusive(|locked| locked.zap_slot(self.as_id(), everything()));
            }
            Removal::Everything => self.zap_in_parts(),
        }
        {
            let mmu = self.mmu.read().unwrap();
            assert_eq!(mmu.stats().pages_4k, 0, "leaves of a slot that is going");
        }
        let gone = Region::new(SLOT, 0, 0, 0);
        self.slots.exchange(|memory| {
            let _effects = memory.set_region(&gone).unwrap();
        });
        let mut log = lock(&self.log);
        log.copy = None;
        log.dirty.clear();
    }

    /// All mappings go for another reason, with faults going on (`mmu.c:set_nx_huge_pages`).
    pub(super) fn zap_all(&self) {
        let _held = lock(&self.slots_lock);
        self.zap_in_parts();
    }

    /// `mmu.c:kvm_mmu_zap_all_fast`, which gives way whenever it may.
    fn zap_in_parts(&self) {
        let mut every = Every::new(NonZeroU32::new(1).unwrap());
        let mut progress = self.exclusive(|locked| {
            locked.begin_zap_all_fast();
            locked.zap_obsolete(&mut every)
        });
        while progress == Progress::Paused {
            progress = self.exclusive(|locked| locked.zap_obsolete(&mut every));
        }
    }

    /// Writes are logged from now on, and all memory is copied once.
    pub(super) fn log_on(&self) {
        let _held = lock(&self.slots_lock);
        if !self.has_slot() || lock(&self.log).copy.is_some() {
            return;
        }
        self.set_slot(SlotFlags::LOG_DIRTY_PAGES);
        self.exclusive(|locked| {
            locked.write_protect_range(self.as_id(), everything(), PageSize::Size4K);
        });
        self.flush();
        let mut log = lock(&self.log);
        log.copy = Some(log.content.clone());
    }

    pub(super) fn log_off(&self) {
        let _held = lock(&self.slots_lock);
        if self.has_slot() {
            self.set_slot(SlotFlags::empty());
            let mut log = lock(&self.log);
            log.copy = None;
            log.dirty.clear();
        }
    }

    /// `KVM_GET_DIRTY_LOG`, and what is dirty is copied again.
    pub(super) fn read_log(&self) {
        let _held = lock(&self.slots_lock);
        if lock(&self.log).copy.is_none() {
            return;
        }
        let dirty = self.exclusive(|locked| {
            let dirty = core::mem::take(&mut lock(&self.log).dirty);
            for word in 0..FRAMES.div_ceil(64) {
                let bits = dirty.iter().filter(|gfn| **gfn / 64 == word);
                let mask = bits.map(|gfn| 1_u64 << (gfn % 64)).sum();
                let (first, by) = (Gfn::new(word * 64), ByWhat::WriteProtection);
                locked.clear_dirty_masked(self.as_id(), first, mask, by);
            }
            dirty
        });
        self.flush();
        let mut log = lock(&self.log);
        let log = &mut *log;
        if let Some(copy) = &mut log.copy {
            for gfn in dirty {
                copy[gfn as usize] = log.content[gfn as usize];
            }
        }
    }
}
