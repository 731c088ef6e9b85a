//! Dirty logs: huge pages split at once or when they are written to, logs read and cleared, logs that end. And pages that must
//! not execute while they are huge.

use super::script::{HUGE, LOGGED, Of, Script, slot};
use super::{Entry, Need};
use crate::live::Program;
use crate::traces::SetRegion;

pub(super) const ALL: &[Entry] = &[
    ("dirty-log-4k", Need::Nothing, small),
    ("dirty-log-2m-eager-split", Need::Nothing, || huge(true)),
    ("dirty-log-2m-lazy-split", Need::Nothing, || huge(false)),
    ("dirty-log-manual-eager", Need::Nothing, || manual(1, true)),
    ("dirty-log-manual-lazy", Need::Nothing, || manual(1, false)),
    ("dirty-log-all-set-eager", Need::Nothing, || manual(3, true)),
    ("dirty-log-all-set-lazy", Need::Nothing, || manual(3, false)),
    ("nx-huge-pages-execute", Need::Nothing, execute),
    ("nx-huge-pages-switched", Need::Nothing, switched),
];

const SMALL: SetRegion = slot(1, (0x400, 0x100), Of::Small, 0);
const LARGE: SetRegion = slot(2, (0x800, 2 * HUGE), Of::Huge, 0);

const fn logged(region: SetRegion) -> SetRegion {
    SetRegion {
        flags: LOGGED,
        ..region
    }
}

fn small() -> Program {
    let mut script = Script::plain();
    script.set(SMALL);
    script.write_all(0x400, 16);
    script.set(logged(SMALL));
    script.write_all(0x404, 4);
    script.read(0x410);
    script.read_log(1);
    script.write_all(0x405, 2);
    script.read_log(1);
    script.read_log(1);
    script.set(SMALL);
    script.write_all(0x400, 16);
    script.end()
}

fn huge(eager: bool) -> Program {
    let mut script = Script::plain();
    script.parameter("eager_page_split", eager);
    script.set(LARGE);
    script.write(0x800);
    script.write(0x800 + HUGE);
    script.set(logged(LARGE));
    script.write_all(0x810, 3);
    script.read(0x900);
    script.read_log(2);
    script.write(0x811);
    script.read_log(2);
    // The log ends: pages may be huge again.
    script.set(LARGE);
    script.write(0x800);
    script.write(0x800 + HUGE);
    script.end()
}

fn manual(arg: u64, eager: bool) -> Program {
    let mut script = Script::plain().with_manual_protection(arg);
    script.parameter("eager_page_split", eager);
    script.set(LARGE);
    script.write(0x800);
    script.write(0x800 + HUGE);
    script.set(logged(LARGE));
    script.write_all(0x810, 3);
    script.read_log(2);
    script.clear_log(2, 0, 0x40);
    script.write_all(0x810, 3);
    script.read_log(2);
    script.clear_log(2, 0, 2 * HUGE);
    script.write(0x811);
    script.write(0x800 + HUGE);
    script.read_log(2);
    script.end()
}

/// A huge page is split when it executes; others stay huge.
fn execute() -> Program {
    let mut script = Script::plain();
    script.parameter("nx_huge_pages", true);
    script.set(LARGE);
    script.write(0x800);
    script.write(0x800 + HUGE);
    script.execute(0x810);
    script.write(0x811);
    script.execute(0x811);
    script.read(0x800 + HUGE);
    script.execute(0x810);
    script.parameter("nx_huge_pages", false);
    script.end()
}

/// The parameter is switched while a VM runs: all roots go.
fn switched() -> Program {
    let mut script = Script::plain();
    script.set(LARGE);
    script.execute(0x800);
    script.parameter("nx_huge_pages", true);
    script.write(0x800);
    script.execute(0x801);
    script.parameter("nx_huge_pages", false);
    script.execute(0x800);
    script.write(0x801);
    script.end()
}
