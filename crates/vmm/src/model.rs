//! The model as a machine.

use std::sync::Arc;

use slat_memslot::{Call, Memory, Outcome, Profile, VmError, VmType};
use slat_mmu::ShadowPageLimit;

use crate::{CallError, CallResult, MemoryVm};

/// Makes model VMs of one profile.
#[derive(Clone, Debug)]
pub struct Machine {
    profile: Arc<Profile>,
}

impl Machine {
    /// A machine of this profile.
    pub fn new(profile: impl Into<Arc<Profile>>) -> Self {
        Self { profile: profile.into() }
    }
}

impl crate::Machine for Machine {
    type Vm = Vm;

    fn profile(&self) -> &Profile {
        &self.profile
    }

    fn create_vm(&mut self, vm_type: u32) -> Result<Vm, CallError> {
        let supported = VmType::from_raw(vm_type).filter(|t| self.profile.supports(*t));
        let vm_type = supported.ok_or(VmError::VmType { vm_type }).map_err(slat_memslot::Refusal::from)?;
        Ok(Vm { memory: Memory::new(self.profile.clone(), vm_type), shadow_pages: ShadowPageLimit::default() })
    }
}

/// A model VM.
#[derive(Clone, Debug)]
pub struct Vm {
    memory: Memory,
    shadow_pages: ShadowPageLimit,
}

impl Vm {
    /// What its userspace has set up.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The same, to be changed by more than calls.
    pub fn memory_mut(&mut self) -> &mut Memory {
        &mut self.memory
    }

    /// How many shadow pages KVM allows itself for this VM.
    pub fn shadow_page_limit(&self) -> u64 {
        self.shadow_pages.get()
    }
}

impl MemoryVm for Vm {
    fn call(&mut self, call: &Call) -> CallResult {
        let outcome: Outcome = self.memory.call(call)?;
        match call {
            Call::SetNrMmuPages { pages } => {
                // The argument was checked by the call itself.
                let _accepted = self.shadow_pages.set(*pages);
            }
            Call::SetRegion(_) => self.shadow_pages.slots_changed(self.memory.total_pages()),
            _ => {}
        }
        Ok(outcome)
    }
}
