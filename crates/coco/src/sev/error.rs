//! Why a command is refused.

use core::fmt;

use slat_memslot::Errno;

/// What firmware says (`enum sev_ret_code`, `psp-sev.h`), as far as guests are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FirmwareError {
    /// 2: not in this state of the guest.
    InvalidGuestState,
    /// 7: the guest's policy forbids it.
    PolicyFailure,
    /// 8: the guest has no ASID.
    Inactive,
    /// 11: the data is not what the sender measured.
    BadMeasurement,
    /// 16: there is no such guest.
    InvalidGuest,
}

impl FirmwareError {
    /// The number that ends up in `kvm_sev_cmd.error`.
    pub const fn raw(self) -> u32 {
        match self {
            Self::InvalidGuestState => 2,
            Self::PolicyFailure => 7,
            Self::Inactive => 8,
            Self::BadMeasurement => 11,
            Self::InvalidGuest => 16,
        }
    }
}

impl fmt::Display for FirmwareError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InvalidGuestState => "INVALID_GUEST_STATE",
            Self::PolicyFailure => "POLICY_FAILURE",
            Self::Inactive => "INACTIVE",
            Self::BadMeasurement => "BAD_MEASUREMENT",
            Self::InvalidGuest => "INVALID_GUEST",
        })
    }
}

/// Which rule of KVM refuses a command, each with its function in `sev.c`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SevRule {
    /// The VM was made a SEV guest before (`__sev_guest_init`).
    InitializedTwice,
    /// vCPUs were created before (`__sev_guest_init`).
    VcpusExist,
    /// The VM is no SEV guest yet.
    NotAGuest,
    /// The same, of the one command that calls it an invalid argument (`sev_receive_update_data`).
    NotAGuestToReceive,
    /// The VM is no SEV-ES guest (`sev_launch_update_vmsa`).
    NotSevEs,
    /// A vCPU's state was encrypted before (`sev_es_sync_vmsa`).
    VmsaTwice,
    /// The length is 0 or the range wraps (`sev_pin_memory`, `sev_dbg_crypt`).
    EmptyOrWrapping,
    /// More memory would be pinned than `RLIMIT_MEMLOCK` allows (`sev_pin_memory`).
    LockLimit,
    /// The range is not one that was registered (`sev_mem_enc_unregister_region`).
    NoSuchRegion,
    /// The range crosses the end of a page (`sev_send_update_data`, `sev_receive_update_data`).
    CrossesPage,
    /// The firmware refuses.
    Firmware(FirmwareError),
}

impl SevRule {
    /// What the ioctl returns.
    pub const fn errno(self) -> Errno {
        match self {
            Self::InitializedTwice
            | Self::VcpusExist
            | Self::VmsaTwice
            | Self::NotAGuestToReceive
            | Self::EmptyOrWrapping
            | Self::NoSuchRegion
            | Self::CrossesPage => Errno::EINVAL,
            Self::NotAGuest | Self::NotSevEs => Errno::ENOTTY,
            Self::LockLimit => Errno::ENOMEM,
            Self::Firmware(_) => Errno::EIO,
        }
    }

    /// The stable code of the rule.
    pub const fn code(self) -> &'static str {
        match self {
            Self::InitializedTwice => "sev-guest-already",
            Self::VcpusExist => "sev-vcpus-exist",
            Self::NotAGuest | Self::NotAGuestToReceive => "sev-no-guest",
            Self::NotSevEs => "sev-not-es",
            Self::VmsaTwice => "sev-vmsa-twice",
            Self::EmptyOrWrapping => "sev-empty-or-wrapping",
            Self::LockLimit => "sev-lock-limit",
            Self::NoSuchRegion => "sev-no-such-region",
            Self::CrossesPage => "sev-crosses-page",
            Self::Firmware(error) => match error {
                FirmwareError::InvalidGuestState => "firmware-invalid-guest-state",
                FirmwareError::PolicyFailure => "firmware-policy-failure",
                FirmwareError::Inactive => "firmware-inactive",
                FirmwareError::BadMeasurement => "firmware-bad-measurement",
                FirmwareError::InvalidGuest => "firmware-invalid-guest",
            },
        }
    }

    /// What firmware says, where it is asked.
    pub const fn firmware(self) -> Option<FirmwareError> {
        match self {
            Self::Firmware(error) => Some(error),
            _ => None,
        }
    }
}

impl fmt::Display for SevRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InitializedTwice => "the VM is a SEV guest already",
            Self::VcpusExist => "vCPUs exist already",
            Self::NotAGuest | Self::NotAGuestToReceive => "the VM is no SEV guest yet",
            Self::NotSevEs => "the VM is no SEV-ES guest",
            Self::VmsaTwice => "a vCPU's state is encrypted already",
            Self::EmptyOrWrapping => "the range is empty or wraps",
            Self::LockLimit => "more memory would be pinned than RLIMIT_MEMLOCK allows",
            Self::NoSuchRegion => "no region of this start and size was registered",
            Self::CrossesPage => "the range crosses the end of a page",
            Self::Firmware(error) => return write!(f, "the firmware says {error}"),
        })
    }
}

/// A command that was refused, and changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{command}: {rule} ({})", rule.errno())]
pub struct SevError {
    /// The command, without `KVM_SEV_`.
    pub command: &'static str,
    /// Why.
    pub rule: SevRule,
}

impl SevError {
    /// What the ioctl returns.
    pub const fn errno(self) -> Errno {
        self.rule.errno()
    }
}
