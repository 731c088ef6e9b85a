//! What a rebuild has to say beside the tables.

use core::fmt;

use slat_memslot::{Gfn, Level};

/// What the events of a trace were checked against, and what had to be inferred.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Records that were read.
    pub records: u64,
    /// Changes of entries (`kvm_tdp_mmu_spte_changed`).
    pub changes: u64,
    /// Of them, those whose old entry was exactly the rebuilt one.
    pub confirmed: u64,
    /// Leaves that a fault told again (`kvm_mmu_set_spte`), as rebuilt.
    pub leaves_confirmed: u64,
    /// Roles of tables that are those of their roots.
    pub roles_confirmed: u64,
    /// Inferred: old entries with accessed or dirty bits that hardware has set.
    pub hardware_marks: u64,
    /// Inferred: children of split huge leaves, which no event tells.
    pub split_children: u64,
    /// Of them, those that a later event confirmed.
    pub split_confirmed: u64,
    /// Inferred: split children that may execute again, which only their size forbade.
    pub execution_regained: u64,
    /// Inferred: entries from before the trace, learned when they changed.
    pub from_before: u64,
    /// Inferred: entries that changed while events were lost.
    pub after_loss: u64,
    /// Inferred: tables of which only something below was told.
    pub tables_from_before: u64,
    /// Inferred: the root of a change that fits several alike.
    pub ambiguous: u64,
    /// Changes made without the lock (`fast_page_fault`).
    pub fast_faults: u64,
    /// Tables that went.
    pub tables_removed: u64,
    /// Roots that were invalidated and zapped.
    pub roots_gone: u64,
}

/// A place where the trace contradicts what was rebuilt from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The line that contradicts, or the last one.
    pub line: u32,
    /// The VM, by its number in the report.
    pub vm: usize,
    /// The first frame of the entry or table.
    pub gfn: Gfn,
    /// Its level.
    pub level: Level,
    /// What is wrong.
    pub what: Contradiction,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Contradiction {
    /// An event says another old entry than the rebuilt one.
    OldSpte {
        /// What was rebuilt.
        rebuilt: u64,
        /// What the event says.
        told: u64,
    },
    /// A fault says that another leaf is there.
    SetSpte {
        /// What was rebuilt.
        rebuilt: u64,
        /// What the event says.
        told: u64,
    },
    /// A fault that was mended without the lock found another entry.
    FastFault {
        /// What was rebuilt.
        rebuilt: u64,
        /// What the event says.
        told: u64,
    },
    /// Something changes below an entry that leads to no table.
    BelowNothing {
        /// The entry.
        rebuilt: u64,
    },
    /// A table is linked while it is linked elsewhere.
    LinkedTwice {
        /// Its frame.
        frame: u64,
    },
    /// A table went, and of some entries that were present it was never told.
    LeftBehind {
        /// How many.
        entries: usize,
    },
    /// A table is zapped that is linked still.
    StillLinked,
    /// A fault says that an MMIO entry of this generation is there.
    Mmio {
        /// What was rebuilt.
        rebuilt: u64,
        /// What the event says.
        generation: u32,
    },
    /// A table has another role than its root.
    Role {
        /// The root's, of the table's level.
        root: String,
        /// The table's.
        table: String,
    },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            line,
            vm,
            gfn,
            level,
            what,
        } = self;
        let (gfn, level) = (gfn.raw(), *level as u8);
        write!(f, "line {line}: vm {vm} gfn {gfn:#x} level {level}: {what}")
    }
}

impl fmt::Display for Contradiction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OldSpte { rebuilt, told } => {
                write!(f, "old_spte is {told:#x}, rebuilt was {rebuilt:#x}")
            }
            Self::SetSpte { rebuilt, told } => {
                write!(
                    f,
                    "kvm_mmu_set_spte has {told:#x}, rebuilt was {rebuilt:#x}"
                )
            }
            Self::FastFault { rebuilt, told } => {
                write!(
                    f,
                    "fast_page_fault found {told:#x}, rebuilt was {rebuilt:#x}"
                )
            }
            Self::BelowNothing { rebuilt } => {
                write!(f, "a change below {rebuilt:#x}, which leads to no table")
            }
            Self::LinkedTwice { frame } => write!(f, "the table at pfn {frame:#x} is linked twice"),
            Self::LeftBehind { entries } => {
                write!(f, "the table went, but not {entries} of its entries")
            }
            Self::StillLinked => f.write_str("the table is zapped and was linked still"),
            Self::Mmio {
                rebuilt,
                generation,
            } => write!(
                f,
                "mark_mmio_spte has generation {generation:#x}, rebuilt was {rebuilt:#x}"
            ),
            Self::Role { root, table } => write!(f, "role {table} below a root of {root}"),
        }
    }
}
