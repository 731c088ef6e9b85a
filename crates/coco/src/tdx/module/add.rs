//! Calls that add tables and pages.

use slat_memslot::{Gpa, Level, PageSize};
use slat_mmu::spte::Pfn;

use super::call::{GpaMapping, page_size};
use super::{Module, OnEntry};
use crate::tdx::content::{Content, PAGE};
use crate::tdx::leaf::Seamcall;
use crate::tdx::pamt::PageType;
use crate::tdx::sept::{SeptEntry, SeptState};
use crate::tdx::status::{Answer, Code, Operand, Status};
use crate::tdx::td::Tdr;

impl Module {
    /// Adds a table below an entry (`TDH.MEM.SEPT.ADD`). All entries above it must be there already.
    ///
    /// # Errors
    /// Besides what every call about an entry can say: `EPT_ENTRY_STATE_INCORRECT` if anything is there, and what is
    /// wrong with `page`, which has to be the host's, with operand R8.
    pub fn tdh_mem_sept_add(&self, td: Tdr, at: GpaMapping, page: Pfn) -> Answer {
        self.on_entry(Seamcall::MemSeptAdd, td, at, |on| {
            if on.entry.state() != SeptState::Free {
                // Allowed for a TD with nested guests only, which asks for it.
                return Err(Status::of(Code::EptEntryStateIncorrect, Operand::Rcx));
            }
            on.take_page(page, PageSize::Size4K, PageType::Ept)?;
            let td = on.td();
            td.sept_mut().add_table(page);
            on.write(SeptEntry::link(page));
            Ok(())
        })
    }

    /// Adds a page with content while the TD is being built (`TDH.MEM.PAGE.ADD`). Its address is measured, its content is
    /// not.
    ///
    /// # Errors
    /// As for any call about an entry, and with operand R8 for `page`.
    pub fn tdh_mem_page_add(&self, td: Tdr, at: GpaMapping, page: Pfn, source: Content) -> Answer {
        self.on_entry(Seamcall::MemPageAdd, td, at, |on| {
            on.take_page(page, PageSize::Size4K, PageType::Regular)?;
            on.write(SeptEntry::leaf(SeptState::Mapped, page));
            on.state.set_content(page, source);
            on.td().measurement.page_added(at.gpa);
            Ok(())
        })
    }

    /// Adds a page that the guest has to accept (`TDH.MEM.PAGE.AUG`). What is in it stays until then.
    ///
    /// # Errors
    /// As for any call about an entry, and with operand R8 for `page`.
    pub fn tdh_mem_page_aug(&self, td: Tdr, at: GpaMapping, page: Pfn) -> Answer {
        self.on_entry(Seamcall::MemPageAug, td, at, |on| {
            on.take_page(page, on.size()?, PageType::Regular)?;
            on.write(SeptEntry::leaf(SeptState::Pending, page));
            Ok(())
        })
    }

    /// Measures 256 bytes of a page that was added (`TDH.MR.EXTEND`).
    ///
    /// # Errors
    /// `OPERAND_INVALID` if the address is not a multiple of 256, `EPT_ENTRY_NOT_PRESENT` if no page is mapped there.
    pub fn tdh_mr_extend(&self, td: Tdr, gpa: Gpa) -> Answer {
        self.on_page(Seamcall::MrExtend, td, gpa, |on| {
            let page = on.page_of(gpa);
            let content = on.state.contents.get(&page).cloned().unwrap_or_default();
            let chunk = content.chunk(in_page(gpa));
            on.td().measurement.extended(gpa, &chunk);
            Ok(())
        })
    }
}

impl OnEntry<'_> {
    /// The size of a page that the entry can map.
    pub(super) fn size(&self) -> Result<PageSize, Status> {
        let invalid = Status::of(Code::OperandInvalid, Operand::Rcx);
        page_size(self.place.level).ok_or(invalid)
    }

    /// Takes a page from the host, and counts it.
    pub(super) fn take_page(
        &mut self,
        page: Pfn,
        size: PageSize,
        page_type: PageType,
    ) -> Result<(), Status> {
        self.state.pamt.check_free(page, size, Operand::R8)?;
        self.state.pamt.take(page, size, page_type, self.td);
        self.td().children += size.pages().raw();
        Ok(())
    }

    /// The page of 4 KiB that the leaf maps an address to.
    pub(super) fn page_of(&self, gpa: Gpa) -> Pfn {
        page_in(self.entry, self.place.level, gpa)
    }
}

/// The page of 4 KiB that a leaf maps an address to.
pub(super) fn page_in(leaf: SeptEntry, level: Level, gpa: Gpa) -> Pfn {
    let within = gpa.gfn() - gpa.gfn().round_down(level);
    Pfn::new(leaf.base(level).raw() + within.raw())
}

/// The offset of an address in its page.
pub(super) fn in_page(gpa: Gpa) -> usize {
    usize::try_from(gpa.raw()).map_or(0, |gpa| gpa & (PAGE - 1))
}
