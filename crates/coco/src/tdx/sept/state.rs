//! The 16 states of an entry.

use core::fmt;

macro_rules! states {
    ($($(#[$doc:meta])* $name:ident, $text:literal, $encoding:literal, $public:literal;)*) => {
        /// The state of an S-EPT entry.
        ///
        /// ```
        /// use slat_coco::tdx::SeptState;
        /// assert_eq!(SeptState::Pending.encoding(), 0x70);
        /// assert_eq!(SeptState::from_encoding(0x70), Some(SeptState::Pending));
        /// assert_eq!(SeptState::from_encoding(0x71), None);
        /// ```
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum SeptState {
            $($(#[$doc])* $name,)*
        }

        impl SeptState {
            /// All of them, in the order of the module's tables.
            pub const ALL: [Self; 16] = [$(Self::$name,)*];

            /// The module's name.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }

            /// The bits of an entry that make the state, packed from the upper to the lower: 7, 6, 56 to 53, 9.
            pub const fn encoding(self) -> u8 {
                match self {
                    $(Self::$name => $encoding,)*
                }
            }

            /// The state with this encoding.
            pub const fn from_encoding(encoding: u8) -> Option<Self> {
                match encoding {
                    $($encoding => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// What the host sees of it, in bits 15:8 of RDX.
            pub const fn public(self) -> u8 {
                match self {
                    $(Self::$name => $public,)*
                }
            }
        }
    };
}

states! {
    /// Nothing is here.
    Free, "FREE", 0x0e, 0;
    /// A page was removed during an import.
    Removed, "REMOVED", 0x0c, 5;
    /// A table is linked.
    NlMapped, "NL_MAPPED", 0x00, 0x84;
    /// A table is linked, and nobody can walk through.
    NlBlocked, "NL_BLOCKED", 0x08, 0x81;
    /// A page is mapped, and accepted or measured.
    Mapped, "MAPPED", 0x60, 4;
    /// A page is mapped and cannot be accessed; it keeps its content.
    Blocked, "BLOCKED", 0x68, 1;
    /// A page that cannot be written, for export.
    BlockedW, "BLOCKEDW", 0x64, 8;
    /// A page that was exported and cannot be written.
    ExportedBlockedW, "EXPORTED_BLOCKEDW", 0x66, 9;
    /// A page that was exported and may have been written since.
    ExportedDirty, "EXPORTED_DIRTY", 0x63, 11;
    /// The same, not to be written.
    ExportedDirtyBlockedW, "EXPORTED_DIRTY_BLOCKEDW", 0x67, 12;
    /// A page that waits to be accepted.
    Pending, "PENDING", 0x70, 2;
    /// A page that waits to be accepted, and is blocked.
    PendingBlocked, "PENDING_BLOCKED", 0x78, 3;
    /// A page that waits to be accepted, blocked for writing.
    PendingBlockedW, "PENDING_BLOCKEDW", 0x74, 16;
    /// The same, exported.
    PendingExportedBlockedW, "PENDING_EXPORTED_BLOCKEDW", 0x76, 17;
    /// A page that waits to be accepted and was exported as such.
    PendingExportedDirty, "PENDING_EXPORTED_DIRTY", 0x73, 19;
    /// The same, blocked for writing.
    PendingExportedDirtyBlockedW, "PENDING_EXPORTED_DIRTY_BLOCKEDW", 0x77, 20;
}

impl SeptState {
    /// Whether the entry maps a page (bit 7, at any level).
    pub const fn is_leaf(self) -> bool {
        self.encoding() & 0x40 != 0
    }

    /// Whether a table is linked.
    pub const fn is_table(self) -> bool {
        matches!(self, Self::NlMapped | Self::NlBlocked)
    }

    /// Whether the page waits to be accepted (bit 56).
    pub const fn is_pending(self) -> bool {
        self.is_leaf() && self.encoding() & 0x10 != 0
    }

    /// Whether nobody can get through (NL_BLOCKED, BLOCKED, PENDING_BLOCKED).
    pub const fn is_blocked(self) -> bool {
        matches!(self, Self::NlBlocked | Self::Blocked | Self::PendingBlocked)
    }

    /// Whether the guest can accept the page.
    pub const fn is_acceptable(self) -> bool {
        matches!(self, Self::Pending | Self::PendingExportedDirty)
    }

    /// Whether the guest can read the page.
    pub const fn is_accessible(self) -> bool {
        matches!(
            self,
            Self::Mapped
                | Self::BlockedW
                | Self::ExportedBlockedW
                | Self::ExportedDirty
                | Self::ExportedDirtyBlockedW
        )
    }

    /// Whether the guest can write the page.
    pub const fn is_writable(self) -> bool {
        matches!(self, Self::Mapped | Self::ExportedDirty)
    }

    /// Whether what the entry maps can be in a TLB, and has to be tracked before it is taken away. A page that was
    /// exported and is blocked for writing has been tracked for that.
    pub const fn needs_tracking(self) -> bool {
        !matches!(
            self,
            Self::Free | Self::Removed | Self::ExportedBlockedW | Self::PendingExportedBlockedW
        )
    }

    /// What blocking makes of it; `None` where it is not allowed.
    pub const fn blocked(self) -> Option<Self> {
        match self {
            Self::NlMapped => Some(Self::NlBlocked),
            Self::Mapped | Self::BlockedW => Some(Self::Blocked),
            Self::Pending | Self::PendingBlockedW => Some(Self::PendingBlocked),
            _ => None,
        }
    }

    /// What is under the block.
    #[must_use]
    pub const fn unblocked(self) -> Self {
        match self {
            Self::NlBlocked => Self::NlMapped,
            Self::Blocked => Self::Mapped,
            Self::PendingBlocked => Self::Pending,
            other => other,
        }
    }

    /// The permissions of an entry in this state: bits 2:0, read, write, execute.
    pub const fn permissions(self) -> u64 {
        if matches!(self, Self::NlMapped) || self.is_writable() {
            0b111
        } else if self.is_accessible() {
            0b101
        } else {
            0
        }
    }
}

impl fmt::Display for SeptState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
