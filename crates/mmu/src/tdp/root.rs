//! Roots with their tables: finding or making one, and letting one go.

use slat_memslot::{AsId, Gfn};
use thiserror::Error;

use super::events::{Event, Observer};
use super::lock::{Locked, Side};
use crate::role::PageRole;
use crate::roots::{
    Acquired, Dropped, Freed, GuestRoot, Load, Pgd, Released, Root, RootId, RootKind, RootSelect,
    VcpuMmu,
};
use crate::table::TableId;

/// There are as many tables as there may be (`-ENOMEM`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[error("all tables are in use")]
pub struct OutOfTables;

impl<S: Side, O: Observer<S::Format>> Locked<S, O> {
    /// Takes a reference to the root of this role, which is made if there is none
    /// (`tdp_mmu.c:kvm_tdp_mmu_alloc_root`).
    ///
    /// # Errors
    /// A table is needed and there is none.
    pub fn acquire_root(&mut self, role: PageRole) -> Result<Acquired, OutOfTables> {
        let spare = self.spare_root(role)?;
        let acquired = self
            .tables()
            .roots
            .acquire(RootKind::Tdp, role, || spare.table());
        self.settle_spare(acquired, &spare, role);
        Ok(acquired)
    }

    /// Sees to it that a vCPU has a root in use (`mmu.c:kvm_mmu_load`).
    ///
    /// # Errors
    /// A table is needed and there is none.
    pub fn load(&mut self, vcpu: &mut VcpuMmu) -> Result<Load, OutOfTables> {
        if vcpu.cache().current() != Root::None {
            return Ok(Load::InUse(vcpu.cache().current()));
        }
        let role = vcpu.role();
        let spare = self.spare_root(role)?;
        let guest = GuestRoot::Visible(Pgd::ZERO);
        let load = vcpu.load(&self.tables().roots, guest, || spare.table());
        match load {
            Load::Created(root) => self.settle_spare(Acquired::Created(root), &spare, role),
            Load::Shared(root) => self.settle_spare(Acquired::Shared(root), &spare, role),
            Load::InUse(_) | Load::Dummy => {}
        }
        Ok(load)
    }

    /// The table of a root.
    pub fn root_table(&self, root: RootId) -> Option<TableId> {
        self.tables().roots.payload(root)
    }

    /// The tables of the roots of an address space, newest first, for whoever no root can slip away from.
    pub(super) fn root_tables(
        &self,
        select: RootSelect,
        as_id: AsId,
    ) -> impl Iterator<Item = TableId> + use<S, O> {
        let roots = &self.tables().roots;
        let wanted = |role: PageRole| {
            (select == RootSelect::All || !role.is_invalid()) && role.as_id() == as_id
        };
        let all = roots.iter().filter(|(_, role)| wanted(*role));
        let tables: Vec<TableId> = all.filter_map(|(root, _)| roots.payload(root)).collect();
        tables.into_iter()
    }

    /// A table that is ready to be a root's, if there is no root of this role. It is made before it is known whether
    /// it is needed, so that it is whole when others can find it.
    ///
    /// A valid root stays valid while this side of the lock is held, so one that is there is found again.
    fn spare_root(&self, role: PageRole) -> Result<Spare, OutOfTables> {
        let tables = self.tables();
        if tables.roots.find(RootKind::Tdp, role).is_some() {
            return Ok(Spare(None));
        }
        let table = tables.arena.allocate().ok_or(OutOfTables)?;
        tables.describe(table, role, Gfn::new(0), None);
        Ok(Spare(Some(table)))
    }

    fn settle_spare(&mut self, acquired: Acquired, spare: &Spare, role: PageRole) {
        match (acquired, spare.0) {
            (Acquired::Shared(_), Some(table)) => self.tables().arena.recycle(table),
            (Acquired::Created(_), Some(table)) => {
                if O::EVENTS {
                    let gfn = Gfn::new(0);
                    self.observer
                        .event(Event::PageAllocated { table, gfn, role });
                }
            }
            (_, None) => {}
        }
    }

    /// Gives up a reference (`tdp_mmu.c:kvm_tdp_mmu_put_root`).
    pub fn put_root(&mut self, root: RootId) {
        match self.tables().roots.release(root) {
            Released::Freed(freed) => self.free_root(freed),
            Released::Kept(_) => {}
        }
    }

    /// Frees the table of a root that is gone.
    pub fn free_root(&mut self, freed: Freed<TableId>) {
        self.side.free_table(freed.payload);
    }

    /// Frees the tables of the roots that a vCPU has given up and that nobody else holds.
    pub fn free_roots(&mut self, dropped: impl IntoIterator<Item = Dropped<TableId>>) {
        for each in dropped {
            if let Dropped::Page(Released::Freed(freed)) = each {
                self.free_root(freed);
            }
        }
    }
}

/// A table for a root, where one may be needed.
struct Spare(Option<TableId>);

impl Spare {
    fn table(&self) -> TableId {
        self.0
            .expect("a valid root does not go while the lock is held")
    }
}
