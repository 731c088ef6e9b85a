//! What KVM does when the module is busy and a call must not fail (`tdx.c:tdh_do_no_vcpus`).

use super::backend::{Backend, Bug, Omit, Stage};
use crate::sync::{Ordering, pause};
use crate::tdx::{Answer, Module, Seamcall, VpId};

impl Backend {
    /// Makes a call that can only be disturbed by vCPUs: if it is, they leave, wait outside, and it is made once more.
    pub(super) fn without_vcpus<T>(
        &self,
        leaf: Seamcall,
        call: impl Fn(&Module) -> Answer<T>,
    ) -> Result<T, Bug> {
        let first = call(&self.module);
        let busy = first.as_ref().is_err_and(|refusal| refusal.is_busy());
        let answer = if busy && !self.omits(Omit::Retry) {
            self.wait_for_zap.store(true, Ordering::SeqCst);
            self.kick();
            let second = call(&self.module);
            self.wait_for_zap.store(false, Ordering::SeqCst);
            second
        } else {
            first
        };
        answer.map_err(|refusal| {
            if refusal.is_busy() {
                Bug::StillBusy(leaf)
            } else {
                Bug::Refused(leaf, refusal)
            }
        })
    }

    /// Makes all vCPUs leave, and waits until they have (`kvm_make_all_cpus_request(KVM_REQ_OUTSIDE_GUEST_MODE)`).
    pub(super) fn kick(&self) {
        for (vp, mode) in (0..).map(VpId).zip(&self.modes) {
            let seen = mode.load(Ordering::SeqCst);
            // One that is about to enter, or that the module works for, leaves when that is done.
            while seen % 2 == 1 && mode.load(Ordering::SeqCst) == seen {
                if self.module.vp_exit(self.td, vp).is_ok() {
                    self.is_outside(vp, seen);
                    break;
                }
                pause();
            }
        }
    }

    /// A vCPU is about to enter; gives the number of this time. Whoever wants all of them outside, and does not see it
    /// here, has said so before.
    pub(super) fn is_entering(&self, vp: VpId) -> u64 {
        loop {
            let mode = &self.modes[usize::from(vp.0)];
            let number = mode.load(Ordering::SeqCst) / 2 * 2 + 3;
            mode.store(number, Ordering::SeqCst);
            if !self.wait_for_zap.load(Ordering::SeqCst) {
                return number;
            }
            self.is_outside(vp, number);
            pause();
        }
    }

    /// A vCPU is outside that was inside this time.
    pub(super) fn is_outside(&self, vp: VpId, number: u64) {
        let mode = &self.modes[usize::from(vp.0)];
        let (success, failure) = (Ordering::SeqCst, Ordering::SeqCst);
        // If it has changed, the vCPU has entered again since.
        let _unchanged = mode.compare_exchange(number, number + 1, success, failure);
    }

    /// A vCPU has left by itself, or was never inside.
    pub(super) fn has_left(&self, vp: VpId) {
        let number = self.modes[usize::from(vp.0)].load(Ordering::SeqCst);
        if number % 2 == 1 && !self.module.is_inside(self.td, vp) {
            self.is_outside(vp, number);
        }
    }

    /// Sees to it that no TLB holds a translation of what has been blocked (`tdx.c:tdx_track`). While the TD is built there
    /// is none.
    pub(super) fn track(&self) -> Result<(), Bug> {
        if self.stage() != Stage::Runnable {
            return Ok(());
        }
        if !self.omits(Omit::Track) {
            self.without_vcpus(Seamcall::MemTrack, |module| module.tdh_mem_track(self.td))?;
        }
        if !self.omits(Omit::Kick) {
            self.kick();
        }
        Ok(())
    }
}
