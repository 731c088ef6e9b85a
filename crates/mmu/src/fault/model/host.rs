//! The host's memory: which page is behind each frame now.

use slat_memslot::{Gfn, PageSize, Slot};

use super::world::FRAMES;
use crate::fault::{Backing, FilePage, HostPage};
use crate::spte::{Pfn, PfnKind};
use crate::sync::{Mutex, lock};
use crate::table::ENTRIES;

/// Frames of what counts as 2 MiB here.
const HUGE: u64 = ENTRIES as u64;

/// Pages that were behind one frame at different times are so far apart.
const APART: u64 = 1 << 16;

/// Versions of pages, by frame; a page that was taken back never comes again.
#[derive(Debug)]
pub(super) struct Host {
    versions: [u64; FRAMES as usize],
    /// The host maps these as one page each.
    huge: [bool; (FRAMES / HUGE) as usize],
    next: u64,
}

/// The first frame of the huge page that a frame is in.
pub(super) const fn start_of_huge(gfn: u64) -> u64 {
    gfn - gfn % HUGE
}

impl Host {
    pub(super) fn new() -> Self {
        Self {
            versions: [0; FRAMES as usize],
            huge: [true; (FRAMES / HUGE) as usize],
            next: 1,
        }
    }

    /// The page behind a frame: in a huge page, as far from its start as the frame, where tables have 512 entries.
    pub(super) fn pfn(&self, gfn: u64) -> Pfn {
        let huge = gfn / HUGE * 512 + gfn % HUGE;
        Pfn::new(self.versions[gfn as usize] * APART + huge)
    }

    pub(super) fn is_huge(&self, gfn: u64) -> bool {
        self.huge[(gfn / HUGE) as usize]
    }

    /// The page behind a frame becomes another; a huge one is split first.
    pub(super) fn replace(&mut self, gfn: u64) {
        self.huge[(gfn / HUGE) as usize] = false;
        self.versions[gfn as usize] = self.next;
        self.next += 1;
    }

    /// The pages around a frame become one huge page.
    pub(super) fn make_huge(&mut self, gfn: u64) {
        let start = start_of_huge(gfn) as usize;
        self.versions[start..start + HUGE as usize].fill(self.next);
        self.huge[(gfn / HUGE) as usize] = true;
        self.next += 1;
    }

    /// Other host memory is behind all frames.
    pub(super) fn replace_all(&mut self) {
        for start in (0..FRAMES).step_by(HUGE as usize) {
            self.make_huge(start);
        }
    }
}

/// The host as faults ask it, each time for what is there now.
#[derive(Debug)]
pub(super) struct Pages<'w>(pub(super) &'w Mutex<Host>);

impl Backing for Pages<'_> {
    fn host_page(&mut self, _: &Slot, gfn: Gfn, _: bool) -> HostPage {
        let host = lock(self.0);
        HostPage::Page {
            pfn: host.pfn(gfn.raw()),
            size: match host.is_huge(gfn.raw()) {
                true => PageSize::Size2M,
                false => PageSize::Size4K,
            },
            writable: true,
            kind: PfnKind::Memory,
        }
    }

    fn file_page(&mut self, _: &Slot, _: Gfn) -> FilePage {
        FilePage::Bad
    }
}
