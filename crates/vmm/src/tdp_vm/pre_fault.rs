//! `KVM_PRE_FAULT_MEMORY`.

use slat_memslot::{Errno, Gfn, Gpa, Outcome, PAGE_SHIFT, Pages};
use slat_mmu::fault::{Env, PrefaultError};
use slat_mmu::spte::Format;

use super::TdpVm;
use crate::traces::Predicted;
use crate::{CallError, CallResult};

impl<F: Format> TdpVm<F> {
    /// Maps pages ahead, into the root that the vCPU would run on. `flags` must be 0.
    pub fn pre_fault(&mut self, vcpu: u32, gfn: Gfn, pages: Pages, flags: u64) {
        let index = self.vcpus.get(&vcpu).map_or(u32::MAX, |vcpu| vcpu.index);
        let _ = self.pre_fault_call(index, gfn.raw() << 12, pages.raw() << 12, flags);
    }

    pub(super) fn pre_fault_call(
        &mut self,
        vcpu: u32,
        gpa: u64,
        size: u64,
        flags: u64,
    ) -> CallResult {
        let checked = self.memory.check_pre_fault(vcpu, gpa, size, flags);
        let refused = checked.err();
        let (gfn, pages) = (Gpa::new(gpa).gfn(), Pages::new(size >> PAGE_SHIFT));
        let vcpu = self.id_of(vcpu).unwrap_or(u32::MAX);
        let (mut at, mut left) = (gfn, pages);
        let mut result = refused.map_or(Ok(()), |refusal| Err(refusal.errno()));
        while result.is_ok() && left.raw() > 0 {
            match self.pre_fault_one(vcpu, at, left) {
                Ok(done) => {
                    at = Gfn::new(at.raw() + done.raw());
                    left = Pages::new(left.raw() - done.raw());
                }
                Err(errno) => result = Err(errno),
            }
        }
        // What was mapped is not taken back by an error.
        let answer = if left == pages {
            result.map(|()| 0)
        } else {
            Ok(0)
        };
        self.answer(answer);
        self.out.events.push(Predicted::PreFaultLeft {
            gfn: at,
            pages: left,
        });
        match (refused, answer) {
            (Some(refusal), _) => Err(refusal.into()),
            (None, Err(errno)) => Err(CallError::errno(errno)),
            (None, Ok(_)) => Ok(Outcome::Remaining {
                gpa: at.gpa().raw(),
                size: left.raw() << PAGE_SHIFT,
            }),
        }
    }

    fn pre_fault_one(&mut self, id: u32, gfn: Gfn, left: Pages) -> Result<Pages, Errno> {
        // Where requests are served on the way into the guest only, an obsolete root stays, and every try is stale.
        if !self.memory.profile().pre_fault_spins.get() {
            self.serve_requests(id);
        }
        let root = self.load_root(id).ok_or(Errno::EFAULT)?;
        let settings = self.settings();
        self.out.vcpu = id;
        self.out.address = gfn.gpa().raw();
        let vcpu = self.vcpus.get_mut(&id).ok_or(Errno::EFAULT)?;
        let index = vcpu.index;
        let mut locked = self.tables.shared(&mut self.reader, &mut self.out);
        let mut env = Env {
            memory: &self.memory,
            backing: &mut self.host,
            invalidation: &self.invalidation,
            settings,
            mmio: &mut vcpu.mmio,
        };
        let done = locked.prefault(root, gfn, left, &mut env);
        drop(locked);
        let done = done.map_err(errno_of)?;
        if let Some((slot, gfn)) = done.handled.mark_dirty {
            let _ = self.memory.mark_dirty(index, slot.as_id, gfn);
        }
        Ok(done.done)
    }
}

const fn errno_of(error: PrefaultError) -> Errno {
    match error {
        PrefaultError::NoSlot => Errno::ENOENT,
        PrefaultError::BadPage => Errno::EFAULT,
        PrefaultError::Retry => Errno::EINTR,
        PrefaultError::OutOfTables => Errno::ENOMEM,
    }
}
