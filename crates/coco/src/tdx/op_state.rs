//! What a TD's life has come to, and what it does.

/// The stages of a TD's life, by the state of its keys (`TDR.LIFECYCLE_STATE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lifecycle {
    /// A key is assigned.
    HkidAssigned,
    /// The key is configured: the TD can be built and run.
    KeysConfigured,
    /// No vCPU can be entered any more.
    Blocked,
    /// The key is free: pages can be reclaimed.
    Teardown,
}

macro_rules! op_states {
    ($($(#[$doc:meta])* $name:ident, $text:literal;)*) => {
        /// What a TD does (`TDCS.OP_STATE`).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum OpState {
            $($(#[$doc])* $name,)*
        }

        impl OpState {
            /// All of them, by number.
            pub const ALL: [Self; 11] = [$(Self::$name,)*];

            /// The module's name.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

op_states! {
    /// `TDH.MNG.INIT` has not been called.
    Uninitialized, "UNINITIALIZED";
    /// The TD is being built and measured.
    Initialized, "INITIALIZED";
    /// The TD can run.
    Runnable, "RUNNABLE";
    /// The TD runs and is exported.
    LiveExport, "LIVE_EXPORT";
    /// The TD is paused for the rest of its export.
    PausedExport, "PAUSED_EXPORT";
    /// The TD has been exported.
    PostExport, "POST_EXPORT";
    /// Memory is being imported.
    MemoryImport, "MEMORY_IMPORT";
    /// The state of the TD and its vCPUs is being imported.
    StateImport, "STATE_IMPORT";
    /// Memory is imported out of order; the TD does not run yet.
    PostImport, "POST_IMPORT";
    /// Memory is imported while the TD runs.
    LiveImport, "LIVE_IMPORT";
    /// The import has failed.
    FailedImport, "FAILED_IMPORT";
}

impl OpState {
    /// Whether vCPUs may be running, so that a range has to be blocked and tracked before it is taken away.
    pub const fn needs_tracking(self) -> bool {
        matches!(self, Self::Runnable | Self::LiveExport | Self::LiveImport)
    }

    /// Whether an import is under way: a removed page leaves a mark then.
    pub const fn is_importing(self) -> bool {
        matches!(
            self,
            Self::MemoryImport | Self::StateImport | Self::PostImport | Self::LiveImport
        )
    }
}

impl core::fmt::Display for OpState {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}
