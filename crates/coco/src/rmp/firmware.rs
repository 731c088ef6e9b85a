//! What the security processor's firmware does with entries, on the host's request.

use slat_memslot::Gfn;
use slat_mmu::spte::Pfn;
use thiserror::Error;

use super::cell::Held;
use super::entry::{FirmwareUse, PageState, RmpEntry, RmpSize};
use super::id::Asid;
use super::table::Rmp;

/// Why firmware refuses a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum FirmwareError {
    /// The table has no entry for the frame (`INVALID_ADDRESS`).
    #[error("{0:?} has no entry")]
    Outside(Pfn),
    /// The page is not what the command needs (`INVALID_PAGE_STATE`).
    #[error("{pfn:?} is {found:?}")]
    State {
        /// The frame.
        pfn: Pfn,
        /// What it is.
        found: PageState,
    },
    /// The page is of 2 MiB, or inside one (`INVALID_PAGE_SIZE`).
    #[error("{0:?} is part of a 2M entry")]
    Size(Pfn),
    /// Somebody is changing the entry.
    #[error("the entry is in use")]
    Busy,
    /// The page belongs to another guest, or is another frame of it.
    #[error("{pfn:?} is {gfn:?} of ASID {asid}")]
    Owner {
        /// The frame.
        pfn: Pfn,
        /// What it is.
        gfn: Gfn,
        /// Whose.
        asid: Asid,
    },
}

/// What a page brings into a guest at launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LaunchPage {
    /// Contents, measured or not.
    Normal,
    /// A vCPU's register state.
    Vmsa,
}

impl Rmp {
    /// `SNP_LAUNCH_UPDATE` of a page of 4 KiB: from Pre-Guest to Guest-Valid.
    ///
    /// # Errors
    /// The page is not ready, or not this guest's.
    pub fn launch_update(
        &self,
        asid: Asid,
        gfn: Gfn,
        pfn: Pfn,
        page: LaunchPage,
    ) -> Result<(), FirmwareError> {
        let mut held = self.in_state(pfn, &[PageState::PreGuest])?;
        let entry = held.entry();
        if entry.asid != asid || entry.gfn != gfn {
            return Err(FirmwareError::Owner {
                pfn,
                gfn: entry.gfn,
                asid: entry.asid,
            });
        }
        held.set(RmpEntry {
            immutable: false,
            validated: true,
            vmsa: page == LaunchPage::Vmsa,
            ..entry
        });
        Ok(())
    }

    /// `SNP_GCTX_CREATE`: a page of firmware's becomes a guest's context.
    ///
    /// # Errors
    /// The page is not firmware's.
    pub fn context_create(&self, pfn: Pfn) -> Result<(), FirmwareError> {
        self.firmware_page(pfn, FirmwareUse::Context)
    }

    /// A page of firmware's becomes one that describes swapped pages.
    ///
    /// # Errors
    /// The page is not firmware's.
    pub fn metadata_create(&self, pfn: Pfn) -> Result<(), FirmwareError> {
        self.firmware_page(pfn, FirmwareUse::Metadata)
    }

    fn firmware_page(&self, pfn: Pfn, firmware: FirmwareUse) -> Result<(), FirmwareError> {
        let mut held = self.in_state(pfn, &[PageState::Firmware])?;
        let entry = held.entry();
        held.set(RmpEntry { firmware, ..entry });
        Ok(())
    }

    /// `SNP_PAGE_SWAP_OUT` prepares a page: nobody but firmware can change its entry.
    ///
    /// # Errors
    /// The page is not a validated page of a guest.
    pub fn swap_out_prepare(&self, pfn: Pfn) -> Result<(), FirmwareError> {
        let mut held = self.in_state(pfn, &[PageState::GuestValid])?;
        let entry = held.entry();
        held.set(RmpEntry {
            immutable: true,
            ..entry
        });
        Ok(())
    }

    /// `SNP_PAGE_RECLAIM`: the host gets an immutable page back, to be made shared with RMPUPDATE.
    ///
    /// # Errors
    /// The page is not immutable.
    pub fn page_reclaim(&self, pfn: Pfn) -> Result<(), FirmwareError> {
        const IMMUTABLE: [PageState; 5] = [
            PageState::PreGuest,
            PageState::PreSwap,
            PageState::Firmware,
            PageState::Context,
            PageState::Metadata,
        ];
        let mut held = self.in_state(pfn, &IMMUTABLE)?;
        held.set(RmpEntry {
            assigned: true,
            ..RmpEntry::HYPERVISOR
        });
        Ok(())
    }

    /// `SNP_INIT_EX` fixes a page to the hypervisor for good.
    ///
    /// # Errors
    /// The page is not the hypervisor's.
    pub fn fix_to_hypervisor(&self, pfn: Pfn) -> Result<(), FirmwareError> {
        let mut held = self.in_state(pfn, &[PageState::Hypervisor])?;
        held.set(RmpEntry {
            firmware: FirmwareUse::HvFixed,
            ..RmpEntry::HYPERVISOR
        });
        Ok(())
    }

    fn in_state(&self, pfn: Pfn, wanted: &[PageState]) -> Result<Held<'_>, FirmwareError> {
        if !self.covers(pfn) {
            return Err(FirmwareError::Outside(pfn));
        }
        let held = self.lock_own(pfn).map_err(|_| FirmwareError::Busy)?;
        let head = match pfn.raw() % RmpSize::Size2M.pages() {
            0 => held.seen(),
            _ => self.head_beside(pfn).map_err(|_| FirmwareError::Busy)?,
        };
        if head.is_huge() {
            return Err(FirmwareError::Size(pfn));
        }
        let found = held.entry().state();
        if !wanted.contains(&found) {
            return Err(FirmwareError::State { pfn, found });
        }
        Ok(held)
    }

    /// VMRUN marks the page that it runs on, until [`Rmp::vmexit`].
    ///
    /// # Errors
    /// VMRUN fails with `VMEXIT_INVALID`: the page is no VMSA of this guest, of 4 KiB, that no other vCPU runs on. The
    /// state tells which.
    pub fn vmrun(&self, asid: Asid, pfn: Pfn) -> Result<(), FirmwareError> {
        let mut held = self.in_state(pfn, &[PageState::GuestValidVmsa])?;
        let entry = held.entry();
        if entry.asid != asid {
            return Err(FirmwareError::Owner {
                pfn,
                gfn: entry.gfn,
                asid: entry.asid,
            });
        }
        if entry.in_use {
            return Err(FirmwareError::Busy);
        }
        held.set(RmpEntry {
            in_use: true,
            ..entry
        });
        Ok(())
    }

    /// The vCPU has stopped running on a page.
    ///
    /// # Errors
    /// It is no VMSA, or somebody is changing the entry.
    pub fn vmexit(&self, pfn: Pfn) -> Result<(), FirmwareError> {
        let mut held = self.in_state(pfn, &[PageState::GuestValidVmsa])?;
        let entry = held.entry();
        held.set(RmpEntry {
            in_use: false,
            ..entry
        });
        Ok(())
    }
}
