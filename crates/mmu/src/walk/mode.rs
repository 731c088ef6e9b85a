//! The ways in which tables translate.

use core::fmt;

use slat_memslot::Level;

use crate::role::{CpuRole, ExtendedRole, RoleFlag};

/// How a guest's addresses are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PagingMode {
    /// Not at all: CR0.PG is clear.
    Unpaged,
    /// 32-bit paging without large pages.
    Bits32,
    /// 32-bit paging with pages of 4 MiB, up to 40 bits wide (CR4.PSE, PSE-36).
    Bits32Pse,
    /// PAE paging: four page-directory pointers and two levels.
    Pae,
    /// Four levels.
    Level4,
    /// Five levels.
    Level5,
    /// EPT of a nested hypervisor with four levels.
    Ept4,
    /// EPT of a nested hypervisor with five levels.
    Ept5,
}

impl PagingMode {
    /// All modes.
    pub const ALL: [Self; 8] = [
        Self::Unpaged,
        Self::Bits32,
        Self::Bits32Pse,
        Self::Pae,
        Self::Level4,
        Self::Level5,
        Self::Ept4,
        Self::Ept5,
    ];

    /// The mode of a vCPU's own paging. Long mode without PAE does not exist; KVM takes it for 32-bit paging.
    pub fn of(role: CpuRole) -> Self {
        match role.level() {
            None => Self::Unpaged,
            Some(Level::L5) => Self::Level5,
            Some(Level::L4) => Self::Level4,
            Some(_) if !role.has(RoleFlag::FourByteGpte) => Self::Pae,
            Some(_) if role.extended().contains(ExtendedRole::CR4_PSE) => Self::Bits32Pse,
            Some(_) => Self::Bits32,
        }
    }

    /// The level of the tables that the walk reads first; PAE's pointers are registers. Nothing without paging.
    pub const fn top_table(self) -> Option<Level> {
        match self {
            Self::Unpaged => None,
            Self::Bits32 | Self::Bits32Pse | Self::Pae => Some(Level::L2),
            Self::Level4 | Self::Ept4 => Some(Level::L4),
            Self::Level5 | Self::Ept5 => Some(Level::L5),
        }
    }

    /// The bits of a virtual address that hardware requires to be copies of its upper ones; 0 where it requires nothing.
    pub(super) const fn canonical_bits(self) -> u32 {
        match self {
            Self::Level4 => 48,
            Self::Level5 => 57,
            _ => 0,
        }
    }
}

impl fmt::Display for PagingMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unpaged => "no paging",
            Self::Bits32 => "32-bit",
            Self::Bits32Pse => "32-bit with PSE",
            Self::Pae => "PAE",
            Self::Level4 => "4-level",
            Self::Level5 => "5-level",
            Self::Ept4 => "4-level EPT",
            Self::Ept5 => "5-level EPT",
        })
    }
}
