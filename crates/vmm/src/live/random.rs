//! Random programs: operations that a [`Driver`](super::Driver) makes, worth comparing.

mod memory;
mod slots;

use slat_memslot::{AsId, Gfn, Gpa, PAGE_SHIFT, Pages, Quirks, VmType};

use super::abilities::Abilities;
use super::areas::{Area, Kind, USED};
use super::guest::HANDLER;
use crate::differential::Dice;
use crate::traces::{GuestAct, Op, SetRegion, Sregs};

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
    Area::at(0, Pages::new(0x40), Kind::Small),
    Area::at(1, Pages::new(0x400), Kind::Small),
    Area::at(2, Pages::new(0xa00), Kind::Transparent),
];
/// Those of a pool, in programs that use it. They are some address space away from the others and each other: what the host
/// says about one of them it may say about all of its GiB.
const HUGETLB: Area = Area::at(4, Pages::new(0x800), Kind::Hugetlb);
const GIGANTIC: Area = Area::at(6, Pages::new(GIB), Kind::Gigantic);

/// Frames that slots lie in.
const FIRST_FRAME: u64 = 0x400;
const END_FRAME: u64 = 0x1c00;
/// Frames of a huge page.
const HUGE: u64 = 0x200;
/// Frames of 1 GiB, and the first frame where slots of that size are.
const GIB: u64 = 0x4_0000;
const FIRST_GIB: u64 = GIB;
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
            areas: writer.areas,
            ops: writer.ops,
        }
    }
}

/// What VMs may be asked for that every kernel has: one policy of deletion or the other, and logs that are cleared apart.
pub(super) fn capabilities(dice: &mut Dice) -> Vec<Op<'static>> {
    let mut ops = Vec::new();
    if dice.percent(50) {
        ops.push(Op::EnableCap {
            cap: "DISABLE_QUIRKS2",
            bits: Some("SLOT_ZAP_ALL"),
            arg: Quirks::SLOT_ZAP_ALL.bits(),
        });
    }
    if dice.percent(50) {
        ops.push(Op::EnableCap {
            cap: "MANUAL_DIRTY_LOG_PROTECT2",
            bits: None,
            arg: dice.pick(&[1, 3]),
        });
    }
    ops
}

/// A program being written.
struct Writer {
    dice: Dice,
    abilities: Abilities,
    areas: Vec<Area>,
    ops: Vec<Op<'static>>,
    private: bool,
    smm: bool,
    /// Whether the vCPU enters SMM as a real one does: by an SMI.
    smi: bool,
    in_smm: bool,
    /// Whether dirty pages are logged in rings.
    rings: bool,
    /// Whether the program forks, and whether it has a child.
    forks: bool,
    has_child: bool,
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
        let rings = abilities.rings && dice.percent(25);
        let mut areas = AREAS.to_vec();
        if abilities.host.huge_pages >= HUGETLB.pages.raw() / HUGE && dice.percent(30) {
            areas.push(HUGETLB);
        }
        if abilities.host.gigantic_pages > 0 && dice.percent(10) {
            areas.push(GIGANTIC);
        }
        Self {
            abilities,
            areas,
            private,
            smm: abilities.smm && !private && dice.percent(30),
            // A full ring would leave the SMI pending.
            smi: !rings && dice.percent(50),
            in_smm: false,
            rings,
            forks: dice.percent(30),
            has_child: false,
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
        let eager = if self.is_gigantic() { 0 } else { 70 };
        self.parameter("eager_page_split", eager);
        self.parameter("nx_huge_pages", 15);
        let vm_type = if self.private {
            VmType::SwProtected
        } else {
            VmType::Default
        };
        self.push(Op::CreateVm {
            vm_type: u64::from(vm_type.raw()),
        });
        self.ops.extend(capabilities(&mut self.dice));
        if self.rings {
            let arg = self.dice.pick(&[0x1000, 0x1000, 0x1_0000]);
            self.push(Op::EnableCap {
                cap: "DIRTY_LOG_RING",
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
        self.push(Op::SetRegion(AREAS[0].slot_of_code(AsId::NORMAL)));
        if let Some(smm) = AsId::new(1).filter(|_| self.smm) {
            self.push(Op::SetRegion(AREAS[0].slot_of_code(smm)));
        }
        for _ in 0..2 {
            self.create_slot();
        }
        if self.is_gigantic() {
            self.create_gigantic_slot();
        }
    }

    /// Splitting 1 GiB ahead of time makes half a million events: programs that have so much leave it to writes.
    fn is_gigantic(&self) -> bool {
        self.areas.contains(&GIGANTIC)
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
        if self.private && self.dice.percent(10) {
            return self.private_memory();
        }
        match self.dice.below(100) {
            0..44 => self.guest(),
            44..50 => self.create_slot(),
            50..54 => self.delete_slot(),
            54..57 => self.move_slot(),
            57..65 => self.switch_log(),
            65..71 => self.read_log(),
            71..76 => self.clear_log(),
            76..82 => self.host_memory(),
            82..86 => self.host_work(),
            86..92 => self.pre_fault(),
            92..95 => self.switch_smm(),
            95 => self.change_parameter(),
            _ => self.guest(),
        }
    }

    fn change_parameter(&mut self) {
        if self.is_gigantic() {
            self.guest();
        } else if self.dice.percent(70) {
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
        if pages > END_FRAME {
            let huge = self.dice.pick(&[1, 2, 3, 0x40, pages / HUGE]);
            let offset = self.dice.below(huge) * HUGE + self.dice.small(USED);
            return Gfn::new(slot.gfn.raw() + offset);
        }
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
            0..45 if self.in_smm && self.smi => GuestAct::SmmRead(gpa),
            _ if self.in_smm && self.smi => GuestAct::SmmWrite(gpa),
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
            let act = match self.in_smm && self.smi {
                true => GuestAct::SmmRead(Gpa::new(HANDLER)),
                false => GuestAct::Halt { at: None },
            };
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
        if !self.smm {
            return self.guest();
        }
        self.in_smm = !self.in_smm;
        let guest = |act| Op::Guest { vcpu: 0, act };
        match (self.smi, self.in_smm) {
            (false, inside) => self.push(Op::SetSmm(inside)),
            (true, true) => {
                self.push(Op::Smi);
                let handler = Gpa::new(HANDLER);
                self.push(guest(GuestAct::EnterSmm { handler }));
            }
            (true, false) => self.push(guest(GuestAct::LeaveSmm)),
        }
    }
}
