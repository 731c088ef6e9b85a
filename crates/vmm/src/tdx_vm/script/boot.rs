//! From an empty VM to a TD that runs.

use slat_memslot::{Call, Errno, PAGE_SIZE, Pages, TdxCall, TdxCommand};
use thiserror::Error;

use super::{CarefulVmm, Vmm as _};
use crate::tdx_vm::{SPLIT_IRQCHIP, TdxError};
use crate::{CallError, MemoryVm};

/// What a TD is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Memory from address 0 on.
    pub ram: Pages,
    /// How many pages of it are added and measured: the firmware. The rest is the guest's to accept.
    pub image: Pages,
    /// How many vCPUs there are.
    pub vcpus: u32,
    /// Whether the guest wants no #VE when it touches what it has not accepted.
    pub sept_ve_disable: bool,
    /// After how many pages of the image a signal comes, each time.
    pub signal: Option<u64>,
    /// Where the slots' host memory begins.
    pub hva: u64,
}

impl Plan {
    /// So much memory, 16 pages of firmware, one vCPU, as Linux wants it.
    pub const fn new(ram: Pages) -> Self {
        Self {
            ram,
            image: Pages::new(16),
            vcpus: 1,
            sept_ve_disable: true,
            signal: None,
            hva: 0x7f00_0000_0000,
        }
    }
}

/// Why a TD could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{at}: {error}")]
pub struct BootError {
    /// Which step.
    pub at: &'static str,
    /// What it came to.
    #[source]
    pub error: CallError,
}

/// `KVM_CAP_EXIT_HYPERCALL` for `KVM_HC_MAP_GPA_RANGE`.
const EXIT_HYPERCALL: u32 = slat_memslot::cap::EXIT_HYPERCALL;
const MAP_GPA_RANGE: u64 = 1 << 12;

fn command(command: TdxCommand) -> Call {
    Call::Tdx(TdxCall::Command {
        command,
        hw_error: 0,
    })
}

fn enable(cap: u32, arg: u64) -> Call {
    Call::EnableCap {
        cap,
        flags: 0,
        args: [arg, 0, 0, 0],
    }
}

impl CarefulVmm {
    /// Makes a TD that can run, in the order that KVM wants.
    ///
    /// # Errors
    /// The step that failed.
    pub fn boot<V: MemoryVm>(vm: &mut V, plan: &Plan) -> Result<Self, BootError> {
        let mut make = |at, call: &Call| {
            let made = vm.call(call).map(drop);
            made.map_err(|error| BootError { at, error })
        };
        make("enable exits", &enable(EXIT_HYPERCALL, MAP_GPA_RANGE))?;
        make("split the irqchip", &enable(SPLIT_IRQCHIP, 24))?;
        let attributes = match plan.sept_ve_disable {
            true => TdxCommand::SEPT_VE_DISABLE,
            false => 0,
        };
        let init = TdxCommand::InitVm {
            attributes,
            gpaw: 48,
            maxphyaddr: 52,
            flags: 0,
            nent: 0,
        };
        make("init the VM", &command(init))?;
        for vcpu in 0..plan.vcpus {
            make("create a vCPU", &Call::CreateVcpu)?;
            let init = TdxCommand::InitVcpu { vcpu, flags: 0 };
            make("init a vCPU", &command(init))?;
        }
        let mut vmm = Self::new(plan.hva);
        let plugged = vmm.plug(vm, 0, 0, plan.ram);
        plugged.map_err(|error| BootError {
            at: "make the memory",
            error,
        })?;
        vmm.add_image(vm, plan).map_err(|error| BootError {
            at: "add the image",
            error,
        })?;
        let finalized = vm.call(&command(TdxCommand::FinalizeVm { flags: 0 }));
        finalized.map_err(|error| BootError {
            at: "finalize",
            error,
        })?;
        Ok(vmm)
    }

    /// Adds the image, and calls again after every signal with what is left.
    fn add_image<V: MemoryVm>(&self, vm: &mut V, plan: &Plan) -> Result<(), CallError> {
        let mut done = 0;
        while done < plan.image.raw() {
            let add = TdxCommand::InitMemRegion {
                vcpu: 0,
                flags: TdxCommand::MEASURE_MEMORY_REGION,
                source: plan.hva + done * PAGE_SIZE,
                gpa: done * PAGE_SIZE,
                pages: plan.image.raw() - done,
                signal: plan.signal,
            };
            match vm.call(&command(add)) {
                Ok(_) => break,
                Err(error) if error.number() == Some(Errno::EINTR) => {
                    done = added_before(&error).unwrap_or(done);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// What KVM writes back into the struct: the pages that were added before the signal came.
fn added_before(error: &CallError) -> Option<u64> {
    match error {
        CallError::Tdx {
            why: TdxError::Region(slat_coco::tdx::mirror::InitMemError::Interrupted(gpa)),
        } => Some(gpa.gfn().raw()),
        _ => None,
    }
}
