//! How a call about an entry begins and ends.

use slat_memslot::{Gpa, Level};

use super::{Module, State};
use crate::tdx::leaf::Seamcall;
use crate::tdx::locks::Hold;
use crate::tdx::op_state::Lifecycle;
use crate::tdx::pamt::size_at;
use crate::tdx::sept::{EntryView, Place, SeptEntry};
use crate::tdx::status::{Answer, Code, Operand, Refusal, Status};
use crate::tdx::td::{TDCS_PAGES, Td, Tdr};
use slat_mmu::spte::Pfn;

/// An address and the level of the entry that is meant: the operand in RCX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GpaMapping {
    /// The first address that the entry maps.
    pub gpa: Gpa,
    /// The level of the entry.
    pub level: Level,
}

impl GpaMapping {
    /// The entry of `level` for `gpa`.
    pub const fn new(gpa: Gpa, level: Level) -> Self {
        Self { gpa, level }
    }

    /// The address aligned to the level.
    pub const fn around(gpa: Gpa, level: Level) -> Self {
        let start = gpa.gfn().round_down(level).gpa();
        Self { gpa: start, level }
    }
}

/// A call about an entry of the S-EPT, as data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// `TDH.MEM.PAGE.ADD`.
    PageAdd(GpaMapping, Pfn, crate::tdx::Content),
    /// `TDH.MEM.SEPT.ADD`.
    SeptAdd(GpaMapping, Pfn),
    /// `TDH.MEM.PAGE.RELOCATE`.
    PageRelocate(GpaMapping, Pfn),
    /// `TDH.MEM.PAGE.AUG`.
    PageAug(GpaMapping, Pfn),
    /// `TDH.MEM.RANGE.BLOCK`.
    RangeBlock(GpaMapping),
    /// `TDH.MEM.RD`.
    Rd(Gpa),
    /// `TDH.MEM.WR`.
    Wr(Gpa, u64),
    /// `TDH.MEM.PAGE.DEMOTE`.
    PageDemote(GpaMapping, Pfn),
    /// `TDH.MR.EXTEND`.
    MrExtend(Gpa),
    /// `TDH.MEM.PAGE.PROMOTE`.
    PagePromote(GpaMapping),
    /// `TDH.MEM.SEPT.RD`.
    SeptRd(GpaMapping),
    /// `TDH.MEM.PAGE.REMOVE`.
    PageRemove(GpaMapping),
    /// `TDH.MEM.SEPT.REMOVE`.
    SeptRemove(GpaMapping),
    /// `TDH.MEM.TRACK`.
    Track,
    /// `TDH.MEM.RANGE.UNBLOCK`.
    RangeUnblock(GpaMapping),
}

impl Module {
    /// Makes a call and gives RAX.
    pub fn call(&self, td: Tdr, call: &Call) -> Status {
        let done = |_| Status::SUCCESS;
        let answer = match call.clone() {
            Call::PageAdd(at, page, source) => self.tdh_mem_page_add(td, at, page, source),
            Call::SeptAdd(at, page) => self.tdh_mem_sept_add(td, at, page),
            Call::PageRelocate(at, page) => self.tdh_mem_page_relocate(td, at, page).map(drop),
            Call::PageAug(at, page) => self.tdh_mem_page_aug(td, at, page),
            Call::RangeBlock(at) => {
                let blocked = self.tdh_mem_range_block(td, at);
                return blocked.map_or_else(|refusal| refusal.status, super::block::Block::status);
            }
            Call::Rd(gpa) => self.tdh_mem_rd(td, gpa).map(drop),
            Call::Wr(gpa, value) => self.tdh_mem_wr(td, gpa, value).map(drop),
            Call::PageDemote(at, page) => self.tdh_mem_page_demote(td, at, page),
            Call::MrExtend(gpa) => self.tdh_mr_extend(td, gpa),
            Call::PagePromote(at) => self.tdh_mem_page_promote(td, at).map(drop),
            Call::SeptRd(at) => self.tdh_mem_sept_rd(td, at).map(drop),
            Call::PageRemove(at) => self.tdh_mem_page_remove(td, at).map(drop),
            Call::SeptRemove(at) => self.tdh_mem_sept_remove(td, at).map(drop),
            Call::Track => self.tdh_mem_track(td),
            Call::RangeUnblock(at) => self.tdh_mem_range_unblock(td, at),
        };
        answer.map_or_else(|refusal| refusal.status, done)
    }
}

/// A call that holds an entry.
pub(super) struct OnEntry<'s> {
    pub(super) state: &'s mut State,
    pub(super) td: Tdr,
    pub(super) place: Place,
    /// The entry when it was locked.
    pub(super) entry: SeptEntry,
}

impl OnEntry<'_> {
    pub(super) fn td(&mut self) -> &mut Td {
        self.state.td_mut(self.td)
    }

    /// Writes the entry; whatever locks it has stay.
    pub(super) fn write(&mut self, entry: SeptEntry) {
        let place = self.place;
        let slot = self.td().sept_mut().entry_mut(place);
        let locked = slot.is_locked();
        *slot = entry.unlocked();
        if locked {
            slot.lock_for_host();
        }
    }

    /// Whether the TD can run, so that what the entry maps may be in a TLB.
    pub(super) fn must_be_tracked(&self) -> bool {
        self.entry.state().needs_tracking() && self.state.td_ref(self.td).op_state.needs_tracking()
    }

    /// That no TLB holds what the entry maps.
    pub(super) fn check_tracked(&self, operand: Operand) -> Result<(), Status> {
        if !self.must_be_tracked() {
            return Ok(());
        }
        if !self.entry.state().is_blocked() {
            return Err(Status::of(Code::GpaRangeNotBlocked, operand));
        }
        let page = self.entry.base(self.place.level);
        let blocked = self.state.pamt.get(page).blocked_epoch;
        if cfg!(slat_mutant = "untracked") || self.state.td_ref(self.td).epochs.is_tracked(blocked)
        {
            Ok(())
        } else {
            Err(Status::of(Code::TlbTrackingNotDone, operand))
        }
    }
}

/// What a call about an entry holds.
struct Held {
    tdr: Hold,
    tree: Option<Hold>,
    place: Option<Place>,
}

/// How far a call walks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Walk {
    /// To the entry of the level.
    ToLevel,
    /// To the page, whatever its size; it must be one that the guest can access.
    ToLeaf,
}

impl Module {
    /// Makes a call about the entry of a level.
    pub(super) fn on_entry<T>(
        &self,
        leaf: Seamcall,
        td: Tdr,
        at: GpaMapping,
        act: impl FnOnce(&mut OnEntry<'_>) -> Result<T, Status>,
    ) -> Answer<T> {
        self.on(leaf, td, at, Walk::ToLevel, act)
    }

    /// Makes a call about the page at an address.
    pub(super) fn on_page<T>(
        &self,
        leaf: Seamcall,
        td: Tdr,
        gpa: Gpa,
        act: impl FnOnce(&mut OnEntry<'_>) -> Result<T, Status>,
    ) -> Answer<T> {
        self.on(leaf, td, GpaMapping::new(gpa, Level::L1), Walk::ToLeaf, act)
    }

    fn on<T>(
        &self,
        leaf: Seamcall,
        td: Tdr,
        at: GpaMapping,
        walk: Walk,
        act: impl FnOnce(&mut OnEntry<'_>) -> Result<T, Status>,
    ) -> Answer<T> {
        let mut state = self.state();
        state.begin(leaf)?;
        let (held, place) = state.enter(leaf, td, at, walk)?;
        let mut state = self.paused(state);
        let result = state.act(leaf, td, place, act);
        state.leave(td, &held);
        result
    }

    /// Makes a call that holds a TD's root page and is about no entry.
    pub(super) fn on_td<T>(
        &self,
        leaf: Seamcall,
        td: Tdr,
        operand: Operand,
        act: impl FnOnce(&mut State) -> Result<T, Status>,
    ) -> Answer<T> {
        let mut state = self.state();
        state.begin(leaf)?;
        let hold = leaf.tdr();
        state.hold_td(td, hold, operand)?;
        let checked = state.check_td(leaf, td);
        let mut state = self.paused(state);
        let result = checked.and_then(|()| act(&mut state));
        if let Some(td) = state.tds.get_mut(&td) {
            td.locks.tdr.release(hold);
        }
        result.map_err(Refusal::from)
    }
}

impl State {
    /// Counts a call, and finds something busy if that is planned.
    pub(super) fn begin(&mut self, leaf: Seamcall) -> Result<(), Refusal> {
        self.calls += 1;
        let inside = |td: &Td| td.epochs.inside() != [0, 0];
        let inside = self.tds.values().any(inside);
        match self.busy.strikes(leaf, inside) {
            Some(operand) => Err(Status::of(Code::OperandBusy, operand).into()),
            None => Ok(()),
        }
    }

    pub(super) fn hold_td(&mut self, td: Tdr, hold: Hold, operand: Operand) -> Result<(), Status> {
        if self.td(td, operand)?.locks.tdr.acquire(hold) {
            Ok(())
        } else {
            Err(Status::of(Code::OperandBusy, operand))
        }
    }

    /// That the TD is at a stage, and does something, that allows the call.
    pub(super) fn check_td(&self, leaf: Seamcall, td: Tdr) -> Result<(), Status> {
        let td = self.td_ref(td);
        if td.lifecycle != Lifecycle::KeysConfigured {
            return Err(Status::new(Code::TdKeysNotConfigured));
        }
        if leaf != Seamcall::MngAddcx && td.tdcs.len() < TDCS_PAGES {
            return Err(Status::new(Code::TdcsNotAllocated));
        }
        if !leaf.allows_op_state(td.op_state) {
            return Err(Status::new(Code::OpStateIncorrect));
        }
        Ok(())
    }

    /// Takes what a call about an entry needs, checking as it goes.
    fn enter(
        &mut self,
        leaf: Seamcall,
        td: Tdr,
        at: GpaMapping,
        walk: Walk,
    ) -> Result<(Held, Place), Refusal> {
        let mut held = Held {
            tdr: leaf.tdr(),
            tree: None,
            place: None,
        };
        self.hold_td(td, held.tdr, Operand::Rdx)?;
        let entered = self.take(leaf, td, at, walk, &mut held);
        match entered {
            Ok(place) => Ok((held, place)),
            Err(refusal) => {
                self.leave(td, &held);
                Err(refusal)
            }
        }
    }

    fn take(
        &mut self,
        leaf: Seamcall,
        td: Tdr,
        at: GpaMapping,
        walk: Walk,
        held: &mut Held,
    ) -> Result<Place, Refusal> {
        self.check_td(leaf, td)?;
        let td = self.td_mut(td);
        check_operand(leaf, td, at, walk)?;
        if let Some(hold) = leaf.tree() {
            if !td.locks.tree.acquire(hold) {
                return Err(Status::of(Code::OperandBusy, Operand::SeptTree).into());
            }
            held.tree = Some(hold);
        }
        let found = td.sept().walk(at.gpa, at.level);
        let view = EntryView::of(found.entry, found.place.level);
        let failed = match walk {
            Walk::ToLevel if found.place.level != at.level => Some(Code::EptWalkFailed),
            Walk::ToLeaf if !is_present_leaf(found.entry) => Some(Code::EptEntryNotPresent),
            _ => None,
        };
        if let Some(code) = failed {
            return Err(refused(Status::of(code, Operand::Rcx), view));
        }
        // Who holds the root page alone needs no lock on the entry.
        if leaf.tree().is_some() {
            if !td.sept_mut().entry_mut(found.place).lock_for_host() {
                return Err(refused(Status::of(Code::OperandBusy, Operand::Rcx), view));
            }
            held.place = Some(found.place);
        }
        Ok(found.place)
    }

    /// Checks the state of the entry that a call has locked, and acts.
    fn act<T>(
        &mut self,
        leaf: Seamcall,
        td: Tdr,
        place: Place,
        act: impl FnOnce(&mut OnEntry<'_>) -> Result<T, Status>,
    ) -> Answer<T> {
        let entry = self.td_ref(td).sept().entry(place).unlocked();
        let view = EntryView::of(entry, place.level);
        // What is blocked can be asked to be blocked again, which is no failure.
        let again = leaf == Seamcall::MemRangeBlock && entry.state().is_blocked();
        if !again && !leaf.allows_state(entry.state()) {
            return Err(refused(wrong_state(leaf), view));
        }
        let mut on = OnEntry {
            state: self,
            td,
            place,
            entry,
        };
        act(&mut on).map_err(|status| refused(status, view))
    }

    fn leave(&mut self, td: Tdr, held: &Held) {
        let td = self.td_mut(td);
        if let Some(place) = held.place {
            // The entry's table stays while a call holds the entry: only the one who empties it takes it away.
            td.sept_mut().entry_mut(place).unlock();
        }
        if let Some(hold) = held.tree {
            td.locks.tree.release(hold);
        }
        td.locks.tdr.release(held.tdr);
    }
}

fn refused(status: Status, entry: EntryView) -> Refusal {
    let untold = [Code::TlbTrackingNotDone, Code::OperandInvalid];
    let told = !status.code().is_some_and(|code| untold.contains(&code));
    Refusal {
        status,
        entry: told.then_some(entry),
    }
}

/// What a call says of a state that does not allow it. The measurement says it without an operand.
const fn wrong_state(leaf: Seamcall) -> Status {
    match leaf {
        Seamcall::MrExtend => Status::new(Code::EptEntryNotPresent),
        _ => Status::of(Code::EptEntryStateIncorrect, Operand::Rcx),
    }
}

const fn is_present_leaf(entry: SeptEntry) -> bool {
    entry.state().is_leaf() && entry.permissions() != 0
}

/// Alignment of the address of a call about a page, in bytes.
const fn alignment(leaf: Seamcall) -> u64 {
    match leaf {
        Seamcall::MrExtend => 256,
        _ => 8,
    }
}

fn check_operand(leaf: Seamcall, td: &Td, at: GpaMapping, walk: Walk) -> Result<(), Status> {
    let invalid = Status::of(Code::OperandInvalid, Operand::Rcx);
    if matches!(leaf, Seamcall::MemRd | Seamcall::MemWr)
        && td.params.debug == crate::tdx::td::Debug::Off
    {
        return Err(Status::new(Code::TdNonDebug));
    }
    let gpa = at.gpa.raw();
    let aligned = match walk {
        Walk::ToLeaf => gpa % alignment(leaf) == 0,
        Walk::ToLevel => gpa % at.level.pages().bytes() == 0,
    };
    if !leaf.allows_level(at.level, td.params.gpaw.root_level()) || !aligned {
        return Err(invalid);
    }
    if td.params.gpaw.is_private(at.gpa) {
        Ok(())
    } else {
        Err(invalid)
    }
}

/// The size of the page that an entry of this level maps; `None` where there are no pages.
pub(super) const fn page_size(level: Level) -> Option<slat_memslot::PageSize> {
    size_at(level)
}
