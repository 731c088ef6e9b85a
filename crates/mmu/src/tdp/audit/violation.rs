//! What an audit reports.

use core::fmt;

use slat_memslot::{Gfn, Level};

use super::AuditCode;
use crate::role::RoleMismatch;
use crate::roots::RootId;
use crate::table::TableId;
use crate::tdp::page::Parent;

/// An entry of a table, as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EntryAt {
    /// Where it is.
    pub place: Parent,
    /// The first frame that it is for, going by the way from the root.
    pub gfn: Gfn,
    /// The level of its table.
    pub level: Level,
    /// Its bits.
    pub raw: u64,
}

/// Where a violation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Subject {
    /// The tables as a whole.
    Tables,
    /// A root.
    Root(RootId),
    /// A place in a vCPU's cache of roots, 0 being the one in use.
    Cache {
        /// The number of the vCPU among those that were given.
        vcpu: usize,
        /// The place.
        number: usize,
    },
    /// A table.
    Table(TableId),
    /// An entry.
    Entry(EntryAt),
}

/// What was found, and what should have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Evidence {
    /// The subject says it all.
    None,
    /// These bits are set and should not be, or the other way round.
    Bits(u64),
    /// Two numbers.
    Count {
        /// What there should be.
        wanted: u64,
        /// What there is.
        found: u64,
    },
    /// Two roles.
    Roles(RoleMismatch),
    /// Another root.
    Root(RootId),
    /// A table, with what it takes for its parent.
    Linked {
        /// The table.
        table: TableId,
        /// The entry that it knows.
        parent: Option<Parent>,
    },
}

/// An invariant that does not hold.
///
/// It is printed in one line, with its code first: see [`AuditCode`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Violation {
    /// Which one.
    pub code: AuditCode,
    /// Where.
    pub subject: Subject,
    /// Why.
    pub evidence: Evidence,
}

impl Violation {
    pub(super) const fn new(code: AuditCode, subject: Subject, evidence: Evidence) -> Self {
        Self {
            code,
            subject,
            evidence,
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}{}", self.code, self.subject, self.evidence)
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tables => f.write_str("the tables"),
            Self::Root(root) => write!(f, "{root:?}"),
            Self::Cache { vcpu, number: 0 } => write!(f, "the root in use of vCPU {vcpu}"),
            Self::Cache { vcpu, number } => write!(f, "earlier root {number} of vCPU {vcpu}"),
            Self::Table(table) => write!(f, "table {}", table.raw()),
            Self::Entry(at) => write!(
                f,
                "{:?} level {} table {} entry {} is {:#018x}",
                at.gfn,
                at.level as u8,
                at.place.table.raw(),
                at.place.index,
                at.raw
            ),
        }
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => Ok(()),
            Self::Bits(bits) => write!(f, ", bits {bits:#x}"),
            Self::Count { wanted, found } => write!(f, ", {found:#x} instead of {wanted:#x}"),
            Self::Roles(mismatch) => write!(f, ", {mismatch}"),
            Self::Root(root) => write!(f, ", and so is {root:?}"),
            Self::Linked { table, parent } => fmt_linked(f, *table, *parent),
        }
    }
}

fn fmt_linked(f: &mut fmt::Formatter<'_>, table: TableId, parent: Option<Parent>) -> fmt::Result {
    write!(f, ", table {} ", table.raw())?;
    match parent {
        None => f.write_str("knows no parent"),
        Some(Parent { table, index }) => {
            write!(f, "knows table {} entry {index}", table.raw())
        }
    }
}
