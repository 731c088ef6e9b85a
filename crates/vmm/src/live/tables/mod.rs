//! Random programs whose guests have tables of their own, and edit them.

mod entries;
mod guest;
mod nested;
mod slots;

use slat_memslot::{Hva, Pages};

use self::entries::{OF_LEVEL, PRESENT, Place, TABLES, USER, WRITE};
use self::slots::slot;
use super::abilities::Abilities;
use super::areas::{Area, Kind};
use super::random::{Program, capabilities};
use crate::differential::Dice;
use crate::traces::{Control, Op, SetRegion};

/// The areas: instructions and the tables that lead to them, the guest's other tables, small pages, huge pages.
const AREAS: [Area; 4] = [
    Area::at(0, Pages::new(0x10), Kind::Small),
    Area::at(1, Pages::new(TABLES), Kind::Small),
    Area::at(2, Pages::new(0x40), Kind::Small),
    Area::at(3, Pages::new(3 * HUGE), Kind::Transparent),
];

/// Frames of a huge page.
const HUGE: u64 = 0x200;
/// The tables that lead to the instructions, which nobody edits.
const OWN_TABLES: [u64; 3] = [0x2000, 0x3000, 0x4000];
/// Where the instructions are.
const CODE: u64 = 0x1000;

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
    ops: Vec<Op<'static>>,
    vcpus: u32,
    slots: Vec<SetRegion>,
    control: Vec<Control>,
    /// By vCPU of an L1: whether it has pages that cannot be executed.
    no_execute: Vec<bool>,
}

impl Writer {
    fn new(seed: u64, abilities: Abilities) -> Self {
        let mut dice = Dice::new(seed);
        let vcpus = match abilities.shared_roots && dice.percent(40) {
            true => 2,
            false => 1,
        };
        Self {
            dice,
            ops: Vec::new(),
            vcpus,
            slots: Vec::new(),
            control: Vec::new(),
            no_execute: Vec::new(),
        }
    }

    fn push(&mut self, op: Op<'static>) {
        self.ops.push(op);
    }

    fn begin(&mut self) {
        self.push(Op::CreateVm { vm_type: 0 });
        self.ops.extend(capabilities(&mut self.dice));
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

    fn end(&mut self) {
        for id in 0..self.vcpus {
            self.push(Op::CloseVcpu { id });
        }
        self.push(Op::CloseVm);
    }

    fn operation(&mut self) {
        // Without tables nothing else can be shown.
        if !self.has_table_slot() && self.dice.percent(25) {
            return self.create_table_slot();
        }
        match self.dice.below(200) {
            0..110 => self.user(),
            110..138 => self.supervisor(),
            138..164 => self.poke(),
            164..172 => self.change_control(),
            172..178 => self.create_slot(),
            178..181 => self.delete_slot(),
            181..184 => self.move_slot(),
            184..189 => self.switch_log(),
            189..194 => self.read_log(),
            194..198 => self.clear_log(),
            _ => self.limit(),
        }
    }

    fn vcpu(&mut self) -> u32 {
        u32::try_from(self.dice.below(u64::from(self.vcpus))).unwrap_or(0)
    }
}
