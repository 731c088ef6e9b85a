//! The calls that the host and the guest can make, and when the module allows them.
//!
//! Which states and op-states allow a call is data: the tables of TDX module 1.5.01.

use core::fmt;

use slat_memslot::Level;

use super::locks::Hold;
use super::op_state::OpState;
use super::sept::SeptState;

macro_rules! leaves {
    ($(#[$doc:meta])* $type:ident; $($(#[$each:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum $type {
            $($(#[$each])* $name = $number,)*
        }

        impl $type {
            /// All of them, by number.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The name in Intel's manuals.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }

            /// The leaf's number, in RAX.
            pub const fn number(self) -> u8 {
                self as u8
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

leaves! {
    /// A call that the host makes (SEAMCALL).
    Seamcall;
    /// Runs a vCPU.
    VpEnter = 0, "TDH.VP.ENTER";
    /// Adds a page to the TD's control structure.
    MngAddcx = 1, "TDH.MNG.ADDCX";
    /// Adds a page with content while the TD is built.
    MemPageAdd = 2, "TDH.MEM.PAGE.ADD";
    /// Adds a table.
    MemSeptAdd = 3, "TDH.MEM.SEPT.ADD";
    /// Moves a page to another one of the host.
    MemPageRelocate = 5, "TDH.MEM.PAGE.RELOCATE";
    /// Adds a page that the guest has to accept.
    MemPageAug = 6, "TDH.MEM.PAGE.AUG";
    /// Keeps everybody away from what an entry maps.
    MemRangeBlock = 7, "TDH.MEM.RANGE.BLOCK";
    /// Configures the TD's key.
    MngKeyConfig = 8, "TDH.MNG.KEY.CONFIG";
    /// Makes a TD.
    MngCreate = 9, "TDH.MNG.CREATE";
    /// Makes a vCPU.
    VpCreate = 10, "TDH.VP.CREATE";
    /// Reads memory of a debug TD.
    MemRd = 12, "TDH.MEM.RD";
    /// Writes memory of a debug TD.
    MemWr = 14, "TDH.MEM.WR";
    /// Makes 512 small pages of a large one.
    MemPageDemote = 15, "TDH.MEM.PAGE.DEMOTE";
    /// Measures 256 bytes.
    MrExtend = 16, "TDH.MR.EXTEND";
    /// Ends the building.
    MrFinalize = 17, "TDH.MR.FINALIZE";
    /// Ends the association of a vCPU with a logical processor.
    VpFlush = 18, "TDH.VP.FLUSH";
    /// Says that no vCPU is associated any more.
    MngVpflushdone = 19, "TDH.MNG.VPFLUSHDONE";
    /// Frees the TD's key.
    MngKeyFreeid = 20, "TDH.MNG.KEY.FREEID";
    /// Says what the TD shall be.
    MngInit = 21, "TDH.MNG.INIT";
    /// Gives a vCPU its state.
    VpInit = 22, "TDH.VP.INIT";
    /// Makes a large page of 512 small ones.
    MemPagePromote = 23, "TDH.MEM.PAGE.PROMOTE";
    /// Reads an entry.
    MemSeptRd = 25, "TDH.MEM.SEPT.RD";
    /// Gives a page of a TD that is no more back to the host.
    PhymemPageReclaim = 28, "TDH.PHYMEM.PAGE.RECLAIM";
    /// Takes a page away.
    MemPageRemove = 29, "TDH.MEM.PAGE.REMOVE";
    /// Takes an empty table away.
    MemSeptRemove = 30, "TDH.MEM.SEPT.REMOVE";
    /// Begins the TD's next epoch.
    MemTrack = 38, "TDH.MEM.TRACK";
    /// Takes a block back.
    MemRangeUnblock = 39, "TDH.MEM.RANGE.UNBLOCK";
    /// Writes caches back.
    PhymemCacheWb = 40, "TDH.PHYMEM.CACHE.WB";
    /// Writes a page back and drops its cache lines.
    PhymemPageWbinvd = 41, "TDH.PHYMEM.PAGE.WBINVD";
    /// Blocks pages for writing.
    ExportBlockW = 65, "TDH.EXPORT.BLOCKW";
    /// Ends the export of a page.
    ExportRestore = 66, "TDH.EXPORT.RESTORE";
    /// Exports pages.
    ExportMem = 68, "TDH.EXPORT.MEM";
    /// Takes a write block back.
    ExportUnblockW = 75, "TDH.EXPORT.UNBLOCKW";
    /// Imports pages.
    ImportMem = 83, "TDH.IMPORT.MEM";
}

leaves! {
    /// A call that the guest makes about its memory (TDCALL).
    Tdcall;
    /// Accepts a page.
    MemPageAccept = 6, "TDG.MEM.PAGE.ACCEPT";
    /// Reads a page's attributes.
    MemPageAttrRd = 23, "TDG.MEM.PAGE.ATTR.RD";
    /// Writes a page's attributes.
    MemPageAttrWr = 24, "TDG.MEM.PAGE.ATTR.WR";
}

/// A set of states or op-states, by their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Set(u16);

impl Set {
    const NONE: Self = Self(0);

    const fn has(self, number: u8) -> bool {
        self.0 >> number & 1 != 0
    }
}

macro_rules! states {
    ($($name:ident)*) => {
        Set(0 $(| 1 << SeptState::$name as u8)*)
    };
}

macro_rules! op_states {
    ($($name:ident)*) => {
        Set(0 $(| 1 << OpState::$name as u8)*)
    };
}

const EVERY_STATE: Set = Set(u16::MAX);
const EVERY_OP_STATE: Set = Set(0x7ff);
const BUT_UNINITIALIZED: Set = Set(0x7fe);
/// Where ranges are blocked, unblocked and pages relocated, split and merged.
const BLOCKING: Set =
    op_states!(Initialized Runnable LiveExport PausedExport PostExport PostImport LiveImport);
const EVERY_LEAF: Set = Set(0xfff0);

impl Seamcall {
    const fn states(self) -> Set {
        match self {
            Self::MemPageAdd => states!(Free),
            Self::MemSeptAdd => states!(Free NlMapped),
            Self::MemPageRelocate => EVERY_LEAF,
            Self::MemPageAug => states!(Free Removed),
            Self::MemRangeBlock => states!(NlMapped Mapped BlockedW Pending PendingBlockedW),
            Self::MemRd => {
                states!(Mapped BlockedW ExportedBlockedW ExportedDirty ExportedDirtyBlockedW)
            }
            Self::MemWr => states!(Mapped ExportedDirty),
            Self::MemPageDemote => states!(Mapped Blocked Pending PendingBlocked),
            Self::MrExtend => states!(Mapped),
            Self::MemPagePromote | Self::MemSeptRemove => states!(NlMapped NlBlocked),
            Self::MemSeptRd => EVERY_STATE,
            Self::MemPageRemove => {
                states!(Mapped Blocked BlockedW Pending PendingBlocked PendingBlockedW)
            }
            Self::MemRangeUnblock => states!(NlBlocked Blocked PendingBlocked),
            Self::ExportBlockW => states!(Mapped ExportedDirty Pending PendingExportedDirty),
            Self::ExportRestore => states!(ExportedBlockedW ExportedDirty ExportedDirtyBlockedW
                PendingExportedBlockedW PendingExportedDirty PendingExportedDirtyBlockedW),
            Self::ExportMem => {
                states!(Mapped BlockedW ExportedBlockedW ExportedDirty ExportedDirtyBlockedW
                Pending PendingBlockedW PendingExportedBlockedW PendingExportedDirty PendingExportedDirtyBlockedW)
            }
            Self::ExportUnblockW => states!(BlockedW ExportedBlockedW ExportedDirtyBlockedW
                PendingBlockedW PendingExportedBlockedW PendingExportedDirtyBlockedW),
            Self::ImportMem => states!(Free Removed Mapped Pending),
            _ => Set::NONE,
        }
    }

    const fn op_states(self) -> Set {
        match self {
            Self::VpEnter => op_states!(Runnable LiveExport LiveImport),
            Self::MngAddcx | Self::MngInit => op_states!(Uninitialized),
            Self::MemPageAdd | Self::MrExtend | Self::MrFinalize | Self::VpInit => {
                op_states!(Initialized)
            }
            Self::MemSeptAdd => op_states!(Initialized Runnable LiveExport MemoryImport StateImport
                PostImport LiveImport),
            Self::MemPageRelocate
            | Self::MemRangeBlock
            | Self::MemRangeUnblock
            | Self::MemPageDemote
            | Self::MemPagePromote => BLOCKING,
            Self::MemPageAug => op_states!(Initialized Runnable LiveExport LiveImport),
            Self::VpCreate => op_states!(Initialized StateImport),
            Self::MemRd | Self::MemSeptRd | Self::MemSeptRemove => BUT_UNINITIALIZED,
            Self::MemWr => op_states!(Initialized Runnable LiveExport MemoryImport StateImport
                PostImport LiveImport FailedImport),
            Self::MemPageRemove => {
                op_states!(Initialized Runnable LiveExport PausedExport PostExport
                PostImport LiveImport FailedImport)
            }
            Self::MemTrack => op_states!(Initialized Runnable LiveExport PausedExport PostExport
                MemoryImport StateImport PostImport LiveImport),
            Self::ExportBlockW => op_states!(LiveExport),
            Self::ExportRestore => op_states!(Runnable),
            Self::ExportMem => op_states!(LiveExport PausedExport PostExport),
            Self::ExportUnblockW => op_states!(Runnable LiveExport PausedExport PostExport),
            Self::ImportMem => op_states!(MemoryImport StateImport PostImport LiveImport),
            Self::MngKeyConfig
            | Self::MngCreate
            | Self::VpFlush
            | Self::MngVpflushdone
            | Self::MngKeyFreeid
            | Self::PhymemPageReclaim
            | Self::PhymemCacheWb
            | Self::PhymemPageWbinvd => EVERY_OP_STATE,
        }
    }

    /// Whether an entry in this state allows the call. Calls that are about no entry are allowed by none.
    ///
    /// ```
    /// use slat_coco::tdx::{OpState, Seamcall, SeptState};
    /// assert!(Seamcall::MemPageAug.allows_state(SeptState::Free));
    /// assert!(!Seamcall::MemPageAug.allows_state(SeptState::Pending));
    /// assert!(!Seamcall::MemPageAdd.allows_op_state(OpState::Runnable));
    /// ```
    pub const fn allows_state(self, state: SeptState) -> bool {
        self.states().has(state as u8)
    }

    /// Whether a TD that does this allows the call.
    pub const fn allows_op_state(self, op_state: OpState) -> bool {
        self.op_states().has(op_state as u8)
    }

    /// The levels of an entry that the call takes, for a tree with this root.
    pub const fn allows_level(self, level: Level, root: Level) -> bool {
        let (lowest, highest) = match self {
            Self::MemPageAdd | Self::MemPageRelocate => (Level::L1, Level::L1),
            Self::MemPageAug => (Level::L1, Level::L2),
            Self::MemPageRemove => (Level::L1, Level::L3),
            Self::MemPageDemote | Self::MemPagePromote => (Level::L2, Level::L3),
            Self::MemSeptAdd | Self::MemSeptRemove => (Level::L2, root),
            _ => (Level::L1, root),
        };
        lowest as u8 <= level as u8 && level as u8 <= highest as u8
    }

    /// How the call holds the root page of the TD.
    pub const fn tdr(self) -> Hold {
        match self {
            Self::MemPageAdd | Self::MrExtend | Self::MrFinalize => Hold::Exclusive,
            Self::MngKeyConfig | Self::MngAddcx | Self::MngInit => Hold::Exclusive,
            Self::MngVpflushdone | Self::MngKeyFreeid => Hold::Exclusive,
            _ => Hold::Shared,
        }
    }

    /// How the call holds the tree; `None` if holding the TD's root page alone keeps everybody else away.
    pub const fn tree(self) -> Option<Hold> {
        match self {
            Self::MemRangeBlock | Self::MemRangeUnblock | Self::MemSeptRemove => {
                Some(Hold::Exclusive)
            }
            Self::MemPageAdd | Self::MrExtend => None,
            _ => Some(Hold::Shared),
        }
    }
}

impl Tdcall {
    const fn states(self) -> Set {
        match self {
            Self::MemPageAccept => states!(Pending PendingExportedDirty),
            Self::MemPageAttrRd => {
                states!(Mapped BlockedW ExportedBlockedW ExportedDirty ExportedDirtyBlockedW
                Pending PendingBlockedW PendingExportedBlockedW PendingExportedDirty PendingExportedDirtyBlockedW)
            }
            Self::MemPageAttrWr => states!(Mapped ExportedDirty Pending PendingExportedDirty),
        }
    }

    /// Whether an entry in this state allows the call.
    pub const fn allows_state(self, state: SeptState) -> bool {
        self.states().has(state as u8)
    }
}
