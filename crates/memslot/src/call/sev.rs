//! What is asked of a SEV or SEV-ES guest: KVM's commands, what the guest does, what else its userspace does, and questions.

/// Something that is asked of a VM of type SEV or SEV-ES.
///
/// Memory is named by the address of userspace, as KVM's commands name it; a guest names it by its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum SevCall {
    /// `KVM_MEMORY_ENCRYPT_OP`.
    Command(SevCommand),
    /// `KVM_MEMORY_ENCRYPT_REG_REGION`: pins memory.
    RegisterRegion {
        /// First byte.
        hva: u64,
        /// Length in bytes.
        size: u64,
    },
    /// `KVM_MEMORY_ENCRYPT_UNREG_REGION`.
    UnregisterRegion {
        /// First byte.
        hva: u64,
        /// Length in bytes.
        size: u64,
    },
    /// A vCPU reads a page: what it holds, or noise.
    Read {
        /// Index of the vCPU.
        vcpu: u32,
        /// Address of a page.
        gpa: u64,
        /// The C-bit of the guest's page table.
        side: SevSide,
    },
    /// A vCPU writes a page.
    Write {
        /// Index of the vCPU.
        vcpu: u32,
        /// Address of a page.
        gpa: u64,
        /// The C-bit of the guest's page table.
        side: SevSide,
        /// What.
        value: u64,
    },
    /// Something that userspace does by other means than KVM's ioctls.
    Host(SevHost),
    /// A question, which changes nothing.
    Ask(SevQuestion),
}

impl SevCall {
    /// Where the guest's instructions are that read and write: memory of a slot.
    pub const CODE: u64 = 0x1000;
}

/// How a guest maps a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum SevSide {
    /// With the C-bit: encrypted.
    #[default]
    Private,
    /// Without.
    Shared,
}

/// A command of `KVM_MEMORY_ENCRYPT_OP`. Commands that name memory are about one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum SevCommand {
    /// `KVM_SEV_INIT2`.
    Init2,
    /// `KVM_SEV_LAUNCH_START`.
    LaunchStart {
        /// The guest's policy.
        policy: u32,
    },
    /// `KVM_SEV_LAUNCH_UPDATE_DATA`.
    LaunchUpdateData {
        /// The page.
        hva: u64,
    },
    /// `KVM_SEV_LAUNCH_UPDATE_VMSA`.
    LaunchUpdateVmsa,
    /// `KVM_SEV_LAUNCH_MEASURE`.
    LaunchMeasure,
    /// `KVM_SEV_LAUNCH_SECRET`.
    LaunchSecret {
        /// The page.
        hva: u64,
        /// What is put there.
        value: u64,
    },
    /// `KVM_SEV_LAUNCH_FINISH`.
    LaunchFinish,
    /// `KVM_SEV_GUEST_STATUS`; gives the state.
    GuestStatus,
    /// `KVM_SEV_SEND_START`; gives the number of a session.
    SendStart,
    /// `KVM_SEV_SEND_UPDATE_DATA`; gives the number of a packet.
    SendUpdateData {
        /// First byte, within a page.
        hva: u64,
        /// Length in bytes.
        size: u64,
    },
    /// `KVM_SEV_SEND_FINISH`.
    SendFinish,
    /// `KVM_SEV_SEND_CANCEL`.
    SendCancel,
    /// `KVM_SEV_RECEIVE_START`.
    ReceiveStart {
        /// The number of the session.
        session: u64,
    },
    /// `KVM_SEV_RECEIVE_UPDATE_DATA`.
    ReceiveUpdateData {
        /// First byte, within a page.
        hva: u64,
        /// Length in bytes.
        size: u64,
        /// The number of the packet.
        packet: u64,
    },
    /// `KVM_SEV_RECEIVE_FINISH`.
    ReceiveFinish,
}

/// Something that userspace does to a SEV guest's memory by other means than KVM's ioctls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum SevHost {
    /// It reads a page: what it holds, or noise.
    Read {
        /// The page.
        hva: u64,
    },
    /// It writes a page.
    Write {
        /// The page.
        hva: u64,
        /// What.
        value: u64,
    },
    /// The host's memory management wants another page of its own in place of one: compaction, balancing, swapping. Gives 1 if
    /// it did so; a pinned page stays.
    Move {
        /// The page.
        hva: u64,
    },
    /// It sends a page as it is; gives the number of a packet.
    SendPlain {
        /// The page.
        hva: u64,
    },
    /// It takes such a page in.
    ReceivePlain {
        /// The page.
        hva: u64,
        /// The number of the packet.
        packet: u64,
    },
}

/// A question about a SEV guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum SevQuestion {
    /// How many pages are pinned.
    PinnedPages,
    /// Whether the page that is there now is pinned: 1 if so.
    IsPinned {
        /// Its address.
        hva: u64,
    },
    /// How often the caches of all CPUs were written back for the VM (`wbinvd_on_all_cpus`).
    CacheFlushes,
    /// What its VMM has noted of a page: 1 if it is shared.
    IsShared {
        /// Its address.
        gpa: u64,
    },
}
