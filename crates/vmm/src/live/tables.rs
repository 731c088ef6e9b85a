//! Random programs whose guests have tables of their own, and edit them.

use slat_memslot::{AsId, Gfn, Hva, PAGE_SHIFT, PAGE_SIZE, Pages, Quirks, SlotFlags};
use slat_mmu::walk::Privilege;

use super::areas::{Area, Kind, TRAPS};
use super::random::{Abilities, Program};
use crate::differential::Dice;
use crate::traces::{Control, GuestAct, Instruction, Op, SetRegion, Sregs};

/// The areas: instructions and the tables that lead to them, the guest's other tables, small pages, huge pages.
const AREAS: [Area; 4] = [
    Area::at(0, Pages::new(0x10), Kind::Small),
    Area::at(1, Pages::new(TABLES), Kind::Small),
    Area::at(2, Pages::new(0x40), Kind::Small),
    Area::at(3, Pages::new(3 * HUGE), Kind::Transparent),
];

/// How many pages may be tables, and the first of them.
const TABLES: u64 = 24;
const FIRST_TABLE: u64 = 0x10;
/// Which of them are meant for a level: from this one on, so many.
const OF_LEVEL: [(u64, u64); 4] = [(10, 14), (6, 4), (3, 3), (0, 3)];
/// Frames that other slots lie in.
const FIRST_FRAME: u64 = 0x400;
const END_FRAME: u64 = 0xe00;
/// Frames of a huge page.
const HUGE: u64 = 0x200;
/// The tables that lead to the instructions, which nobody edits.
const OWN_TABLES: [u64; 3] = [0x2000, 0x3000, 0x4000];
/// Where the instructions are.
const CODE: u64 = 0x1000;

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const PAGE_SIZE_BIT: u64 = 1 << 7;
const NX: u64 = 1 << 63;

const CR0: u64 = 0x8000_0011;
const CR0_WP: u64 = 1 << 16;
const CR4: u64 = 1 << 5;
const CR4_PGE: u64 = 1 << 7;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;
const EFER: u64 = 0x501;
const EFER_NX: u64 = 1 << 11;

impl Program {
    /// A program of about so many operations, whose guest runs on tables that it and the host edit.
    pub fn with_tables(seed: u64, operations: usize, abilities: Abilities) -> Self {
        let mut writer = Writer::new(seed, abilities);
        writer.begin();
        let end = writer.ops.len() + operations;
        while writer.ops.len() < end {
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
    vcpus: u32,
    slots: Vec<SetRegion>,
    control: Vec<Control>,
}

/// An entry of a guest's table: which table, and which of its entries.
#[derive(Clone, Copy)]
struct Place {
    table: u64,
    index: u64,
}

impl Place {
    const fn hva(self) -> Hva {
        let page = AREAS[1].start.raw() + self.table * PAGE_SIZE;
        Hva::new(page + self.index * 8)
    }
}

impl Writer {
    fn new(seed: u64, abilities: Abilities) -> Self {
        let dice = Dice::new(seed);
        let vcpus = 1;
        Self {
            dice,
            abilities,
            ops: Vec::new(),
            vcpus,
            slots: Vec::new(),
            control: Vec::new(),
        }
    }

    fn push(&mut self, op: Op<'static>) {
        self.ops.push(op);
    }

    // --- Begin and end -----------------------------------------------------------------------------------------------

    fn begin(&mut self) {
        self.push(Op::CreateVm { vm_type: 0 });
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
            let control = self.some_control();
            self.control.push(control);
            self.set_control(id);
        }
        self.push(Op::SetRegion(slot(0, 0, 0x10, AREAS[0].start)));
        self.own_tables();
        self.create_table_slot();
        for _ in 0..2 {
            self.create_slot();
        }
        self.first_tables();
    }

    /// The way to the instructions: the same below each top table.
    fn own_tables(&mut self) {
        let [third, second, last] = OWN_TABLES;
        let at = |place: u64| Hva::new(AREAS[0].start.raw() + place);
        let link = PRESENT | WRITE | USER;
        for (place, value) in [
            (third, second | link),
            (second, last | link),
            (last + 8, CODE | PRESENT | USER),
            (last + 5 * 8, CODE | PRESENT),
        ] {
            self.push(Op::Poke {
                hva: at(place),
                value,
            });
        }
        let (first, count) = OF_LEVEL[3];
        for table in first..first + count {
            let place = Place { table, index: 0 };
            self.push(Op::Poke {
                hva: place.hva(),
                value: third | link,
            });
        }
    }

    fn first_tables(&mut self) {
        for level in (0..4).rev() {
            let (first, count) = OF_LEVEL[level];
            for table in first..first + count {
                if level < 3 {
                    // Memory begins with an instruction that halts, which is an entry here.
                    self.push(Op::Poke {
                        hva: Place { table, index: 0 }.hva(),
                        value: 0,
                    });
                }
                for _ in 0..4 {
                    let index = self.index(level);
                    let value = self.entry(level);
                    let hva = Place { table, index }.hva();
                    self.push(Op::Poke { hva, value });
                }
            }
        }
    }

    fn end(&mut self) {
        for id in 0..self.vcpus {
            self.push(Op::CloseVcpu { id });
        }
        self.push(Op::CloseVm);
    }

    // --- One operation -----------------------------------------------------------------------------------------------

    fn operation(&mut self) {
        match self.dice.below(100) {
            0..52 => self.user(),
            52..64 => self.supervisor(),
            64..76 => self.poke(),
            76..83 => self.change_control(),
            83..86 => self.create_slot(),
            86..88 => self.delete_slot(),
            88..90 => self.move_slot(),
            90..94 => self.switch_log(),
            94..97 => self.read_log(),
            97..99 => self.clear_log(),
            _ => self.limit(),
        }
    }

    fn vcpu(&mut self) -> u32 {
        u32::try_from(self.dice.below(u64::from(self.vcpus))).unwrap_or(0)
    }

    /// An index that tables of a level use.
    fn index(&mut self, level: usize) -> u64 {
        match level {
            3 => 1 + self.dice.below(2),
            2 | 1 => self.dice.below(3),
            _ => self.dice.below(12),
        }
    }

    /// An address, often in the same few places.
    fn address(&mut self, offset: u64) -> u64 {
        let parts = (0..4).map(|level| self.index(level) << (12 + 9 * level));
        parts.sum::<u64>() + offset
    }

    fn user(&mut self) {
        let vcpu = self.vcpu();
        let instruction = match self.dice.below(100) {
            0..40 => self.load(),
            40..88 => self.store(),
            _ => Instruction::Jump {
                gva: self.address(TRAPS),
            },
        };
        self.execute(vcpu, instruction, Privilege::User);
    }

    fn execute(&mut self, vcpu: u32, instruction: Instruction, privilege: Privilege) {
        let act = GuestAct::Execution {
            privilege,
            instruction,
        };
        self.push(Op::Guest { vcpu, act });
    }

    fn load(&mut self) -> Instruction {
        let offset = self.dice.below(TRAPS / 8) * 8;
        Instruction::Load {
            gva: self.address(offset),
        }
    }

    /// Writes an entry, to whatever is there: never the first one of a table, which leads to the instructions.
    fn store(&mut self) -> Instruction {
        let level = self.some_level();
        let value = self.entry(level);
        let offset = self.index(level).max(1) * 8;
        let (len, offset, value) = match self.dice.below(20) {
            0 => (1, offset, value),
            1 => (2, offset, value),
            2 => (4, offset, value),
            3 => (4, offset + 4, value >> 32),
            4 => (8, offset, 0),
            _ => (8, offset, value),
        };
        Instruction::Store {
            gva: self.address(offset),
            len,
            value,
        }
    }

    fn supervisor(&mut self) {
        let vcpu = self.vcpu();
        let instruction = match self.dice.below(100) {
            0..15 => self.load(),
            15..50 => self.store(),
            50..75 => Instruction::Invlpg {
                gva: self.address(0),
            },
            75..92 => Instruction::MoveToCr {
                number: 3,
                value: self.root(),
            },
            92..96 => Instruction::MoveToCr {
                number: 0,
                value: self.some_control().cr0,
            },
            _ => Instruction::MoveToCr {
                number: 4,
                value: self.some_control().cr4,
            },
        };
        self.execute(vcpu, instruction, Privilege::Supervisor);
    }

    fn poke(&mut self) {
        let level = self.some_level();
        let (first, count) = OF_LEVEL[level];
        let table = first + self.dice.below(count);
        let (index, value) = (self.index(level), self.entry(level));
        let hva = Place { table, index }.hva();
        self.push(Op::Poke { hva, value });
    }

    /// A level, from 0 for the last: mostly that.
    fn some_level(&mut self) -> usize {
        match self.dice.below(20) {
            0..12 => 0,
            12..16 => 1,
            16..19 => 2,
            _ => 3,
        }
    }

    // --- Registers ---------------------------------------------------------------------------------------------------

    fn root(&mut self) -> u64 {
        let (first, count) = OF_LEVEL[3];
        let table = first + self.dice.below(count);
        // Bits that mean nothing, so that a load of the same table counts as another one.
        let ignored = self.dice.pick(&[0, 0, 0, 0x18]);
        (FIRST_TABLE + table) << PAGE_SHIFT | ignored
    }

    fn some_control(&mut self) -> Control {
        let mut bit = |percent, bit| if self.dice.percent(percent) { bit } else { 0 };
        let cr0 = CR0 | bit(75, CR0_WP);
        let cr4 = CR4 | bit(10, CR4_SMEP) | bit(8, CR4_SMAP) | bit(20, CR4_PGE);
        let efer = EFER | bit(85, EFER_NX);
        Control {
            cr0,
            cr3: self.root(),
            cr4,
            efer,
        }
    }

    fn change_control(&mut self) {
        let vcpu = self.vcpu();
        let new = self.some_control();
        let last = &mut self.control[vcpu as usize];
        match self.dice.below(4) {
            0 | 1 => last.cr3 = new.cr3,
            2 => (last.cr0, last.efer) = (new.cr0, new.efer),
            _ => *last = new,
        }
        self.set_control(vcpu);
    }

    fn set_control(&mut self, vcpu: u32) {
        self.push(Op::SetSregs {
            vcpu: Some(vcpu),
            sregs: Sregs::Control(self.control[vcpu as usize]),
        });
    }

    // --- Entries -----------------------------------------------------------------------------------------------------

    /// An entry for a table of a level, from 0 for the last.
    fn entry(&mut self, level: usize) -> u64 {
        let mut bit = |percent, bit| if self.dice.percent(percent) { bit } else { 0 };
        let rights = bit(93, PRESENT) | bit(82, WRITE) | bit(88, USER) | bit(6, NX);
        let marks = bit(45, ACCESSED) | bit(2, 1 << 4) | bit(2, 1 << 8);
        let ignored = bit(2, 1 << 52) | bit(1, 1 << 51);
        let rights = rights | marks | ignored;
        match level {
            0 => {
                let dirty = if self.dice.percent(40) { DIRTY } else { 0 };
                rights | dirty | self.frame() << PAGE_SHIFT
            }
            1 if self.dice.percent(25) => {
                let dirty = if self.dice.percent(40) { DIRTY } else { 0 };
                let frame = FIRST_FRAME + self.dice.below((END_FRAME - FIRST_FRAME) / HUGE) * HUGE;
                rights | dirty | PAGE_SIZE_BIT | frame << PAGE_SHIFT
            }
            _ => {
                let below = if self.dice.percent(88) {
                    OF_LEVEL[level - 1]
                } else {
                    (3, TABLES - 3)
                };
                let table = below.0 + self.dice.below(below.1);
                rights | (FIRST_TABLE + table) << PAGE_SHIFT
            }
        }
    }

    /// A frame that small leaves map: memory, tables, or nothing.
    fn frame(&mut self) -> u64 {
        match self.dice.below(100) {
            0..30 => FIRST_TABLE + 3 + self.dice.below(TABLES - 3),
            30..95 if !self.slots.is_empty() => {
                let slot = self.dice.pick(&self.slots);
                let pages = slot.pages.raw().max(1);
                let offset = match self.dice.below(3) {
                    0 => self.dice.below(pages),
                    _ => self.dice.below(pages.min(12)),
                };
                slot.gfn.raw() + offset
            }
            _ => FIRST_FRAME + self.dice.below(END_FRAME - FIRST_FRAME),
        }
    }

    // --- Slots -------------------------------------------------------------------------------------------------------

    fn create_table_slot(&mut self) {
        let region = slot(1, FIRST_TABLE, TABLES, AREAS[1].start);
        self.remember(region);
        self.push(Op::SetRegion(region));
    }

    fn remember(&mut self, region: SetRegion) {
        if !self.slots.iter().any(|slot| slot.slot == region.slot) {
            self.slots.push(region);
        }
    }

    fn create_slot(&mut self) {
        if !self.slots.iter().any(|slot| slot.slot == 1) {
            return self.create_table_slot();
        }
        let huge = self.dice.percent(50);
        let area = if huge { AREAS[3] } else { AREAS[2] };
        let pages = if huge {
            self.dice.pick(&[HUGE, 2 * HUGE, HUGE + 0x80])
        } else {
            1 + self.dice.below(area.pages.raw())
        };
        let room = area.pages.raw() - pages;
        let (mut offset, mut gfn) = (
            self.dice.below(room + 1),
            FIRST_FRAME + self.dice.below((END_FRAME - FIRST_FRAME - pages) / 0x10) * 0x10,
        );
        if huge && self.dice.percent(80) {
            (offset, gfn) = (offset & !(HUGE - 1), gfn & !(HUGE - 1));
        }
        let mut flags = SlotFlags::empty();
        flags.set(SlotFlags::LOG_DIRTY_PAGES, self.dice.percent(20));
        flags.set(SlotFlags::READONLY, self.dice.percent(10));
        let id = 2 + u16::try_from(self.dice.below(4)).unwrap_or(0);
        let hva = Hva::new(area.start.raw() + (offset << PAGE_SHIFT));
        let region = SetRegion {
            flags: flags.bits(),
            ..slot(id, gfn, pages, hva)
        };
        self.remember(region);
        self.push(Op::SetRegion(region));
    }

    fn some_slot(&mut self) -> Option<usize> {
        let count = self.slots.len() as u64;
        (count > 0).then(|| usize::try_from(self.dice.below(count)).unwrap_or(0))
    }

    fn delete_slot(&mut self) {
        let Some(at) = self.some_slot() else { return };
        let region = self.slots.remove(at);
        self.push(Op::SetRegion(SetRegion {
            pages: Pages::new(0),
            ..region
        }));
    }

    fn move_slot(&mut self) {
        let Some(at) = self.some_slot() else { return };
        let region = &mut self.slots[at];
        if region.slot == 1 {
            return;
        }
        let step = self.dice.pick(&[0x10, HUGE]);
        region.gfn = Gfn::new(region.gfn.raw() + step);
        let region = *region;
        self.push(Op::SetRegion(region));
    }

    fn switch_log(&mut self) {
        let Some(at) = self.some_slot() else { return };
        let region = &mut self.slots[at];
        region.flags ^= SlotFlags::LOG_DIRTY_PAGES.bits();
        let region = *region;
        self.push(Op::SetRegion(region));
    }

    fn read_log(&mut self) {
        let Some(at) = self.some_slot() else { return };
        let slot = self.slots[at].slot;
        self.push(Op::GetDirtyLog { slot });
    }

    fn clear_log(&mut self) {
        let Some(at) = self.some_slot() else { return };
        let region = self.slots[at];
        let first = self.dice.below(region.pages.raw().div_ceil(64)) * 64;
        self.push(Op::ClearDirtyLog {
            slot: region.slot,
            first,
            pages: Pages::new(region.pages.raw() - first),
        });
    }

    fn limit(&mut self) {
        let pages = 60 + self.dice.below(80);
        self.push(Op::SetMmuPages { pages });
    }
}

fn slot(id: u16, gfn: u64, pages: u64, hva: Hva) -> SetRegion {
    SetRegion {
        slot: id,
        as_id: AsId::NORMAL,
        flags: 0,
        gfn: Gfn::new(gfn),
        pages: Pages::new(pages),
        gmem_offset: None,
        hva: Some(hva),
    }
}
