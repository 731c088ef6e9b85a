//! The host's memory: which page is behind each frame now, and what the guest has written there.

use slat_memslot::{Gfn, GfnRange, PageSize, Pages as Count, Slot};

use super::world::{FRAMES, World};
use crate::fault::{Backing, FilePage, HostPage};
use crate::shadow::ResidentPages;
use crate::spte::{Pfn, PfnKind};
use crate::sync::{Mutex, lock};

/// Pages that were behind one frame at different times are so far apart.
const APART: u64 = 1 << 12;

/// Versions of pages, by frame; a page that was taken back never comes again.
#[derive(Debug)]
pub(super) struct Host {
    versions: Vec<u64>,
    next: u64,
}

impl Host {
    pub(super) fn new() -> Self {
        Self {
            versions: vec![0; FRAMES as usize],
            next: 1,
        }
    }

    pub(super) fn pfn(&self, gfn: u64) -> Pfn {
        Pfn::new(self.versions[gfn as usize] * APART + gfn)
    }

    fn replace(&mut self, gfn: u64) {
        self.versions[gfn as usize] = self.next;
        self.next += 1;
    }
}

/// The host as faults ask it, each time for what is there now.
#[derive(Debug)]
pub(super) struct Pages<'w>(pub(super) &'w Mutex<Host>);

impl Backing for Pages<'_> {
    fn host_page(&mut self, _: &Slot, gfn: Gfn, _: bool) -> HostPage {
        HostPage::Page {
            pfn: lock(self.0).pfn(gfn.raw()),
            size: PageSize::Size4K,
            writable: true,
            kind: PfnKind::Memory,
        }
    }

    fn file_page(&mut self, _: &Slot, _: Gfn) -> FilePage {
        FilePage::Bad
    }
}

impl ResidentPages for Pages<'_> {
    fn resident_page(&mut self, _: &Slot, gfn: Gfn) -> Option<(Pfn, PfnKind)> {
        Some((lock(self.0).pfn(gfn.raw()), PfnKind::Memory))
    }
}

impl World {
    /// The page behind a frame becomes another, between the two calls of the MMU notifier
    /// (`kvm_main.c:kvm_mmu_notifier_invalidate_range_start`, `kvm_mmu_notifier_invalidate_range_end`).
    pub(super) fn unmap(&self, gfn: u64) {
        let _held = lock(&self.mmap_lock);
        let frame = GfnRange::new(Gfn::new(gfn), Count::new(1)).unwrap();
        self.exclusive(|locked| {
            self.invalidation.begin(locked);
            self.invalidation.add(locked, frame);
            locked.zap_frames(self.as_id(), frame);
        });
        lock(&self.host).replace(gfn);
        self.exclusive(|locked| self.invalidation.end(locked));
    }

    /// Whether a frame was used.
    pub(super) fn age(&self, gfn: u64) {
        let frame = GfnRange::new(Gfn::new(gfn), Count::new(8)).unwrap();
        self.exclusive(|locked| locked.age(self.as_id(), frame));
    }
}
