//! Calls that split, merge and move pages.

use slat_memslot::{PageSize, Pages};
use slat_mmu::spte::Pfn;

use super::call::{GpaMapping, page_size};
use super::{Module, OnEntry};
use crate::tdx::leaf::Seamcall;
use crate::tdx::pamt::PageType;
use crate::tdx::sept::{SeptEntry, SeptState};
use crate::tdx::status::{Answer, Code, Operand, Status};
use crate::tdx::td::Tdr;

impl Module {
    /// Makes 512 pages of a large one (`TDH.MEM.PAGE.DEMOTE`), with `table` as their table. They are in the state in which
    /// the large page was before it was blocked.
    ///
    /// # Errors
    /// As for any call about an entry; `GPA_RANGE_NOT_BLOCKED`, `TLB_TRACKING_NOT_DONE`; with operand R8 for `table`.
    pub fn tdh_mem_page_demote(&self, td: Tdr, at: GpaMapping, table: Pfn) -> Answer {
        self.on_entry(Seamcall::MemPageDemote, td, at, |on| {
            on.check_tracked(Operand::Rcx)?;
            on.take_page(table, PageSize::Size4K, PageType::Ept)?;
            on.demote(table)
        })
    }

    /// Makes one page of 512 (`TDH.MEM.PAGE.PROMOTE`) and gives the table back to the host.
    ///
    /// # Errors
    /// As for any call about an entry; `GPA_RANGE_NOT_BLOCKED`, `TLB_TRACKING_NOT_DONE`; `EPT_INVALID_PROMOTE_CONDITIONS`
    /// unless all 512 are mapped or all are pending, and their pages make one large page.
    pub fn tdh_mem_page_promote(&self, td: Tdr, at: GpaMapping) -> Answer<Pfn> {
        self.on_entry(Seamcall::MemPagePromote, td, at, |on| {
            on.check_tracked(Operand::Rcx)?;
            on.promote()
        })
    }

    /// Moves a page to another one of the host (`TDH.MEM.PAGE.RELOCATE`) and gives the old one back. It is not blocked
    /// afterwards.
    ///
    /// # Errors
    /// As for any call about an entry; `GPA_RANGE_NOT_BLOCKED`, `TLB_TRACKING_NOT_DONE`; with operand R8 for `target`,
    /// also if it is the page itself.
    pub fn tdh_mem_page_relocate(&self, td: Tdr, at: GpaMapping, target: Pfn) -> Answer<Pfn> {
        self.on_entry(Seamcall::MemPageRelocate, td, at, |on| {
            let source = on.entry.base(on.place.level);
            if source == target {
                return Err(Status::of(Code::OperandInvalid, Operand::R8));
            }
            on.check_tracked(Operand::Rcx)?;
            on.take_page(target, PageSize::Size4K, PageType::Regular)?;
            on.move_to(source, target);
            Ok(source)
        })
    }
}

impl OnEntry<'_> {
    fn demote(&mut self, table: Pfn) -> Result<(), Status> {
        let (level, size, owner) = (self.place.level, self.size()?, self.td);
        let invalid = Status::of(Code::OperandInvalid, Operand::Rcx);
        let small = level.child().and_then(page_size).ok_or(invalid)?;
        let state = self.entry.state().unblocked();
        let first = self.entry.base(level);
        self.state.pamt.resize(first, size, small, owner);
        let step = small.pages().raw();
        let part = |index: usize| {
            let page = Pfn::new(first.raw() + index as u64 * step);
            SeptEntry::leaf(state, page)
        };
        self.td().sept_mut().add_filled(table, part);
        self.write(SeptEntry::link(table));
        Ok(())
    }

    fn promote(&mut self) -> Result<Pfn, Status> {
        let (level, size, owner) = (self.place.level, self.size()?, self.td);
        let conditions = Status::of(Code::EptInvalidPromoteConditions, Operand::Rcx);
        let small = level.child().and_then(page_size).ok_or(conditions)?;
        let table = self.entry.base(level);
        let entries = self.td().sept().table(table);
        if entries.iter().any(|entry| entry.is_locked()) {
            return Err(Status::of(Code::OperandBusy, Operand::Rcx));
        }
        let (state, first) = mergeable(entries, small, size).ok_or(conditions)?;
        self.write(SeptEntry::leaf(state, first));
        self.td().sept_mut().remove_table(table);
        self.give_back(table, PageSize::Size4K);
        self.state.pamt.resize(first, small, size, owner);
        Ok(table)
    }

    fn move_to(&mut self, source: Pfn, target: Pfn) {
        let level = self.place.level;
        let content = self.state.contents.remove(&source).unwrap_or_default();
        if self.entry.state().is_pending() {
            // Nothing has been accepted that would be worth a copy.
            self.state.set_content(source, content);
        } else {
            self.state.set_content(target, content);
            self.state.scramble(source, PageSize::Size4K);
        }
        self.give_back(source, PageSize::Size4K);
        let state = self.entry.state().unblocked();
        self.write(SeptEntry::leaf(state, target).with_state(state, level));
    }
}

/// The state and first page of a page that 512 entries can become.
fn mergeable(
    entries: &[SeptEntry; 512],
    small: PageSize,
    size: PageSize,
) -> Option<(SeptState, Pfn)> {
    let state = entries[0].state();
    if !matches!(state, SeptState::Mapped | SeptState::Pending) {
        return None;
    }
    let first = entries[0].base(small.level());
    if first.raw() % size.pages().raw() != 0 {
        return None;
    }
    let expected = |index: usize| {
        let pages = Pages::new(index as u64 * small.pages().raw());
        first.checked_add(pages)
    };
    let fits = |(index, entry): (usize, &SeptEntry)| {
        entry.state() == state && Some(entry.base(small.level())) == expected(index)
    };
    entries
        .iter()
        .enumerate()
        .all(fits)
        .then_some((state, first))
}
