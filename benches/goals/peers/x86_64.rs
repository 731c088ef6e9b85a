//! `x86_64`: `OffsetPageTable`, page by page, since it has no call for a range.
#![expect(unsafe_code, reason = "tables are reached by address")]

use x86_64::structures::paging::mapper::TranslateResult;
use x86_64::structures::paging::{
    FrameAllocator, Mapper, OffsetPageTable, Page, PageTable, PageTableFlags, PhysFrame, Size4KiB,
    Translate,
};
use x86_64::{PhysAddr, VirtAddr};

use crate::memory::{self, Frames};
use crate::side::{Filling, Job, Kind, Seen, pfn};

pub(crate) struct X86_64 {
    kind: Kind,
    pages: u64,
    frames: Frames,
    root: u64,
    /// Whether everything was mapped once.
    filled: bool,
}

impl X86_64 {
    pub(crate) fn new(kind: Kind, pages: u64) -> Self {
        let mut frames = Frames::new(pages);
        let root = frames.take().expect("a frame for the root");
        memory::zero(root);
        Self {
            kind,
            pages,
            frames,
            root,
            filled: false,
        }
    }

    /// The mapper, with what it takes frames from. Physical addresses are addresses here.
    fn parts(&mut self) -> (OffsetPageTable<'_>, &mut Frames) {
        // SAFETY: the root is a zeroed or valid table of this side alone, and nothing else refers to it.
        let root = unsafe { &mut *memory::at::<PageTable>(self.root) };
        // SAFETY: all tables below the root come from `frames`, whose physical addresses are their addresses.
        let mapper = unsafe { OffsetPageTable::new(root, VirtAddr::zero()) };
        (mapper, &mut self.frames)
    }

    fn map(&mut self) {
        let pages = self.pages;
        let (mut mapper, frames) = self.parts();
        let flags = PageTableFlags::PRESENT | PageTableFlags::WRITABLE;
        for gfn in 0..pages {
            let frame = PhysFrame::containing_address(PhysAddr::new(pfn(gfn) << 12));
            // SAFETY: no processor uses these tables.
            let mapped = unsafe { mapper.map_to(page(gfn), frame, flags, frames) };
            mapped.expect("a page that was not mapped").ignore();
        }
    }

    fn set_flags(&mut self, flags: PageTableFlags) {
        let pages = self.pages;
        let (mut mapper, _) = self.parts();
        for gfn in 0..pages {
            // SAFETY: no processor uses these tables.
            let set = unsafe { mapper.update_flags(page(gfn), flags) };
            set.expect("a mapped page").ignore();
        }
    }
}

fn page(gfn: u64) -> Page<Size4KiB> {
    Page::containing_address(VirtAddr::new(gfn << 12))
}

// SAFETY: frames are taken once until they are given back.
unsafe impl FrameAllocator<Size4KiB> for Frames {
    fn allocate_frame(&mut self) -> Option<PhysFrame> {
        let address = PhysAddr::new(self.take()?);
        Some(PhysFrame::containing_address(address))
    }
}

impl Job for X86_64 {
    fn prepare(&mut self) {
        match self.kind {
            Kind::Zap(Filling::Full) => self.map(),
            Kind::Protect(_) if self.filled => {
                self.set_flags(PageTableFlags::PRESENT | PageTableFlags::WRITABLE);
            }
            Kind::Protect(_) => {
                self.map();
                self.filled = true;
            }
            Kind::Map => {
                self.frames.reset();
                self.root = self.frames.take().expect("a frame for the root");
                memory::zero(self.root);
            }
            other => unreachable!("{other:?} is not measured here"),
        }
    }

    fn run(&mut self) {
        if self.kind == Kind::Map {
            return self.map();
        }
        if matches!(self.kind, Kind::Protect(_)) {
            return self.set_flags(PageTableFlags::PRESENT);
        }
        let pages = self.pages;
        let (mut mapper, _) = self.parts();
        for gfn in 0..pages {
            let (_, flush) = mapper.unmap(page(gfn)).expect("a mapped page");
            flush.ignore();
        }
    }

    fn seen(&mut self, gfn: u64) -> Seen {
        match self.parts().0.translate(page(gfn).start_address()) {
            TranslateResult::Mapped { frame, flags, .. } => {
                let page = frame.start_address().as_u64() >> 12;
                if flags.contains(PageTableFlags::WRITABLE) {
                    Seen::Page(page)
                } else {
                    Seen::Protected(page)
                }
            }
            TranslateResult::NotMapped => Seen::Absent,
            TranslateResult::InvalidFrameAddress(address) => panic!("{address:?}"),
        }
    }
}
