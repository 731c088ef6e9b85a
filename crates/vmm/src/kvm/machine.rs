//! Opening `/dev/kvm` and making VMs.

use std::io;
use std::sync::Arc;

use kvm_ioctls::Kvm;
use slat_memslot::{Errno, Profile, VmType};

use super::{HostMemory, Vm};
use crate::{Areas, CallError};

/// Why `/dev/kvm` cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The device is absent or not permitted.
    #[error("/dev/kvm cannot be opened: {0}")]
    Device(#[source] io::Error),
    /// The interface is not the one that has not changed since 2007.
    #[error("/dev/kvm speaks API version {0}, not 12")]
    Version(i32),
    /// Host memory for slots cannot be mapped.
    #[error("host memory for the slots cannot be mapped: {0}")]
    Memory(#[source] io::Error),
    /// A VM to ask for capabilities cannot be made.
    #[error("a VM to probe cannot be made: {0}")]
    Probe(Errno),
}

/// The local `/dev/kvm`.
#[derive(Clone, Debug)]
pub struct Machine {
    kvm: Arc<Kvm>,
    host: Arc<HostMemory>,
    profile: Arc<Profile>,
    maps_for_guests: bool,
}

impl Machine {
    /// Opens `/dev/kvm` and probes what it can do.
    ///
    /// # Errors
    /// The device is absent, not permitted, or too odd to be probed.
    pub fn open() -> Result<Self, OpenError> {
        let kvm =
            Kvm::new().map_err(|e| OpenError::Device(io::Error::from_raw_os_error(e.errno())))?;
        match kvm.get_api_version() {
            12 => {}
            version => return Err(OpenError::Version(version)),
        }
        let host = HostMemory::new().map_err(OpenError::Memory)?;
        let capabilities = super::probe(&kvm).map_err(OpenError::Probe)?;
        let profile = Arc::new(Profile::probed(&capabilities));
        Ok(Self {
            kvm: Arc::new(kvm),
            host: Arc::new(host),
            profile,
            maps_for_guests: false,
        })
    }

    /// Lets guests run although the host maps pages for them (EPT, NPT). What they leave in dirty logs and rings then
    /// depends on page tables, so that only a model that was given the host can follow: `model::Machine::with_host`.
    #[must_use]
    pub fn with_mapped_guests(self) -> Self {
        Self {
            maps_for_guests: true,
            ..self
        }
    }

    /// The probed profile, to be shared with a model.
    pub fn shared_profile(&self) -> Arc<Profile> {
        self.profile.clone()
    }

    /// The host memory that slots of its VMs can use.
    pub fn host(&self) -> &HostMemory {
        &self.host
    }
}

impl crate::Machine for Machine {
    type Vm = Vm;

    fn profile(&self) -> &Profile {
        &self.profile
    }

    fn areas(&self) -> Areas {
        *self.host.areas()
    }

    fn create_vm(&mut self, vm_type: u32) -> Result<Vm, CallError> {
        let known = VmType::from_raw(vm_type).unwrap_or_default();
        let vm = self.kvm.create_vm_with_type(u64::from(vm_type));
        let vm = vm.map_err(|e| CallError::errno(Errno::new(e.errno())))?;
        let mut made = Vm::new(
            self.kvm.clone(),
            vm,
            self.host.clone(),
            (self.profile.clone(), known),
        );
        made.maps_for_guests = self.maps_for_guests;
        Ok(made)
    }
}
