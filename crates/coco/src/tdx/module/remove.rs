//! Calls that take pages and tables away while the TD lives.

use slat_memslot::PageSize;
use slat_mmu::spte::Pfn;

use super::call::GpaMapping;
use super::{Module, OnEntry, State};
use crate::tdx::content::Content;
use crate::tdx::leaf::Seamcall;
use crate::tdx::sept::{SeptEntry, SeptState};
use crate::tdx::status::{Answer, Code, Operand, Status};
use crate::tdx::td::Tdr;

impl Module {
    /// Takes a page away and gives it back to the host (`TDH.MEM.PAGE.REMOVE`). Its content is lost. If the TD can run,
    /// the page has to be blocked and tracked.
    ///
    /// # Errors
    /// As for any call about an entry; `GPA_RANGE_NOT_BLOCKED`, `TLB_TRACKING_NOT_DONE`.
    pub fn tdh_mem_page_remove(&self, td: Tdr, at: GpaMapping) -> Answer<Pfn> {
        self.on_entry(Seamcall::MemPageRemove, td, at, |on| {
            on.check_tracked(Operand::Rcx)?;
            let (page, size) = (on.entry.base(on.place.level), on.size()?);
            let importing = on.td().op_state.is_importing();
            on.write(SeptEntry::removed(importing));
            on.give_back(page, size);
            on.state.scramble(page, size);
            Ok(page)
        })
    }

    /// Takes an empty table away (`TDH.MEM.SEPT.REMOVE`): leaves go before the tables above them.
    ///
    /// # Errors
    /// As for any call about an entry; `GPA_RANGE_NOT_BLOCKED`, `TLB_TRACKING_NOT_DONE`, and `EPT_PAGE_NOT_FREE` if the
    /// table is not empty.
    pub fn tdh_mem_sept_remove(&self, td: Tdr, at: GpaMapping) -> Answer<Pfn> {
        self.on_entry(Seamcall::MemSeptRemove, td, at, |on| {
            on.check_tracked(Operand::Rcx)?;
            let table = on.entry.base(on.place.level);
            let free = |entry: &SeptEntry| entry.state() == SeptState::Free;
            if !on.td().sept().table(table).iter().all(free) {
                return Err(Status::of(Code::EptPageNotFree, Operand::Rcx));
            }
            on.write(SeptEntry::FREE);
            on.td().sept_mut().remove_table(table);
            on.give_back(table, PageSize::Size4K);
            Ok(table)
        })
    }
}

impl OnEntry<'_> {
    /// Gives a page back to the host, and counts it.
    pub(super) fn give_back(&mut self, page: Pfn, size: PageSize) {
        self.state.pamt.free(page, size);
        self.td().children -= size.pages().raw();
    }
}

impl State {
    /// Says what is in a page.
    pub(super) fn set_content(&mut self, page: Pfn, content: Content) {
        if content == Content::Zero {
            self.contents.remove(&page);
        } else {
            self.contents.insert(page, content);
        }
    }

    /// Who reads these pages from now on reads them with another key.
    pub(super) fn scramble(&mut self, page: Pfn, size: PageSize) {
        for page in page.raw()..page.raw() + size.pages().raw() {
            self.contents.insert(Pfn::new(page), Content::Scrambled);
        }
    }
}
