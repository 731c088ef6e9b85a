//! Which of KVM's TDX ioctls are legal when (`KVM_MEMORY_ENCRYPT_OP` on a VM of type TDX).
//!
//! [`TdxStages`] knows how far a TD and its vCPUs have come, tests a call as KVM does, in its order, and goes on if the call
//! is legal. It touches no memory: that is [`TdxMmu`](super::mirror::TdxMmu)'s.
//!
//! KVM counterparts: `tdx.c:tdx_vm_ioctl`, `tdx_td_init`, `tdx_vcpu_create`, `tdx_vcpu_ioctl`, `tdx_vcpu_init_mem_region`,
//! `tdx_td_finalize`.

use slat_memslot::Errno;
use thiserror::Error;

/// The most entries of CPUID (`KVM_MAX_CPUID_ENTRIES`).
pub const MAX_CPUID_ENTRIES: u32 = 256;
/// `KVM_TDX_MEASURE_MEMORY_REGION`.
pub const MEASURE_MEMORY_REGION: u32 = 1;

/// How far a TD has come (`enum kvm_tdx_state`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum TdState {
    /// `TD_STATE_UNINITIALIZED`.
    #[default]
    Uninitialized,
    /// `TD_STATE_INITIALIZED`.
    Initialized,
    /// `TD_STATE_RUNNABLE`.
    Runnable,
}

/// A call, with the raw values that decide about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TdxCall {
    /// `KVM_TDX_INIT_VM`.
    InitVm {
        /// `flags`.
        flags: u32,
        /// Whether reserved fields are zero.
        reserved: u64,
        /// `cpuid.nent` when it was read first.
        nent: u32,
        /// The same when the entries were read.
        nent_again: u32,
    },
    /// `KVM_CREATE_VCPU`, of a VM whose interrupt controller is split, or not.
    CreateVcpu {
        /// Whether `KVM_CAP_SPLIT_IRQCHIP` was enabled.
        split_irqchip: bool,
    },
    /// `KVM_TDX_INIT_VCPU`.
    InitVcpu {
        /// Which.
        vcpu: usize,
        /// `flags`.
        flags: u32,
    },
    /// `KVM_TDX_INIT_MEM_REGION`, before the range is looked at.
    InitMemRegion {
        /// On which vCPU.
        vcpu: usize,
        /// `flags`.
        flags: u32,
    },
    /// `KVM_TDX_FINALIZE_VM`.
    FinalizeVm {
        /// `flags`.
        flags: u32,
    },
    /// `KVM_PRE_FAULT_MEMORY`.
    PreFault,
}

/// Why a call is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[non_exhaustive]
pub enum TdxRefusal {
    /// `hw_error` is not zero on input.
    #[error("hw_error is {0:#x} and has to be 0")]
    HwError(u64),
    /// The TD is not at the stage that the call needs.
    #[error("the TD is {0:?}")]
    Stage(TdState),
    /// A vCPU is made before the TD is initialised, or afterwards.
    #[error("vCPUs are made while the TD is initialised, and it is {0:?}")]
    VcpuStage(TdState),
    /// A flag that the call does not have.
    #[error("flags {0:#x}")]
    Flags(u32),
    /// Reserved fields are not zero.
    #[error("reserved fields hold {0:#x}")]
    Reserved(u64),
    /// Too many entries of CPUID.
    #[error("{0} entries of CPUID, and at most 256 are taken")]
    TooManyEntries(u32),
    /// The number of entries has changed while they were read.
    #[error("{0} entries of CPUID, then {1}")]
    EntriesChanged(u32, u32),
    /// The interrupt controller is in the kernel as a whole, or not at all.
    #[error("KVM_CAP_SPLIT_IRQCHIP is not enabled")]
    IrqChip,
    /// There is no such vCPU.
    #[error("there is no vCPU {0}")]
    NoVcpu(usize),
    /// The vCPU has been initialised, or has not.
    #[error("vCPU {0} is not in the state that the call needs")]
    VcpuState(usize),
    /// There are as many vCPUs as there may be.
    #[error("{0} vCPUs are all there may be")]
    TooManyVcpus(usize),
    /// Memory is pre-faulted before the TD is finalised: pages could be added that nobody measures.
    #[error("the TD is not finalised")]
    PreFaultTooEarly,
}

impl TdxRefusal {
    /// The stable name.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::HwError(_) => "tdx-hw-error",
            Self::Stage(_) => "tdx-stage",
            Self::VcpuStage(_) => "tdx-vcpu-stage",
            Self::Flags(_) => "tdx-flags",
            Self::Reserved(_) => "tdx-reserved",
            Self::TooManyEntries(_) => "tdx-cpuid-too-many",
            Self::EntriesChanged(..) => "tdx-cpuid-changed",
            Self::IrqChip => "tdx-irqchip",
            Self::NoVcpu(_) => "tdx-no-vcpu",
            Self::VcpuState(_) => "tdx-vcpu-state",
            Self::TooManyVcpus(_) => "tdx-too-many-vcpus",
            Self::PreFaultTooEarly => "tdx-pre-fault-early",
        }
    }

    /// What the ioctl returns.
    pub const fn errno(&self) -> Errno {
        match self {
            Self::VcpuStage(_) => Errno::EIO,
            Self::TooManyEntries(_) => Errno::E2BIG,
            Self::PreFaultTooEarly => Errno::EOPNOTSUPP,
            _ => Errno::EINVAL,
        }
    }

    /// The kernel's function that refuses.
    pub const fn kernel_site(&self) -> &'static str {
        match self {
            Self::HwError(_) => "tdx.c:tdx_get_cmd",
            Self::Reserved(_) | Self::TooManyEntries(_) | Self::EntriesChanged(..) => {
                "tdx.c:tdx_td_init"
            }
            Self::VcpuStage(_) | Self::IrqChip => "tdx.c:tdx_vcpu_create",
            Self::TooManyVcpus(_) | Self::NoVcpu(_) => "kvm_main.c:kvm_vm_ioctl_create_vcpu",
            Self::VcpuState(_) => "tdx.c:tdx_vcpu_ioctl",
            Self::PreFaultTooEarly => "mmu.c:kvm_arch_vcpu_pre_fault_memory",
            Self::Stage(_) | Self::Flags(_) => "tdx.c:tdx_vm_ioctl",
        }
    }
}

/// How far a TD and its vCPUs have come.
///
/// ```
/// use slat_coco::tdx::ioctl::{TdxCall, TdxStages};
/// use slat_memslot::Errno;
///
/// let mut td = TdxStages::new(4);
/// let vcpu = TdxCall::CreateVcpu { split_irqchip: true };
/// assert_eq!(td.call(vcpu, 0).unwrap_err().errno(), Errno::EIO);
/// td.call(TdxCall::InitVm { flags: 0, reserved: 0, nent: 8, nent_again: 8 }, 0).unwrap();
/// td.call(vcpu, 0).unwrap();
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TdxStages {
    state: TdState,
    /// Whether each vCPU is initialised.
    vcpus: Vec<bool>,
    max_vcpus: usize,
}

impl TdxStages {
    /// A VM that was just made, with at most so many vCPUs.
    pub const fn new(max_vcpus: usize) -> Self {
        Self {
            state: TdState::Uninitialized,
            vcpus: Vec::new(),
            max_vcpus,
        }
    }

    /// How far the TD has come.
    pub const fn state(&self) -> TdState {
        self.state
    }

    /// Tests a call. `hw_error` is that field of `struct kvm_tdx_cmd` on input.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn check(&self, call: TdxCall, hw_error: u64) -> Result<(), TdxRefusal> {
        let sub_command = !matches!(call, TdxCall::CreateVcpu { .. } | TdxCall::PreFault);
        if sub_command && hw_error != 0 {
            return Err(TdxRefusal::HwError(hw_error));
        }
        match call {
            TdxCall::InitVm {
                flags,
                reserved,
                nent,
                nent_again,
            } => self.check_init(flags, reserved, (nent, nent_again)),
            TdxCall::CreateVcpu { split_irqchip } => self.check_create(split_irqchip),
            TdxCall::InitVcpu { vcpu, flags } => {
                self.check_vcpu(vcpu, false)?;
                no_flags(flags, 0)?;
                self.check_building()
            }
            TdxCall::InitMemRegion { vcpu, flags } => {
                self.check_vcpu(vcpu, true)?;
                self.check_building()?;
                no_flags(flags, MEASURE_MEMORY_REGION)
            }
            TdxCall::FinalizeVm { flags } => {
                no_flags(flags, 0)?;
                self.check_building()
            }
            TdxCall::PreFault if self.state == TdState::Runnable => Ok(()),
            TdxCall::PreFault => Err(TdxRefusal::PreFaultTooEarly),
        }
    }

    /// Tests a call, and goes on if it is legal.
    ///
    /// # Errors
    /// Why it is refused. Nothing has changed then.
    pub fn call(&mut self, call: TdxCall, hw_error: u64) -> Result<(), TdxRefusal> {
        self.check(call, hw_error)?;
        match call {
            TdxCall::InitVm { .. } => self.state = TdState::Initialized,
            TdxCall::CreateVcpu { .. } => self.vcpus.push(false),
            TdxCall::InitVcpu { vcpu, .. } => {
                if let Some(initialized) = self.vcpus.get_mut(vcpu) {
                    *initialized = true;
                }
            }
            TdxCall::FinalizeVm { .. } => self.state = TdState::Runnable,
            TdxCall::InitMemRegion { .. } | TdxCall::PreFault => {}
        }
        Ok(())
    }

    fn check_init(&self, flags: u32, reserved: u64, nent: (u32, u32)) -> Result<(), TdxRefusal> {
        if self.state != TdState::Uninitialized {
            return Err(TdxRefusal::Stage(self.state));
        }
        no_flags(flags, 0)?;
        if nent.0 > MAX_CPUID_ENTRIES {
            return Err(TdxRefusal::TooManyEntries(nent.0));
        }
        if nent.0 != nent.1 {
            return Err(TdxRefusal::EntriesChanged(nent.0, nent.1));
        }
        if reserved != 0 {
            return Err(TdxRefusal::Reserved(reserved));
        }
        Ok(())
    }

    fn check_create(&self, split_irqchip: bool) -> Result<(), TdxRefusal> {
        if self.vcpus.len() >= self.max_vcpus {
            return Err(TdxRefusal::TooManyVcpus(self.max_vcpus));
        }
        if !matches!(self.state, TdState::Initialized) {
            return Err(TdxRefusal::VcpuStage(self.state));
        }
        if split_irqchip {
            Ok(())
        } else {
            Err(TdxRefusal::IrqChip)
        }
    }

    fn check_vcpu(&self, vcpu: usize, initialized: bool) -> Result<(), TdxRefusal> {
        let is = self.vcpus.get(vcpu).ok_or(TdxRefusal::NoVcpu(vcpu))?;
        if *is == initialized {
            Ok(())
        } else {
            Err(TdxRefusal::VcpuState(vcpu))
        }
    }

    const fn check_building(&self) -> Result<(), TdxRefusal> {
        match self.state {
            TdState::Initialized => Ok(()),
            TdState::Uninitialized | TdState::Runnable => Err(TdxRefusal::Stage(self.state)),
        }
    }
}

const fn no_flags(flags: u32, allowed: u32) -> Result<(), TdxRefusal> {
    if flags & !allowed == 0 {
        Ok(())
    } else {
        Err(TdxRefusal::Flags(flags))
    }
}
