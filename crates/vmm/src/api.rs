//! One interface to KVM's memory calls, whoever answers them.

use crate::snp_vm::{EncryptOp, SnpAnswer, SnpOp};
use crate::{Areas, Divergence};
use slat_coco::migration::StatusList;
use slat_memslot::{
    Buffer, Call, ClearBits, DirtyPages, Errno, GmemId, Memory, Outcome, Profile, Reason, Refusal,
    Region,
};

/// Why a call did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The kernel, or the model in its place, refused.
    #[error("{errno}{}", reason_suffix(.reason))]
    Refused {
        /// The error number.
        errno: Errno,
        /// The cause; a real kernel does not say.
        reason: Option<Reason>,
    },
    /// KVM's TDX code, the module, or the model in their place, refused.
    #[error("{} ({why})", why.errno())]
    Tdx {
        /// The cause.
        why: crate::tdx_vm::TdxError,
    },
    /// KVM's SEV code, the firmware, or the model in their place, refused.
    #[error("{} ({why})", why.errno())]
    Sev {
        /// The cause.
        why: slat_coco::sev::SevError,
    },
    /// A conversion cannot be planned; nothing happened, and the guest hears `EINVAL`.
    #[error("EINVAL ({why})")]
    NotConverted {
        /// The cause.
        why: slat_coco::convert::PlanError,
    },
    /// This machine cannot make the call at all; nothing happened.
    #[error("not tried: {why}")]
    NotTried {
        /// What is missing.
        why: &'static str,
    },
}

fn reason_suffix(reason: &Option<Reason>) -> String {
    reason.map_or(String::new(), |reason| format!(" ({reason})"))
}

impl CallError {
    /// A refusal of unknown cause.
    pub const fn errno(errno: Errno) -> Self {
        Self::Refused {
            errno,
            reason: None,
        }
    }

    /// The error number; none if the call could not be made.
    pub fn number(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::Tdx { why } => Some(why.errno()),
            Self::Sev { why } => Some(why.errno()),
            Self::NotConverted { .. } => Some(Errno::EINVAL),
            Self::NotTried { .. } => None,
        }
    }

    /// The stable code of the cause, where it is known.
    pub fn code(&self) -> Option<&'static str> {
        match self {
            Self::Refused { reason, .. } => reason.as_ref().map(Reason::code),
            Self::Tdx { why } => Some(why.code()),
            Self::Sev { why } => Some(why.rule.code()),
            Self::NotConverted { why } => Some(why.code()),
            Self::NotTried { .. } => None,
        }
    }
}

impl From<Refusal> for CallError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused {
            errno: refusal.errno(),
            reason: Some(refusal.reason),
        }
    }
}

const NO_SNP: &str = "SNP guests run on the model with an NPT host only";

/// What a call comes to.
pub type CallResult = Result<Outcome, CallError>;

/// Something that makes VMs: the model, a kernel, or both.
pub trait Machine {
    /// Its VMs.
    type Vm: MemoryVm;

    /// The kernel and host that its VMs run on.
    fn profile(&self) -> &Profile;

    /// The host memory that slots of its VMs can use.
    fn areas(&self) -> Areas;

    /// `KVM_CREATE_VM`.
    ///
    /// # Errors
    /// The VM type is not supported here.
    fn create_vm(&mut self, vm_type: u32) -> Result<Self::Vm, CallError>;
}

/// A VM whose memory can be set up: the ioctls of KVM's memory interface.
///
/// Implementors answer [`MemoryVm::call`]; the other methods name the calls that VMMs make most.
///
/// ```
/// use slat_memslot::{Profile, Region, SlotKey};
/// use slat_vmm::{Machine, MemoryVm, model};
/// let mut vm = model::Machine::new(Profile::latest()).create_vm(0).unwrap();
/// vm.set_user_memory_region(&Region::new(SlotKey::normal(0), 0, 0x1000, 0x10_0000)).unwrap();
/// let error = vm.set_user_memory_region(&Region::new(SlotKey::normal(1), 0, 0x1000, 0x20_0000));
/// assert!(error.unwrap_err().to_string().starts_with("EEXIST"));
/// ```
pub trait MemoryVm {
    /// Makes any call.
    ///
    /// # Errors
    /// The call is refused, or cannot be made here.
    fn call(&mut self, call: &Call) -> CallResult;

    /// What the VM's userspace has set up, where the machine keeps it: conversions are planned from it ([`crate::convert`]).
    fn known_memory(&self) -> Option<&Memory> {
        None
    }

    /// The list in which the VMM of a SEV guest keeps what the guest announced, where the machine has one.
    fn status_list(&mut self) -> Option<&mut StatusList> {
        None
    }

    /// What the last call showed to differ between two machines side by side; `None` for a single machine.
    fn take_divergence(&mut self) -> Option<Divergence> {
        None
    }

    /// `KVM_MEMORY_ENCRYPT_OP`: the launch of a confidential guest. Of those who answer calls the model does, where its
    /// host has what the guest needs.
    ///
    /// # Errors
    /// The command is refused, or cannot be made here.
    fn memory_encrypt_op(&mut self, op: &EncryptOp) -> CallResult {
        match op {
            EncryptOp::Snp(_) => Err(CallError::NotTried { why: NO_SNP }),
        }
    }

    /// Something that is done with an SNP guest besides KVM's calls: by itself, its VMM, the host. Only the model has it.
    ///
    /// # Errors
    /// It cannot be done here, or KVM refuses it.
    fn snp(&mut self, op: &SnpOp) -> Result<SnpAnswer, CallError> {
        let _ = op;
        Err(CallError::NotTried { why: NO_SNP })
    }

    /// `KVM_SET_USER_MEMORY_REGION` or `KVM_SET_USER_MEMORY_REGION2`, by the request's version.
    ///
    /// # Errors
    /// As [`MemoryVm::call`].
    fn set_user_memory_region(&mut self, region: &Region) -> Result<(), CallError> {
        self.call(&Call::SetRegion(*region)).map(drop)
    }

    /// `KVM_CREATE_GUEST_MEMFD`.
    ///
    /// # Errors
    /// As [`MemoryVm::call`].
    fn create_guest_memfd(&mut self, size: u64, flags: u64) -> Result<GmemId, CallError> {
        match self.call(&Call::CreateGmem {
            size,
            flags,
            reserved: 0,
        })? {
            Outcome::Gmem(id) => Ok(id),
            _ => Err(CallError::NotTried {
                why: "the machine gave no guest_memfd",
            }),
        }
    }

    /// `KVM_SET_MEMORY_ATTRIBUTES`.
    ///
    /// # Errors
    /// As [`MemoryVm::call`].
    fn set_memory_attributes(
        &mut self,
        address: u64,
        size: u64,
        attributes: u64,
    ) -> Result<(), CallError> {
        self.call(&Call::SetAttributes {
            address,
            size,
            attributes,
            flags: 0,
        })
        .map(drop)
    }

    /// `KVM_GET_DIRTY_LOG`.
    ///
    /// # Errors
    /// As [`MemoryVm::call`].
    fn get_dirty_log(&mut self, slot: u32) -> Result<DirtyPages, CallError> {
        match self.call(&Call::GetDirtyLog {
            slot,
            buffer: Buffer::Good,
        })? {
            Outcome::Dirty(pages) => Ok(pages),
            _ => Err(CallError::NotTried {
                why: "the machine gave no dirty pages",
            }),
        }
    }

    /// `KVM_CLEAR_DIRTY_LOG`.
    ///
    /// # Errors
    /// As [`MemoryVm::call`].
    fn clear_dirty_log(
        &mut self,
        slot: u32,
        first_page: u64,
        num_pages: u32,
        words: &[u64],
    ) -> Result<(), CallError> {
        let bits = ClearBits::Words(words.to_vec());
        self.call(&Call::ClearDirtyLog {
            slot,
            first_page,
            num_pages,
            bits,
        })
        .map(drop)
    }

    /// `KVM_RESET_DIRTY_RINGS`; gives the number of entries freed.
    ///
    /// # Errors
    /// As [`MemoryVm::call`].
    fn reset_dirty_rings(&mut self) -> Result<u64, CallError> {
        match self.call(&Call::ResetDirtyRings)? {
            Outcome::Value(count) => Ok(count),
            _ => Err(CallError::NotTried {
                why: "the machine gave no count",
            }),
        }
    }

    /// `KVM_ENABLE_CAP` with one argument.
    ///
    /// # Errors
    /// As [`MemoryVm::call`].
    fn enable_cap(&mut self, cap: u32, argument: u64) -> Result<(), CallError> {
        self.call(&Call::EnableCap {
            cap,
            flags: 0,
            args: [argument, 0, 0, 0],
        })
        .map(drop)
    }

    /// `KVM_PRE_FAULT_MEMORY`; gives what is left, as `(gpa, size)`.
    ///
    /// # Errors
    /// As [`MemoryVm::call`].
    fn pre_fault_memory(
        &mut self,
        vcpu: u32,
        gpa: u64,
        size: u64,
    ) -> Result<(u64, u64), CallError> {
        match self.call(&Call::PreFault {
            vcpu,
            gpa,
            size,
            flags: 0,
        })? {
            Outcome::Remaining { gpa, size } => Ok((gpa, size)),
            _ => Err(CallError::NotTried {
                why: "the machine did not say what is left",
            }),
        }
    }
}
