//! `KVM_PRE_FAULT_MEMORY`: pages are mapped before a guest touches them.

use slat_memslot::SlotFlags;

use super::script::{HUGE, LOGGED, Of, PRIVATE, Script, slot, with_file};
use super::{Entry, Need};
use crate::live::Program;
use crate::traces::SetRegion;

pub(super) const ALL: &[Entry] = &[
    ("pre-fault-4k", Need::PreFault, small),
    ("pre-fault-2m", Need::PreFault, huge),
    ("pre-fault-hole", Need::PreFault, hole),
    ("pre-fault-logged", Need::PreFault, logged),
    ("pre-fault-private", Need::PrivatePreFault, private),
];

const SMALL: SetRegion = slot(1, (0x400, 0x100), Of::Small, 0);
const LARGE: SetRegion = slot(2, (0x800, 2 * HUGE), Of::Huge, 0);

/// Mapped ahead, mapped again, used; and refused for flags and for want of pages.
fn small() -> Program {
    let mut script = Script::plain();
    script.set(SMALL);
    script.pre_fault(0x400, 16);
    script.pre_fault(0x400, 16);
    script.write_all(0x400, 32);
    script.pre_fault(0x400, 32);
    script.pre_fault_with(0x400, 1, 1);
    script.pre_fault(0x400, 0);
    script.end()
}

fn huge() -> Program {
    let mut script = Script::plain();
    script.set(LARGE);
    script.pre_fault(0x810, 1);
    script.pre_fault(0x800, 2 * HUGE);
    script.write(0x800);
    script.write(0x800 + HUGE);
    script.end()
}

/// A range that goes beyond a slot, and one that no slot has.
fn hole() -> Program {
    let mut script = Script::plain();
    script.set(SMALL);
    let read_only = SetRegion {
        flags: SlotFlags::READONLY.bits(),
        ..slot(3, (0xc00, 0x10), Of::Small, 0x200)
    };
    script.set(read_only);
    script.pre_fault(0x4f8, 16);
    script.pre_fault(0x600, 4);
    script.pre_fault(0xc00, 4);
    script.read(0xc00);
    script.write(0xc01);
    script.end()
}

fn logged() -> Program {
    let mut script = Script::plain();
    let region = SetRegion {
        flags: LOGGED,
        ..LARGE
    };
    script.set(region);
    script.pre_fault(0x800, 8);
    script.read_log(2);
    script.write_all(0x800, 4);
    script.read_log(2);
    script.end()
}

fn private() -> Program {
    let mut script = Script::protected();
    script.set(with_file(SMALL, 0));
    script.convert(0x404, 8, PRIVATE);
    script.pre_fault(0x400, 16);
    script.write_all(0x400, 16);
    script.convert(0x404, 8, 0);
    script.pre_fault(0x400, 16);
    script.end()
}
