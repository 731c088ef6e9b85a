//! `hyperlight-common`: `vmem`, by the range. It frees no table.
#![expect(unsafe_code, reason = "tables are reached by address")]

use std::cell::RefCell;

use hyperlight_common::vmem::{
    BasicMapping, Mapping, MappingKind, MayNotMoveTable, TableOps, TableReadOps, Void, map,
    virt_to_phys,
};

use crate::memory::{self, Frames};
use crate::side::{Counts, Filling, Job, Kind, Seen, pfn};

/// Tables whose physical addresses are their addresses.
struct Tables {
    frames: RefCell<Frames>,
    root: u64,
}

impl AsRef<Self> for Tables {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl TableReadOps for Tables {
    type TableAddr = u64;

    #[inline]
    fn entry_addr(table: u64, offset: u64) -> u64 {
        table + offset
    }

    #[inline]
    unsafe fn read_entry(&self, entry: u64) -> u64 {
        // SAFETY: `vmem` asks for entries of tables below the root, all of which come from `frames`.
        unsafe { memory::at::<u64>(entry).read() }
    }

    #[inline]
    fn to_phys(table: u64) -> u64 {
        table
    }

    #[inline]
    fn from_phys(table: u64) -> u64 {
        table
    }

    #[inline]
    fn root_table(&self) -> u64 {
        self.root
    }
}

impl TableOps for Tables {
    type TableMovability = MayNotMoveTable;

    unsafe fn alloc_table(&self) -> u64 {
        let frame = self.frames.borrow_mut().take();
        let frame = frame.expect("frames for all pages");
        memory::zero(frame);
        frame
    }

    #[inline]
    unsafe fn write_entry(&self, entry: u64, raw: u64) -> Option<Void> {
        // SAFETY: as for reading; nothing else refers to the entry.
        unsafe { memory::at::<u64>(entry).write(raw) };
        None
    }

    unsafe fn update_root(&self, root: Void) {
        match root {}
    }
}

pub(crate) struct Hyperlight {
    kind: Kind,
    pages: u64,
    tables: Tables,
    counts: Counts,
}

impl Hyperlight {
    pub(crate) fn new(kind: Kind, pages: u64) -> Self {
        let mut frames = Frames::new(pages);
        let root = frames.take().expect("a frame for the root");
        memory::zero(root);
        Self {
            kind,
            pages,
            tables: Tables {
                frames: RefCell::new(frames),
                root,
            },
            counts: Counts::default(),
        }
    }

    fn set(&self, kind: MappingKind) {
        let mapping = Mapping {
            phys_base: pfn(0) << 12,
            virt_base: 0,
            len: self.pages << 12,
            kind,
        };
        // SAFETY: no processor uses these tables, and no other thread does.
        unsafe { map(&self.tables, mapping) }
    }

    fn map(&self) {
        self.set_writable(true);
    }

    fn set_writable(&self, writable: bool) {
        self.set(MappingKind::Basic(BasicMapping {
            readable: true,
            writable,
            executable: false,
        }));
    }
}

impl Job for Hyperlight {
    fn prepare(&mut self) {
        match self.kind {
            Kind::Zap(Filling::Full) | Kind::Protect(_) => self.map(),
            Kind::Map => {
                let frames = self.tables.frames.get_mut();
                frames.reset();
                self.tables.root = frames.take().expect("a frame for the root");
                memory::zero(self.tables.root);
            }
            Kind::Walk if self.counts == Counts::default() => self.map(),
            Kind::Walk => (),
            other => unreachable!("{other:?} is not measured here"),
        }
    }

    fn run(&mut self) {
        match self.kind {
            Kind::Map => self.map(),
            Kind::Protect(_) => self.set_writable(false),
            Kind::Walk => {
                // SAFETY: nobody writes to the tables meanwhile.
                let leaves = unsafe { virt_to_phys(&self.tables, 0, self.pages << 12) };
                self.counts.leaves = leaves.count() as u64;
            }
            _ => self.set(MappingKind::Unmapped),
        }
    }

    fn seen(&mut self, gfn: u64) -> Seen {
        // SAFETY: nobody writes to the tables meanwhile.
        let mut found = unsafe { virt_to_phys(&self.tables, gfn << 12, 4096) };
        found.next().map_or(Seen::Absent, |found| {
            let page = found.phys_base >> 12;
            match found.kind {
                MappingKind::Basic(basic) if !basic.writable => Seen::Protected(page),
                _ => Seen::Page(page),
            }
        })
    }

    fn counted(&self) -> Counts {
        self.counts
    }
}
