//! Accepting, in every state, at every level. Oracle: the fact sheet's decision table.

use core::cmp::Ordering;

use slat_memslot::Level;

use super::super::world::{at, of};
use super::case::Case;
use crate::tdx::*;

/// What the guest gets to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Status(Status),
    Exit,
}

#[test]
fn accepting_in_every_state() {
    let (mut combinations, mut exits) = (0, 0);
    let can_run = |case: &Case| case.op_state.needs_tracking();
    for case in super::cases().filter(can_run) {
        for asked in Level::ALL {
            combinations += 1;
            let seen = accept(&case, asked);
            assert_eq!(seen, wanted(&case, asked), "{asked:?} of {case:?}");
            exits += u32::from(seen == Seen::Exit);
        }
    }
    println!("{combinations} combinations of entries and levels, {exits} exits to the host");
    assert!(exits > 0 && combinations > exits);
}

fn accept(case: &Case, asked: Level) -> Seen {
    let (module, td) = case.module();
    let vp = VpId(0);
    module.tdh_vp_enter(td, vp).unwrap();
    let before = module.snapshot(td);
    let answer = module.tdg_mem_page_accept(td, vp, at(0, asked), Interrupt::Never);
    let seen = match answer {
        Err(refusal) => Seen::Status(refusal.status),
        Ok(accept) => accept.status().map_or(Seen::Exit, Seen::Status),
    };
    let changed = !module.is_as(td, &before);
    let inside = module.is_inside(td, vp);
    assert_eq!(inside, seen != Seen::Exit, "{case:?}");
    assert_eq!(
        changed,
        seen == Seen::Status(Status::SUCCESS) || seen == Seen::Exit
    );
    seen
}

fn wanted(case: &Case, asked: Level) -> Seen {
    let status = |code, level| Seen::Status(Status::at(code, level));
    if asked > Level::L2 {
        return Seen::Status(of(Code::OperandInvalid, Operand::Rcx));
    }
    let name = case.state.name();
    let accessible = [
        "MAPPED",
        "BLOCKEDW",
        "EXPORTED_BLOCKEDW",
        "EXPORTED_DIRTY",
        "EXPORTED_DIRTY_BLOCKEDW",
    ]
    .contains(&name);
    match case.level.cmp(&asked) {
        // The walk gets to a link to the table in which the entry is.
        Ordering::Less => status(Code::PageSizeMismatch, asked),
        Ordering::Greater if accessible => status(Code::PageAlreadyAccepted, case.level),
        Ordering::Greater => Seen::Exit,
        Ordering::Equal => match name {
            "NL_MAPPED" | "NL_BLOCKED" | "REMOVED" => status(Code::PageSizeMismatch, asked),
            "PENDING" | "PENDING_EXPORTED_DIRTY" => Seen::Status(Status::SUCCESS),
            _ if accessible => status(Code::PageAlreadyAccepted, asked),
            _ => Seen::Exit,
        },
    }
}
