//! What the deletion of a slot costs those beside it, in shadow pages and faults, on a kernel without a second stage: the
//! numbers that were measured on Linux 6.18.44, counted again on the live kernel, with each event predicted.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use slat_memslot::{AsId, Gfn, Hva, PAGE_SIZE, Pages, Quirks};
use slat_mmu::walk::Privilege;
use slat_vmm::live::{Area, Kind, Live, Program, here_shadowed};
use slat_vmm::replay::Verdict;
use slat_vmm::traces::{
    Control, GuestAct, Instruction, MmuCounts, Note, Op, Recording, SetRegion, Sregs, Traced, What,
};

/// The guest's code and tables: 512 pages; a slot beside the one that goes; the one that goes.
const TABLES: Area = Area::at(0, Pages::new(0x200), Kind::Small);
const BESIDE: Area = Area::at(1, Pages::new(0x1000), Kind::Small);
const GOES: Area = Area::at(2, Pages::new(0x1_0000), Kind::Small);

/// Where their frames are: a GiB for each, which the guest maps one to one.
const BESIDE_GFN: u64 = 1 << 18;
const GOES_GFN: u64 = 2 << 18;

const LINK: u64 = 7;

/// A program being written: a guest with small pages for so many pages of both slots.
struct Writer {
    ops: Vec<Op<'static>>,
    next_table: u64,
}

impl Writer {
    fn new(quirk_off: bool) -> Self {
        let mut ops = vec![Op::CreateVm { vm_type: 0 }];
        if quirk_off {
            ops.push(Op::EnableCap {
                cap: "DISABLE_QUIRKS2",
                bits: Some("SLOT_ZAP_ALL"),
                arg: Quirks::SLOT_ZAP_ALL.bits(),
            });
        }
        let control = Control {
            cr0: 0x8001_0011,
            cr3: 0x4000,
            cr4: 0x20,
            efer: 0xd01,
        };
        ops.extend([
            Op::CreateVcpu { id: 0 },
            Op::SetCpuid {
                vcpu: 0,
                max_phys_addr: None,
            },
            Op::SetSregs {
                vcpu: Some(0),
                sregs: Sregs::Control(control),
            },
        ]);
        let mut writer = Self {
            ops,
            next_table: 0x6000,
        };
        writer.set_region(0, 0, TABLES, TABLES.pages.raw());
        // The top table, the one below it, and the way to the instructions at 0x1000.
        writer.poke(0x4000, 0x5000 | LINK);
        writer.map(1, 1);
        writer
    }

    fn poke(&mut self, at: u64, value: u64) {
        self.ops.push(Op::Poke {
            hva: Hva::new(TABLES.start.raw() + at),
            value,
        });
    }

    fn table(&mut self) -> u64 {
        self.next_table += PAGE_SIZE;
        self.next_table - PAGE_SIZE
    }

    /// Maps frames of one GiB one to one, by small pages.
    fn map(&mut self, first: u64, pages: u64) {
        let directory = self.table();
        self.poke(0x5000 + (first >> 18) * 8, directory | LINK);
        let mut table = 0;
        for gfn in first..first + pages {
            if gfn == first || gfn % 0x200 == 0 {
                table = self.table();
                self.poke(directory + (gfn >> 9 & 0x1ff) * 8, table | LINK);
            }
            self.poke(table + (gfn & 0x1ff) * 8, gfn << 12 | LINK);
        }
    }

    fn set_region(&mut self, slot: u16, gfn: u64, area: Area, pages: u64) {
        self.ops.push(Op::SetRegion(SetRegion {
            slot,
            as_id: AsId::NORMAL,
            flags: 0,
            gfn: Gfn::new(gfn),
            pages: Pages::new(pages),
            gmem_offset: None,
            hva: Some(area.start),
        }));
    }

    fn touch(&mut self, gfn: u64, pages: u64) {
        self.ops.push(Op::Guest {
            vcpu: 0,
            act: GuestAct::Execution {
                privilege: Privilege::User,
                instruction: Instruction::Touch {
                    gva: gfn << 12,
                    pages,
                },
            },
        });
    }

    fn program(mut self) -> Program {
        self.ops.push(Op::CloseVcpu { id: 0 });
        self.ops.push(Op::CloseVm);
        Program {
            areas: vec![TABLES, BESIDE, GOES],
            ops: self.ops,
        }
    }
}

/// What was counted when each operation was over, and how many faults mapped something during it.
struct Counted {
    ops: Vec<(String, MmuCounts, u64)>,
}

impl Counted {
    fn of(recording: &Recording<'_>) -> Self {
        let mut ops: Vec<(String, MmuCounts, u64)> = Vec::new();
        for item in &recording.items {
            match (&item.what, ops.last_mut()) {
                (What::Op(op), _) => ops.push((op.to_string(), MmuCounts::default(), 0)),
                (What::Note(Note::Counts(counts)), Some(last)) => last.1 = *counts,
                (What::Event(Traced::SpteRequested { .. }), Some(last)) => last.2 += 1,
                _ => {}
            }
        }
        Self { ops }
    }

    /// Pages zapped and recycled by the deletion, and the faults of the touch behind it.
    fn deletion(&self) -> (u64, u64, u64) {
        let deletes = |(op, ..): &(String, MmuCounts, u64)| op.contains(" npages=0 ");
        let at = self.ops.iter().position(deletes).expect("a deletion");
        let (before, after) = (self.ops[at - 1].1, self.ops[at].1);
        let zapped = after.shadow_zapped - before.shadow_zapped;
        (zapped, after.recycled - before.recycled, self.ops[at + 1].2)
    }
}

/// Runs a program on the kernel, which has to do what is predicted.
fn counted(live: &mut Live, program: &Program) -> Counted {
    let (text, verdict) = live.record(program).expect("a program that runs");
    assert!(matches!(verdict, Verdict::Agrees { .. }), "{verdict:?}");
    Counted::of(&Recording::parse(&text).expect("a recording"))
}

/// A slot with 16 pages goes while another has some: with the quirk all shadow pages go, and touching again takes one fault
/// for each eight pages and one for the instructions; without, nothing but the slot's own leaves.
fn beside(live: &mut Live, pages: u64, quirk_off: bool) -> (u64, u64, u64) {
    let mut writer = Writer::new(quirk_off);
    writer.set_region(1, BESIDE_GFN, BESIDE, BESIDE.pages.raw());
    writer.set_region(2, GOES_GFN, GOES, 16);
    writer.map(BESIDE_GFN, pages);
    writer.map(GOES_GFN, 16);
    writer.touch(BESIDE_GFN, pages);
    writer.touch(GOES_GFN, 16);
    writer.set_region(2, GOES_GFN, GOES, 0);
    writer.touch(BESIDE_GFN, pages);
    counted(live, &writer.program()).deletion()
}

/// The slot of 65,536 pages goes: the limit sinks to a fiftieth of the 4,608 pages that are left, and of the 135 shadow pages
/// that are in use the oldest 43 are recycled, those of the slot beside among them.
fn the_limit_sinks(live: &mut Live) -> (u64, u64, u64) {
    let mut writer = Writer::new(true);
    writer.set_region(1, BESIDE_GFN, BESIDE, BESIDE.pages.raw());
    writer.set_region(2, GOES_GFN, GOES, GOES.pages.raw());
    writer.map(BESIDE_GFN, 16);
    writer.map(GOES_GFN, GOES.pages.raw());
    writer.touch(BESIDE_GFN, 16);
    writer.touch(GOES_GFN, GOES.pages.raw());
    writer.set_region(2, GOES_GFN, GOES, 0);
    writer.touch(BESIDE_GFN, 16);
    counted(live, &writer.program()).deletion()
}

#[test]
fn deletions_cost_what_was_measured() {
    let live = here_shadowed().map(|machine| Live::new(machine).map_err(|why| why.to_string()));
    let mut live = match live.and_then(|live| live) {
        Ok(live) => live,
        Err(why) => return println!("skipped: {why}"),
    };
    for pages in [512, 4096] {
        let (zapped, recycled, faults) = beside(&mut live, pages, false);
        println!("{pages} pages beside, quirk on: {zapped} shadow pages zapped, {faults} faults");
        assert_eq!((recycled, faults), (0, pages / 8 + 1));
        let (zapped, recycled, faults) = beside(&mut live, pages, true);
        println!("{pages} pages beside, quirk off: {zapped} shadow pages zapped, {faults} faults");
        assert_eq!((zapped, recycled, faults), (0, 0, 0));
    }
    let (zapped, recycled, faults) = the_limit_sinks(&mut live);
    println!("the limit sinks: {zapped} zapped, {recycled} recycled, {faults} faults afterwards");
    assert_eq!((zapped, recycled), (43, 43));
    assert!(faults > 0, "the slot beside has lost its leaves");
}
