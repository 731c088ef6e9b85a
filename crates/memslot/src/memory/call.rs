//! Any call, answered.

use crate::{Call, CapError, Memory, Outcome, Refusal, VmError};

/// What a call comes to.
pub type CallResult = Result<Outcome, Refusal>;

impl Memory {
    /// Answers a call as the kernel would, changing the VM as the kernel would.
    ///
    /// # Errors
    /// The first test that fails, in the kernel's order.
    pub fn call(&mut self, call: &Call) -> CallResult {
        match call {
            Call::SetRegion(request) => self.set_region(request).map(|_effects| Outcome::Done),
            Call::CreateGmem { size, flags, .. } => {
                self.create_gmem(*size, *flags).map(Outcome::Gmem)
            }
            Call::File(file, call) => self.file_call(*file, *call),
            Call::Map(map, call) => self.map_call(*map, *call),
            Call::SetAttributes {
                address,
                size,
                attributes,
                flags,
            } => self
                .set_attributes(*address, *size, *attributes, *flags)
                .map(|_changed| Outcome::Done),
            Call::GetDirtyLog { slot, buffer } => {
                self.get_dirty_log(*slot, *buffer).map(Outcome::Dirty)
            }
            Call::ClearDirtyLog {
                slot,
                first_page,
                num_pages,
                bits,
            } => self.clear_dirty_log(*slot, *first_page, *num_pages, bits),
            Call::ResetDirtyRings => self.reset_dirty_rings(),
            Call::HarvestDirtyRing { vcpu } => self.harvest_dirty_ring(*vcpu).map(Outcome::Ring),
            Call::EnableCap { cap, flags, args } => {
                self.enable_cap(*cap, *flags, *args).map(|()| Outcome::Done)
            }
            Call::CheckExtension { cap } => {
                self.check_gate()?;
                let value = self.check_extension(*cap).map(Outcome::Value);
                value.ok_or_else(|| CapError::Unknown { cap: *cap }.into())
            }
            Call::CreateVcpu => self.create_vcpu(),
            Call::PreFault {
                vcpu,
                gpa,
                size,
                flags,
            } => self.pre_fault(*vcpu, *gpa, *size, *flags),
            Call::SetNrMmuPages { pages } => self.set_nr_mmu_pages(*pages),
            Call::SetTssAddr { gpa } => self.set_tss_addr(*gpa),
            Call::SetIdentityMapAddr { gpa } => self.set_identity_map_addr(*gpa),
            Call::CreateIrqchip => self.create_irqchip(),
            Call::Guest(access) => self.guest_access(access).map(Outcome::Access),
            Call::Contents(call) => self.contents_call(call),
            Call::Sev(_) => {
                self.check_gate()?;
                Err(VmError::NotSev {}.into())
            }
            Call::Tdx(_) => {
                self.check_gate()?;
                Err(VmError::NotTd {}.into())
            }
        }
    }
}
