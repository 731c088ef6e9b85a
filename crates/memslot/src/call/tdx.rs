//! What is asked of a TD: KVM's commands, what its guest does, what else its userspace does to memory, and questions.

use crate::Level;

/// Something that is asked of a VM of type TDX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum TdxCall {
    /// `KVM_MEMORY_ENCRYPT_OP` with `struct kvm_tdx_cmd`.
    Command {
        /// Which, with its data.
        command: TdxCommand,
        /// `hw_error` on input; must be 0.
        hw_error: u64,
    },
    /// A vCPU runs until one thing that its guest does is done, or userspace has to do something.
    Guest {
        /// Index of the vCPU.
        vcpu: u32,
        /// What the guest does.
        op: TdOp,
    },
    /// `KVM_RUN` after `KVM_EXIT_HYPERCALL`.
    CompleteHypercall {
        /// Index of the vCPU.
        vcpu: u32,
        /// `hypercall.ret`; KVM leaves 0 there for who never writes it.
        ret: u64,
        /// Whether something waits for the guest, so that KVM lets it go between two pieces.
        event: WaitingEvent,
    },
    /// Something that userspace does to memory by other means than KVM's ioctls.
    Host(TdxHost),
    /// A question, which changes nothing.
    Ask(TdxQuestion),
}

/// A command of `KVM_MEMORY_ENCRYPT_OP`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum TdxCommand {
    /// `KVM_TDX_INIT_VM`.
    InitVm {
        /// `attributes`, `TDX_TD_ATTR_*`; [`TdxCommand::SEPT_VE_DISABLE`] and [`TdxCommand::DEBUG`] matter here.
        attributes: u64,
        /// CPUID 0x8000_0008 EAX, bits 23:16: 48 or 52 bits of guest-physical address, the SHARED bit among them.
        gpaw: u8,
        /// The same, bits 7:0: what the guest takes for MAXPHYADDR.
        maxphyaddr: u8,
        /// `flags`; must be 0.
        flags: u32,
        /// `cpuid.nent`.
        nent: u32,
    },
    /// `KVM_TDX_INIT_VCPU`.
    InitVcpu {
        /// Index of the vCPU.
        vcpu: u32,
        /// `flags`; must be 0.
        flags: u32,
    },
    /// `KVM_TDX_INIT_MEM_REGION`.
    InitMemRegion {
        /// Index of the vCPU.
        vcpu: u32,
        /// `flags`; [`TdxCommand::MEASURE_MEMORY_REGION`] is the only one.
        flags: u32,
        /// `source_addr`: where the content is, in userspace.
        source: u64,
        /// `gpa`.
        gpa: u64,
        /// `nr_pages`.
        pages: u64,
        /// After how many pages a signal comes; `None` if none does.
        signal: Option<u64>,
    },
    /// `KVM_TDX_FINALIZE_VM`.
    FinalizeVm {
        /// `flags`; must be 0.
        flags: u32,
    },
}

impl TdxCommand {
    /// `TDX_TD_ATTR_SEPT_VE_DISABLE`: touching a page that was not accepted is no #VE. What Linux asks for.
    pub const SEPT_VE_DISABLE: u64 = 1 << 28;
    /// `TDX_TD_ATTR_DEBUG`: the host may look at memory.
    pub const DEBUG: u64 = 1 << 0;
    /// `KVM_TDX_MEASURE_MEMORY_REGION`: content is measured, not only addresses.
    pub const MEASURE_MEMORY_REGION: u32 = 1 << 0;
}

/// Which side of an address is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum TdSide {
    /// The address as it is given.
    #[default]
    AsGiven,
    /// The address with the TD's SHARED bit.
    Shared,
}

/// Something that the guest of a TD does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum TdOp {
    /// It reads the first eight bytes of a page.
    Read {
        /// Where.
        gpa: u64,
        /// Whether the SHARED bit is to be added.
        side: TdSide,
    },
    /// It writes the first eight bytes of a page.
    Write {
        /// Where.
        gpa: u64,
        /// Whether the SHARED bit is to be added.
        side: TdSide,
        /// What.
        value: u64,
    },
    /// `TDG.MEM.PAGE.ACCEPT`.
    Accept {
        /// Where.
        gpa: u64,
        /// Of which size.
        level: Level,
    },
    /// `TDG.VP.VMCALL<MapGPA>`.
    MapGpa {
        /// From where on. The SHARED bit says what the range shall be.
        gpa: u64,
        /// Whether the SHARED bit is to be added.
        side: TdSide,
        /// How much, in bytes.
        size: u64,
    },
}

/// Whether an event waits for a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum WaitingEvent {
    /// None does.
    #[default]
    None,
    /// One does.
    Pending,
}

/// How a TD's slots are deleted: the sides of the thread of May 2024.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum TdxSlotZap {
    /// Leaves of the slot: what KVM does.
    #[default]
    Leafs,
    /// All shared tables, and leaves of the slot among private ones: the alternative of the thread.
    SharedRoots,
    /// All tables, as for VMs of the default type: not possible.
    AllRoots,
}

/// Something that userspace does to a TD's memory by other means than KVM's ioctls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum TdxHost {
    /// Writes the first eight bytes of a page of its own.
    Write {
        /// Where, in userspace.
        hva: u64,
        /// What.
        value: u64,
    },
    /// Gives the host pages behind the shared side of a range back (`MADV_REMOVE`, `MADV_DONTNEED`).
    Discard {
        /// First byte, guest-physical.
        address: u64,
        /// Length in bytes.
        size: u64,
    },
    /// Maps the shared side of a range for devices, which pins its pages (VFIO).
    DmaMap {
        /// First byte, guest-physical.
        address: u64,
        /// Length in bytes.
        size: u64,
    },
    /// Takes such a mapping away.
    DmaUnmap {
        /// First byte, guest-physical.
        address: u64,
        /// Length in bytes.
        size: u64,
    },
    /// Chooses how slots are deleted from now on.
    SlotZap(TdxSlotZap),
    /// Makes a call into the module find something busy.
    Busy {
        /// How many calls come before it.
        skip: u32,
    },
    /// Closes every descriptor: guest_memfds, vCPUs, the VM. Gives the number of pages that are still out.
    Teardown,
}

/// A question about a TD.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum TdxQuestion {
    /// A count.
    Count(TdxCount),
    /// What the VMM was seen to do wrong.
    Report,
    /// The state of the S-EPT's entry for a page of 4 KiB.
    Entry {
        /// Its address.
        gpa: u64,
    },
}

macro_rules! named {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
        pub enum $name {
            $($(#[$doc])* $variant,)*
        }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The word used in scenario files.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }

            /// The one with this name.
            pub fn named(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|each| each.name() == name)
            }
        }
    };
}

named! {
    /// What can be counted about a TD.
    TdxCount {
        /// Exits that KVM handled by itself: EPT violations.
        EptViolations = "ept-violations",
        /// `KVM_EXIT_MEMORY_FAULT`.
        MemoryFaults = "memory-faults",
        /// `KVM_EXIT_HYPERCALL`.
        Hypercalls = "hypercalls",
        /// Calls into the module.
        Seamcalls = "seamcalls",
        /// Pages that guest_memfds have.
        PrivatePages = "private-pages",
        /// Host pages in use behind shared frames.
        SharedPages = "shared-pages",
        /// Frames that are backed twice: by a page of guest_memfd and by one of the host.
        DoublePages = "double-pages",
        /// Tables of the mirror and of the shared roots.
        Tables = "tables",
        /// Invariants that do not hold.
        Violations = "violations",
    }
}

named! {
    /// Something that a VMM was seen to do wrong, or to leave its guest with.
    TdxFinding {
        /// FINALIZE_VM came while a region was added in part only.
        RegionInterrupted = "region-interrupted",
        /// The guest asked to convert, and the VMM never enabled `KVM_CAP_EXIT_HYPERCALL`.
        HypercallNotEnabled = "hypercall-not-enabled",
        /// The guest's MAXPHYADDR has no room for the SHARED bit, so that no conversion to shared can be asked for.
        SharedBitBeyondMaxphyaddr = "shared-bit-beyond-maxphyaddr",
        /// A conversion was answered with success, and the attribute is another.
        NotConverted = "not-converted",
        /// A conversion was answered with an error, and attributes have changed.
        ErrorWithEffect = "error-with-effect",
        /// A conversion was answered with something else than 0, `EAGAIN` or `EINVAL`.
        WrongAnswer = "wrong-answer",
        /// A conversion of a range without any slot took more than 512 exits.
        ApertureConverted = "aperture-converted",
        /// Memory is shared again, and its page of guest_memfd was not given back: it takes twice the room.
        PrivatePageKept = "private-page-kept",
        /// Memory is private, and the host page behind its shared side was not given back: it takes twice the room.
        SharedPageKept = "shared-page-kept",
        /// Memory is private, and devices can still reach the host page behind its shared side.
        DmaKept = "dma-kept",
        /// The same memory fault came again at once, three times: nothing that the VMM does helps.
        FaultRepeated = "fault-repeated",
        /// A page of a private range is asked for in a slot that has no guest_memfd.
        NoPrivateBacking = "no-private-backing",
        /// The guest was told that a page was accepted before. That says nothing about who did, or what is in it.
        AcceptedBefore = "accepted-before",
        /// The guest touched memory that it had not accepted, which killed it.
        TouchedUnaccepted = "touched-unaccepted",
        /// Pages of 2 MiB were accepted where the host maps small ones: 512 accepts each, most of them with an exit.
        LargeAcceptSplit = "large-accept-split",
    }
}

named! {
    /// What the guest finds in R10 after MapGPA (GHCI).
    MapGpaAnswer {
        /// `TDG.VP.VMCALL_SUCCESS`.
        Success = "success",
        /// `TDG.VP.VMCALL_RETRY`.
        Retry = "retry",
        /// `TDG.VP.VMCALL_OPERAND_INVALID`.
        InvalidOperand = "invalid-operand",
        /// `TDG.VP.VMCALL_ALIGN_ERROR`.
        AlignError = "align-error",
        /// `TDG.VP.VMCALL_SUBFUNC_UNSUPPORTED`.
        SubfuncUnsupported = "subfunc-unsupported",
    }
}

/// What something that was asked of a TD gave back.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum TdxOutcome {
    /// The guest has a #VE.
    Ve,
    /// The page is the guest's, full of zeroes.
    Accepted,
    /// It was accepted before, by a page of this level; a success.
    AlreadyAccepted(Level),
    /// It is mapped in smaller pages than that.
    SizeMismatch(Level),
    /// The address or the size cannot be.
    OperandInvalid,
    /// `KVM_EXIT_HYPERCALL` with `KVM_HC_MAP_GPA_RANGE`.
    Hypercall {
        /// `args[0]`, without the SHARED bit.
        gpa: u64,
        /// `args[1]`.
        pages: u64,
        /// What it shall be; `args[2]` has ENCRYPTED for private memory.
        to: TdxConversion,
    },
    /// The guest goes on behind MapGPA.
    MapGpa {
        /// R10.
        answer: MapGpaAnswer,
        /// R11, with the SHARED bit as it was passed.
        next: u64,
    },
    /// The state of an entry of the S-EPT.
    Entry(TdxEntry),
    /// What the VMM was seen to do wrong, each once, in the order of [`TdxFinding::ALL`].
    Report(Vec<TdxFinding>),
}

named! {
    /// What memory shall be.
    TdxConversion {
        /// Private.
        Private = "private",
        /// Shared.
        Shared = "shared",
    }
}

named! {
    /// The state of an entry of the S-EPT, by the module's names; blocked for writing and exported by a migration only.
    TdxEntry {
        /// Nothing is here.
        Free = "FREE",
        /// A page was removed during an import.
        Removed = "REMOVED",
        /// A table.
        NlMapped = "NL_MAPPED",
        /// A table that is blocked.
        NlBlocked = "NL_BLOCKED",
        /// A page of the guest.
        Mapped = "MAPPED",
        /// A page that nobody reaches, with its content.
        Blocked = "BLOCKED",
        /// A page that can be read.
        BlockedW = "BLOCKEDW",
        /// An exported page that can be read.
        ExportedBlockedW = "EXPORTED_BLOCKEDW",
        /// A page that was written after it was exported.
        ExportedDirty = "EXPORTED_DIRTY",
        /// The same, and it can be read only.
        ExportedDirtyBlockedW = "EXPORTED_DIRTY_BLOCKEDW",
        /// A page that the guest has to accept.
        Pending = "PENDING",
        /// The same, blocked.
        PendingBlocked = "PENDING_BLOCKED",
        /// The same, blocked for writing.
        PendingBlockedW = "PENDING_BLOCKEDW",
        /// The same, exported.
        PendingExportedBlockedW = "PENDING_EXPORTED_BLOCKEDW",
        /// A page to be accepted that changed after it was exported.
        PendingExportedDirty = "PENDING_EXPORTED_DIRTY",
        /// The same, blocked for writing.
        PendingExportedDirtyBlockedW = "PENDING_EXPORTED_DIRTY_BLOCKEDW",
    }
}
