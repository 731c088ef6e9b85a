//! The KVM ioctls by name and number.

use core::fmt;

use slat_memslot::{Call, RegionVersion};

/// An ioctl of KVM's memory interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum MemoryIoctl {
    /// `KVM_CREATE_VM`.
    CreateVm,
    /// `KVM_CHECK_EXTENSION`.
    CheckExtension,
    /// `KVM_CREATE_VCPU`.
    CreateVcpu,
    /// `KVM_GET_DIRTY_LOG`.
    GetDirtyLog,
    /// `KVM_SET_NR_MMU_PAGES`.
    SetNrMmuPages,
    /// `KVM_SET_USER_MEMORY_REGION`.
    SetUserMemoryRegion,
    /// `KVM_SET_TSS_ADDR`.
    SetTssAddr,
    /// `KVM_SET_IDENTITY_MAP_ADDR`.
    SetIdentityMapAddr,
    /// `KVM_SET_USER_MEMORY_REGION2`.
    SetUserMemoryRegion2,
    /// `KVM_CREATE_IRQCHIP`.
    CreateIrqchip,
    /// `KVM_ENABLE_CAP`.
    EnableCap,
    /// `KVM_CLEAR_DIRTY_LOG`.
    ClearDirtyLog,
    /// `KVM_RESET_DIRTY_RINGS`.
    ResetDirtyRings,
    /// `KVM_SET_MEMORY_ATTRIBUTES`.
    SetMemoryAttributes,
    /// `KVM_CREATE_GUEST_MEMFD`.
    CreateGuestMemfd,
    /// `KVM_PRE_FAULT_MEMORY`.
    PreFaultMemory,
}

/// Request number and name, as on x86-64.
const KNOWN: [(u64, MemoryIoctl, &str); 16] = {
    use MemoryIoctl as M;
    [
        (0xae01, M::CreateVm, "KVM_CREATE_VM"),
        (0xae03, M::CheckExtension, "KVM_CHECK_EXTENSION"),
        (0xae41, M::CreateVcpu, "KVM_CREATE_VCPU"),
        (0x4010_ae42, M::GetDirtyLog, "KVM_GET_DIRTY_LOG"),
        (0xae44, M::SetNrMmuPages, "KVM_SET_NR_MMU_PAGES"),
        (
            0x4020_ae46,
            M::SetUserMemoryRegion,
            "KVM_SET_USER_MEMORY_REGION",
        ),
        (0xae47, M::SetTssAddr, "KVM_SET_TSS_ADDR"),
        (
            0x4008_ae48,
            M::SetIdentityMapAddr,
            "KVM_SET_IDENTITY_MAP_ADDR",
        ),
        (
            0x40a0_ae49,
            M::SetUserMemoryRegion2,
            "KVM_SET_USER_MEMORY_REGION2",
        ),
        (0xae60, M::CreateIrqchip, "KVM_CREATE_IRQCHIP"),
        (0x4068_aea3, M::EnableCap, "KVM_ENABLE_CAP"),
        (0xc018_aec0, M::ClearDirtyLog, "KVM_CLEAR_DIRTY_LOG"),
        (0xaec7, M::ResetDirtyRings, "KVM_RESET_DIRTY_RINGS"),
        (
            0x4020_aed2,
            M::SetMemoryAttributes,
            "KVM_SET_MEMORY_ATTRIBUTES",
        ),
        (0xc040_aed4, M::CreateGuestMemfd, "KVM_CREATE_GUEST_MEMFD"),
        (0xc040_aed5, M::PreFaultMemory, "KVM_PRE_FAULT_MEMORY"),
    ]
};

impl MemoryIoctl {
    /// The ioctl with request number `request`.
    pub fn from_number(request: u64) -> Option<Self> {
        let found = KNOWN.iter().find(|(number, ..)| *number == request);
        found.map(|(_, ioctl, _)| *ioctl)
    }

    /// The ioctl called `name`, with its `KVM_`.
    pub fn from_name(name: &str) -> Option<Self> {
        let found = KNOWN.iter().find(|(.., known)| *known == name);
        found.map(|(_, ioctl, _)| *ioctl)
    }

    /// The ioctl that makes `call`; `None` for system calls on files and mappings and for guest accesses.
    pub fn of(call: &Call) -> Option<Self> {
        Some(match call {
            Call::SetRegion(region) => match region.version {
                RegionVersion::V1 => Self::SetUserMemoryRegion,
                RegionVersion::V2 => Self::SetUserMemoryRegion2,
            },
            Call::CreateGmem { .. } => Self::CreateGuestMemfd,
            Call::SetAttributes { .. } => Self::SetMemoryAttributes,
            Call::GetDirtyLog { .. } => Self::GetDirtyLog,
            Call::ClearDirtyLog { .. } => Self::ClearDirtyLog,
            Call::ResetDirtyRings => Self::ResetDirtyRings,
            Call::EnableCap { .. } => Self::EnableCap,
            Call::CheckExtension { .. } => Self::CheckExtension,
            Call::CreateVcpu => Self::CreateVcpu,
            Call::PreFault { .. } => Self::PreFaultMemory,
            Call::SetNrMmuPages { .. } => Self::SetNrMmuPages,
            Call::SetTssAddr { .. } => Self::SetTssAddr,
            Call::SetIdentityMapAddr { .. } => Self::SetIdentityMapAddr,
            Call::CreateIrqchip => Self::CreateIrqchip,
            Call::File(..)
            | Call::Map(..)
            | Call::HarvestDirtyRing { .. }
            | Call::Guest(_)
            | Call::Contents(_)
            | Call::Sev(_)
            | Call::Tdx(_) => {
                return None;
            }
        })
    }

    /// The name in the uAPI.
    pub fn name(self) -> &'static str {
        let found = KNOWN.iter().find(|(_, ioctl, _)| *ioctl == self);
        found.map_or("", |(.., name)| name)
    }
}

impl fmt::Display for MemoryIoctl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What strace prints for an ioctl's request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum IoctlRequest {
    /// The name, or several with ` or ` between them.
    Name(String),
    /// The number, where strace knows no name.
    Number(u64),
}

impl IoctlRequest {
    /// Which of the memory interface it is.
    pub fn memory(&self) -> Option<MemoryIoctl> {
        match self {
            Self::Name(names) => names.split(" or ").find_map(MemoryIoctl::from_name),
            Self::Number(number) => MemoryIoctl::from_number(*number),
        }
    }

    /// Whether the request is one of KVM's.
    pub(super) fn is_kvm(&self) -> bool {
        match self {
            Self::Name(names) => names.split(" or ").any(|name| name.starts_with("KVM_")),
            Self::Number(number) => number >> 8 & 0xff == 0xae,
        }
    }
}

impl fmt::Display for IoctlRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Number(number) => write!(f, "{number:#x}"),
        }
    }
}
