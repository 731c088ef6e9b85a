//! What KVM does when the module is busy and a call must not fail (`tdx.c:tdh_do_no_vcpus`).

use super::backend::{Backend, Bug, Omit};
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
        for vp in (0..self.module.vcpus(self.td)).map(VpId) {
            // One that the module works for leaves when that is done.
            while self.module.is_inside(self.td, vp) && self.module.vp_exit(self.td, vp).is_err() {
                pause();
            }
        }
    }

    /// Sees to it that no TLB holds a translation of what has been blocked (`tdx.c:tdx_track`).
    pub(super) fn track(&self) -> Result<(), Bug> {
        if !self.omits(Omit::Track) {
            self.without_vcpus(Seamcall::MemTrack, |module| module.tdh_mem_track(self.td))?;
        }
        if !self.omits(Omit::Kick) {
            self.kick();
        }
        Ok(())
    }
}
