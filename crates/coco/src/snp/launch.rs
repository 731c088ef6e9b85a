//! The initial image: pages that firmware measures and encrypts before the guest first runs (`KVM_SEV_SNP_LAUNCH_UPDATE`).

use slat_memslot::{Errno, Gfn, GfnRange, Pages};
use thiserror::Error;

use super::frames::{Key, Value};
use super::gmem::{Folio, rmpupdate};
use super::vm::SnpVm;
use crate::rmp::{LaunchPage, RmpSize, RmpState};
use crate::sync::{lock, read};

/// Why a page is not launched. KVM answers `EIO` whatever the cause, if it is the first page; else it tells how far it got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum LaunchError {
    /// The attributes do not say that it is private.
    #[error("{0:?} is not private")]
    NotPrivate(Gfn),
    /// It is in the file already, prepared, or assigned.
    #[error("{0:?} is there already")]
    Exists(Gfn),
    /// The host has no page, or the reverse map does not take it.
    #[error("{0:?} has no page")]
    NoPage(Gfn),
    /// Firmware has refused it. The page was reclaimed.
    #[error("firmware refused {0:?}")]
    Firmware(Gfn),
}

impl LaunchError {
    /// What the step that fails gives. The call itself gives `EIO`.
    pub const fn errno(&self) -> Errno {
        match self {
            Self::NotPrivate(_) => Errno::EINVAL,
            Self::Exists(_) => Errno::EEXIST,
            Self::NoPage(_) => Errno::ENOMEM,
            Self::Firmware(_) => Errno::EIO,
        }
    }
}

/// How far a launch got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "the call may have stopped early"]
pub struct Launched {
    /// Pages from the start that are the guest's, validated.
    pub pages: Pages,
    /// Why it stopped.
    pub stopped: Option<LaunchError>,
}

impl SnpVm {
    /// Launches pages of 4 KiB one by one, with these contents, as long as `firmware` takes them
    /// (`sev.c:snp_launch_update`, `guest_memfd.c:kvm_gmem_populate`).
    pub fn launch_update(
        &self,
        range: GfnRange,
        page: LaunchPage,
        contents: impl Fn(Gfn) -> Value,
        mut firmware: impl FnMut(Gfn) -> bool,
    ) -> Launched {
        let _slots = lock(&self.slots_lock);
        let mut pages = 0;
        for frame in range.start().raw()..range.end().raw() {
            let gfn = Gfn::new(frame);
            let accepted = || firmware(gfn);
            if let Err(stopped) = self.launch_page(gfn, page, contents(gfn), accepted) {
                return Launched {
                    pages: Pages::new(pages),
                    stopped: Some(stopped),
                };
            }
            pages += 1;
        }
        Launched {
            pages: Pages::new(pages),
            stopped: None,
        }
    }

    fn launch_page(
        &self,
        gfn: Gfn,
        page: LaunchPage,
        value: Value,
        accepted: impl FnOnce() -> bool,
    ) -> Result<(), LaunchError> {
        let mut file = lock(&self.file);
        if file.folio(gfn).is_some_and(|(_, folio)| folio.prepared) {
            return Err(LaunchError::Exists(gfn));
        }
        if !self.range().contains(gfn) || !read(&self.memory).is_private(gfn) {
            return Err(LaunchError::NotPrivate(gfn));
        }
        let pfn = match file.pfn(gfn) {
            Some(pfn) => pfn,
            None => lock(&self.frames)
                .allocate(&self.rmp, RmpSize::Size4K)
                .ok_or(LaunchError::NoPage(gfn))?,
        };
        if self.rmp.entry(pfn).assigned {
            return Err(LaunchError::Exists(gfn));
        }
        let asid = self.settings.asid;
        lock(&self.frames).host_write(&self.rmp, pfn, value);
        lock(&self.frames).adjust_direct_map(pfn, RmpSize::Size4K);
        rmpupdate(&self.rmp, pfn, &RmpState::pre_guest(asid, gfn))
            .map_err(|_| LaunchError::NoPage(gfn))?;
        if !accepted() || self.rmp.launch_update(asid, gfn, pfn, page).is_err() {
            self.take_back(pfn);
            return Err(LaunchError::Firmware(gfn));
        }
        lock(&self.frames).put(pfn, value, Key::Guest(asid));
        let folio = Folio {
            pfn,
            size: RmpSize::Size4K,
            prepared: true,
        };
        file.insert(gfn, folio);
        Ok(())
    }

    /// A page that firmware has not taken: reclaimed, made the hypervisor's, freed. If either fails it is leaked.
    fn take_back(&self, pfn: slat_mmu::spte::Pfn) {
        let shared = RmpState::shared(RmpSize::Size4K);
        let reclaimed = self.rmp.page_reclaim(pfn).is_ok();
        if reclaimed && rmpupdate(&self.rmp, pfn, &shared).is_ok() {
            lock(&self.frames).free(pfn);
        }
    }
}
