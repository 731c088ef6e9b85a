//! One entry in one state, and what a call about it should say.

use slat_memslot::{Gpa, Level, PageSize};
use slat_mmu::spte::Pfn;

use super::super::world::{at, of};
use super::table::Row;
use crate::tdx::*;

/// Pages for calls, and a page that is a table.
const TABLE: Pfn = Pfn::new(0x100);
const SMALL: Pfn = Pfn::new(0x101);
const HUGE: Pfn = Pfn::new(0x400);

/// Where the entry is, and in which state.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) gpaw: Gpaw,
    pub(super) level: Level,
    pub(super) state: SeptState,
    pub(super) op_state: OpState,
    pub(super) tracked: bool,
}

impl Case {
    /// Whether such an entry can be: tables are linked above level 1, pages are mapped up to level 3.
    pub(super) fn can_be(&self) -> bool {
        let level = match (self.state.is_table(), self.state.is_leaf()) {
            (true, _) => self.level >= Level::L2,
            (_, true) => self.level <= Level::L3,
            _ => true,
        };
        level && self.level <= self.gpaw.root_level()
    }

    pub(super) fn mapping(&self) -> GpaMapping {
        at(0, self.level)
    }

    /// A TD in which the entry is.
    pub(super) fn module(&self) -> (Module, Tdr) {
        let end = self.mapped().raw() + size(self.level).pages().raw();
        let module = Module::new(Pfn::new(end));
        let params = TdParams {
            gpaw: self.gpaw,
            debug: Debug::On,
            ..TdParams::default()
        };
        let td = build(&module, Pfn::new(0x10), params, 1).unwrap();
        let path = Level::ALL.into_iter().rev();
        for level in path.filter(|level| *level <= self.gpaw.root_level() && *level > self.level) {
            let table = Pfn::new(0x80 + level as u64);
            module.tdh_mem_sept_add(td, at(0, level), table).unwrap();
        }
        self.plant(&module, td);
        (module, td)
    }

    /// The page that the entry maps, behind all others.
    fn mapped(&self) -> Pfn {
        Pfn::new(size(self.level).pages().raw().max(0x800))
    }

    fn plant(&self, module: &Module, td: Tdr) {
        let table = self.state.is_table();
        let page = if table { TABLE } else { self.mapped() };
        if self.state.is_table() {
            module.plant_table(td, page);
            module.plant_page(td, page, PageSize::Size4K, PageType::Ept);
        } else if self.state.is_leaf() {
            module.plant_page(td, page, size(self.level), PageType::Regular);
        }
        module.plant_entry(td, self.mapping(), self.state, page);
        // The TD is in epoch 1, and nobody is inside.
        module.plant_blocked_epoch(page, u64::from(!self.tracked));
        module.plant_children(td, 1 << 20);
        module.plant_op_state(td, self.op_state);
    }

    /// The call of a row, about an entry of a level.
    pub(super) fn call(row: &Row, level: Level) -> Call {
        let (at, gpa) = (at(0, level), Gpa::new(0));
        let page = if level == Level::L1 { SMALL } else { HUGE };
        match row.name {
            "TDH.MEM.PAGE.ADD" => Call::PageAdd(at, SMALL, Content::Zero),
            "TDH.MEM.SEPT.ADD" => Call::SeptAdd(at, SMALL),
            "TDH.MEM.PAGE.RELOCATE" => Call::PageRelocate(at, SMALL),
            "TDH.MEM.PAGE.AUG" => Call::PageAug(at, page),
            "TDH.MEM.RANGE.BLOCK" => Call::RangeBlock(at),
            "TDH.MEM.RD" => Call::Rd(gpa),
            "TDH.MEM.WR" => Call::Wr(gpa, 1),
            "TDH.MEM.PAGE.DEMOTE" => Call::PageDemote(at, SMALL),
            "TDH.MR.EXTEND" => Call::MrExtend(gpa),
            "TDH.MEM.PAGE.PROMOTE" => Call::PagePromote(at),
            "TDH.MEM.SEPT.RD" => Call::SeptRd(at),
            "TDH.MEM.PAGE.REMOVE" => Call::PageRemove(at),
            "TDH.MEM.SEPT.REMOVE" => Call::SeptRemove(at),
            "TDH.MEM.TRACK" => Call::Track,
            "TDH.MEM.RANGE.UNBLOCK" => Call::RangeUnblock(at),
            other => panic!("no call {other}"),
        }
    }

    /// What the sheet says of the call of a row about the entry of `level`, check by check in its order.
    pub(super) fn wanted(&self, row: &Row, level: Level) -> Status {
        if !row.op_states.contains(&(self.op_state as u8)) {
            return Status::new(Code::OpStateIncorrect);
        }
        if row.name == "TDH.MEM.TRACK" {
            return Status::SUCCESS;
        }
        if is_about_a_page(row) {
            return self.wanted_of_page(row);
        }
        let root = self.gpaw.root_level() as u8;
        let highest = if row.levels.1 == 0 {
            root
        } else {
            row.levels.1
        };
        if !(row.levels.0..=highest).contains(&(level as u8)) {
            return of(Code::OperandInvalid, Operand::Rcx);
        }
        match self.state_at(level) {
            None => of(Code::EptWalkFailed, Operand::Rcx),
            Some(state) => self.wanted_of_entry(row, state, level),
        }
    }

    /// The state of the entry of a level on the way to the address, if a walk gets there.
    fn state_at(&self, level: Level) -> Option<SeptState> {
        match level.cmp(&self.level) {
            core::cmp::Ordering::Greater => Some(SeptState::NlMapped),
            core::cmp::Ordering::Equal => Some(self.state),
            // A new table is full of free entries.
            core::cmp::Ordering::Less => {
                let below = self.state == SeptState::NlMapped && Some(level) == self.level.child();
                below.then_some(SeptState::Free)
            }
        }
    }

    fn wanted_of_entry(&self, row: &Row, state: SeptState, level: Level) -> Status {
        let planted = level == self.level;
        let rcx = |code| of(code, Operand::Rcx);
        let name = state.name();
        if !row.states.contains(&name) {
            let blocked = ["NL_BLOCKED", "BLOCKED", "PENDING_BLOCKED"].contains(&name);
            return match row.name {
                "TDH.MEM.RANGE.BLOCK" if blocked => rcx(Code::GpaRangeAlreadyBlocked),
                _ => rcx(Code::EptEntryStateIncorrect),
            };
        }
        if takes_away(row) && self.needs_tracking(name) {
            if !name.ends_with("BLOCKED") {
                return rcx(Code::GpaRangeNotBlocked);
            }
            if !(self.tracked && planted) {
                let operand = if row.name == "TDH.MEM.RANGE.UNBLOCK" {
                    Operand::SeptTree
                } else {
                    Operand::Rcx
                };
                return of(Code::TlbTrackingNotDone, operand);
            }
        }
        match row.name {
            "TDH.MEM.PAGE.PROMOTE" => rcx(Code::EptInvalidPromoteConditions),
            "TDH.MEM.SEPT.REMOVE" if !self.is_empty(level) => rcx(Code::EptPageNotFree),
            _ => Status::SUCCESS,
        }
    }

    /// Whether the table below the entry of a level is empty.
    fn is_empty(&self, level: Level) -> bool {
        level == self.level || level.child() == Some(self.level) && self.state == SeptState::Free
    }

    /// Tracking is required in the op-states in which the TD can run, for what a TLB can hold.
    fn needs_tracking(&self, state: &str) -> bool {
        let never = [
            "EXPORTED_BLOCKEDW",
            "PENDING_EXPORTED_BLOCKEDW",
            "FREE",
            "REMOVED",
        ];
        [2, 3, 9].contains(&(self.op_state as u8)) && !never.contains(&state)
    }

    fn wanted_of_page(&self, row: &Row) -> Status {
        let accessible = [
            "MAPPED",
            "BLOCKEDW",
            "EXPORTED_BLOCKEDW",
            "EXPORTED_DIRTY",
            "EXPORTED_DIRTY_BLOCKEDW",
        ];
        let name = self.state.name();
        match (accessible.contains(&name), row.states.contains(&name)) {
            (false, _) => of(Code::EptEntryNotPresent, Operand::Rcx),
            (true, true) => Status::SUCCESS,
            (true, false) if row.name == "TDH.MR.EXTEND" => Status::new(Code::EptEntryNotPresent),
            (true, false) => of(Code::EptEntryStateIncorrect, Operand::Rcx),
        }
    }
}

/// Whether a call is about the page at an address, whatever its size.
pub(super) fn is_about_a_page(row: &Row) -> bool {
    ["TDH.MEM.RD", "TDH.MEM.WR", "TDH.MR.EXTEND"].contains(&row.name)
}

/// Whether a call takes something away that a TLB may hold.
fn takes_away(row: &Row) -> bool {
    [
        "TDH.MEM.PAGE.RELOCATE",
        "TDH.MEM.PAGE.DEMOTE",
        "TDH.MEM.PAGE.PROMOTE",
        "TDH.MEM.PAGE.REMOVE",
        "TDH.MEM.SEPT.REMOVE",
        "TDH.MEM.RANGE.UNBLOCK",
    ]
    .contains(&row.name)
}

fn size(level: Level) -> PageSize {
    match level {
        Level::L1 => PageSize::Size4K,
        Level::L2 => PageSize::Size2M,
        _ => PageSize::Size1G,
    }
}
