//! Tables that walks begin at.

use slat_memslot::{Gpa, Level};

use super::leaf::is_leaf;
use crate::access::Access;
use crate::walk::GuestPaging;
use crate::walk::format::{GuestFormat, Paging64};
use crate::walk::log::Step;

/// A table that a walk may begin at, as an earlier walk came to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::walk) struct Start {
    /// What links to it.
    pub(super) entry: u64,
    /// Its level, from 0.
    pub(in crate::walk) number: u8,
    /// What the entries above have in common, those that forbid turned round.
    pub(in crate::walk) bits: u64,
}

impl Start {
    pub(in crate::walk) const fn at_root(root: u64, top: Level) -> Self {
        Self {
            entry: root,
            number: top as u8 - 1,
            bits: u64::MAX,
        }
    }

    /// The table below an entry of eight bytes, which is marked as accessed as are those above it.
    pub(in crate::walk) fn below(step: &Step) -> Self {
        let mut bits = u64::MAX;
        for (right, bit) in [
            (Access::WRITE, 1 << 1),
            (Access::USER, 1 << 2),
            (Access::EXECUTE, Paging64::INVERTED),
        ] {
            if !step.rights.contains(right) {
                bits &= !bit;
            }
        }
        Self {
            entry: step.entry,
            number: (step.level as u8).saturating_sub(2),
            bits,
        }
    }

    /// Where it is for the guest: the table of an entry of eight bytes.
    pub(in crate::walk) const fn table(&self) -> Gpa {
        Gpa::new(self.entry & Paging64::ADDRESS)
    }

    /// The table below, that an entry of this one links to.
    #[inline]
    pub(in crate::walk) const fn down(self, entry: u64, bits: u64) -> Self {
        Self {
            entry,
            number: self.number - 1,
            bits,
        }
    }

    /// Whether it is a table: the entry is no leaf.
    pub(in crate::walk) fn is_table(&self, paging: &GuestPaging) -> bool {
        !is_leaf(paging.mode, self.entry, self.number + 1)
    }
}
