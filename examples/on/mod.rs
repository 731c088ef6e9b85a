//! `--on model|kvm|both`: which machine an example runs on.

use std::error::Error;

use slat::memslot::{Memory, Profile, VmType};
use slat::vmm::{Areas, Machine, MemoryVm, model};

/// A VM of the chosen machine, with a [`Memory`] beside it to ask before each call.
pub(crate) struct Chosen {
    /// The VM.
    pub(crate) vm: Box<dyn MemoryVm>,
    /// What the VMM knows of it.
    pub(crate) memory: Memory,
    /// Host memory for its slots.
    pub(crate) areas: Areas,
}

/// Makes a VM on the machine that the arguments name, the model when they name none; of the first of the types that
/// it supports.
///
/// # Errors
/// The arguments are others, or `/dev/kvm` is not to be had.
pub(crate) fn chosen(arguments: &[&str], types: &[VmType]) -> Result<Chosen, Box<dyn Error>> {
    match arguments {
        [] | ["--on", "model"] => make(model::Machine::new(Profile::latest()), types),
        ["--on", "kvm"] => kvm(types),
        ["--on", "both"] => both(types),
        _ => Err("usage: --on model|kvm|both".into()),
    }
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn kvm(types: &[VmType]) -> Result<Chosen, Box<dyn Error>> {
    make(slat::vmm::kvm::Machine::open()?, types)
}

/// Each call on the kernel and on the model; the program stops where they differ.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn both(types: &[VmType]) -> Result<Chosen, Box<dyn Error>> {
    let kernel = slat::vmm::kvm::Machine::open()?;
    let model = model::Machine::new(kernel.shared_profile());
    make(slat::vmm::CheckedMachine::new(kernel, model), types)
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
use no_kernel as kvm;
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
use no_kernel as both;

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn no_kernel(_types: &[VmType]) -> Result<Chosen, Box<dyn Error>> {
    Err("only Linux on x86-64 has the kernel to run on".into())
}

fn make<M: Machine>(mut machine: M, types: &[VmType]) -> Result<Chosen, Box<dyn Error>>
where
    M::Vm: 'static,
{
    let profile = machine.profile().clone();
    let vm_type = types.iter().copied().find(|t| profile.supports(*t));
    let vm_type = vm_type.ok_or("this machine makes no such VMs")?;
    Ok(Chosen {
        vm: Box::new(machine.create_vm(vm_type.raw())?),
        memory: Memory::new(profile, vm_type),
        areas: machine.areas(),
    })
}

impl Chosen {
    /// Which machine it is, in a word or two.
    pub(crate) fn title(&self) -> String {
        format!(
            "{}, {} VM",
            self.memory.profile().name,
            self.memory.vm_type()
        )
    }
}
