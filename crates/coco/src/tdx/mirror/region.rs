//! What a TD is built from (`KVM_TDX_INIT_MEM_REGION`).

use slat_memslot::{Errno, Gpa, PAGE_SIZE};
use thiserror::Error;

use super::PrivateFault;
use super::backend::Stage;
use super::vm::TdxMmu;
use crate::tdx::Content;

/// `struct kvm_tdx_init_mem_region`. After an interruption it says what is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MemRegion {
    /// Where the content is, in userspace.
    pub source: u64,
    /// Where it goes.
    pub gpa: Gpa,
    /// How many pages.
    pub pages: u64,
}

/// Whether content is measured (`KVM_TDX_MEASURE_MEMORY_REGION`); addresses always are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Measure {
    /// Addresses alone.
    #[default]
    Addresses,
    /// Content too.
    Content,
}

/// Why a region was not added, or not all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum InitMemError {
    /// The TD can run already, or is no more.
    #[error("the TD is not being built")]
    NotBuilding,
    /// The source is zero or not aligned.
    #[error("source {0:#x} is no address of a page")]
    Source(u64),
    /// The address is not aligned.
    #[error("{0} is no address of a page")]
    Unaligned(Gpa),
    /// There is nothing to add, or the range wraps.
    #[error("{pages:#x} pages at {gpa} are no range")]
    NoRange {
        /// The first address.
        gpa: Gpa,
        /// How many pages.
        pages: u64,
    },
    /// An end of the range has the SHARED bit.
    #[error("{0} is not private by its address")]
    Shared(Gpa),
    /// The range lacks the attribute. Userspace has to set it first, with `KVM_SET_MEMORY_ATTRIBUTES`.
    #[error("{0} is not private by its attribute")]
    NotPrivate(Gpa),
    /// A signal came. The region says what is left: userspace has to call again.
    #[error("a signal came before {0}")]
    Interrupted(Gpa),
    /// The page could not be added.
    #[error("{0} was not added: {1:?}")]
    NotAdded(Gpa, PrivateFault),
}

impl InitMemError {
    /// The stable name.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotBuilding => "tdx-region-late",
            Self::Source(_) => "tdx-region-source",
            Self::Unaligned(_) => "tdx-region-unaligned",
            Self::NoRange { .. } => "tdx-region-range",
            Self::Shared(_) => "tdx-region-shared",
            Self::NotPrivate(_) => "tdx-region-not-private",
            Self::Interrupted(_) => "tdx-region-interrupted",
            Self::NotAdded(..) => "tdx-region-not-added",
        }
    }

    /// What the ioctl returns.
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Interrupted(_) => Errno::EINTR,
            Self::NotAdded(_, PrivateFault::Retry(_)) => Errno::EBUSY,
            Self::NotAdded(_, PrivateFault::Dead) => Errno::EIO,
            _ => Errno::EINVAL,
        }
    }
}

impl TdxMmu {
    /// Adds pages with content while the TD is built (`KVM_TDX_INIT_MEM_REGION`). `content` gives what is at an address of
    /// userspace, `signal` says before each page whether a signal waits.
    ///
    /// # Errors
    /// Why not all of it was added. `region` says what is left.
    pub fn init_mem_region(
        &self,
        region: &mut MemRegion,
        measure: Measure,
        content: impl Fn(u64) -> Content,
        mut signal: impl FnMut() -> bool,
    ) -> Result<(), InitMemError> {
        self.check_region(region)?;
        while region.pages > 0 {
            if signal() {
                return Err(InitMemError::Interrupted(region.gpa));
            }
            let gfn = region.gpa.gfn();
            let source = content(region.source);
            let added = match measure {
                Measure::Content => self.add_measured(gfn, source),
                Measure::Addresses => self.add_unmeasured(gfn, source),
            };
            added.map_err(|fault| match fault {
                PrivateFault::Exit(_) => InitMemError::NotPrivate(region.gpa),
                other => InitMemError::NotAdded(region.gpa, other),
            })?;
            region.source += PAGE_SIZE;
            region.gpa = Gpa::new(region.gpa.raw() + PAGE_SIZE);
            region.pages -= 1;
        }
        Ok(())
    }

    fn check_region(&self, region: &MemRegion) -> Result<(), InitMemError> {
        let MemRegion { source, gpa, pages } = *region;
        if self.stage() != Stage::Initialized {
            return Err(InitMemError::NotBuilding);
        }
        if source == 0 || source % PAGE_SIZE != 0 {
            return Err(InitMemError::Source(source));
        }
        if !gpa.is_page_aligned() {
            return Err(InitMemError::Unaligned(gpa));
        }
        let bytes = pages.checked_mul(PAGE_SIZE).filter(|bytes| *bytes > 0);
        let end = bytes.and_then(|bytes| gpa.raw().checked_add(bytes));
        let end = end.ok_or(InitMemError::NoRange { gpa, pages })?;
        let private = |gpa| self.gpaw.is_private(gpa);
        if !private(gpa) || !private(Gpa::new(end - 1)) {
            return Err(InitMemError::Shared(gpa));
        }
        Ok(())
    }
}
