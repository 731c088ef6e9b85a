//! A program being written, with what its VMM knows.

use slat_coco::convert::{Executor, Step};
use slat_coco::migration::Status;
use slat_memslot::{
    AsId, Attributes, Errno, Gfn, GfnRange, GmemId, Hva, Memory, PAGE_SHIFT, Pages, Profile,
    Quirks, Region, SlotFlags, SlotId, SlotKey, VmType,
};

use crate::differential::Dice;
use crate::live::{Abilities, Area, Kind, Program};
use crate::traces::{GuestAct, Op, SetRegion, Sregs};

/// Frames that slots lie in.
pub(super) const FIRST_FRAME: u64 = 0x400;
pub(super) const END_FRAME: u64 = 0x1800;
const HUGE: u64 = 0x200;

/// Instructions, small pages, huge pages.
const AREAS: [Area; 3] = [
    Area::at(0, Pages::new(0x10), Kind::Small),
    Area::at(1, Pages::new(0x800), Kind::Small),
    Area::at(2, Pages::new(0xa00), Kind::Transparent),
];

/// A program being written. It carries conversions out by writing them down.
pub(super) struct Writer {
    pub(super) dice: Dice,
    pub(super) abilities: Abilities,
    pub(super) ops: Vec<Op<'static>>,
    /// What the VMM knows.
    pub(super) memory: Memory,
    /// Which step fails next, counted from here.
    pub(super) fails: Option<usize>,
    slots: Vec<SetRegion>,
    next: Gfn,
}

/// The one file.
const FILE: GmemId = GmemId::new(0);

impl Writer {
    pub(super) fn new(seed: u64, abilities: Abilities) -> Self {
        Self {
            dice: Dice::new(seed),
            abilities,
            ops: Vec::new(),
            memory: Memory::new(Profile::latest(), VmType::SwProtected),
            fails: None,
            slots: Vec::new(),
            next: Gfn::new(FIRST_FRAME),
        }
    }

    pub(super) fn push(&mut self, op: Op<'static>) {
        self.ops.push(op);
    }

    pub(super) fn begin(&mut self) {
        for (name, percent) in [("eager_page_split", 70), ("nx_huge_pages", 10)] {
            let value = if self.dice.percent(percent) { "Y" } else { "N" };
            self.push(Op::ModuleParameter { name, value });
        }
        let vm_type = VmType::SwProtected.raw().into();
        self.push(Op::CreateVm { vm_type });
        if self.dice.percent(50) {
            let (cap, arg) = ("DISABLE_QUIRKS2", Quirks::SLOT_ZAP_ALL.bits());
            let bits = Some("SLOT_ZAP_ALL");
            self.push(Op::EnableCap { cap, bits, arg });
        }
        let (id, max_phys_addr) = (0, None);
        self.push(Op::CreateVcpu { id });
        self.push(Op::SetCpuid {
            vcpu: id,
            max_phys_addr,
        });
        let (vcpu, sregs) = (Some(id), Sregs::Flat);
        self.push(Op::SetSregs { vcpu, sregs });
        let size = (END_FRAME - FIRST_FRAME) << PAGE_SHIFT;
        self.push(Op::CreateGmem { size });
        let _file = self.memory.create_gmem(size, 0);
        self.set(SetRegion {
            slot: 0,
            as_id: AsId::NORMAL,
            flags: 0,
            gfn: Gfn::new(0),
            pages: AREAS[0].pages,
            gmem_offset: None,
            hva: Some(AREAS[0].start),
        });
        for _ in 0..4 {
            self.create_slot();
        }
    }

    pub(super) fn end(mut self) -> Program {
        for op in [Op::CloseVcpu { id: 0 }, Op::CloseGmem, Op::CloseVm] {
            self.push(op);
        }
        Program {
            areas: AREAS.to_vec(),
            ops: self.ops,
        }
    }

    pub(super) fn guest(&mut self, act: GuestAct<'static>) {
        self.push(Op::Guest { vcpu: 0, act });
    }

    /// A frame, mostly one in a slot, often one of a few.
    pub(super) fn frame(&mut self) -> Gfn {
        if self.slots.len() < 2 || self.dice.percent(10) {
            return Gfn::new(FIRST_FRAME + self.dice.below(END_FRAME - FIRST_FRAME));
        }
        let slot = self.data_slot();
        let pages = slot.pages.raw().max(1);
        let offset = match self.dice.below(4) {
            0 => self.dice.below(pages),
            1 => self.dice.below(pages.min(8)),
            2 => pages - 1 - self.dice.below(pages.min(8)),
            _ => self.dice.below(pages.div_ceil(HUGE)) * HUGE,
        };
        Gfn::new(slot.gfn.raw() + offset % pages)
    }

    /// A slot that does not hold the instructions.
    fn data_slot(&mut self) -> SetRegion {
        self.dice.pick(&self.slots[1..])
    }

    // --- Slots -------------------------------------------------------------------------------------------------------

    /// A call as the kernel will answer it.
    fn set(&mut self, region: SetRegion) {
        self.push(Op::SetRegion(region));
        let key = SlotKey {
            as_id: region.as_id,
            id: SlotId::new(region.slot),
        };
        let (gpa, size) = (region.gfn.gpa().raw(), region.pages.bytes());
        let mut request = Region::new(key, gpa, size, region.hva.map_or(0, Hva::raw));
        if let Some(offset) = region.gmem_offset {
            request = request.with_gmem(FILE, offset);
        }
        request.flags = region.flags;
        if self.memory.set_region(&request).is_err() {
            return;
        }
        self.slots.retain(|slot| slot.slot != region.slot);
        if region.pages.raw() > 0 {
            self.slots.push(region);
            self.slots.sort_by_key(|slot| slot.slot);
        }
    }

    /// Often right behind the slot before, so that ranges cross.
    pub(super) fn create_slot(&mut self) {
        let free = (1..7).find(|id| self.slots.iter().all(|slot| slot.slot != *id));
        let Some(id) = free else { return };
        let huge = self.dice.percent(60);
        let area = if huge { AREAS[2] } else { AREAS[1] };
        let pages = match self.dice.below(4) {
            0 => HUGE,
            1 => 2 * HUGE,
            2 => HUGE + 0x80,
            _ => 1 + self.dice.below(HUGE),
        };
        let gfn = match self.dice.below(3) {
            0 => self.next.raw(),
            1 => self.next.raw().next_multiple_of(HUGE),
            _ => FIRST_FRAME + self.dice.below((END_FRAME - FIRST_FRAME) / 0x10) * 0x10,
        };
        let gfn = if gfn + pages > END_FRAME {
            FIRST_FRAME
        } else {
            gfn
        };
        self.next = Gfn::new(gfn + pages);
        let room = area.pages.raw() - pages;
        // Huge pages need the same place in the guest and the host.
        let offset = self.dice.below(room / HUGE + 1) * HUGE + (gfn & (HUGE - 1));
        let offset = if offset > room {
            self.dice.below(room + 1)
        } else {
            offset
        };
        let file = self.dice.percent(85);
        let mut flags = SlotFlags::empty();
        flags.set(SlotFlags::GUEST_MEMFD, file);
        self.set(SetRegion {
            slot: id,
            as_id: AsId::NORMAL,
            flags: flags.bits(),
            gfn: Gfn::new(gfn),
            pages: Pages::new(pages),
            gmem_offset: file.then(|| (gfn - FIRST_FRAME) << PAGE_SHIFT),
            hva: Some(Hva::new(area.start.raw() + (offset << PAGE_SHIFT))),
        });
    }

    pub(super) fn delete_slot(&mut self) {
        if self.slots.len() > 2 {
            let slot = self.data_slot();
            let pages = Pages::new(0);
            self.set(SetRegion { pages, ..slot });
        }
    }

    /// Only slots without a file can be logged.
    pub(super) fn switch_log(&mut self) {
        if self.slots.len() > 1 {
            let slot = self.data_slot();
            let flags = slot.flags ^ SlotFlags::LOG_DIRTY_PAGES.bits();
            self.set(SetRegion { flags, ..slot });
        }
    }

    // --- Memory ------------------------------------------------------------------------------------------------------

    pub(super) fn punch_hole(&mut self) {
        let gfn = self.frame().raw();
        let len = (1 + self.dice.small(HUGE)) << PAGE_SHIFT;
        let offset = (gfn - FIRST_FRAME) << PAGE_SHIFT;
        self.push(Op::PunchHole { offset, len });
    }

    pub(super) fn host_memory(&mut self) {
        if self.slots.len() < 2 {
            return;
        }
        let slot = self.data_slot();
        let first = self.dice.below(slot.pages.raw());
        let pages = Pages::new(1 + self.dice.small(slot.pages.raw() - first));
        let gfn = Gfn::new(slot.gfn.raw() + first);
        match self.dice.percent(50) {
            true => self.discard(gfn, pages),
            false => {
                let (writable, range) = (self.dice.percent(60), Some((gfn, pages)));
                self.push(Op::Mprotect { writable, range });
            }
        }
    }

    fn discard(&mut self, gfn: Gfn, pages: Pages) {
        let advice = "DONTNEED";
        self.push(Op::Madvise { advice, gfn, pages });
    }

    fn set_attributes(&mut self, range: GfnRange, to: Status) -> Result<(), Errno> {
        let attributes = match to {
            Status::Private => Attributes::PRIVATE.bits(),
            Status::Shared => 0,
        };
        let (gfn, pages) = (range.start(), range.pages());
        let (address, size) = (gfn.gpa().raw(), pages.bytes());
        let set = self.memory.set_attributes(address, size, attributes, 0);
        set.map_err(|refusal| refusal.errno())?;
        self.push(Op::SetAttributes {
            gfn,
            pages,
            attributes,
        });
        Ok(())
    }
}

impl Executor for Writer {
    fn carry_out(&mut self, step: &Step) -> Result<(), Errno> {
        match self.fails {
            Some(0) => {
                self.fails = None;
                return Err(Errno::ENOMEM);
            }
            Some(later) => self.fails = Some(later - 1),
            None => {}
        }
        match *step {
            Step::SetAttributes { range, to } => self.set_attributes(range, to)?,
            Step::DiscardShared(part) => self.discard(part.range.start(), part.range.pages()),
            Step::DiscardPrivate { range, offset, .. } => {
                let len = range.pages().bytes();
                self.push(Op::PunchHole { offset, len });
            }
            Step::MapDma(_) | Step::UnmapDma(_) | Step::Note { .. } => {}
        }
        Ok(())
    }
}
