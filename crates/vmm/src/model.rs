//! The model as a machine.

use std::sync::Arc;

use slat_memslot::{Call, Memory, Outcome, Pages, Profile, Refusal, VmError, VmType};
use slat_mmu::ShadowPageLimit;

use crate::{Areas, CallError, CallResult, MemoryVm};

/// Makes model VMs of one profile.
#[derive(Clone, Debug)]
pub struct Machine {
    profile: Arc<Profile>,
}

impl Machine {
    /// A machine of this profile.
    pub fn new(profile: impl Into<Arc<Profile>>) -> Self {
        Self {
            profile: profile.into(),
        }
    }
}

impl crate::Machine for Machine {
    type Vm = Vm;

    fn profile(&self) -> &Profile {
        &self.profile
    }

    fn areas(&self) -> Areas {
        Areas::SYMBOLIC
    }

    fn create_vm(&mut self, vm_type: u32) -> Result<Vm, CallError> {
        let supported = VmType::from_raw(vm_type).filter(|t| self.profile.supports(*t));
        let vm_type = supported
            .ok_or(VmError::VmType { vm_type })
            .map_err(Refusal::from)?;
        Ok(Vm {
            memory: Memory::new(self.profile.clone(), vm_type),
            shadow_pages: ShadowPageLimit::new(),
        })
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
    pub fn shadow_page_limit(&self) -> Pages {
        self.shadow_pages.pages()
    }
}

impl MemoryVm for Vm {
    fn call(&mut self, call: &Call) -> CallResult {
        // No page tables are modelled yet, so no shadow page is ever in use and nothing has to be evicted.
        let in_use = Pages::new(0);
        match call {
            Call::SetRegion(request) => {
                let effects = self.memory.set_region(request)?;
                self.shadow_pages
                    .commit_region(effects.kind, self.memory.total_pages(), in_use);
                Ok(Outcome::Done)
            }
            Call::SetNrMmuPages { pages } => {
                self.memory.call(call)?;
                self.shadow_pages
                    .set_by_user(*pages, in_use)
                    .map_err(Refusal::from)?;
                Ok(Outcome::Done)
            }
            other => Ok(self.memory.call(other)?),
        }
    }
}
