//! What a guest is to the firmware.

use core::fmt;

use bitflags::bitflags;

/// Which kind of SEV a VM has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SevVmType {
    /// Memory is encrypted (`KVM_X86_SEV_VM`).
    Sev,
    /// Registers too (`KVM_X86_SEV_ES_VM`).
    SevEs,
}

/// What firmware is doing with a guest, as `KVM_SEV_GUEST_STATUS` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum GuestState {
    /// There is no guest.
    #[default]
    Invalid,
    /// Its memory is being encrypted and measured.
    Launching,
    /// It was measured; secrets may be put in.
    Secret,
    /// It runs.
    Running,
    /// It is received from another machine.
    Receiving,
    /// It is sent to another machine.
    Sending,
    /// It was sent, and will not run here again.
    Sent,
}

impl GuestState {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Invalid,
        Self::Launching,
        Self::Secret,
        Self::Running,
        Self::Receiving,
        Self::Sending,
        Self::Sent,
    ];

    /// The number that `KVM_SEV_GUEST_STATUS` gives. The kernel's page names those up to 5.
    pub const fn raw(self) -> u32 {
        self as u32
    }
}

impl fmt::Display for GuestState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Invalid => "invalid",
            Self::Launching => "launching",
            Self::Secret => "secret",
            Self::Running => "running",
            Self::Receiving => "receiving",
            Self::Sending => "sending",
            Self::Sent => "sent",
        })
    }
}

bitflags! {
    /// What a guest's owner allows, as given to LAUNCH_START (SEV API, guest policy).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct Policy: u32 {
        /// It must not be debugged.
        const NODBG = 1 << 0;
        /// Its key must not be shared with another guest.
        const NOKS = 1 << 1;
        /// It has to be SEV-ES.
        const ES = 1 << 2;
        /// It must not be sent to another machine.
        const NOSEND = 1 << 3;
        /// It must not leave the owner's domain.
        const DOMAIN = 1 << 4;
        /// It must not be sent to a machine without SEV.
        const SEV = 1 << 5;
        const _ = !0;
    }
}
