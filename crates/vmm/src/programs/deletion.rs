//! A slot goes, or moves, while others are mapped.
//!
//! Two policies: all roots are invalidated and everything that other slots had mapped goes with them
//! (`KVM_X86_QUIRK_SLOT_ZAP_ALL`), or only the slot's own leaves go. A VM with private memory has the second, whatever its
//! quirks are.

use slat_memslot::Gfn;

use super::script::{HUGE, Of, PRIVATE, Script, slot, with_file};
use super::{Entry, Need};
use crate::live::Program;
use crate::traces::SetRegion;

pub(super) const ALL: &[Entry] = &[
    ("slot-delete-all", Need::Nothing, || small(Script::plain())),
    ("slot-delete-leaves", Need::Nothing, || {
        small(Script::plain().without_zap_quirk())
    }),
    ("slot-delete-huge-all", Need::Nothing, || {
        huge(Script::plain())
    }),
    ("slot-delete-huge-leaves", Need::Nothing, || {
        huge(Script::plain().without_zap_quirk())
    }),
    ("slot-delete-private", Need::PrivateMemory, || {
        private(Script::protected())
    }),
    ("slot-delete-private-quirk-off", Need::PrivateMemory, || {
        private(Script::protected().without_zap_quirk())
    }),
    ("slot-move-all", Need::Nothing, || moved(Script::plain())),
    ("slot-move-leaves", Need::Nothing, || {
        moved(Script::plain().without_zap_quirk())
    }),
];

/// Pages that are touched in each slot.
const TOUCHED: u64 = 64;

/// Two slots of small pages, and one of two huge pages. The first goes, or the third.
const FIRST: SetRegion = slot(1, (0x400, 0x100), Of::Small, 0);
const SECOND: SetRegion = slot(2, (0x800, 0x100), Of::Small, 0x200);
const THIRD: SetRegion = slot(3, (0x1000, 2 * HUGE), Of::Huge, 0);

fn small(mut script: Script) -> Program {
    for region in [FIRST, SECOND, THIRD] {
        script.set(region);
    }
    script.write_all(0x400, TOUCHED);
    touch_others(&mut script);
    goes(&mut script, FIRST);
    // What is left is an address without memory.
    script.read(0x400);
    script.end()
}

fn huge(mut script: Script) -> Program {
    for region in [FIRST, SECOND, THIRD] {
        script.set(region);
    }
    script.write_all(0x400, TOUCHED);
    touch_others(&mut script);
    script.count_leaves();
    script.delete(THIRD);
    script.count_leaves();
    script.write_all(0x400, TOUCHED);
    script.write_all(0x800, TOUCHED);
    script.count_leaves();
    script.write(0x1000);
    script.end()
}

/// Halves of two slots are private, and a third slot has no file.
fn private(mut script: Script) -> Program {
    script.set(with_file(FIRST, 0));
    script.set(with_file(SECOND, 0x100));
    script.set(THIRD);
    for first in [0x400, 0x800] {
        script.convert(first, 0x80, PRIVATE);
    }
    let touch_half = |script: &mut Script, first: u64| {
        script.write_all(first, TOUCHED);
        script.write_all(first + 0x80, TOUCHED);
    };
    touch_half(&mut script, 0x400);
    touch_half(&mut script, 0x800);
    script.write_all(0x1000, 1);
    script.write_all(0x1000 + HUGE, 1);
    script.count_leaves();
    script.delete(with_file(FIRST, 0));
    script.count_leaves();
    touch_half(&mut script, 0x800);
    script.write_all(0x1000, 1);
    script.write_all(0x1000 + HUGE, 1);
    script.count_leaves();
    // Private without a slot, and shared without one.
    script.read(0x400);
    script.read(0x480);
    // The file may be bound again, and has kept what was written.
    script.set(with_file(FIRST, 0));
    touch_half(&mut script, 0x400);
    script.end()
}

fn moved(mut script: Script) -> Program {
    for region in [FIRST, SECOND, THIRD] {
        script.set(region);
    }
    script.write_all(0x400, TOUCHED);
    touch_others(&mut script);
    script.count_leaves();
    script.set(SetRegion {
        gfn: Gfn::new(0x600),
        ..FIRST
    });
    script.count_leaves();
    touch_others(&mut script);
    script.write_all(0x600, TOUCHED);
    script.count_leaves();
    script.end()
}

fn goes(script: &mut Script, region: SetRegion) {
    script.count_leaves();
    script.delete(region);
    script.count_leaves();
    touch_others(script);
    script.count_leaves();
}

fn touch_others(script: &mut Script) {
    script.write_all(0x800, TOUCHED);
    script.write_all(0x1000, 1);
    script.write_all(0x1000 + HUGE, 1);
}
