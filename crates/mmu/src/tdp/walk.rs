//! What the tables say about one frame: a walk of hardware's kind, from the root to a leaf.

use slat_memslot::{Gfn, Level};
use thiserror::Error;

use super::hooks::{AccessCheck, Translated};
use super::lock::{Locked, Side};
use super::page::Parent;
use super::tables::Tables;
use crate::spte::Access;
use crate::spte::{Entry, Format, Mmio, Pfn, Spte};
use crate::table::{TableId, index, span};

/// The last entry of a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Found<F> {
    /// Where it is.
    pub place: Parent,
    /// The level of its table.
    pub level: Level,
    /// What it is. A link only if the walk was told to stop above it.
    pub spte: Spte<F>,
}

/// Why an access does not reach a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[non_exhaustive]
pub enum Violation<D> {
    /// Nothing is mapped, as far down as this level.
    #[error("nothing is mapped at level {}", *level as u8)]
    Absent {
        /// The level of the empty entry.
        level: Level,
    },
    /// The entry is frozen: another thread is changing it.
    #[error("the entry at level {} is frozen", *level as u8)]
    Frozen {
        /// The level of the frozen entry.
        level: Level,
    },
    /// No slot is there, and the entry says so.
    #[error("{} is MMIO", mmio.gfn)]
    Mmio {
        /// What the entry says.
        mmio: Mmio,
    },
    /// The leaf does not allow it.
    #[error("the leaf at level {} lacks {missing:?}", *level as u8)]
    Permission {
        /// What it lacks.
        missing: Access,
        /// The level of the leaf.
        level: Level,
    },
    /// The tables allow it, and the check behind them does not.
    #[error("denied: {0:?}")]
    Denied(D),
}

impl<F: Format, X, C> Tables<F, X, C> {
    /// The entry that a walk for a frame ends at. The caller has the right to walk: a pin, or everything.
    #[inline]
    pub(crate) fn find(&self, root: TableId, gfn: u64) -> Found<F> {
        let (mut table, mut level) = (root, self.page(root).role().level());
        loop {
            let index = index(gfn, level);
            let spte = self.load(table, index);
            match (self.child_of(spte, level), level.child()) {
                (Some(child), Some(below)) => (table, level) = (child, below),
                _ => {
                    let place = Parent { table, index };
                    return Found { place, level, spte };
                }
            }
        }
    }
}

impl<S: Side, O> Locked<S, O> {
    /// The entry that a walk for a frame ends at (`tdp_mmu.c:kvm_tdp_mmu_get_walk`).
    #[inline]
    pub fn find(&self, root: TableId, gfn: Gfn) -> Found<S::Format> {
        self.tables().find(root, gfn.raw())
    }

    /// The frame that an access to `gfn` reaches, as hardware finds it; accessed and dirty bits are left alone.
    ///
    /// # Errors
    /// Why it reaches none.
    pub fn translate(
        &self,
        root: TableId,
        gfn: Gfn,
        access: Access,
    ) -> Result<Translated, Violation<<S::Check as AccessCheck>::Denied>> {
        self.translate_checked(root, gfn, access, &self.tables().check)
    }

    /// The same with another check than the tables' own: one that knows who makes this access.
    ///
    /// # Errors
    /// Why it reaches none.
    pub fn translate_checked<C: AccessCheck>(
        &self,
        root: TableId,
        gfn: Gfn,
        access: Access,
        check: &C,
    ) -> Result<Translated, Violation<C::Denied>> {
        let tables = self.tables();
        let Found { level, spte, .. } = tables.find(root, gfn.raw());
        let leaf = match tables.codec.decode(spte, level) {
            Entry::Leaf(leaf) => leaf,
            Entry::Mmio(mmio) => return Err(Violation::Mmio { mmio }),
            Entry::Frozen => return Err(Violation::Frozen { level }),
            Entry::Absent | Entry::Link(_) => return Err(Violation::Absent { level }),
        };
        let missing = access - leaf.allowed();
        if !missing.is_empty() {
            return Err(Violation::Permission { missing, level });
        }
        let offset = gfn.raw() & (span(level) - 1);
        let translated = Translated {
            gfn,
            pfn: Pfn::new(leaf.pfn.raw() + offset),
            level,
            access,
        };
        check.check(&translated).map_err(Violation::Denied)?;
        Ok(translated)
    }
}
