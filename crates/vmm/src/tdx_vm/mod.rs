//! A VM of type TDX: KVM's commands, slots, attributes and guest_memfds over the memory half of a module.
//!
//! [`TdxVm`] puts what userspace asks for to [`Memory`], which knows the rules of slots, and lets the mirror of the TD's
//! S-EPT ([`TdxMmu`]) follow. Its guest reads, writes, accepts and converts ([`TdOp`](slat_memslot::TdOp)); a vCPU runs until
//! that is done or userspace has to do something. What the VMM is seen to do wrong is kept ([`TdxVm::findings`]).
//!
//! | call | KVM counterpart |
//! |---|---|
//! | [`TdxCommand`](slat_memslot::TdxCommand) | `tdx.c:tdx_vm_ioctl`, `tdx_vcpu_unlocked_ioctl` |
//! | slots | `kvm_arch_flush_shadow_memslot` |
//! | attributes | `kvm_main.c:kvm_vm_set_mem_attributes` |
//! | guest_memfds | `guest_memfd.c:kvm_gmem_punch_hole`, `kvm_gmem_release` |
//! | reads, writes, accepts | `tdx.c:tdx_handle_ept_violation` |
//! | MapGPA | `tdx.c:tdx_map_gpa` |
//! | pre-faults | `mmu.c:kvm_arch_vcpu_pre_fault_memory` |
//!
//! [`script`] has guests for it, and a VMM to begin with.
//!
//! ```
//! use slat_memslot::{Call, Outcome, Profile, TdxCall, TdxCommand, VmType};
//! use slat_vmm::{Machine, MemoryVm, model};
//!
//! let profile = Profile::named("linux-6.18-tdx").unwrap();
//! let mut vm = model::Machine::new(profile).create_vm(VmType::Tdx.raw()).unwrap();
//! let too_early = vm.call(&Call::CreateVcpu).unwrap_err();
//! assert!(too_early.to_string().starts_with("EIO"));
//! let command = TdxCommand::InitVm { attributes: 0, gpaw: 48, maxphyaddr: 48, flags: 0, nent: 8 };
//! vm.call(&Call::Tdx(TdxCall::Command { command, hw_error: 0 })).unwrap();
//! ```

mod ask;
mod command;
mod convert;
mod error;
mod guest;
mod host;
mod pre_fault;
pub mod script;
mod slots;
mod watch;

use std::sync::Arc;

use slat_coco::convert::Contract;
use slat_coco::tdx::ioctl::{TdxCall as Staged, TdxStages};
use slat_coco::tdx::mapgpa::MapGpa;
use slat_coco::tdx::mirror::{HookGen, SlotZap, TdxMmu};
use slat_memslot::{Call, Gate, Memory, Outcome, Profile, Refusal, TdxCall, TdxFinding, VmType};

use crate::{CallError, CallResult};
pub use error::TdxError;
use host::HostPages;
use watch::Watch;

/// `KVM_CAP_SPLIT_IRQCHIP`.
const SPLIT_IRQCHIP: u32 = 121;

/// What a TD's host is, besides its kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TdxSettings {
    /// How KVM tells its TDX code of changes.
    pub hooks: HookGen,
    /// How many vCPUs a TD may have.
    pub max_vcpus: u16,
    /// How many pages of 4 KiB the host has for TDs.
    pub host_pages: u64,
    /// How many tables KVM can have.
    pub tables: u32,
}

impl Default for TdxSettings {
    /// 64 GiB and 64 vCPUs.
    fn default() -> Self {
        Self {
            hooks: HookGen::default(),
            max_vcpus: 64,
            host_pages: 1 << 24,
            tables: 1 << 18,
        }
    }
}

/// A vCPU as KVM knows it.
#[derive(Debug, Default)]
struct Vcpu {
    /// Its number in the TD, once it is initialised.
    number: Option<u16>,
    /// A conversion that waits for userspace's answer.
    request: Option<Request>,
    /// The memory fault that it exited with last, and how often in a row.
    fault: Option<watch::Fault>,
}

/// A conversion on its way.
#[derive(Clone, Copy, Debug)]
struct Request {
    map: MapGpa,
    /// How many frames of the piece were private when userspace was asked.
    private: u64,
}

/// A VM of type TDX.
#[derive(Debug)]
pub struct TdxVm {
    memory: Memory,
    settings: TdxSettings,
    stages: TdxStages,
    /// From `KVM_TDX_INIT_VM` on, until everything is closed.
    td: Option<TdxMmu>,
    /// What the guest takes for MAXPHYADDR.
    maxphyaddr: u8,
    split_irqchip: bool,
    vcpus: Vec<Vcpu>,
    host: HostPages,
    slot_zap: SlotZap,
    counts: Counts,
    watch: Watch,
}

/// What vCPUs left the guest for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
struct Counts {
    ept_violations: u64,
    memory_faults: u64,
    hypercalls: u64,
}

impl TdxVm {
    /// A VM that was just made.
    pub fn new(profile: impl Into<Arc<Profile>>, settings: TdxSettings) -> Self {
        Self {
            memory: Memory::new(profile, VmType::Tdx),
            settings,
            stages: TdxStages::new(usize::from(settings.max_vcpus)),
            td: None,
            maxphyaddr: 0,
            split_irqchip: false,
            vcpus: Vec::new(),
            host: HostPages::default(),
            slot_zap: SlotZap::default(),
            counts: Counts::default(),
            watch: Watch::default(),
        }
    }

    /// What userspace has set up.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The same, to be changed by what no call can say. Tables do not follow.
    pub fn memory_mut(&mut self) -> &mut Memory {
        &mut self.memory
    }

    /// The TD's memory, from `KVM_TDX_INIT_VM` on.
    pub fn td(&self) -> Option<&TdxMmu> {
        self.td.as_ref()
    }

    /// What the VMM was seen to do wrong so far, each once.
    pub fn findings(&self) -> Vec<TdxFinding> {
        self.watch.findings()
    }

    /// How userspace may answer a conversion.
    fn contract(&self) -> Contract {
        match self.memory.profile().map_gpa_answers.get() {
            true => Contract::Since2026,
            false => Contract::Before2026,
        }
    }

    /// Answers a call as the kernel would.
    ///
    /// # Errors
    /// As [`Memory::call`], and what only TDX refuses.
    pub fn call(&mut self, call: &Call) -> CallResult {
        match call {
            Call::SetRegion(request) => self.change_region(request),
            Call::File(file, call) => self.call_file(*file, *call),
            Call::SetAttributes {
                address,
                size,
                attributes,
                flags,
            } => self.change_attributes(*address, *size, *attributes, *flags),
            Call::CreateVcpu => self.create_vcpu(),
            Call::EnableCap { cap, .. } if *cap == SPLIT_IRQCHIP => {
                self.memory.check_gate().map_err(Refusal::from)?;
                self.split_irqchip = true;
                Ok(Outcome::Done)
            }
            Call::PreFault {
                vcpu,
                gpa,
                size,
                flags,
            } => self.pre_fault(*vcpu, *gpa, *size, *flags),
            Call::Guest(_) => Err(CallError::NotTried {
                why: "what the guest of a TD does is td_read, td_write, td_accept and td_map_gpa",
            }),
            Call::Tdx(call) => self.tdx_call(call),
            other => Ok(self.memory.call(other)?),
        }
    }

    fn tdx_call(&mut self, call: &TdxCall) -> CallResult {
        match *call {
            TdxCall::Ask(question) => return self.answer(question),
            TdxCall::Host(host) => return self.host_call(host),
            _ => self.memory.check_gate().map_err(Refusal::from)?,
        }
        match *call {
            TdxCall::Command { command, hw_error } => self.command(command, hw_error),
            TdxCall::Guest { vcpu, op } => self.guest_op(vcpu, op),
            TdxCall::CompleteHypercall { vcpu, ret, event } => self.complete(vcpu, ret, event),
            TdxCall::Host(_) | TdxCall::Ask(_) => Ok(Outcome::Done),
        }
    }

    /// `KVM_CREATE_VCPU` (`tdx.c:tdx_vcpu_create`).
    fn create_vcpu(&mut self) -> CallResult {
        self.memory.check_gate().map_err(Refusal::from)?;
        let staged = Staged::CreateVcpu {
            split_irqchip: self.split_irqchip,
        };
        self.stages.check(staged, 0).map_err(TdxError::from)?;
        let outcome = self.memory.create_vcpu()?;
        self.stages.call(staged, 0).map_err(TdxError::from)?;
        self.vcpus.push(Vcpu::default());
        Ok(outcome)
    }

    /// KVM has given the VM up, if it has: every ioctl fails from now on.
    fn check_alive(&mut self) -> Result<(), TdxError> {
        let Some(bug) = self.td.as_ref().and_then(TdxMmu::bug) else {
            return Ok(());
        };
        self.memory.set_gate(Gate::Dead);
        Err(TdxError::Bug(bug))
    }
}
