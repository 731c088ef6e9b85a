//! Memory attributes, and faults on memory that is private or should be.

use slat_memslot::{PAGE_SHIFT, VmType};

use super::script::{HUGE, Of, PRIVATE, Script, slot, with_file};
use super::{Entry, Need};
use crate::live::Program;
use crate::traces::{Op, SetRegion};

pub(super) const ALL: &[Entry] = &[
    ("attributes-convert-4k", Need::PrivateMemory, convert_small),
    ("attributes-convert-2m", Need::PrivateMemory, convert_huge),
    ("attributes-refused", Need::PrivateMemory, refused),
    (
        "private-fault-without-file",
        Need::PrivateMemory,
        without_file,
    ),
    ("private-punch-hole", Need::PrivateMemory, punch_hole),
];

/// Slots with a file, over small host pages and over huge ones.
const SMALL: SetRegion = with_file(slot(1, (0x400, 0x100), Of::Small, 0), 0);
const LARGE: SetRegion = with_file(slot(2, (0x800, 2 * HUGE), Of::Huge, 0), 0x100);

fn convert_small() -> Program {
    let mut script = Script::protected();
    script.set(SMALL);
    script.write_all(0x400, 8);
    script.convert(0x402, 4, PRIVATE);
    script.write_all(0x400, 8);
    script.convert(0x404, 1, 0);
    script.write_all(0x400, 8);
    // Nothing changes, and nothing is zapped but what is in the range.
    script.convert(0x402, 2, PRIVATE);
    script.write_all(0x400, 8);
    script.convert(0x400, 0x100, 0);
    script.write_all(0x400, 8);
    script.end()
}

/// A page of another kind forbids a huge one around it; without it the page is huge again.
fn convert_huge() -> Program {
    let mut script = Script::protected();
    script.set(LARGE);
    script.write(0x800);
    script.write(0x800 + HUGE);
    script.convert(0x810, 1, PRIVATE);
    script.write_all(0x80f, 3);
    script.convert(0x810, 1, 0);
    script.write_all(0x80f, 3);
    script.convert(0x800, HUGE, PRIVATE);
    script.write_all(0x800, 2);
    script.write(0x800 + HUGE);
    script.convert(0x800, 2 * HUGE, 0);
    script.write(0x800);
    script.write(0x800 + HUGE);
    script.end()
}

fn refused() -> Program {
    let mut script = Script::protected();
    script.set(SMALL);
    script.write(0x400);
    for (pages, attributes) in [(1, 1 << 4), (1, PRIVATE | 1), (0, PRIVATE)] {
        script.convert(0x400, pages, attributes);
    }
    script.write(0x400);
    let mut program = script.end();
    // A default VM has no attributes.
    let mut script = Script::vm(VmType::Default).with_vcpu();
    script.convert(0x400, 1, PRIVATE);
    program.ops.extend(script.end().ops);
    program
}

/// `KVM_EXIT_MEMORY_FAULT`: private frames of a slot that has no file, and of none at all.
fn without_file() -> Program {
    let mut script = Script::protected();
    let region = slot(1, (0x400, 0x100), Of::Small, 0);
    script.set(region);
    script.write(0x400);
    script.convert(0x400, 2, PRIVATE);
    script.read(0x400);
    script.write(0x401);
    script.write(0x402);
    script.convert(0x400, 2, 0);
    script.write(0x400);
    script.convert(0x1000, 1, PRIVATE);
    script.read(0x1000);
    script.end()
}

fn punch_hole() -> Program {
    let mut script = Script::protected();
    script.set(SMALL);
    script.convert(0x400, 0x100, PRIVATE);
    script.write_all(0x400, 8);
    let page = |pages: u64| pages << PAGE_SHIFT;
    for (offset, len) in [(page(2), page(3)), (page(0x80), page(1)), (0x800, page(1))] {
        script.then(Op::PunchHole { offset, len });
    }
    script.write_all(0x400, 8);
    script.end()
}
