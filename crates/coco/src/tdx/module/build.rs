//! Calls that make a TD.

use slat_memslot::PageSize;
use slat_mmu::spte::Pfn;

use super::{Module, State};
use crate::tdx::leaf::Seamcall;
use crate::tdx::op_state::{Lifecycle, OpState};
use crate::tdx::pamt::PageType;
use crate::tdx::sept::Sept;
use crate::tdx::status::{Answer, Code, Operand, Refusal, Status};
use crate::tdx::td::{SEPT_ROOT_PAGE, TDCS_PAGES, Td, TdParams, Tdr, VpId};
use crate::tdx::vp::Vp;

/// Makes a TD with `vcpus` vCPUs, ready for its memory to be added: everything that KVM does up to `KVM_TDX_INIT_VCPU`.
///
/// Its pages are taken from `first` on: the TDR, four for its control structure, one for each vCPU.
///
/// # Errors
/// What a call says of a page that is not the host's, or of too many vCPUs.
pub fn build(module: &Module, first: Pfn, params: TdParams, vcpus: u16) -> Answer<Tdr> {
    let page = |number: usize| Pfn::new(first.raw() + number as u64);
    // The key is free if the page is.
    let hkid = u16::try_from(first.raw() & 0x7fff).unwrap_or(0) + 1;
    let td = module.tdh_mng_create(page(0), hkid)?;
    module.tdh_mng_key_config(td)?;
    for number in 0..TDCS_PAGES {
        module.tdh_mng_addcx(td, page(1 + number))?;
    }
    module.tdh_mng_init(td, params)?;
    for number in 0..usize::from(vcpus) {
        let vp = module.tdh_vp_create(td, page(1 + TDCS_PAGES + number))?;
        module.tdh_vp_init(td, vp)?;
    }
    Ok(td)
}

impl Module {
    /// Makes a TD of a page of the host, with a key that no TD has (`TDH.MNG.CREATE`).
    ///
    /// # Errors
    /// What is wrong with the page, operand RCX; `HKID_NOT_FREE`.
    pub fn tdh_mng_create(&self, page: Pfn, hkid: u16) -> Answer<Tdr> {
        let mut state = self.state();
        state.begin(Seamcall::MngCreate)?;
        state
            .pamt
            .check_free(page, PageSize::Size4K, Operand::Rcx)?;
        let used = |td: &Td| td.hkid == hkid && td.lifecycle != Lifecycle::Teardown;
        if state.tds.values().any(used) {
            return Err(Status::new(Code::HkidNotFree).into());
        }
        let td = Tdr::new(page);
        state.pamt.take(page, PageSize::Size4K, PageType::Tdr, td);
        state.tds.insert(td, Td::new(hkid));
        Ok(td)
    }

    /// Configures a TD's key (`TDH.MNG.KEY.CONFIG`).
    ///
    /// # Errors
    /// `LIFECYCLE_STATE_INCORRECT` if it has one.
    pub fn tdh_mng_key_config(&self, td: Tdr) -> Answer {
        self.at_stage(Seamcall::MngKeyConfig, td, Lifecycle::HkidAssigned, |td| {
            td.lifecycle = Lifecycle::KeysConfigured;
            Ok(())
        })
    }

    /// Adds a page to the control structure (`TDH.MNG.ADDCX`). The fourth one is the root of the S-EPT.
    ///
    /// # Errors
    /// What is wrong with the page, operand RCX; `OP_STATE_INCORRECT` once the TD is initialised.
    pub fn tdh_mng_addcx(&self, td: Tdr, page: Pfn) -> Answer {
        self.on_td(Seamcall::MngAddcx, td, Operand::Rdx, |state| {
            state
                .pamt
                .check_free(page, PageSize::Size4K, Operand::Rcx)?;
            state.add_own(td, page, PageType::Tdcx);
            state.td_mut(td).tdcs.push(page);
            Ok(())
        })
    }

    /// Says what the TD shall be (`TDH.MNG.INIT`).
    ///
    /// # Errors
    /// `TDCS_NOT_ALLOCATED`; `OP_STATE_INCORRECT` if it was said before.
    pub fn tdh_mng_init(&self, td: Tdr, params: TdParams) -> Answer {
        self.on_td(Seamcall::MngInit, td, Operand::Rcx, |state| {
            let td = state.td_mut(td);
            td.params = params;
            let root = td.tdcs[SEPT_ROOT_PAGE];
            td.sept = Some(Sept::new(root, params.gpaw.root_level()));
            td.op_state = OpState::Initialized;
            Ok(())
        })
    }

    /// Makes a vCPU of a page of the host (`TDH.VP.CREATE`).
    ///
    /// # Errors
    /// What is wrong with the page, operand RCX; `MAX_VCPUS_EXCEEDED`.
    pub fn tdh_vp_create(&self, td: Tdr, page: Pfn) -> Answer<VpId> {
        self.on_td(Seamcall::VpCreate, td, Operand::Rdx, |state| {
            let number = state.td_ref(td).vps.len();
            let number = u16::try_from(number).unwrap_or(u16::MAX);
            if number >= state.td_ref(td).params.max_vcpus {
                return Err(Status::new(Code::MaxVcpusExceeded));
            }
            state
                .pamt
                .check_free(page, PageSize::Size4K, Operand::Rcx)?;
            state.add_own(td, page, PageType::Tdvpr);
            state.td_mut(td).vps.push(Vp::default());
            Ok(VpId(number))
        })
    }

    /// Gives a vCPU its first state (`TDH.VP.INIT`).
    ///
    /// # Errors
    /// `VCPU_STATE_INCORRECT` if it has one.
    pub fn tdh_vp_init(&self, td: Tdr, vp: VpId) -> Answer {
        self.on_td(Seamcall::VpInit, td, Operand::Tdr, |state| {
            let vp = state.vp(td, vp)?;
            if vp.initialized {
                return Err(Status::new(Code::VcpuStateIncorrect));
            }
            (vp.initialized, vp.associated) = (true, true);
            Ok(())
        })
    }

    /// Ends the building, after which the TD can run and nothing is measured any more (`TDH.MR.FINALIZE`).
    ///
    /// # Errors
    /// `OP_STATE_INCORRECT` if it has ended before.
    pub fn tdh_mr_finalize(&self, td: Tdr) -> Answer {
        self.on_td(Seamcall::MrFinalize, td, Operand::Rcx, |state| {
            let td = state.td_mut(td);
            td.mrtd = Some(td.measurement.finish());
            td.op_state = OpState::Runnable;
            Ok(())
        })
    }

    /// Makes a call that wants the TD at one stage of its life.
    pub(super) fn at_stage(
        &self,
        leaf: Seamcall,
        td: Tdr,
        stage: Lifecycle,
        act: impl FnOnce(&mut Td) -> Result<(), Status>,
    ) -> Answer {
        let mut state = self.state();
        state.begin(leaf)?;
        let td = state.td(td, Operand::Rcx)?;
        if !td.locks.all_free() {
            return Err(Status::of(Code::OperandBusy, Operand::Rcx).into());
        }
        if td.lifecycle != stage {
            return Err(Status::new(Code::LifecycleStateIncorrect).into());
        }
        act(td).map_err(Refusal::from)
    }
}

impl State {
    /// Makes a page of the host one of the TD's own.
    fn add_own(&mut self, td: Tdr, page: Pfn, page_type: PageType) {
        self.pamt.take(page, PageSize::Size4K, page_type, td);
        self.td_mut(td).children += 1;
    }
}
