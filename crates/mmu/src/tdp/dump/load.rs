//! From a dump back to tables.

use std::collections::HashMap;

use slat_memslot::{Gfn, Level};
use thiserror::Error;

use super::{Dump, RawTable, Root, RootNumber};
use crate::host::SecondStage;
use crate::role::{PageRole, RoleFlag};
use crate::roots::RootKind;
use crate::spte::{Format, Pfn, Spte};
use crate::sync::Ordering;
use crate::table::{ENTRIES, TableId, span};
use crate::tdp::page::Parent;
use crate::tdp::tables::{Limits, Tables};

/// Why a dump cannot be made tables again.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LoadError {
    /// It is a dump of another format than the tables'.
    #[error("the dump is of {found:?} tables")]
    Format {
        /// The dump's.
        found: SecondStage,
    },
    /// It was taken without [`Detail::Entries`](super::Detail::Entries).
    #[error("root {root} has no raw tables")]
    NoEntries {
        /// The root.
        root: RootNumber,
    },
    /// Its first table is not that of the root, or a later one's level or frame does not fit its entry's.
    #[error("table {table} of root {root} is not where it is linked")]
    Misplaced {
        /// The root.
        root: RootNumber,
        /// The table, by its number in the dump.
        table: u32,
    },
    /// Two tables have one number.
    #[error("table {table} comes twice")]
    Twice {
        /// The number.
        table: u32,
    },
    /// Two valid roots have the same role: the TDP MMU would find the first again.
    #[error("roots {root} and another have the same role")]
    SameRole {
        /// The second.
        root: RootNumber,
    },
    /// An entry's number is too large.
    #[error("table {table} has no entry {index}")]
    NoEntry {
        /// The table.
        table: u32,
        /// The number.
        index: u16,
    },
    /// There are too many tables.
    #[error("more tables than there may be")]
    TooMany,
}

impl<F: Format> Tables<F> {
    /// Tables with the entries of a dump, bit for bit; a link's frame is the number of the table in the dump. A link to a table
    /// that the dump does not have is kept as it is, which an [audit](super::super::audit) reports.
    ///
    /// References are those of the TDP MMU and one more; which vCPU holds which root is not in a dump.
    ///
    /// # Errors
    /// The dump is of another format, has no raw entries, or contradicts itself.
    ///
    /// ```
    /// use slat_mmu::role::{VcpuState, root_role_for_tdp};
    /// use slat_mmu::tdp::audit::AuditContext;
    /// use slat_mmu::tdp::{Tables, Unobserved, dump::Detail};
    /// use slat_mmu::{host::Host, spte::Npt};
    ///
    /// let host = Host::npt(48);
    /// let mut tables = Tables::<Npt>::new(&host);
    /// let role = root_role_for_tdp(&VcpuState::default(), &host.tdp().unwrap());
    /// tables.exclusive(Unobserved).acquire_root(role).unwrap();
    /// let dump = tables.dump(Detail::Entries);
    /// let mut again = Tables::<Npt>::from_dump(&dump)?;
    /// assert_eq!(again.audit(&AuditContext::default()), []);
    /// assert_eq!(again.dump(Detail::Entries), dump);
    /// # Ok::<(), slat_mmu::tdp::dump::LoadError>(())
    /// ```
    pub fn from_dump(dump: &Dump) -> Result<Self, LoadError> {
        let is_ept = dump.host.second_stage == SecondStage::Ept;
        if is_ept != (F::EXECUTE != 0) {
            let found = dump.host.second_stage;
            return Err(LoadError::Format { found });
        }
        let count: usize = dump.roots.iter().map(|root| root.entries.len()).sum();
        let count = u32::try_from(count).map_err(|_| LoadError::TooMany)?;
        let limits = Limits {
            tables: count,
            ..Limits::default()
        };
        let mut tables = Self::with_limits(&dump.host, limits);
        // The oldest first. An invalid root is made valid and invalidated, which must not reach others.
        let oldest = || dump.roots.iter().rev();
        for root in oldest().filter(|root| root.role.is_invalid()) {
            tables.load_root(root)?;
            tables.roots.invalidate_all();
        }
        for root in oldest().filter(|root| !root.role.is_invalid()) {
            tables.load_root(root)?;
        }
        Ok(tables)
    }

    fn load_root(&mut self, root: &Root) -> Result<(), LoadError> {
        let number = root.number;
        let first = root.entries.first();
        let first = first.ok_or(LoadError::NoEntries { root: number })?;
        if first.level != root.role.level() || first.gfn != Gfn::new(0) {
            let table = first.table;
            return Err(LoadError::Misplaced {
                root: number,
                table,
            });
        }
        let new = self.number_tables(root)?;
        for raw in &root.entries {
            self.load_table(number, root.role, raw, &new)?;
        }
        let top = new.get(&first.table).copied().ok_or(LoadError::TooMany)?;
        self.describe(top, root.role, Gfn::new(0), None);
        let valid = root.role.without(RoleFlag::Invalid);
        if self.roots.find(RootKind::Tdp, valid).is_some() {
            return Err(LoadError::SameRole { root: number });
        }
        self.roots.acquire(RootKind::Tdp, valid, || top);
        Ok(())
    }

    /// A table here for each one of the dump, by its number there.
    fn number_tables(&self, root: &Root) -> Result<HashMap<u32, TableId>, LoadError> {
        let mut new = HashMap::with_capacity(root.entries.len());
        for raw in &root.entries {
            let table = self.arena.allocate().ok_or(LoadError::TooMany)?;
            if new.insert(raw.table, table).is_some() {
                return Err(LoadError::Twice { table: raw.table });
            }
            let role = table_role(root.role, raw.level);
            self.describe(table, role, raw.gfn, None);
        }
        Ok(new)
    }

    fn load_table(
        &mut self,
        root: RootNumber,
        role: PageRole,
        raw: &RawTable,
        new: &HashMap<u32, TableId>,
    ) -> Result<(), LoadError> {
        let Some(&table) = new.get(&raw.table) else {
            return Err(LoadError::TooMany);
        };
        for &(index, value) in &raw.entries {
            let at = usize::from(index);
            if at >= ENTRIES {
                let table = raw.table;
                return Err(LoadError::NoEntry { table, index });
            }
            let spte = Spte::<F>::from_raw(value);
            let child = self.child_in_dump(spte, raw.level, new);
            let stored = child.map_or(value, |child| self.relinked(value, child));
            self.entry(table, at).store(stored, Ordering::Relaxed);
            if let Some(counts) = self.counts.last() {
                if spte.is_leaf(raw.level) {
                    counts.add_leaves(raw.level, 1);
                }
                counts.add_tables(i64::from(child.is_some()));
            }
            let (Some(child), Some(below)) = (child, raw.level.child()) else {
                continue;
            };
            let gfn = Gfn::new(raw.gfn.raw() + u64::from(index) * span(raw.level));
            let (found, at) = (self.page(child), Parent { table, index: at });
            if found.role().level() != below || found.gfn() != gfn {
                let table = raw.table;
                return Err(LoadError::Misplaced { root, table });
            }
            self.describe(child, table_role(role, below), gfn, Some(at));
        }
        Ok(())
    }

    /// The table that an entry of the dump links to.
    fn child_in_dump(
        &self,
        spte: Spte<F>,
        level: Level,
        new: &HashMap<u32, TableId>,
    ) -> Option<TableId> {
        let number = spte.is_link(level).then(|| self.codec.pfn(spte).raw())?;
        new.get(&u32::try_from(number).ok()?).copied()
    }

    /// A link that leads to another table.
    fn relinked(&self, link: u64, table: TableId) -> u64 {
        let frame = Pfn::new(u64::from(table.raw()));
        link & !self.codec.masks().address | frame.raw() << 12
    }
}

/// The role of a table of this level below a root; being invalid is a root's alone.
fn table_role(root: PageRole, level: Level) -> PageRole {
    root.without(RoleFlag::Invalid).with_level(level)
}
