//! What guests do, and their registers.

use slat_memslot::PAGE_SHIFT;
use slat_mmu::walk::Privilege;

use super::Writer;
use super::entries::{FIRST_TABLE, OF_LEVEL};
use crate::live::areas::TRAPS;
use crate::traces::{Control, GuestAct, Instruction, Op, Sregs};

const CR0: u64 = 0x8000_0011;
const CR0_WP: u64 = 1 << 16;
const CR4: u64 = 1 << 5;
const CR4_PGE: u64 = 1 << 7;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;
const EFER: u64 = 0x501;
const EFER_NX: u64 = 1 << 11;

impl Writer {
    pub(super) fn user(&mut self) {
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

    pub(super) fn supervisor(&mut self) {
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

    fn root(&mut self) -> u64 {
        let (first, count) = OF_LEVEL[3];
        let table = first + self.dice.below(count);
        // Bits that mean nothing, so that a load of the same table counts as another one.
        let ignored = self.dice.pick(&[0, 0, 0, 0x18]);
        (FIRST_TABLE + table) << PAGE_SHIFT | ignored
    }

    pub(super) fn some_control(&mut self) -> Control {
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

    pub(super) fn change_control(&mut self) {
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

    pub(super) fn set_control(&mut self, vcpu: u32) {
        self.push(Op::SetSregs {
            vcpu: Some(vcpu),
            sregs: Sregs::Control(self.control[vcpu as usize]),
        });
    }
}
