//! `KVM_PRE_FAULT_MEMORY`, as far as slots decide it.

use crate::{
    AsId, Attributes, Gfn, GfnRange, Gpa, Memory, Outcome, PAGE_SIZE, PreFaultError, Refusal, Slot,
};

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

    /// `KVM_PRE_FAULT_MEMORY` by a vCPU outside SMM: what is left behind the first frame that nothing backs.
    ///
    /// Whether the host addresses of shared frames can be reached is not known here.
    ///
    /// # Errors
    /// As [`Memory::check_pre_fault`], and when not even the first frame is backed.
    pub fn pre_fault(
        &self,
        vcpu: u32,
        gpa: u64,
        size: u64,
        flags: u64,
    ) -> Result<Outcome, Refusal> {
        self.check_pre_fault(vcpu, gpa, size, flags)?;
        let (start, end) = (Gpa::new(gpa).gfn(), Gpa::new(gpa + size).gfn());
        let mut at = start;
        let stop = loop {
            match GfnRange::between(at, end).map(|rest| self.backed(rest)) {
                Some(Ok(backed)) => at = backed,
                Some(Err(reason)) => break Err(reason),
                None => break Ok(()),
            }
        };
        match stop {
            Err(reason) if at == start => Err(reason.into()),
            _ => {
                let reached = at.gpa().raw();
                Ok(Outcome::Remaining {
                    gpa: reached,
                    size: gpa + size - reached,
                })
            }
        }
    }

    /// How far the start of a range is backed by one slot with one kind of memory.
    fn backed(&self, range: GfnRange) -> Result<Gfn, PreFaultError> {
        let gpa = range.start().gpa().raw();
        let (kind, private) = match self.attributes.ranges(range).next() {
            Some((kind, attributes)) => (kind, attributes.contains(Attributes::PRIVATE)),
            None => (range, false),
        };
        let slot = self.space(AsId::NORMAL).by_gfn(range.start());
        let file = slot
            .and_then(Slot::binding)
            .and_then(|binding| binding.file);
        match slot {
            _ if private && file.is_none() => Err(PreFaultError::NoPrivateMemory { gpa }),
            None => Err(PreFaultError::NoSlot { gpa }),
            Some(slot) => Ok(slot.range().end().min(kind.end())),
        }
    }
}
