//! Random programs: operations that a [`Driver`](super::Driver) makes, worth comparing.

use slat_memslot::{AsId, Gfn, Gpa, Hva, PAGE_SHIFT, Pages, Quirks, SlotFlags, VmType};

use super::areas::{Area, Kind};
use crate::differential::Dice;
use crate::traces::{GuestAct, Op, SetRegion, Sregs};

/// What a kernel can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Abilities {
    /// `KVM_X86_SW_PROTECTED_VM`.
    pub private_memory: bool,
    /// Address space 1 and SMM.
    pub smm: bool,
    /// `KVM_PRE_FAULT_MEMORY`.
    pub pre_fault: bool,
    /// Roots that several vCPUs share. With a paravirtual backend each has a top table of its own, which its own faults fill:
    /// what another vCPU has linked there costs a fault that finds all in place.
    pub shared_roots: bool,
}

/// A program with the memory that it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Host memory.
    pub areas: Vec<Area>,
    /// The operations, from making the VM to closing it.
    pub ops: Vec<Op<'static>>,
}

/// A slot, as the program remembers it. The kernel may have refused it.
#[derive(Clone, Copy, Debug)]
struct Slot {
    region: SetRegion,
}

/// The areas: instructions, small pages, huge pages.
const AREAS: [Area; 3] = [
    Area::at(0, Pages::new(0x10), Kind::Small),
    Area::at(1, Pages::new(0x400), Kind::Small),
    Area::at(2, Pages::new(0xa00), Kind::Transparent),
];

/// Frames that slots lie in.
const FIRST_FRAME: u64 = 0x400;
const END_FRAME: u64 = 0x1c00;
/// Frames of a huge page.
const HUGE: u64 = 0x200;
const PRIVATE: u64 = 1 << 3;

impl Program {
    /// How often its guests run.
    pub fn executed(&self) -> usize {
        let runs = |op: &&Op<'_>| matches!(op, Op::Guest { .. });
        self.ops.iter().filter(runs).count()
    }

    /// A program of about so many operations.
    pub fn random(seed: u64, operations: usize, abilities: Abilities) -> Self {
        let mut writer = Writer::new(seed, abilities);
        writer.begin();
        while writer.ops.len() < operations {
            writer.operation();
        }
        writer.end();
        Self {
            areas: AREAS.to_vec(),
            ops: writer.ops,
        }
    }
}

/// A program being written.
struct Writer {
    dice: Dice,
    abilities: Abilities,
    ops: Vec<Op<'static>>,
    private: bool,
    smm: bool,
    in_smm: bool,
    vcpus: u32,
    slots: Vec<Slot>,
    /// vCPUs whose roots may be obsolete: some kernels never come back from pre-faulting then.
    obsolete: Vec<u32>,
    /// Whether memory is given back to the host: what is executed must not.
    discards: bool,
}

impl Writer {
    fn new(seed: u64, abilities: Abilities) -> Self {
        let mut dice = Dice::new(seed);
        let private = abilities.private_memory && dice.percent(30);
        Self {
            abilities,
            private,
            smm: abilities.smm && !private && dice.percent(25),
            in_smm: false,
            vcpus: 1 + u32::from(dice.percent(30)),
            discards: dice.percent(50),
            ops: Vec::new(),
            slots: Vec::new(),
            obsolete: Vec::new(),
            dice,
        }
    }

    fn push(&mut self, op: Op<'static>) {
        self.ops.push(op);
    }

    // --- Begin and end -----------------------------------------------------------------------------------------------

    fn begin(&mut self) {
        self.parameter("eager_page_split", 70);
        self.parameter("nx_huge_pages", 15);
        let vm_type = if self.private {
            VmType::SwProtected
        } else {
            VmType::Default
        };
        self.push(Op::CreateVm {
            vm_type: u64::from(vm_type.raw()),
        });
        if self.dice.percent(50) {
            self.push(Op::EnableCap {
                cap: "DISABLE_QUIRKS2",
                bits: Some("SLOT_ZAP_ALL"),
                arg: Quirks::SLOT_ZAP_ALL.bits(),
            });
        }
        if self.dice.percent(50) {
            let arg = self.dice.pick(&[1, 3]);
            self.push(Op::EnableCap {
                cap: "MANUAL_DIRTY_LOG_PROTECT2",
                bits: None,
                arg,
            });
        }
        for id in 0..self.vcpus {
            self.push(Op::CreateVcpu { id });
            self.push(Op::SetCpuid {
                vcpu: id,
                max_phys_addr: None,
            });
            self.push(Op::SetSregs {
                vcpu: Some(id),
                sregs: Sregs::Flat,
            });
        }
        if self.private {
            let size = (END_FRAME - FIRST_FRAME) << PAGE_SHIFT;
            self.push(Op::CreateGmem { size });
        }
        self.push(Op::SetRegion(code_slot(AsId::NORMAL)));
        if let Some(smm) = AsId::new(1).filter(|_| self.smm) {
            self.push(Op::SetRegion(code_slot(smm)));
        }
        for _ in 0..2 {
            self.create_slot();
        }
    }

    fn end(&mut self) {
        for id in 0..self.vcpus {
            self.push(Op::CloseVcpu { id });
        }
        if self.private {
            self.push(Op::CloseGmem);
        }
        self.push(Op::CloseVm);
    }

    fn parameter(&mut self, name: &'static str, percent: u64) {
        let value = if self.dice.percent(percent) { "Y" } else { "N" };
        self.push(Op::ModuleParameter { name, value });
    }

    // --- One operation -----------------------------------------------------------------------------------------------

    fn operation(&mut self) {
        match self.dice.below(100) {
            0..48 => self.guest(),
            48..54 => self.create_slot(),
            54..59 => self.delete_slot(),
            59..62 => self.move_slot(),
            62..71 => self.switch_log(),
            71..77 => self.read_log(),
            77..82 => self.clear_log(),
            82..88 => self.host_memory(),
            88..94 => self.pre_fault(),
            94..96 => self.switch_smm(),
            96 => self.change_parameter(),
            _ if self.private => self.private_memory(),
            _ => self.guest(),
        }
    }

    fn change_parameter(&mut self) {
        if self.dice.percent(70) {
            self.parameter("eager_page_split", 50);
        } else {
            self.parameter("nx_huge_pages", 50);
            self.obsolete = (0..self.vcpus).collect();
        }
    }

    fn vcpu(&mut self) -> u32 {
        if self.in_smm {
            0
        } else {
            u32::try_from(self.dice.below(u64::from(self.vcpus))).unwrap_or(0)
        }
    }

    /// A frame, mostly one in a slot.
    fn frame(&mut self) -> Gfn {
        if self.slots.is_empty() || self.dice.percent(8) {
            return Gfn::new(FIRST_FRAME + self.dice.below(END_FRAME - FIRST_FRAME));
        }
        let slot = self.dice.pick(&self.slots).region;
        let pages = slot.pages.raw().max(1);
        // Often the same few frames.
        let offset = match self.dice.below(4) {
            0 => self.dice.below(pages),
            1 => self.dice.below(pages.min(4)),
            2 => self.dice.below(pages.div_ceil(HUGE)) * HUGE,
            _ => self.dice.below(pages.min(0x40)),
        };
        Gfn::new(slot.gfn.raw() + offset % pages)
    }

    fn in_slot(&self, gfn: Gfn) -> bool {
        self.slots
            .iter()
            .any(|slot| gfn.raw().wrapping_sub(slot.region.gfn.raw()) < slot.region.pages.raw())
    }

    fn guest(&mut self) {
        let vcpu = self.vcpu();
        let gfn = self.frame();
        let gpa = Gpa::new(gfn.raw() << PAGE_SHIFT);
        let may_execute = !self.discards && !self.private && !self.in_smm && self.in_slot(gfn);
        let act = match self.dice.below(100) {
            0..40 => GuestAct::Read(gpa),
            40..82 => GuestAct::Write(gpa),
            82..90 if may_execute => GuestAct::Execute(gpa),
            82..94 => GuestAct::WritePages {
                pages: 1 + self.dice.small(40),
                from: gpa,
            },
            _ => GuestAct::Halt { at: None },
        };
        self.obsolete.retain(|id| *id != vcpu);
        self.push(Op::Guest { vcpu, act });
    }

    fn pre_fault(&mut self) {
        if !self.abilities.pre_fault {
            return self.guest();
        }
        let vcpu = self.vcpu();
        if self.obsolete.contains(&vcpu) {
            self.obsolete.retain(|id| *id != vcpu);
            let act = GuestAct::Halt { at: None };
            self.push(Op::Guest { vcpu, act });
        }
        let (gfn, pages) = (self.frame(), 1 + self.dice.small(HUGE));
        let flags = self.dice.one_in(30).then_some(1);
        self.push(Op::PreFault {
            vcpu,
            gfn,
            pages: Pages::new(pages),
            flags,
        });
    }

    fn switch_smm(&mut self) {
        if self.smm {
            self.in_smm = !self.in_smm;
            self.push(Op::SetSmm(self.in_smm));
        } else {
            self.guest();
        }
    }

    // --- Slots -------------------------------------------------------------------------------------------------------

    fn create_slot(&mut self) {
        let as_id = AsId::new(u8::from(self.smm && self.dice.percent(25)));
        let huge = self.dice.percent(50);
        let aligned = self.dice.percent(70);
        let area = if huge { AREAS[2] } else { AREAS[1] };
        let pages = if huge {
            self.dice.pick(&[HUGE, 2 * HUGE, 3 * HUGE, HUGE + 0x80])
        } else {
            1 + self.dice.below(HUGE)
        };
        let room = (area.pages.raw() - pages) / 0x10;
        let (mut offset, mut gfn) = (
            self.dice.below(room + 1) * 0x10,
            FIRST_FRAME + self.dice.below((END_FRAME - FIRST_FRAME - pages) / 0x10) * 0x10,
        );
        if aligned {
            (offset, gfn) = (offset & !(HUGE - 1), gfn & !(HUGE - 1));
        } else if self.dice.percent(50) {
            // Not at the begin of a huge page, but as far behind it as in the host.
            gfn = gfn & !(HUGE - 1) | offset & (HUGE - 1);
        }
        let file = self.private && self.dice.percent(60);
        let mut flags = SlotFlags::empty();
        flags.set(SlotFlags::LOG_DIRTY_PAGES, self.dice.percent(15));
        flags.set(SlotFlags::READONLY, self.dice.percent(8));
        flags.set(SlotFlags::GUEST_MEMFD, file);
        let region = SetRegion {
            slot: 1 + u16::try_from(self.dice.below(4)).unwrap_or(0),
            as_id: as_id.unwrap_or(AsId::NORMAL),
            flags: flags.bits(),
            gfn: Gfn::new(gfn),
            pages: Pages::new(pages),
            gmem_offset: file.then(|| (gfn - FIRST_FRAME) << PAGE_SHIFT),
            hva: Some(Hva::new(area.start.raw() + (offset << PAGE_SHIFT))),
        };
        let same =
            |slot: &Slot| (slot.region.as_id, slot.region.slot) == (region.as_id, region.slot);
        if !self.slots.iter().any(same) {
            self.slots.push(Slot { region });
        }
        self.push(Op::SetRegion(region));
    }

    fn some_slot(&mut self) -> Option<usize> {
        let count = self.slots.len() as u64;
        (count > 0).then(|| usize::try_from(self.dice.below(count)).unwrap_or(0))
    }

    fn roots_may_go(&mut self) {
        self.obsolete = (0..self.vcpus).collect();
    }

    fn delete_slot(&mut self) {
        let Some(at) = self.some_slot() else { return };
        let slot = self.slots.remove(at);
        self.roots_may_go();
        self.push(Op::SetRegion(SetRegion {
            pages: Pages::new(0),
            ..slot.region
        }));
    }

    fn move_slot(&mut self) {
        let Some(at) = self.some_slot() else { return };
        let mut region = self.slots[at].region;
        let step = self.dice.pick(&[0x10, HUGE, 2 * HUGE]);
        region.gfn = Gfn::new(region.gfn.raw() + step);
        self.roots_may_go();
        // Where it may have been refused, its accesses go to MMIO or another slot.
        self.slots[at].region = region;
        self.push(Op::SetRegion(region));
    }

    fn switch_log(&mut self) {
        let Some(at) = self.some_slot() else { return };
        let slot = &mut self.slots[at];
        slot.region.flags ^= SlotFlags::LOG_DIRTY_PAGES.bits();
        let region = slot.region;
        self.push(Op::SetRegion(region));
    }

    fn read_log(&mut self) {
        let Some(at) = self.some_slot() else { return };
        let slot = self.slots[at].region.slot;
        self.push(Op::GetDirtyLog { slot });
    }

    fn clear_log(&mut self) {
        let Some(at) = self.some_slot() else { return };
        let region = self.slots[at].region;
        let words = region.pages.raw().div_ceil(64);
        let first = self.dice.below(words) * 64;
        let rest = region.pages.raw() - first;
        let pages = if self.dice.percent(50) {
            rest
        } else {
            rest.min(64 * (1 + self.dice.small(4)))
        };
        self.push(Op::ClearDirtyLog {
            slot: region.slot,
            first,
            pages: Pages::new(pages),
        });
    }

    // --- Memory ------------------------------------------------------------------------------------------------------

    fn host_memory(&mut self) {
        let normal: Vec<SetRegion> = self
            .slots
            .iter()
            .map(|slot| slot.region)
            .filter(|region| region.as_id == AsId::NORMAL)
            .collect();
        let Some(last) = normal.len().checked_sub(1) else {
            return;
        };
        let region = normal[usize::try_from(self.dice.below(last as u64 + 1)).unwrap_or(0)];
        let first = self.dice.below(region.pages.raw());
        let pages = 1 + self.dice.small(region.pages.raw() - first);
        let (gfn, pages) = (Gfn::new(region.gfn.raw() + first), Pages::new(pages));
        if self.discards && self.dice.percent(60) {
            let advice = "DONTNEED";
            self.push(Op::Madvise { advice, gfn, pages });
        } else {
            let writable = self.dice.percent(60);
            self.push(Op::Mprotect {
                writable,
                range: Some((gfn, pages)),
            });
        }
    }

    fn private_memory(&mut self) {
        let gfn = self.frame();
        if self.dice.percent(25) {
            let offset = gfn.raw().saturating_sub(FIRST_FRAME) << PAGE_SHIFT;
            let len = (1 + self.dice.small(HUGE)) << PAGE_SHIFT;
            return self.push(Op::PunchHole { offset, len });
        }
        let pages = match self.dice.below(3) {
            0 => 1 + self.dice.small(8),
            1 => HUGE,
            _ => 1 + self.dice.below(2 * HUGE),
        };
        let attributes = if self.dice.percent(60) { PRIVATE } else { 0 };
        self.push(Op::SetAttributes {
            gfn,
            pages: Pages::new(pages),
            attributes,
        });
    }
}

fn code_slot(as_id: AsId) -> SetRegion {
    SetRegion {
        slot: 0,
        as_id,
        flags: 0,
        gfn: Gfn::new(0),
        pages: AREAS[0].pages,
        gmem_offset: None,
        hva: Some(AREAS[0].start),
    }
}
