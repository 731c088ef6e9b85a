//! `KVM_PRE_FAULT_MEMORY`, as far as slots decide it.

use crate::{AsId, Gfn, Gpa, Memory, Outcome, PAGE_SIZE, PreFaultError, Refusal};

impl Memory {
    /// Whether `KVM_PRE_FAULT_MEMORY` gets as far as mapping (`kvm_vcpu_pre_fault_memory`).
    ///
    /// # Errors
    /// The first test that fails.
    pub fn check_pre_fault(
        &self,
        vcpu: u32,
        gpa: u64,
        size: u64,
        flags: u64,
    ) -> Result<(), Refusal> {
        if vcpu >= self.vcpus() {
            return Err(PreFaultError::NoVcpu { vcpu }.into());
        }
        self.check_gate()?;
        if !self.profile().pre_fault.get() {
            return Err(PreFaultError::NotBuiltIn {}.into());
        }
        if flags != 0 {
            return Err(PreFaultError::Flags { flags }.into());
        }
        if gpa % PAGE_SIZE != 0 || size % PAGE_SIZE != 0 {
            return Err(PreFaultError::Unaligned { gpa, size }.into());
        }
        if gpa.checked_add(size).is_none_or(|end| end <= gpa) {
            return Err(PreFaultError::Range { gpa, size }.into());
        }
        if self.vm_type().must_be_finalized() && !self.finalized {
            return Err(PreFaultError::NotAllowed {
                vm_type: self.vm_type(),
            }
            .into());
        }
        if self.lacks_shadow_pages() {
            return Err(PreFaultError::NoShadowPages {}.into());
        }
        if !self.profile().tdp.get() {
            return Err(PreFaultError::NoTdp {}.into());
        }
        Ok(())
    }

    /// `KVM_PRE_FAULT_MEMORY` by a vCPU outside SMM: what is left behind the first frame that no slot holds.
    ///
    /// # Errors
    /// As [`Memory::check_pre_fault`], and when not even the first frame is in a slot.
    pub fn pre_fault(
        &self,
        vcpu: u32,
        gpa: u64,
        size: u64,
        flags: u64,
    ) -> Result<Outcome, Refusal> {
        self.check_pre_fault(vcpu, gpa, size, flags)?;
        let end = (gpa + size) / PAGE_SIZE;
        let mut at = Gpa::new(gpa).gfn();
        while let Some(slot) = self
            .space(AsId::NORMAL)
            .by_gfn(at)
            .filter(|_| at.raw() < end)
        {
            at = slot.range().end();
        }
        let reached = Gfn::new(at.raw().min(end)).gpa().raw();
        match reached == gpa {
            true => Err(PreFaultError::NoSlot { gpa }.into()),
            false => Ok(Outcome::Remaining {
                gpa: reached,
                size: gpa + size - reached,
            }),
        }
    }
}
