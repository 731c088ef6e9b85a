//! `KVM_PRE_FAULT_MEMORY`.

use slat_memslot::{Errno, Gfn, Pages};
use slat_mmu::fault::{Env, PrefaultError};
use slat_mmu::spte::Format;

use super::TdpVm;
use crate::traces::Predicted;

impl<F: Format> TdpVm<F> {
    /// Maps pages ahead, into the root that the vCPU would run on. `flags` must be 0.
    pub fn pre_fault(&mut self, vcpu: u32, gfn: Gfn, pages: Pages, flags: u64) {
        let (gpa, size) = (gfn.raw() << 12, pages.raw() << 12);
        let checked = self.memory.check_pre_fault(vcpu, gpa, size, flags);
        let (mut at, mut left) = (gfn, pages);
        let mut result = checked.map_err(|refusal| refusal.errno());
        if self.runs_on_l1_tables(vcpu) {
            result = result.and(Err(Errno::EOPNOTSUPP));
        }
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
        let left = Predicted::PreFaultLeft {
            gfn: at,
            pages: left,
        };
        self.out.events.push(left);
    }

    fn pre_fault_one(&mut self, id: u32, gfn: Gfn, left: Pages) -> Result<Pages, Errno> {
        // Requests are served on the way into the guest only: an obsolete root stays, and every try is stale.
        let root = self.load_root(id).ok_or(Errno::EFAULT)?;
        let settings = self.settings();
        self.out.vcpu = id;
        self.out.address = gfn.gpa().raw();
        let vcpu = self.vcpus.get_mut(&id).ok_or(Errno::EFAULT)?;
        let mut locked = self.tables.shared(&mut vcpu.reader, &mut self.out);
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
            self.memory.mark_dirty(slot.as_id, gfn);
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
