//! Calls that look.

use slat_memslot::Gpa;

use super::Module;
use super::call::GpaMapping;
use crate::tdx::leaf::Seamcall;
use crate::tdx::sept::{EntryView, SeptState};
use crate::tdx::status::Answer;
use crate::tdx::td::Tdr;

impl Module {
    /// Reads an entry (`TDH.MEM.SEPT.RD`): the only way for the host to see the tree.
    ///
    /// # Errors
    /// As for any call about an entry.
    pub fn tdh_mem_sept_rd(&self, td: Tdr, at: GpaMapping) -> Answer<EntryView> {
        self.on_entry(Seamcall::MemSeptRd, td, at, |on| {
            Ok(EntryView::of(on.entry, on.place.level))
        })
    }

    /// The state of an entry, without a call; `None` where a table is missing above it.
    pub fn entry_state(&self, td: Tdr, at: GpaMapping) -> Option<SeptState> {
        let state = self.state();
        let found = state.tds.get(&td)?.sept.as_ref()?.walk(at.gpa, at.level);
        (found.place.level == at.level).then(|| found.entry.state())
    }

    /// Reads eight bytes of a debug TD (`TDH.MEM.RD`); `None` if nobody can say what they are. The model keeps values at
    /// the start of pages only.
    ///
    /// # Errors
    /// `TD_NON_DEBUG`; `EPT_ENTRY_NOT_PRESENT` if the guest could not read there.
    pub fn tdh_mem_rd(&self, td: Tdr, gpa: Gpa) -> Answer<Option<u64>> {
        self.on_page(Seamcall::MemRd, td, gpa, |on| {
            let page = on.page_of(gpa);
            Ok(on
                .state
                .contents
                .get(&page)
                .map_or(Some(0), super::Content::value))
        })
    }

    /// Writes eight bytes of a debug TD (`TDH.MEM.WR`), and gives what was there.
    ///
    /// # Errors
    /// As for reading; `EPT_ENTRY_STATE_INCORRECT` if the guest could not write there.
    pub fn tdh_mem_wr(&self, td: Tdr, gpa: Gpa, value: u64) -> Answer<Option<u64>> {
        self.on_page(Seamcall::MemWr, td, gpa, |on| {
            let page = on.page_of(gpa);
            let content = on.state.contents.remove(&page).unwrap_or_default();
            let old = content.value();
            on.state.set_content(page, content.with_value(value));
            Ok(old)
        })
    }
}
