//! The slot's dirty log: switched on and off, read and cleared.

use slat_memslot::{Gfn, PageSize, SlotFlags};

use super::world::{World, everything};
use crate::spte::{Format, NxHugePages};
use crate::sync::lock;
use crate::table::Reader;
use crate::tdp::{
    ByWhat, Collapse, CollapseTables, SplitHugePages, Uninterrupted, Unobserved, Weaken,
};

/// What is known of writes, a bit for each frame.
#[derive(Debug, Default)]
pub(super) struct Log {
    on: bool,
    /// The bitmap: pages to be reported as dirty.
    dirty: u64,
    /// Read, and to be watched anew by a later clear.
    read: u64,
    /// Pages that the guest has written to and that were not reported since.
    written: u64,
}

impl Log {
    /// A page is dirty (`kvm_main.c:mark_page_dirty_in_slot`).
    pub(super) fn mark(&mut self, gfn: Gfn) {
        self.dirty |= 1 << gfn.raw();
    }

    /// The guest has written to a page.
    pub(super) fn wrote(&mut self, gfn: Gfn) {
        self.written |= 1 << gfn.raw();
    }

    pub(super) fn stop(&mut self) {
        *self = Self::default();
    }

    /// Writes that the next reader of the log would not hear of.
    pub(super) fn missed(&self) -> u64 {
        match self.on {
            true => self.written & !(self.dirty | self.read),
            false => 0,
        }
    }

    /// Whether a page may be writable without a fault.
    pub(super) fn may_be_written(&self, gfn: u64) -> bool {
        !self.on || (self.dirty | self.read) >> gfn & 1 == 1
    }
}

/// Whether huge leaves are split when the log is switched on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Split {
    Eagerly,
    Lazily,
}

/// When pages that were read from the log are watched anew (`KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Anew {
    AtOnce,
    ByHand,
}

impl<F: Format> World<F> {
    /// `x86.c:kvm_mmu_slot_apply_flags`, when writes are logged from now on.
    pub(super) fn log_on(&self, reader: &mut Reader, split: Split) {
        let _held = lock(&self.slots_lock);
        if !self.has_slot() || lock(&self.log).on {
            return;
        }
        lock(&self.log).stop();
        self.set_slot(SlotFlags::LOG_DIRTY_PAGES);
        self.watch_all(reader, split);
        self.flush();
        let mut log = lock(&self.log);
        // Whoever was told that the log is on hears of all writes from now on.
        log.on = true;
        log.written = 0;
    }

    fn watch_all(&self, reader: &mut Reader, split: Split) {
        let (as_id, range) = (self.as_id(), everything());
        let tables = self.tables.read().unwrap();
        let mut locked = tables.shared(reader, Unobserved);
        if split == Split::Eagerly {
            let size = PageSize::Size4K;
            let mut split = SplitHugePages::new(as_id, range, size, NxHugePages::Off);
            let _ = split.run(&mut locked, &mut Uninterrupted);
        }
        let pml = locked.tables().codec().host().pml();
        let smallest = if pml {
            PageSize::Size2M
        } else {
            PageSize::Size4K
        };
        let clear = || Weaken::clear_dirty(as_id, range);
        let protect = || Weaken::write_protect(as_id, range, smallest);
        // KVM clears dirty bits first, whether it has split or not. Then a huge leaf that is split in between, by a prefault
        // or for the sake of execution, has dirty parts that nobody logs: see `fault::tests::races`.
        let passes = match (pml, split) {
            (false, _) => [Some(protect()), None],
            (true, Split::Eagerly) => [Some(clear()), Some(protect())],
            (true, Split::Lazily) => [Some(protect()), Some(clear())],
        };
        for mut pass in passes.into_iter().flatten() {
            let _ = pass.run(&mut locked, &mut Uninterrupted);
        }
    }

    /// The same when they are not any more: small leaves may become huge.
    pub(super) fn log_off(&self, reader: &mut Reader, how: Collapse) {
        let _held = lock(&self.slots_lock);
        if !lock(&self.log).on {
            return;
        }
        self.set_slot(SlotFlags::empty());
        lock(&self.log).stop();
        let tables = self.tables.read().unwrap();
        let mut locked = tables.shared(reader, Unobserved);
        let allows =
            |gfn: Gfn, size| size == PageSize::Size2M && lock(&self.host).is_huge(gfn.raw());
        let mut collapse = CollapseTables::new(self.as_id(), everything(), how);
        let _ = collapse.run(&mut locked, &mut Uninterrupted, allows);
        drop(locked);
        drop(tables);
        self.flush();
    }

    /// `KVM_GET_DIRTY_LOG` (`kvm_main.c:kvm_get_dirty_log_protect`).
    pub(super) fn get_log(&self, anew: Anew) {
        let _held = lock(&self.slots_lock);
        if !lock(&self.log).on {
            return;
        }
        match anew {
            Anew::AtOnce => self.watch_anew(|log| core::mem::take(&mut log.dirty)),
            Anew::ByHand => {
                let mut log = lock(&self.log);
                log.read |= core::mem::take(&mut log.dirty);
            }
        }
    }

    /// `KVM_CLEAR_DIRTY_LOG` of what was read.
    pub(super) fn clear_log(&self) {
        let _held = lock(&self.slots_lock);
        if lock(&self.log).on {
            self.watch_anew(|log| core::mem::take(&mut log.read));
        }
    }

    /// Pages are reported, and the next writes to them show again.
    fn watch_anew(&self, take: impl FnOnce(&mut Log) -> u64) {
        let mut tables = self.tables.write().unwrap();
        let by = if tables.codec().host().pml() {
            ByWhat::DirtyBit
        } else {
            ByWhat::WriteProtection
        };
        let mut log = lock(&self.log);
        let reported = take(&mut log);
        log.written &= !reported;
        drop(log);
        let mut locked = tables.exclusive(Unobserved);
        locked
            .clear_dirty(self.as_id(), by)
            .word(Gfn::new(0), reported);
        drop(locked);
        drop(tables);
        self.flush();
    }
}
