//! The host's memory management, as KVM hears of it by its notifier; and addresses without memory.

use slat_memslot::{Gfn, Pages, SlotFlags};

use super::script::{HUGE, Of, Script, slot};
use super::{Entry, Need};
use crate::live::Program;
use crate::traces::{Op, SetRegion};

pub(super) const ALL: &[Entry] = &[
    ("notifier-dontneed-4k", Need::Nothing, given_back),
    ("notifier-dontneed-2m", Need::Nothing, part_given_back),
    ("notifier-mprotect", Need::Nothing, protected),
    ("notifier-mprotect-2m", Need::Nothing, part_protected),
    ("mmio-generation", Need::Nothing, mmio),
    ("read-only-slot", Need::Nothing, read_only),
];

const SMALL: SetRegion = slot(1, (0x400, 0x100), Of::Small, 0);
const LARGE: SetRegion = slot(2, (0x800, 2 * HUGE), Of::Huge, 0);

fn give_back(script: &mut Script, gfn: u64, pages: u64) {
    let (gfn, pages) = (Gfn::new(gfn), Pages::new(pages));
    let advice = "DONTNEED";
    script.then(Op::Madvise { advice, gfn, pages });
}

fn protect(script: &mut Script, writable: bool, gfn: u64, pages: u64) {
    let range = Some((Gfn::new(gfn), Pages::new(pages)));
    script.then(Op::Mprotect { writable, range });
}

/// What is read then is the zero page, until it is written to.
fn given_back() -> Program {
    let mut script = Script::plain();
    script.set(SMALL);
    script.write_all(0x400, 8);
    give_back(&mut script, 0x402, 3);
    script.read(0x402);
    script.write(0x402);
    script.write(0x403);
    give_back(&mut script, 0x480, 1);
    script.end()
}

/// The host takes a huge page apart.
fn part_given_back() -> Program {
    let mut script = Script::plain();
    script.set(LARGE);
    script.write(0x800);
    script.write(0x800 + HUGE);
    give_back(&mut script, 0x810, 4);
    script.write(0x800);
    script.read(0x811);
    script.write(0x811);
    script.write(0x800 + HUGE);
    script.end()
}

/// What may only be read cannot be written by the guest either: `KVM_RUN` fails.
fn protected() -> Program {
    let mut script = Script::plain();
    script.set(SMALL);
    script.write_all(0x400, 8);
    protect(&mut script, false, 0x402, 2);
    script.read(0x402);
    script.write(0x403);
    protect(&mut script, true, 0x402, 2);
    script.write(0x403);
    script.write(0x402);
    script.end()
}

fn part_protected() -> Program {
    let mut script = Script::plain();
    script.set(LARGE);
    script.write(0x800);
    protect(&mut script, false, 0x810, 4);
    script.read(0x810);
    script.write(0x80f);
    script.write(0x811);
    protect(&mut script, true, 0x810, 4);
    script.write(0x811);
    script.end()
}

/// An entry that says "no memory" holds until slots change.
fn mmio() -> Program {
    let mut script = Script::plain();
    script.read(0x480);
    script.write(0x480);
    script.set(slot(1, (0x400, 0x40), Of::Small, 0));
    script.read(0x480);
    script.set(slot(2, (0x480, 0x40), Of::Small, 0x40));
    script.write(0x480);
    script.delete(slot(2, (0x480, 0x40), Of::Small, 0x40));
    script.read(0x480);
    script.write(0x400);
    script.end()
}

fn read_only() -> Program {
    let mut script = Script::plain();
    script.set(SetRegion {
        flags: SlotFlags::READONLY.bits(),
        ..LARGE
    });
    script.read(0x800);
    script.write(0x800);
    script.read(0x801);
    script.end()
}
