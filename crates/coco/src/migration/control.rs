//! Whether a guest tells its VMM about pages, and whether it has said that it can be moved.

/// What a VMM offers its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Offer {
    /// `KVM_FEATURE_HC_MAP_GPA_RANGE`, bit 16 of the features in CPUID. KVM does not look at it; guests do.
    pub hypercall_bit: bool,
    /// `KVM_FEATURE_MIGRATION_CONTROL`, bit 17.
    pub control_bit: bool,
    /// `KVM_CAP_EXIT_HYPERCALL` for the hypercall: without it KVM answers `KVM_ENOSYS`.
    pub exit_enabled: bool,
}

/// What comes of an [`Offer`], with a Linux guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hearing {
    /// The guest does not announce anything, and never says that it can be moved.
    Silent,
    /// The guest announces, and KVM turns it away: nobody hears. The guest goes on as if somebody had.
    Lost,
    /// The guest announces; it has no way to say that it can be moved.
    NeverReady,
    /// The guest announces, and says when it can be moved.
    Complete,
}

impl Offer {
    /// What comes of it (`arch/x86/kernel/kvm.c:kvm_init_platform`, `setup_efi_kvm_sev_migration`).
    pub const fn hearing(self) -> Hearing {
        match (self.hypercall_bit, self.exit_enabled, self.control_bit) {
            (false, ..) => Hearing::Silent,
            (true, false, _) => Hearing::Lost,
            (true, true, false) => Hearing::NeverReady,
            (true, true, true) => Hearing::Complete,
        }
    }
}

/// `MSR_KVM_MIGRATION_CONTROL`, which a VMM keeps for an encrypted guest (KVM does not know it; an MSR filter brings it to userspace).
///
/// ```
/// use slat_coco::migration::MigrationControl;
/// let mut control = MigrationControl::for_encrypted_guest();
/// assert!(!control.may_migrate(), "it has not told what is shared");
/// control.write(1).unwrap();
/// assert!(control.may_migrate());
/// assert_eq!(control.write(6), Err(6));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MigrationControl {
    ready: bool,
}

impl MigrationControl {
    /// The number of the MSR.
    pub const MSR: u32 = 0x4b56_4d08;
    /// `KVM_MIGRATION_READY`.
    pub const READY: u64 = 1;

    /// A guest that has to say so before it may be moved.
    pub const fn for_encrypted_guest() -> Self {
        Self { ready: false }
    }

    /// A guest whose memory the host can read may always be moved.
    pub const fn for_plain_guest() -> Self {
        Self { ready: true }
    }

    /// What RDMSR gives.
    pub const fn read(self) -> u64 {
        self.ready as u64
    }

    /// The guest writes it: ready, or, when it starts another kernel, not.
    ///
    /// # Errors
    /// Bits that are reserved are set: the guest gets #GP.
    pub const fn write(&mut self, value: u64) -> Result<(), u64> {
        if value & !Self::READY != 0 {
            return Err(value);
        }
        self.ready = value & Self::READY != 0;
        Ok(())
    }

    /// Whether a page may be sent. One that is sent before is sent by a list that need not be right: the guest changes pages in place
    /// early on and announces them afterwards.
    pub const fn may_migrate(self) -> bool {
        self.ready
    }
}
