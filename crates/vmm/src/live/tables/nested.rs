//! Random programs of an L1 that runs an L2 with SVM, on nested page tables that it and the host edit.

use slat_memslot::{Gpa, Hva, PAGE_SHIFT};
use slat_mmu::fault::Kind;

use super::entries::{FIRST_TABLE, OF_LEVEL, PRESENT, Place, TABLES, USER, WRITE};
use super::slots::{FIRST_FRAME, slot};
use super::{AREAS, CODE, Writer};
use crate::live::Program;
use crate::live::abilities::Abilities;
use crate::live::random::capabilities;
use crate::traces::{GuestAct, Op, Sregs};

/// Where L1 has its own tables, and where hardware keeps its state.
const L1_TABLES: Gpa = Gpa::new(0x4000);
const HSAVE: u64 = 0x9000;
/// The tables that lead L2 to its instructions: nobody edits their first entries.
const SECOND: u64 = 0xc000;
const LAST: u64 = 0xd000;
/// Entries that are in use, by level.
const USED: [u64; 4] = [12, 6, 3, 1];
/// Where in a page L2 executes: no table has an entry there, so that memory has zeros or what L2 has written.
const EXECUTED: u64 = 0x800;

impl Program {
    /// A program of about so many operations, whose guest runs a guest of its own, with and without tables for it.
    pub fn nested(seed: u64, operations: usize, abilities: Abilities) -> Self {
        let mut writer = Writer::new(seed, abilities);
        writer.begin_nested();
        let end = writer.ops.len() + operations;
        while writer.ops.len() < end {
            writer.nested_operation();
        }
        writer.end();
        Self {
            areas: AREAS.to_vec(),
            ops: writer.ops,
        }
    }

    /// The least of them: L2 reads once, with tables or without.
    pub fn nested_once(with_tables: bool) -> Self {
        let mut writer = Writer::new(
            0,
            Abilities {
                shared_roots: false,
                ..Abilities::default()
            },
        );
        writer.begin_l1(Vec::new());
        writer.own_nested_tables();
        let kind = Kind::Read;
        let tables = with_tables.then(|| frame_of(0));
        let gpa = Gpa::new(CODE);
        let act = GuestAct::RunL2 { tables, kind, gpa };
        writer.push(Op::Guest { vcpu: 0, act });
        writer.end();
        Self {
            areas: AREAS.to_vec(),
            ops: writer.ops,
        }
    }
}

/// The frame of a table.
fn frame_of(table: u64) -> Gpa {
    Gpa::new((FIRST_TABLE + table) << PAGE_SHIFT)
}

impl Writer {
    fn begin_l1(&mut self, capabilities: Vec<Op<'static>>) {
        self.push(Op::CreateVm { vm_type: 0 });
        self.ops.extend(capabilities);
        for id in 0..self.vcpus {
            self.push(Op::CreateVcpu { id });
            self.push(Op::SetCpuid {
                vcpu: id,
                max_phys_addr: None,
            });
            self.push(Op::SetMsr {
                vcpu: Some(id),
                msr: "VM_HSAVE_PA",
                value: HSAVE,
            });
            self.push(Op::SetSregs {
                vcpu: Some(id),
                sregs: Sregs::LongMode {
                    cr3: L1_TABLES,
                    nesting: Some("EFER.SVME"),
                },
            });
            self.no_execute.push(false);
        }
        self.push(Op::SetRegion(slot(0, 0, 0x10, AREAS[0].start)));
        self.create_table_slot();
    }

    fn begin_nested(&mut self) {
        let capabilities = capabilities(&mut self.dice);
        self.begin_l1(capabilities);
        for id in 0..self.vcpus {
            if self.dice.percent(60) {
                self.switch_no_execute(id);
            }
        }
        self.create_slot();
        self.create_slot();
        self.own_nested_tables();
        for level in (0..3).rev() {
            let (first, count) = OF_LEVEL[level];
            for table in first..first + count {
                for index in 0..USED[level] {
                    if (level, index) == (2, 0) || !self.dice.percent(90) {
                        continue;
                    }
                    let value = self.nested_entry(level);
                    let hva = Place { table, index }.hva();
                    self.push(Op::Poke { hva, value });
                }
            }
        }
    }

    /// The way to L2's instructions, the same below each top table.
    fn own_nested_tables(&mut self) {
        let link = PRESENT | WRITE | USER;
        let at = |place: u64| Hva::new(AREAS[0].start.raw() + place);
        let (roots, seconds) = (OF_LEVEL[3], OF_LEVEL[2]);
        let mut entries = vec![
            (at(SECOND), LAST | link),
            (at(LAST), 0),
            (at(LAST + 8), CODE | PRESENT | USER),
        ];
        for table in roots.0..roots.0 + roots.1 {
            let next = frame_of(seconds.0 + table % seconds.1).raw();
            entries.push((Place { table, index: 0 }.hva(), next | link));
        }
        for table in seconds.0..seconds.0 + seconds.1 {
            entries.push((Place { table, index: 0 }.hva(), SECOND | link));
        }
        for (hva, value) in entries {
            self.push(Op::Poke { hva, value });
        }
    }

    fn nested_operation(&mut self) {
        match self.dice.below(200) {
            0..110 => self.run_l2(),
            110..150 => self.store_of_l1(),
            150..168 => self.poke_nested(),
            168..176 => self.create_slot(),
            176..182 => self.delete_other_slot(),
            182..184 => self.move_slot(),
            184..188 => self.switch_log(),
            188..193 => self.read_log(),
            193..199 => self.clear_log(),
            _ => {
                let id = self.vcpu();
                self.switch_no_execute(id);
            }
        }
    }

    /// Whether L1 has pages that cannot be executed; where it has not, their bit is reserved.
    fn switch_no_execute(&mut self, id: u32) {
        let Some(is_on) = usize::try_from(id)
            .ok()
            .and_then(|at| self.no_execute.get_mut(at))
        else {
            return;
        };
        *is_on = !*is_on;
        let sregs = Sregs::Bits {
            register: "EFER",
            bits: "NXE",
            set: *is_on,
        };
        let vcpu = Some(id);
        self.push(Op::SetSregs { vcpu, sregs });
    }

    fn run_l2(&mut self) {
        let tables = self.dice.percent(85).then(|| {
            let (first, count) = OF_LEVEL[3];
            frame_of(first + self.dice.below(count))
        });
        let kind = match self.dice.below(100) {
            0..45 => Kind::Read,
            45..82 => Kind::Write,
            // Without tables L2 would execute zeros for ever.
            _ if tables.is_none() => Kind::Read,
            _ => Kind::Execute,
        };
        let offset = match kind {
            Kind::Execute => EXECUTED,
            Kind::Read | Kind::Write => self.dice.pick(&[0, EXECUTED]),
        };
        let gpa = match tables {
            Some(_) => (0..3)
                .map(|level| self.dice.below(USED[level]) << (12 + 9 * level))
                .sum::<u64>(),
            None => self.memory_frame() << PAGE_SHIFT,
        };
        let gpa = Gpa::new(gpa + offset);
        let act = GuestAct::RunL2 { tables, kind, gpa };
        let vcpu = self.vcpu();
        self.push(Op::Guest { vcpu, act });
    }

    /// A frame that is no table.
    fn memory_frame(&mut self) -> u64 {
        self.frame().max(FIRST_FRAME)
    }

    /// An entry for a table of a level, from 0 for the last. What leads to tables cannot be written through.
    fn nested_entry(&mut self, level: usize) -> u64 {
        let entry = self.entry(level);
        let frame = entry >> PAGE_SHIFT & 0xf_ffff;
        match level == 0 && frame < FIRST_TABLE + TABLES {
            true => entry & !WRITE,
            false => entry,
        }
    }

    /// A place in the tables, with a new entry for it.
    fn edit(&mut self) -> (Place, u64) {
        let level = match self.dice.below(20) {
            0..11 => 0,
            11..16 => 1,
            16..19 => 2,
            _ => 3,
        };
        let (first, count) = OF_LEVEL[level];
        let table = first + self.dice.below(count);
        if level == 3 {
            let (first, count) = OF_LEVEL[2];
            let next = frame_of(first + self.dice.below(count)).raw();
            return (Place { table, index: 0 }, next | PRESENT | WRITE | USER);
        }
        let lowest = u64::from(level == 2);
        let index = lowest + self.dice.below(USED[level] - lowest);
        let value = self.nested_entry(level);
        (Place { table, index }, value)
    }

    fn store_of_l1(&mut self) {
        let (Place { table, index }, value) = self.edit();
        let gpa = Gpa::new(frame_of(table).raw() + index * 8);
        let act = GuestAct::StoreOfL1 { gpa, value };
        let vcpu = self.vcpu();
        self.push(Op::Guest { vcpu, act });
    }

    fn poke_nested(&mut self) {
        let (place, value) = self.edit();
        let hva = place.hva();
        self.push(Op::Poke { hva, value });
    }

    /// The slots of instructions and tables stay.
    fn delete_other_slot(&mut self) {
        if self.slots.iter().any(|slot| slot.slot > 1) {
            let tables = self.slots.iter().position(|slot| slot.slot == 1);
            let kept = tables.map(|at| self.slots.remove(at));
            self.delete_slot();
            self.slots.extend(kept);
        }
    }
}
