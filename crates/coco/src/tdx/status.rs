//! What a call into the module returns in RAX.

use core::fmt;

use super::sept::EntryView;

/// A completion status, as a call returns it in RAX.
///
/// Bit 63 says that the call has not done what it was asked for. A status with bit 63 clear is a success, even if it is
/// not zero: [`Code::GpaRangeAlreadyBlocked`] and [`Code::PageAlreadyAccepted`] are. The low 32 bits name an operand or a
/// level.
///
/// ```
/// use slat_coco::tdx::{Code, Operand, Status};
///
/// let busy = Status::of(Code::OperandBusy, Operand::SeptTree);
/// assert_eq!(busy.raw(), 0x8000_0200_0000_0092);
/// assert!(busy.is_error() && busy.is_busy());
///
/// let already = Status::of(Code::GpaRangeAlreadyBlocked, Operand::Rcx);
/// assert!(already != Status::SUCCESS && !already.is_error());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[repr(transparent)]
pub struct Status(u64);

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $text:literal;)*) => {
        /// The code of a status: its upper 32 bits.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum Code {
            $($(#[$doc])* $name = $value,)*
        }

        impl Code {
            /// All codes that the model gives.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The module's name, without `TDX_`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

codes! {
    /// Done.
    Success = 0, "SUCCESS";
    /// An interrupt came; the same call goes on where it was.
    InterruptedResumable = 0x8000_0003, "INTERRUPTED_RESUMABLE";
    /// An interrupt came; the same call begins anew.
    InterruptedRestartable = 0x8000_0004, "INTERRUPTED_RESTARTABLE";
    /// An operand cannot be right, whatever state the TD is in.
    OperandInvalid = 0xc000_0100, "OPERAND_INVALID";
    /// A page is in no range that the module manages.
    OperandAddrRangeError = 0xc000_0101, "OPERAND_ADDR_RANGE_ERROR";
    /// Somebody else is using an operand.
    OperandBusy = 0x8000_0200, "OPERAND_BUSY";
    /// A vCPU that entered in the epoch before is still inside.
    PreviousTlbEpochBusy = 0x8000_0201, "PREVIOUS_TLB_EPOCH_BUSY";
    /// The host wants the entry, so the guest does not get it.
    OperandBusyHostPriority = 0x8000_0204, "OPERAND_BUSY_HOST_PRIORITY";
    /// A page is not of the type that the call needs.
    PageMetadataIncorrect = 0xc000_0300, "PAGE_METADATA_INCORRECT";
    /// Pages still belong to the TD.
    TdAssociatedPagesExist = 0xc000_0400, "TD_ASSOCIATED_PAGES_EXIST";
    /// The TD is not a debug TD.
    TdNonDebug = 0xc000_0605, "TD_NON_DEBUG";
    /// The TD's control structure has not all its pages.
    TdcsNotAllocated = 0xc000_0606, "TDCS_NOT_ALLOCATED";
    /// The TD's life is not at the stage that the call needs.
    LifecycleStateIncorrect = 0xc000_0607, "LIFECYCLE_STATE_INCORRECT";
    /// The TD does not do what the call needs.
    OpStateIncorrect = 0xc000_0608, "OP_STATE_INCORRECT";
    /// A vCPU is not in the state that the call needs.
    VcpuStateIncorrect = 0xc000_0700, "VCPU_STATE_INCORRECT";
    /// The vCPU is associated with another logical processor.
    VcpuAssociated = 0x8000_0701, "VCPU_ASSOCIATED";
    /// The vCPU is associated with no logical processor.
    VcpuNotAssociated = 0x8000_0702, "VCPU_NOT_ASSOCIATED";
    /// The TD has as many vCPUs as it may have.
    MaxVcpusExceeded = 0xc000_0705, "MAX_VCPUS_EXCEEDED";
    /// The TD's keys have not been configured, or are not any more.
    TdKeysNotConfigured = 0x8000_0810, "TD_KEYS_NOT_CONFIGURED";
    /// Caches have not been written back.
    WbcacheNotComplete = 0x8000_0817, "WBCACHE_NOT_COMPLETE";
    /// The key is in use.
    HkidNotFree = 0xc000_0820, "HKID_NOT_FREE";
    /// A vCPU is still associated.
    FlushvpNotDone = 0x8000_0824, "FLUSHVP_NOT_DONE";
    /// The walk ended above the wanted level.
    EptWalkFailed = 0xc000_0b00, "EPT_WALK_FAILED";
    /// The entry maps nothing that can be accessed.
    EptEntryNotPresent = 0xc000_0b03, "EPT_ENTRY_NOT_PRESENT";
    /// The TD may run and the entry is not blocked.
    GpaRangeNotBlocked = 0xc000_0b06, "GPA_RANGE_NOT_BLOCKED";
    /// The entry was blocked before. A success.
    GpaRangeAlreadyBlocked = 0x0000_0b07, "GPA_RANGE_ALREADY_BLOCKED";
    /// A vCPU may still hold a translation of the blocked range.
    TlbTrackingNotDone = 0xc000_0b08, "TLB_TRACKING_NOT_DONE";
    /// The 512 entries cannot be one.
    EptInvalidPromoteConditions = 0xc000_0b09, "EPT_INVALID_PROMOTE_CONDITIONS";
    /// The page was accepted before; the low bits give its level. A success.
    PageAlreadyAccepted = 0x0000_0b0a, "PAGE_ALREADY_ACCEPTED";
    /// The page is mapped in smaller pieces; the low bits give the level that was asked for.
    PageSizeMismatch = 0xc000_0b0b, "PAGE_SIZE_MISMATCH";
    /// The entry's state does not allow the call.
    EptEntryStateIncorrect = 0xc000_0b0d, "EPT_ENTRY_STATE_INCORRECT";
    /// Entries of the table are in use.
    EptPageNotFree = 0xc000_0b0e, "EPT_PAGE_NOT_FREE";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What the low 32 bits of a status name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum Operand {
    /// RAX, or nothing.
    Rax = 0,
    /// RCX.
    Rcx = 1,
    /// RDX.
    Rdx = 2,
    /// R8.
    R8 = 8,
    /// R9.
    R9 = 9,
    /// The TDR page.
    Tdr = 128,
    /// The tree of the S-EPT.
    SeptTree = 146,
    /// The TD's epoch.
    TdEpoch = 169,
    /// The TD's op-state.
    OpState = 172,
}

impl Status {
    /// Done, with nothing to add.
    pub const SUCCESS: Self = Self(0);

    /// A code alone.
    pub const fn new(code: Code) -> Self {
        Self((code as u64) << 32)
    }

    /// A code with the operand it is about.
    pub const fn of(code: Code, operand: Operand) -> Self {
        Self((code as u64) << 32 | operand as u64)
    }

    /// A code with a level, counted as the module does: 0 for 4 KiB.
    pub const fn at(code: Code, level: slat_memslot::Level) -> Self {
        Self((code as u64) << 32 | (level as u64 - 1))
    }

    /// The value of RAX.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The code, if it is one of those that the model gives.
    pub fn code(self) -> Option<Code> {
        let find = |code: &&Code| u64::from(**code as u32) == self.0 >> 32;
        Code::ALL.iter().find(find).copied()
    }

    /// The low 32 bits: an operand's number or a level.
    #[expect(clippy::cast_possible_truncation, reason = "the low bits are wanted")]
    pub const fn detail(self) -> u32 {
        self.0 as u32
    }

    /// Whether the call has not done what it was asked for (bit 63).
    pub const fn is_error(self) -> bool {
        self.0 >> 63 != 0
    }

    /// Whether asking again cannot help (bits 63 and 62).
    pub const fn is_final(self) -> bool {
        self.0 >> 62 == 3
    }

    /// Whether somebody else was using an operand, whichever it was: what KVM looks for (`SEAMCALL_STATUS_MASK`).
    pub fn is_busy(self) -> bool {
        self.code() == Some(Code::OperandBusy)
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code(), self.detail()) {
            (Some(code), 0) => f.write_str(code.name()),
            (Some(code), detail) => write!(f, "{code}|{detail}"),
            (None, _) => write!(f, "{:#018x}", self.0),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A call that was refused. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{status}{}", self.place())]
pub struct Refusal {
    /// RAX.
    pub status: Status,
    /// The entry where it ended, as the module gives it in RCX and RDX.
    pub entry: Option<EntryView>,
}

impl Refusal {
    fn place(&self) -> String {
        self.entry.map_or(String::new(), |entry| {
            format!(" at {} of level {}", entry.state, entry.level as u8)
        })
    }

    /// Whether somebody else was using an operand.
    pub fn is_busy(&self) -> bool {
        self.status.is_busy()
    }
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        debug_assert!(status.is_error(), "{status} is no refusal");
        Self {
            status,
            entry: None,
        }
    }
}

/// What a call gives.
pub type Answer<T = ()> = Result<T, Refusal>;
