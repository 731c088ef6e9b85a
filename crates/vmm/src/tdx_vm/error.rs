//! Why a TD's call is refused.

use slat_coco::tdx::Refusal;
use slat_coco::tdx::ioctl::TdxRefusal;
use slat_coco::tdx::mirror::{Bug, InitMemError};
use slat_memslot::{Errno, Gpa};
use thiserror::Error;

use crate::CallError;

/// Why a call on a VM of type TDX is refused, where slots and attributes are not the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TdxError {
    /// The TD or the vCPU is not at the stage that the call needs, or its arguments cannot be.
    #[error(transparent)]
    Command(#[from] TdxRefusal),
    /// The width of guest-physical addresses is neither 48 nor 52.
    #[error("guest-physical addresses of {0} bits: 48 or 52")]
    Gpaw(u8),
    /// A region was not added, or not all of it.
    #[error(transparent)]
    Region(#[from] InitMemError),
    /// The module refused.
    #[error("{0}")]
    Module(Refusal),
    /// KVM has given the VM up.
    #[error("KVM gives the VM up: {0}")]
    Bug(Bug),
    /// A vCPU is to run that cannot: it, or the TD, is not initialised or not finalised.
    #[error("vCPU {0} cannot run before it is initialised and the TD is finalised")]
    NotRunnable(u32),
    /// The guest touched a page that it had not accepted, and wants no #VE. KVM ends the VM.
    #[error("the guest touched {0}, which it has not accepted")]
    Unaccepted(Gpa),
    /// A conversion is answered with something that it may not be answered with.
    #[error("hypercall.ret is {0:#x}: 0, EAGAIN or EINVAL")]
    Answer(u64),
}

impl TdxError {
    /// What the ioctl returns.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Command(refusal) => refusal.errno(),
            Self::Region(error) => error.errno(),
            Self::Module(refusal) if refusal.is_busy() => Errno::EBUSY,
            Self::Module(_) | Self::Bug(_) | Self::Unaccepted(_) => Errno::EIO,
            Self::Gpaw(_) | Self::NotRunnable(_) | Self::Answer(_) => Errno::EINVAL,
        }
    }

    /// The stable name.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Command(refusal) => refusal.code(),
            Self::Region(error) => error.code(),
            Self::Module(refusal) if refusal.is_busy() => "tdx-busy",
            Self::Module(_) => "tdx-module",
            Self::Bug(_) => "tdx-bug",
            Self::Unaccepted(_) => "tdx-unaccepted",
            Self::Gpaw(_) => "tdx-gpaw",
            Self::NotRunnable(_) => "tdx-not-runnable",
            Self::Answer(_) => "tdx-answer",
        }
    }

    /// The kernel's function that refuses.
    pub fn kernel_site(&self) -> &'static str {
        match self {
            Self::Command(refusal) => refusal.kernel_site(),
            Self::Region(_) => "tdx.c:tdx_vcpu_init_mem_region",
            Self::Module(_) => "tdx.c:tdx_td_finalize",
            Self::Bug(_) => "tdx.c: KVM_BUG_ON",
            Self::Unaccepted(_) => "tdx.c:tdx_handle_ept_violation",
            Self::Gpaw(_) => "tdx.c:setup_tdparams_eptp_controls",
            Self::NotRunnable(_) => "tdx.c:tdx_vcpu_pre_run",
            Self::Answer(_) => "tdx.c:tdx_complete_vmcall_map_gpa",
        }
    }
}

impl From<TdxError> for CallError {
    fn from(why: TdxError) -> Self {
        Self::Tdx { why }
    }
}
