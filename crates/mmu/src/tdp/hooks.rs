//! Where confidential-computing hardware has a say: the module that owns the tables a mirror reflects (TDX), and the
//! check of every access against the reverse map (SNP). Both do nothing by default, and then cost nothing.

use core::convert::Infallible;
use core::fmt::Debug;

use slat_memslot::{Gfn, Level};

use crate::spte::Access;
use crate::spte::{Pfn, Spte};
use crate::table::TableId;

/// The owner of the real tables is busy with them: nothing has changed there, and the same call may succeed the next time
/// (`TDX_OPERAND_BUSY`).
///
/// The mirror's entry gets its old value back, and the operation has to be tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Busy;

/// A change of one entry of a mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryChange<F> {
    /// The first frame that the entry is for.
    pub gfn: Gfn,
    /// Its level.
    pub level: Level,
    /// What it was before it was frozen.
    pub old: Spte<F>,
    /// What it is to be. Not present for an entry that goes, whatever is left in its place.
    pub new: Spte<F>,
    /// The table that `new` links to.
    pub table: Option<TableId>,
}

/// The owner of the tables that mirror roots reflect.
///
/// Called for tables whose role has `is_mirror` only. While a call for an entry is under way, the entry is frozen: no two
/// calls for one entry ever overlap, and nobody sees the new value before the call has succeeded.
///
/// KVM counterparts: `kvm_x86_ops.set_external_spte`, `link_external_spt`, `remove_external_spte`, `free_external_spt`,
/// and for a split the one proposed with huge pages for TDX. Later kernels have a single hook for every change and
/// `free_external_spt`: [`External::change`].
pub trait External<F> {
    /// Whether there is one. If not, no entry is ever frozen for it.
    const PRESENT: bool = true;

    /// An entry is to change. Who wants to judge by what it was and what it becomes defines this one; otherwise it goes by
    /// its [kind](External::by_kind).
    ///
    /// # Errors
    /// Busy.
    fn change(&self, change: &EntryChange<F>) -> Result<(), Busy> {
        self.by_kind(change)
    }

    /// Asks the method for that kind of change, and nobody about a link that goes: its table will be freed.
    ///
    /// # Errors
    /// Busy.
    fn by_kind(&self, change: &EntryChange<F>) -> Result<(), Busy> {
        let EntryChange {
            gfn,
            level,
            old,
            new,
            table,
        } = *change;
        match (old.is_leaf(level), table) {
            (true, Some(table)) => self.split_leaf(gfn, level, table),
            (false, Some(table)) => self.link_table(gfn, level, table),
            (_, None) if new.is_leaf(level) => self.set_leaf(gfn, level, new),
            (true, None) => self.remove_leaf(gfn, level, old),
            (false, None) => Ok(()),
        }
    }

    /// A page is to be mapped.
    ///
    /// # Errors
    /// Busy.
    fn set_leaf(&self, gfn: Gfn, level: Level, spte: Spte<F>) -> Result<(), Busy>;

    /// A table is to be linked below an entry of `level`.
    ///
    /// # Errors
    /// Busy.
    fn link_table(&self, gfn: Gfn, level: Level, table: TableId) -> Result<(), Busy>;

    /// A huge page of `level` is to become a table of smaller ones.
    ///
    /// # Errors
    /// Busy.
    fn split_leaf(&self, gfn: Gfn, level: Level, table: TableId) -> Result<(), Busy>;

    /// A page is to be unmapped.
    ///
    /// # Errors
    /// Busy.
    fn remove_leaf(&self, gfn: Gfn, level: Level, spte: Spte<F>) -> Result<(), Busy>;

    /// A table of `level`, empty and unlinked, is to be freed.
    ///
    /// # Errors
    /// Busy: the table is lost for good, as in KVM.
    fn free_table(&self, gfn: Gfn, level: Level, table: TableId) -> Result<(), Busy>;
}

/// No mirror tables.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoExternal;

impl<F> External<F> for NoExternal {
    const PRESENT: bool = false;

    #[inline]
    fn set_leaf(&self, _: Gfn, _: Level, _: Spte<F>) -> Result<(), Busy> {
        Ok(())
    }

    #[inline]
    fn link_table(&self, _: Gfn, _: Level, _: TableId) -> Result<(), Busy> {
        Ok(())
    }

    #[inline]
    fn split_leaf(&self, _: Gfn, _: Level, _: TableId) -> Result<(), Busy> {
        Ok(())
    }

    #[inline]
    fn remove_leaf(&self, _: Gfn, _: Level, _: Spte<F>) -> Result<(), Busy> {
        Ok(())
    }

    #[inline]
    fn free_table(&self, _: Gfn, _: Level, _: TableId) -> Result<(), Busy> {
        Ok(())
    }
}

/// An access that the tables allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Translated {
    /// The guest frame.
    pub gfn: Gfn,
    /// The frame of the host.
    pub pfn: Pfn,
    /// The level of the leaf.
    pub level: Level,
    /// What was asked for.
    pub access: Access,
}

/// What hardware checks once the tables have allowed an access.
pub trait AccessCheck {
    /// What it says if it does not allow the access.
    type Denied: Copy + Debug;

    /// Checks an access.
    ///
    /// # Errors
    /// It is denied.
    fn check(&self, access: &Translated) -> Result<(), Self::Denied>;
}

/// No further check.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoCheck;

impl AccessCheck for NoCheck {
    type Denied = Infallible;

    #[inline]
    fn check(&self, _: &Translated) -> Result<(), Infallible> {
        Ok(())
    }
}
