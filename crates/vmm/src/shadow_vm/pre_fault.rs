//! `KVM_PRE_FAULT_MEMORY`.

use slat_memslot::{Errno, Gfn, PageSize, Pages};
use slat_mmu::fault::{Env, Fault, Kind, NotTracked, Outcome, Present};
use slat_mmu::spte::Format;

use super::ShadowVm;
use super::vcpu::Vcpu;
use crate::traces::Predicted;

/// How often a step is tried before a signal ends it.
const ATTEMPTS: u32 = 16;

impl<F: Format> ShadowVm<F> {
    /// Maps pages ahead, into the root that the vCPU would run on. `flags` must be 0. Without two-dimensional paging the
    /// call fails, but not before a root is loaded.
    pub fn pre_fault(&mut self, vcpu: u32, gfn: Gfn, pages: Pages, flags: u64) {
        let (gpa, size) = (gfn.raw() << 12, pages.raw() << 12);
        let checked = self.memory.check_pre_fault(vcpu, gpa, size, flags);
        let (mut at, mut left) = (gfn, pages);
        let mut result = match checked.map_err(|refusal| refusal.errno()) {
            Err(Errno::EOPNOTSUPP) => {
                self.load_root(vcpu);
                Err(Errno::EOPNOTSUPP)
            }
            other => other.map(|_| ()),
        };
        if self.vcpus.get(&vcpu).is_some_and(Vcpu::runs_on_l1_tables) {
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
        self.tell(Predicted::PreFaultLeft {
            gfn: at,
            pages: left,
        });
    }

    fn pre_fault_one(&mut self, id: u32, gfn: Gfn, left: Pages) -> Result<Pages, Errno> {
        // Requests are served on the way into the guest only: an obsolete root stays, and every try is stale.
        if !self.load_root(id) {
            return Err(Errno::EFAULT);
        }
        let fault = Fault {
            gfn,
            kind: Kind::Read,
            present: Present::No,
            private: false,
            prefetch: true,
        };
        for _ in 0..ATTEMPTS {
            let settings = self.settings();
            (self.out.vcpu, self.out.address) = (id, gfn.gpa().raw());
            let vcpu = self.vcpus.get_mut(&id).ok_or(Errno::EFAULT)?;
            let mut env = Env {
                memory: &self.memory,
                backing: &mut self.host,
                invalidation: &self.invalidation,
                settings,
                mmio: &mut vcpu.mmio,
                shadow: NotTracked,
            };
            let (most, out) = (PageSize::Size1G, &mut self.out);
            let handled = self
                .mmu
                .direct_page_fault(&vcpu.roots, &fault, most, &mut env, out);
            if let Some((slot, gfn)) = handled.mark_dirty {
                let _ = self.memory.mark_dirty(id, slot.as_id, gfn);
            }
            match handled.outcome {
                Outcome::Retry => {}
                Outcome::Fixed | Outcome::Spurious | Outcome::WriteProtected => {
                    let level = handled.size.level();
                    let end = gfn.round_down(level).raw() + level.pages().raw();
                    return Ok(Pages::new((end - gfn.raw()).min(left.raw())));
                }
                Outcome::Emulate => return Err(Errno::ENOENT),
                Outcome::MemoryFault | Outcome::BadPage => return Err(Errno::EFAULT),
                Outcome::Interrupted => return Err(Errno::EINTR),
                Outcome::OutOfTables => return Err(Errno::ENOSPC),
            }
        }
        Err(Errno::EINTR)
    }
}
