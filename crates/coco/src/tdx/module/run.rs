//! Running vCPUs.

use slat_memslot::{Gpa, Level};

use super::{Module, State};
use crate::tdx::leaf::Seamcall;
use crate::tdx::locks::Hold;
use crate::tdx::status::{Answer, Code, Operand, Refusal, Status};
use crate::tdx::td::{PendingAccess, Tdr, VpId};
use crate::tdx::vp::Where;

/// What entering came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Entry {
    /// The vCPU runs.
    Inside,
    /// It did not: it would fault at once at an address that it has faulted at before, and the module suspects that it is
    /// kept from getting on. The host is told of the violation again.
    StillUnmapped(Gpa),
}

impl Module {
    /// Runs a vCPU (`TDH.VP.ENTER`), from where it was. If it entered last in another epoch, it flushes its TLB.
    ///
    /// # Errors
    /// `OP_STATE_INCORRECT`, `VCPU_STATE_INCORRECT`, `VCPU_NOT_ASSOCIATED`; `OPERAND_BUSY` with TD_EPOCH while an epoch
    /// begins, with SEPT_TREE if the vCPU is suspected to be stepped and the tree is in use.
    pub fn tdh_vp_enter(&self, td: Tdr, vp: VpId) -> Answer<Entry> {
        let mut state = self.state();
        state.begin(Seamcall::VpEnter)?;
        state.hold_td(td, Hold::Shared, Operand::Tdr)?;
        let entering = state.start_entry(td, vp);
        if let Err(status) = entering {
            state.td_mut(td).locks.tdr.release(Hold::Shared);
            return Err(status.into());
        }
        // What takes time: flushing, and looking at the addresses that were noted.
        let mut state = self.paused(state);
        let entry = state.finish_entry(td, vp);
        state.td_mut(td).locks.tdr.release(Hold::Shared);
        entry.map_err(Refusal::from)
    }

    /// A vCPU stops running and gives back control to the host, for whatever reason.
    ///
    /// # Errors
    /// `OPERAND_BUSY` while the module works for it; `VCPU_STATE_INCORRECT` if it does not run.
    pub fn vp_exit(&self, td: Tdr, vp: VpId) -> Answer {
        let mut state = self.state();
        match state.vp(td, vp)?.place {
            Where::InCall => Err(Status::of(Code::OperandBusy, Operand::Rcx).into()),
            Where::Outside => Err(Status::new(Code::VcpuStateIncorrect).into()),
            Where::Inside => {
                let rip = state.vp(td, vp)?.rip;
                state.vp(td, vp)?.stepping.exited_at(rip);
                state.leave_guest(td, vp);
                Ok(())
            }
        }
    }

    /// A vCPU that runs gets on to another instruction.
    ///
    /// # Errors
    /// `VCPU_STATE_INCORRECT` if it does not run.
    pub fn vp_advance(&self, td: Tdr, vp: VpId, rip: u64) -> Answer {
        let mut state = self.state();
        let vp = state.vp(td, vp)?;
        if !vp.is_inside() {
            return Err(Status::new(Code::VcpuStateIncorrect).into());
        }
        vp.rip = rip;
        Ok(())
    }

    /// Whether a vCPU runs.
    pub fn is_inside(&self, td: Tdr, vp: VpId) -> bool {
        self.state().vp(td, vp).is_ok_and(|vp| vp.is_inside())
    }

    /// How many vCPUs a TD has.
    pub fn vcpus(&self, td: Tdr) -> u16 {
        let state = self.state();
        let vps = state.tds.get(&td).map_or(0, |td| td.vps.len());
        u16::try_from(vps).unwrap_or(u16::MAX)
    }

    /// How many it may have.
    pub fn max_vcpus(&self, td: Tdr) -> u16 {
        let state = self.state();
        state.tds.get(&td).map_or(0, |td| td.params.max_vcpus)
    }
}

impl State {
    /// Checks, takes the epoch and counts the vCPU in it.
    fn start_entry(&mut self, td: Tdr, vp: VpId) -> Result<(), Status> {
        self.check_td(Seamcall::VpEnter, td)?;
        let state = self.vp(td, vp)?;
        if !state.initialized {
            return Err(Status::new(Code::VcpuStateIncorrect));
        }
        if state.is_inside() {
            return Err(Status::of(Code::OperandBusy, Operand::Rcx));
        }
        let suspected = !state.stepping.noted().is_empty();
        let td_state = self.td_mut(td);
        if suspected && !td_state.locks.tree.acquire(Hold::Exclusive) {
            return Err(Status::of(Code::OperandBusy, Operand::SeptTree));
        }
        if !td_state.locks.epoch.acquire(Hold::Shared) {
            if suspected {
                td_state.locks.tree.release(Hold::Exclusive);
            }
            return Err(Status::of(Code::OperandBusy, Operand::TdEpoch));
        }
        let last = td_state.vps[usize::from(vp.0)].epoch;
        let (epoch, flush) = td_state.epochs.enter(last);
        td_state.locks.epoch.release(Hold::Shared);
        let vp = &mut td_state.vps[usize::from(vp.0)];
        (vp.epoch, vp.place, vp.associated) = (epoch, Where::InCall, true);
        if flush && !cfg!(slat_mutant = "no_flush") {
            vp.tlb.clear();
        }
        Ok(())
    }

    fn finish_entry(&mut self, td: Tdr, vp: VpId) -> Result<Entry, Status> {
        let td_state = self.td_mut(td);
        let index = usize::from(vp.0);
        let noted = td_state.vps[index].stepping.noted().to_vec();
        let sept = td_state.sept();
        let ve = td_state.params.pending_access == PendingAccess::Ve;
        let unmapped = |gpa: &&Gpa| {
            let state = sept.walk(**gpa, Level::L1).entry.state();
            // A #VE lets the guest get on.
            !(state.is_accessible() || ve && state.is_acceptable())
        };
        let still = noted.iter().find(unmapped).copied();
        if !noted.is_empty() {
            td_state.locks.tree.release(Hold::Exclusive);
        }
        if let Some(gpa) = still {
            self.leave_guest(td, vp);
            return Ok(Entry::StillUnmapped(gpa));
        }
        let vp = &mut td_state.vps[index];
        vp.stepping.entered_at(vp.rip);
        vp.place = Where::Inside;
        Ok(Entry::Inside)
    }

    /// A vCPU is outside from now on.
    pub(super) fn leave_guest(&mut self, td: Tdr, vp: VpId) {
        let td = self.td_mut(td);
        let vp = &mut td.vps[usize::from(vp.0)];
        vp.place = Where::Outside;
        td.epochs.exit(vp.epoch);
    }
}
