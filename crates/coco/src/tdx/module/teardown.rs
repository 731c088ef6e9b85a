//! Calls that end a TD's life.

use slat_memslot::PageSize;
use slat_mmu::spte::Pfn;

use super::Module;
use crate::tdx::leaf::Seamcall;
use crate::tdx::op_state::Lifecycle;
use crate::tdx::pamt::PageType;
use crate::tdx::status::{Answer, Code, Operand, Status};
use crate::tdx::td::{Tdr, VpId};
use crate::tdx::vp::Where;

/// What a reclaimed page was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reclaimed {
    /// Its type.
    pub page_type: PageType,
    /// Its size.
    pub size: PageSize,
}

impl Module {
    /// Ends a vCPU's association with a logical processor (`TDH.VP.FLUSH`).
    ///
    /// # Errors
    /// `VCPU_NOT_ASSOCIATED`; `OPERAND_BUSY` while it runs.
    pub fn tdh_vp_flush(&self, td: Tdr, vp: VpId) -> Answer {
        let mut state = self.state();
        state.begin(Seamcall::VpFlush)?;
        let vp = state.vp(td, vp)?;
        if vp.place != Where::Outside {
            return Err(Status::of(Code::OperandBusy, Operand::Rcx).into());
        }
        if !vp.associated {
            return Err(Status::new(Code::VcpuNotAssociated).into());
        }
        vp.associated = false;
        vp.tlb.clear();
        Ok(())
    }

    /// Says that no vCPU is associated any more (`TDH.MNG.VPFLUSHDONE`): none can be entered from now on.
    ///
    /// # Errors
    /// `FLUSHVP_NOT_DONE` if one is; `LIFECYCLE_STATE_INCORRECT`.
    pub fn tdh_mng_vpflushdone(&self, td: Tdr) -> Answer {
        let leaf = Seamcall::MngVpflushdone;
        self.at_stage(leaf, td, Lifecycle::KeysConfigured, |td| {
            if td.vps.iter().any(|vp| vp.associated) {
                return Err(Status::new(Code::FlushvpNotDone));
            }
            td.lifecycle = Lifecycle::Blocked;
            Ok(())
        })
    }

    /// Writes back what caches hold of a TD's memory (`TDH.PHYMEM.CACHE.WB`).
    ///
    /// # Errors
    /// `LIFECYCLE_STATE_INCORRECT`; `INTERRUPTED_RESUMABLE` is never given: the model's caches are small.
    pub fn tdh_phymem_cache_wb(&self, td: Tdr) -> Answer {
        self.at_stage(Seamcall::PhymemCacheWb, td, Lifecycle::Blocked, |td| {
            td.written_back = true;
            Ok(())
        })
    }

    /// Frees a TD's key (`TDH.MNG.KEY.FREEID`): from now on its pages can be reclaimed.
    ///
    /// # Errors
    /// `WBCACHE_NOT_COMPLETE`; `LIFECYCLE_STATE_INCORRECT`.
    pub fn tdh_mng_key_freeid(&self, td: Tdr) -> Answer {
        self.at_stage(Seamcall::MngKeyFreeid, td, Lifecycle::Blocked, |td| {
            if !td.written_back {
                return Err(Status::new(Code::WbcacheNotComplete));
            }
            td.lifecycle = Lifecycle::Teardown;
            Ok(())
        })
    }

    /// Gives a page of a TD whose key is free back to the host (`TDH.PHYMEM.PAGE.RECLAIM`). The TDR goes last.
    ///
    /// # Errors
    /// `PAGE_METADATA_INCORRECT` if it is the host's already; `LIFECYCLE_STATE_INCORRECT` before the key is free;
    /// `TD_ASSOCIATED_PAGES_EXIST` for a TDR that other pages belong to.
    pub fn tdh_phymem_page_reclaim(&self, page: Pfn) -> Answer<Reclaimed> {
        let mut state = self.state();
        state.begin(Seamcall::PhymemPageReclaim)?;
        let not_owned = Status::of(Code::PageMetadataIncorrect, Operand::Rcx);
        let (entry, size) = state.pamt.find(page).ok_or(not_owned)?;
        let owner = entry.owner.ok_or(not_owned)?;
        let td = state.td(owner, Operand::Tdr)?;
        if td.lifecycle != Lifecycle::Teardown {
            return Err(Status::new(Code::LifecycleStateIncorrect).into());
        }
        if entry.page_type == PageType::Tdr {
            if td.children != 0 {
                return Err(Status::new(Code::TdAssociatedPagesExist).into());
            }
            state.tds.remove(&owner);
        } else {
            td.children -= size.pages().raw();
        }
        state.pamt.free(page, size);
        state.scramble(page, size);
        Ok(Reclaimed {
            page_type: entry.page_type,
            size,
        })
    }

    /// Reclaims what a TD is made of itself, its vCPUs, its control structure and its root page.
    ///
    /// # Errors
    /// What reclaiming says: `TD_ASSOCIATED_PAGES_EXIST` if it still has memory or tables.
    pub fn reclaim_own(&self, td: Tdr) -> Answer {
        let own = |page_type| matches!(page_type, PageType::Tdcx | PageType::Tdvpr);
        let pages: Vec<Pfn> = {
            let state = self.state();
            let of_td = state
                .pamt
                .pages()
                .filter(|(_, _, known)| known.owner == Some(td) && own(known.page_type));
            of_td.map(|(page, _, _)| page).collect()
        };
        for page in pages {
            self.tdh_phymem_page_reclaim(page)?;
        }
        self.tdh_phymem_page_reclaim(td.page()).map(drop)
    }

    /// Writes a page back and drops its cache lines (`TDH.PHYMEM.PAGE.WBINVD`).
    ///
    /// # Errors
    /// `PAGE_METADATA_INCORRECT` if the page belongs to a TD.
    pub fn tdh_phymem_page_wbinvd(&self, page: Pfn) -> Answer {
        let mut state = self.state();
        state.begin(Seamcall::PhymemPageWbinvd)?;
        if state.pamt.find(page).is_some() {
            return Err(Status::of(Code::PageMetadataIncorrect, Operand::Rcx).into());
        }
        Ok(())
    }
}
