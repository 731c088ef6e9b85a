//! What a guest's own accesses leave in the dirty log.

use crate::{
    Access, AccessKind, AsId, Attributes, DirtyRing, Gfn, Gpa, GuestAccess, Memory, PAGE_SIZE,
    PreFaultError, Refusal, RingFill, VmError,
};

impl Memory {
    /// Whether a vCPU can make an access at all, before any memory is looked at.
    ///
    /// # Errors
    /// There is no such vCPU, it can have no root, or there is no SMM.
    pub fn check_guest_access(&self, access: &GuestAccess) -> Result<(), Refusal> {
        let vcpu = access.vcpu;
        if vcpu >= self.vcpus() {
            return Err(PreFaultError::NoVcpu { vcpu }.into());
        }
        self.check_gate()?;
        if access.as_id != AsId::NORMAL && !self.profile().smm.get() {
            return Err(VmError::NoSmm {}.into());
        }
        if self.lacks_shadow_pages() {
            return Err(PreFaultError::NoShadowPages {}.into());
        }
        Ok(())
    }

    /// One access of a guest, as KVM's emulator makes it: what two-dimensional page tables add is not known here.
    ///
    /// # Errors
    /// As [`Memory::check_guest_access`].
    pub fn guest_access(&mut self, access: &GuestAccess) -> Result<Access, Refusal> {
        self.check_guest_access(access)?;
        if self.ring_blocks_entry(access.vcpu) {
            return Ok(Access::RingFull);
        }
        let fetch = Gpa::new(access.instruction()).gfn();
        match self.reach(access, AccessKind::Execute, fetch) {
            Access::Done => {}
            Access::Mmio => return Ok(Access::NoMemory),
            other => return Ok(other),
        }
        Ok(match access.kind {
            AccessKind::Execute => Access::Done,
            kind => self.reach(access, kind, Gpa::new(access.gpa).gfn()),
        })
    }

    fn reach(&mut self, access: &GuestAccess, kind: AccessKind, gfn: Gfn) -> Access {
        let slot = self.space(access.as_id).by_gfn(gfn);
        let private = self.is_private(gfn);
        let file = slot.and_then(|slot| slot.binding()?.file);
        match slot {
            _ if private && file.is_none() => memory_fault(gfn, private),
            None => Access::Mmio,
            Some(slot) if kind == AccessKind::Write && slot.is_readonly() => Access::Mmio,
            Some(_) => {
                if kind == AccessKind::Write {
                    let _ = self.mark_dirty(access.vcpu, access.as_id, gfn);
                }
                Access::Done
            }
        }
    }

    /// Notes that a vCPU wrote a frame (`kvm_main.c:mark_page_dirty_in_slot`): in its ring if the VM keeps rings, else in
    /// the slot's bitmap, if the slot is logged at all. Says how full the ring is, if it was a ring.
    pub fn mark_dirty(&mut self, vcpu: u32, as_id: AsId, gfn: Gfn) -> Option<RingFill> {
        let rings = self.has_rings();
        let logged = self
            .space_mut(as_id)
            .by_gfn_mut(gfn)
            .filter(|slot| slot.is_logged());
        let slot = logged?;
        let (key, offset) = (slot.key(), (gfn - slot.range().start()).raw());
        if rings {
            return Some(self.ring_mut(vcpu)?.push(key.raw(), offset));
        }
        if let Some(bitmap) = &mut slot.dirty {
            bitmap.set(offset);
        }
        None
    }

    /// Whether a vCPU must leave with `KVM_EXIT_DIRTY_RING_FULL` instead of entering the guest.
    pub fn ring_blocks_entry(&mut self, vcpu: u32) -> bool {
        self.ring_mut(vcpu).is_some_and(DirtyRing::blocks_entry)
    }

    /// The ring of a vCPU.
    pub fn ring(&self, vcpu: u32) -> Option<&DirtyRing> {
        self.rings.get(usize::try_from(vcpu).ok()?)
    }

    /// The ring of a vCPU, as userspace may write into it.
    pub fn ring_mut(&mut self, vcpu: u32) -> Option<&mut DirtyRing> {
        self.rings.get_mut(usize::try_from(vcpu).ok()?)
    }
}

/// `KVM_EXIT_MEMORY_FAULT` for a frame (`kvm_host.h:kvm_prepare_memory_fault_exit`).
fn memory_fault(gfn: Gfn, private: bool) -> Access {
    Access::MemoryFault {
        flags: if private {
            Attributes::PRIVATE.bits()
        } else {
            0
        },
        gpa: gfn.gpa().raw(),
        size: PAGE_SIZE,
    }
}
