//! `page_table_multiarch`: its x86-64 tables, by the region.

use std::cell::Cell;
use std::sync::{Mutex, MutexGuard, PoisonError};

use memory_addr::{PhysAddr, VirtAddr};
use page_table_entry::MappingFlags;
use page_table_entry::x86_64::X64PTE;
use page_table_multiarch::x86_64::X64PageTable;
use page_table_multiarch::{GenericPTE, PagingError, PagingHandler};

use crate::memory::Frames;
use crate::side::{Counts, Filling, Job, Kind, Seen, pfn};

/// Frames for all tables of this project: its handler has no state of its own.
static FRAMES: Mutex<Vec<Frames>> = Mutex::new(Vec::new());

fn frames() -> MutexGuard<'static, Vec<Frames>> {
    FRAMES.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Handler;

impl PagingHandler for Handler {
    fn alloc_frames(count: usize, _align: usize) -> Option<PhysAddr> {
        assert_eq!(count, 1, "tables on x86-64 are single frames");
        let address = frames().iter_mut().rev().find_map(Frames::take)?;
        Some(PhysAddr::from(usize::try_from(address).ok()?))
    }

    fn dealloc_frames(address: PhysAddr, _count: usize) {
        if let Some(frames) = frames().last_mut() {
            frames.give_back(address.as_usize() as u64);
        }
    }

    fn phys_to_virt(address: PhysAddr) -> VirtAddr {
        VirtAddr::from(address.as_usize())
    }
}

pub(crate) struct Multiarch {
    kind: Kind,
    size: usize,
    table: Option<X64PageTable<Handler>>,
    counts: Counts,
    /// Whether everything was mapped once.
    filled: bool,
}

impl Multiarch {
    pub(crate) fn new(kind: Kind, pages: u64) -> Self {
        frames().push(Frames::new(pages));
        Self {
            kind,
            size: address(pages),
            table: X64PageTable::try_new().ok(),
            counts: Counts::default(),
            filled: false,
        }
    }

    fn table(&mut self) -> &mut X64PageTable<Handler> {
        self.table.as_mut().expect("a table")
    }

    fn map(&mut self) {
        let size = self.size;
        let to = |from: VirtAddr| PhysAddr::from(address(pfn(from.as_usize() as u64 >> 12)));
        let flags = MappingFlags::READ | MappingFlags::WRITE;
        let mut cursor = self.table().cursor();
        let mapped = cursor.map_region(VirtAddr::from(0), to, size, flags, false);
        mapped.expect("a region that was not mapped");
    }

    fn empty(&mut self) {
        drop(self.table.take());
        self.table = X64PageTable::try_new().ok();
    }
}

fn address(frame: u64) -> usize {
    usize::try_from(frame << 12).expect("an address")
}

impl Job for Multiarch {
    fn prepare(&mut self) {
        match self.kind {
            Kind::Zap(Filling::Full) => self.map(),
            Kind::Protect(_) if self.filled => {
                let size = self.size;
                let flags = MappingFlags::READ | MappingFlags::WRITE;
                let mut cursor = self.table().cursor();
                let protected = cursor.protect_region(VirtAddr::from(0), size, flags);
                protected.expect("a mapped region");
            }
            Kind::Protect(_) => {
                self.map();
                self.filled = true;
            }
            Kind::Free => {
                self.empty();
                self.map();
            }
            Kind::Map => self.empty(),
            Kind::Walk if self.counts == Counts::default() => self.map(),
            Kind::Walk => (),
            other => unreachable!("{other:?} is not measured here"),
        }
    }

    fn run(&mut self) {
        let size = self.size;
        match self.kind {
            Kind::Free => drop(self.table.take()),
            Kind::Map => self.map(),
            Kind::Protect(_) => {
                let mut cursor = self.table().cursor();
                let protected = cursor.protect_region(VirtAddr::from(0), size, MappingFlags::READ);
                protected.expect("a mapped region");
            }
            Kind::Walk => {
                let leaves = Cell::new(0);
                let count = |level: usize, _: usize, _: VirtAddr, entry: &X64PTE| {
                    if level == 3 && entry.is_present() {
                        leaves.set(leaves.get() + 1);
                    }
                };
                self.table().walk(512, Some(&count), None);
                self.counts.leaves = leaves.get();
            }
            _ => {
                let mut cursor = self.table().cursor();
                let unmapped = cursor.unmap_region(VirtAddr::from(0), size);
                unmapped.expect("a mapped region");
            }
        }
    }

    fn seen(&mut self, gfn: u64) -> Seen {
        let Some(table) = &self.table else {
            return Seen::Absent;
        };
        match table.query(VirtAddr::from(address(gfn))) {
            Ok((page, flags, _)) if !flags.contains(MappingFlags::WRITE) => {
                Seen::Protected(page.as_usize() as u64 >> 12)
            }
            Ok((page, _, _)) => Seen::Page(page.as_usize() as u64 >> 12),
            Err(PagingError::NotMapped) => Seen::Absent,
            Err(other) => panic!("{other:?}"),
        }
    }

    fn counted(&self) -> Counts {
        self.counts
    }
}
