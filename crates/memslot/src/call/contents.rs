//! What memory holds: what a guest and its userspace write there and find, and how a guest asks for a conversion.

/// Something that is done with what memory holds.
///
/// Everything is filled and compared in whole pages, each of which holds one byte over and over. Addresses of guests are
/// guest-physical and below 4 GiB; the guest's instructions lie in a page of their own, which has to be shared memory in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum ContentsCall {
    /// A vCPU does something.
    Guest {
        /// Index of the vCPU.
        vcpu: u32,
        /// Address of the page with its instructions.
        code: u64,
        /// What it does.
        act: GuestContents,
    },
    /// `KVM_RUN` after `KVM_EXIT_HYPERCALL`: the guest goes on, and finds this in RAX. Gives what it found there.
    ReturnHypercall {
        /// Index of the vCPU.
        vcpu: u32,
        /// `hypercall.ret`.
        ret: u64,
    },
    /// Userspace fills memory of its own.
    HostFill {
        /// First byte.
        hva: u64,
        /// Length in bytes.
        size: u64,
        /// With what.
        byte: u8,
    },
    /// Userspace compares memory of its own: 1 if it holds this byte everywhere, else 0.
    HostCheck {
        /// First byte.
        hva: u64,
        /// Length in bytes.
        size: u64,
        /// With what.
        byte: u8,
    },
    /// Userspace gives memory of its own back (`madvise` with `MADV_DONTNEED`): it holds zeros from now on.
    Discard {
        /// First byte.
        hva: u64,
        /// Length in bytes.
        size: u64,
    },
}

/// What a guest does with what memory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum GuestContents {
    /// It fills memory, up to where it cannot go on.
    Fill {
        /// First byte.
        gpa: u64,
        /// Length in bytes.
        size: u64,
        /// With what.
        byte: u8,
    },
    /// It compares memory: 1 if it holds this byte everywhere, else 0.
    Check {
        /// First byte.
        gpa: u64,
        /// Length in bytes.
        size: u64,
        /// With what.
        byte: u8,
    },
    /// `KVM_HC_MAP_GPA_RANGE`: it asks for a conversion. In 32-bit mode, as here, KVM takes 32 bits of each.
    MapGpaRange {
        /// RBX: the first address.
        gpa: u64,
        /// RCX: how many pages of 4 KiB.
        pages: u64,
        /// RDX: attributes, which KVM does not look at.
        attributes: u64,
    },
}

impl GuestContents {
    /// The number of the hypercall.
    pub const MAP_GPA_RANGE: u64 = 12;
    /// What the guest finds in RAX when no exit was enabled for it: -1000, `KVM_ENOSYS`.
    pub const NO_SUCH_HYPERCALL: u64 = 1000_u64.wrapping_neg() & 0xffff_ffff;
    /// What it finds when the range is none: -`EINVAL`.
    pub const NO_SUCH_RANGE: u64 = 22_u64.wrapping_neg() & 0xffff_ffff;
}
