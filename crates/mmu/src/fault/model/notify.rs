//! The host's memory management: pages go, become huge, and are asked for their age.

use slat_memslot::{Gfn, GfnRange};

use super::check;
use super::host::{Host, start_of_huge};
use super::world::World;
use crate::spte::Format;
use crate::sync::lock;
use crate::table::ENTRIES;
use crate::tdp::{Age, Uninterrupted, Unobserved, ZapLeafs};

impl<F: Format> World<F> {
    /// The page behind a frame goes, and another will be there. If it is huge, it is split first, which is about all of it.
    pub(super) fn unmap(&self, gfn: u64) {
        let _held = lock(&self.mmap_lock);
        let range = match lock(&self.host).is_huge(gfn) {
            true => around(gfn),
            false => GfnRange::between(Gfn::new(gfn), Gfn::new(gfn + 1)).unwrap(),
        };
        self.invalidate(range, |host| host.replace(gfn));
    }

    /// The pages around a frame are copied into a huge one.
    pub(super) fn make_huge(&self, gfn: u64) {
        let _held = lock(&self.mmap_lock);
        if !lock(&self.host).is_huge(gfn) {
            self.invalidate(around(gfn), |host| host.make_huge(gfn));
        }
    }

    /// The host changes what it maps, between the two calls of the MMU notifier
    /// (`kvm_main.c:kvm_mmu_notifier_invalidate_range_start`, `kvm_mmu_notifier_invalidate_range_end`).
    fn invalidate(&self, range: GfnRange, change: impl FnOnce(&mut Host)) {
        {
            let mut tables = self.tables.write().unwrap();
            let mut locked = tables.exclusive(Unobserved);
            self.invalidation.begin(&locked);
            self.invalidation.add(&locked, range);
            let mut zap = ZapLeafs::of_address_space(self.as_id(), range);
            let _ = zap.run(&mut locked, &mut Uninterrupted);
        }
        change(&mut lock(&self.host));
        let mut tables = self.tables.write().unwrap();
        // Meanwhile nobody may have mapped what is going.
        check::not_mapped(&tables, range);
        self.invalidation.end(&tables.exclusive(Unobserved));
    }

    /// Whether a huge page's frames were used.
    pub(super) fn age(&self, gfn: u64, age: Age) {
        let mut tables = self.tables.write().unwrap();
        let _young = tables
            .exclusive(Unobserved)
            .age(self.as_id(), around(gfn), age);
    }
}

/// The frames of the huge page that a frame is in.
fn around(gfn: u64) -> GfnRange {
    let start = start_of_huge(gfn);
    GfnRange::between(Gfn::new(start), Gfn::new(start + ENTRIES as u64)).unwrap()
}
