//! Slots that are exchanged while faults use them, and what deleting one takes.

use std::sync::Arc;

use slat_memslot::{Memory, Region, SlotFlags, SlotKey};

use super::check;
use super::world::{World, everything};
use crate::spte::Format;
use crate::sync::{Mutex, RwLock, lock};
use crate::table::Reader;
use crate::tdp::{FastZap, Passes, Uninterrupted, Unobserved, ZapLeafs, zap_all_fast};

/// The only slot.
pub(super) const SLOT: SlotKey = SlotKey::normal(0);

/// 2 MiB, so that huge leaves may be anywhere in it; most of it is never accessed.
const BYTES: u64 = 2 << 20;

/// The slots as readers see them: each fault those that were there when it began (SRCU).
#[derive(Debug)]
pub(crate) struct Slots(Mutex<Arc<RwLock<Memory>>>);

impl Slots {
    pub(crate) fn new(memory: Memory) -> Self {
        Self(Mutex::new(Arc::new(RwLock::new(memory))))
    }

    /// The slots do not go while they are read.
    pub(crate) fn read<R>(&self, act: impl FnOnce(&Memory) -> R) -> R {
        let current = lock(&self.0);
        let snapshot = Arc::clone(&current);
        let memory = snapshot.read().unwrap();
        drop(current);
        act(&memory)
    }

    /// Puts changed slots in the place of those that are there, and waits for all who still read the old ones
    /// (`kvm_main.c:kvm_swap_active_memslots`).
    ///
    /// `--cfg slat_mutant="no_grace"` does not wait.
    pub(crate) fn exchange<R>(&self, change: impl FnOnce(&mut Memory) -> R) -> R {
        let old = Arc::clone(&lock(&self.0));
        let mut new = old.read().unwrap().clone();
        let result = change(&mut new);
        *lock(&self.0) = Arc::new(RwLock::new(new));
        if !cfg!(slat_mutant = "no_grace") {
            drop(old.write().unwrap());
        }
        result
    }
}

/// How the mappings of a deleted slot go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Removal {
    /// Its leaves.
    Leafs,
    /// All roots.
    Roots,
}

impl<F: Format> World<F> {
    /// Whether the slot is there.
    pub(super) fn has_slot(&self) -> bool {
        self.slots.read(|memory| memory.slot(0).is_some())
    }

    /// Sets the slot.
    pub(super) fn set_slot(&self, flags: SlotFlags) {
        let region = Region::new(SLOT, 0, BYTES, 0x7f00_0000_0000).with_flags(flags);
        self.slots.exchange(|memory| {
            let _effects = memory.set_region(&region).unwrap();
        });
    }

    /// A slot with other host memory than before.
    pub(super) fn create(&self) {
        let _held = lock(&self.slots_lock);
        if !self.has_slot() {
            let _mapped = lock(&self.mmap_lock);
            lock(&self.host).replace_all();
            self.set_slot(SlotFlags::empty());
        }
    }

    /// `kvm_main.c:kvm_invalidate_memslot`, `mmu.c:kvm_arch_flush_shadow_memslot`, `kvm_main.c:kvm_delete_memslot`.
    pub(super) fn delete(&self, reader: &mut Reader, removal: Removal) {
        let _held = lock(&self.slots_lock);
        if !self.has_slot() {
            return;
        }
        self.slots
            .exchange(|memory| memory.invalidate_slot(SLOT).unwrap());
        match removal {
            Removal::Leafs => self.zap_leafs(),
            Removal::Roots => self.zap_roots(reader),
        }
        check::nothing_mapped(&self.tables.write().unwrap());
        let gone = Region::new(SLOT, 0, 0, 0);
        self.slots.exchange(|memory| {
            let _effects = memory.set_region(&gone).unwrap();
        });
        lock(&self.log).stop();
    }

    /// All mappings go for another reason, with faults going on (`mmu.c:set_nx_huge_pages`).
    pub(super) fn zap_all(&self, reader: &mut Reader) {
        let _held = lock(&self.slots_lock);
        self.zap_roots(reader);
    }

    fn zap_leafs(&self) {
        let mut tables = self.tables.write().unwrap();
        let mut zap = ZapLeafs::of_address_space(self.as_id(), everything());
        let _ = zap.run(&mut tables.exclusive(Unobserved), &mut Uninterrupted);
    }

    fn zap_roots(&self, reader: &mut Reader) {
        let (mut observer, mut resched) = (Unobserved, Uninterrupted);
        zap_all_fast(
            &self.tables,
            reader,
            (&mut observer, &mut resched),
            (FastZap::BeforeReturn, Passes::SmallestFirst),
            || self.request_obsolete(),
        );
    }
}
